//! Two-dimensional convolution on maps.
use super::Map;
use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;

/// The geometry of a convolution with a square kernel.
#[derive(Clone, Copy, Debug)]
pub struct ConvShape {
    pub in_channels: usize,
    pub out_channels: usize,
    pub kernel: usize,
    pub stride: usize,
    /// Zeros before the first and after the last row and column; they differ where the checkpoint asks for `downsample_padding` 0.
    pub padding: (usize, usize),
}

impl ConvShape {
    /// Stride 1 and a map of the same size: `kernel` is odd.
    pub fn same(in_channels: usize, out_channels: usize, kernel: usize) -> Self {
        let padding = (kernel / 2, kernel / 2);
        Self { in_channels, out_channels, kernel, stride: 1, padding }
    }
}

/// `y = W * x + bias`, by the device's own library.
pub struct Conv2d {
    shape: ConvShape,
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Conv2d {
    /// Loads `weight` `(out, in, kernel, kernel)` and `bias` `(out)`.
    pub fn load(vb: VarBuilder, shape: ConvShape) -> Result<Self> {
        let ConvShape { in_channels, out_channels, kernel, .. } = shape;
        let weight = vb.get((out_channels, in_channels, kernel, kernel), "weight")?;
        let bias = Some(vb.get(out_channels, "bias")?);
        Ok(Self { shape, weight, bias })
    }

    pub fn forward(&self, x: &Map) -> Result<Map> {
        let x = x.to_nchw()?;
        let (before, after) = self.shape.padding;
        let (x, padding) = match before == after {
            true => (x, before),
            false => (x.pad_with_zeros(2, before, after)?.pad_with_zeros(3, before, after)?, 0),
        };
        let y = x.conv2d(&self.weight, padding, self.shape.stride, 1, 1)?;
        let y = match &self.bias {
            Some(bias) => y.broadcast_add(&bias.reshape((1, self.shape.out_channels, 1, 1))?)?,
            None => y,
        };
        Map::from_nchw(&y)
    }

    /// `W * x + bias + shift`, the shift `(b, out_channels)` the same for every pixel.
    pub fn forward_shifted(&self, x: &Map, shift: &Tensor) -> Result<Map> {
        let y = self.forward(x)?;
        Ok(Map::from_nhwc(y.nhwc().broadcast_add(&shift.unsqueeze(1)?.unsqueeze(1)?)?))
    }

    /// `(W * x + bias + residual) / divisor`
    pub fn forward_residual(&self, x: &Map, residual: &Map, divisor: f64) -> Result<Map> {
        let y = (self.forward(x)?.nhwc() + residual.nhwc())?;
        Ok(Map::from_nhwc(if divisor == 1.0 { y } else { (y / divisor)? }))
    }
}
