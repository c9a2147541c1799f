//! An image inside a network. Models say what happens to channels and pixels, never which axis they are.
use super::{own_kernels_for, with_f32, write_f32};
use crate::engine::kernels;
use candle_core::{Result, Tensor};

/// A batch of images, channels last: `(b, h, w, c)`, so that pixels are rows and attention needs no transposes.
#[derive(Clone, Debug)]
pub struct Map(Tensor);

impl Map {
    /// From the order of checkpoints and schedulers, `(b, c, h, w)`.
    pub fn from_nchw(x: &Tensor) -> Result<Self> {
        Ok(Self(x.permute((0, 2, 3, 1))?.contiguous()?))
    }

    /// To `(b, c, h, w)`.
    pub fn to_nchw(&self) -> Result<Tensor> {
        self.0.permute((0, 3, 1, 2))?.contiguous()
    }

    pub(super) fn from_nhwc(x: Tensor) -> Self {
        Self(x)
    }

    pub(super) fn nhwc(&self) -> &Tensor {
        &self.0
    }

    /// `(b, h, w, c)`
    pub fn dims(&self) -> Result<(usize, usize, usize, usize)> {
        self.0.dims4()
    }

    /// Height and width.
    pub fn size(&self) -> Result<(usize, usize)> {
        let (_, h, w, _) = self.dims()?;
        Ok((h, w))
    }

    /// The pixels as a sequence: `(b, h*w, c)`.
    pub fn tokens(&self) -> Result<Tensor> {
        let (b, h, w, c) = self.dims()?;
        self.0.reshape((b, h * w, c))
    }

    /// A map of this one's height and width from a sequence `(b, h*w, c)`.
    pub fn with_tokens(&self, tokens: &Tensor) -> Result<Map> {
        let (b, h, w, _) = self.dims()?;
        let (_, _, c) = tokens.dims3()?;
        Ok(Map(tokens.reshape((b, h, w, c))?))
    }

    /// The channels of both, this one's first.
    pub fn concat_channels(&self, other: &Map) -> Result<Map> {
        Ok(Map(Tensor::cat(&[&self.0, &other.0], 3)?))
    }

    /// `self * (1 + scale) + shift`, both `(b, c)`.
    pub fn scale_shift(&self, scale: &Tensor, shift: &Tensor) -> Result<Map> {
        let spread = |v: &Tensor| v.unsqueeze(1)?.unsqueeze(1);
        Ok(Map(self
            .0
            .broadcast_mul(&spread(&(scale + 1.0)?)?)?
            .broadcast_add(&spread(shift)?)?))
    }

    /// Nearest-neighbour interpolation to `(h, w)`: the pixel at `floor(i * from / to)`, as torch's `interpolate(size=...)`.
    pub fn resize_nearest(&self, to: (usize, usize)) -> Result<Map> {
        if own_kernels_for(&self.0) {
            let (b, h, w, c) = self.dims()?;
            return Ok(Map(with_f32(&self.0, |x| {
                write_f32((b, to.0, to.1, c), |y| {
                    kernels::upsample_nearest(x, (b, h, w, c), to, y)
                })
            })??));
        }
        let source = |from: usize, to: usize| -> Vec<u32> {
            let scale = from as f32 / to as f32;
            (0..to)
                .map(|i| ((i as f32 * scale) as usize).min(from - 1) as u32)
                .collect()
        };
        let (h, w) = self.size()?;
        let device = self.0.device();
        let rows = Tensor::new(source(h, to.0), device)?;
        let columns = Tensor::new(source(w, to.1), device)?;
        Ok(Map(self
            .0
            .index_select(&columns, 2)?
            .index_select(&rows, 1)?))
    }
}
