//! Two-dimensional convolution on maps.
use super::{Map, own_kernels, small, with_f32, with_optional, with_weights, write_f32};
use crate::engine::kernels::{self, Epilogue, PackedConv2d};
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
        Self {
            in_channels,
            out_channels,
            kernel,
            stride: 1,
            padding,
        }
    }
}

/// `y = W * x + bias`
pub enum Conv2d {
    Packed(PackedConv2d),
    Candle {
        shape: ConvShape,
        weight: Tensor,
        bias: Tensor,
    },
}

impl Conv2d {
    /// Loads `weight` `(out, in, kernel, kernel)` and `bias` `(out)`.
    pub fn load(vb: VarBuilder, shape: ConvShape) -> Result<Self> {
        let ConvShape {
            in_channels,
            out_channels,
            kernel,
            stride,
            padding: (before, after),
        } = shape;
        let weight = vb.get((out_channels, in_channels, kernel, kernel), "weight")?;
        if !own_kernels(&vb) {
            return Ok(Self::Candle {
                shape,
                weight,
                bias: vb.get(out_channels, "bias")?,
            });
        }
        let bias = small(&vb, out_channels, "bias")?;
        let padding = [before, after, before, after];
        let shape = kernels::ConvShape {
            in_channels,
            out_channels,
            kernel: (kernel, kernel),
            stride,
            padding,
        };
        with_weights(&weight, |weight| {
            Self::Packed(PackedConv2d::pack(shape, weight, Some(&bias)))
        })
    }

    pub fn forward(&self, x: &Map) -> Result<Map> {
        self.run(x, None, None, 1.0)
    }

    /// `W * x + bias + shift`, the shift `(1, out_channels)` the same for every pixel of every image.
    pub fn forward_shifted(&self, x: &Map, shift: &Tensor) -> Result<Map> {
        self.run(x, Some(shift), None, 1.0)
    }

    /// `(W * x + bias + residual) / divisor`
    pub fn forward_residual(&self, x: &Map, residual: &Map, divisor: f64) -> Result<Map> {
        self.run(x, None, Some(residual), divisor)
    }

    fn run(
        &self,
        x: &Map,
        shift: Option<&Tensor>,
        residual: Option<&Map>,
        divisor: f64,
    ) -> Result<Map> {
        match self {
            Self::Packed(conv) => run_packed(conv, x, shift, residual, divisor),
            Self::Candle {
                shape,
                weight,
                bias,
            } => run_candle(shape, (weight, bias), x, shift, residual, divisor),
        }
    }
}

fn run_packed(
    conv: &PackedConv2d,
    x: &Map,
    shift: Option<&Tensor>,
    residual: Option<&Map>,
    divisor: f64,
) -> Result<Map> {
    let (b, h, w, _) = x.dims()?;
    let Some((oh, ow)) = conv.output_size(h, w) else {
        candle_core::bail!("a map of {w}x{h} is too small for this model")
    };
    let y = with_f32(x.nhwc(), |x| {
        with_optional(shift, |shift| {
            with_optional(residual.map(Map::nhwc), |residual| {
                let epilogue = Epilogue {
                    shift,
                    residual,
                    scale: (1.0 / divisor) as f32,
                    activation: None,
                };
                write_f32((b, oh, ow, conv.shape().out_channels), |y| {
                    conv.run(x, (b, h, w), epilogue, y)
                })
            })
        })
    })????;
    Ok(Map::from_nhwc(y))
}

fn run_candle(
    shape: &ConvShape,
    (weight, bias): (&Tensor, &Tensor),
    x: &Map,
    shift: Option<&Tensor>,
    residual: Option<&Map>,
    divisor: f64,
) -> Result<Map> {
    let x = x.to_nchw()?;
    let (before, after) = shape.padding;
    let (x, padding) = match before == after {
        true => (x, before),
        false => (
            x.pad_with_zeros(2, before, after)?
                .pad_with_zeros(3, before, after)?,
            0,
        ),
    };
    let y = x.conv2d(weight, padding, shape.stride, 1, 1)?;
    let mut y = Map::from_nchw(&y)?.nhwc().broadcast_add(bias)?;
    if let Some(shift) = shift {
        y = y.broadcast_add(shift)?;
    }
    if let Some(residual) = residual {
        y = (y + residual.nhwc())?;
    }
    Ok(Map::from_nhwc(if divisor == 1.0 {
        y
    } else {
        (y / divisor)?
    }))
}
