//! An image inside a network. Models say what happens to channels and pixels, never which axis they are.
use super::{Values, values};
use crate::engine::kernels::{self, Parts};
use candle_core::{Result, Storage, Tensor};
use std::ops::Deref;

/// A batch of images, channels last: `(b, h, w, c)`, so that pixels are rows and attention needs no transposes.
///
/// Two maps joined on channels stay two in memory: norms and convolutions read both, anything else has them copied together.
#[derive(Clone, Debug)]
pub struct Map {
    first: Tensor,
    rest: Option<Tensor>,
}

impl Map {
    /// From the order of checkpoints and schedulers, `(b, c, h, w)`.
    pub fn from_nchw(x: &Tensor) -> Result<Self> {
        Ok(Self::from_nhwc(x.permute((0, 2, 3, 1))?.contiguous()?))
    }

    /// To `(b, c, h, w)`.
    pub fn to_nchw(&self) -> Result<Tensor> {
        self.nhwc()?.permute((0, 3, 1, 2))?.contiguous()
    }

    /// From a contiguous tensor.
    pub(super) fn from_nhwc(first: Tensor) -> Self {
        Self { first, rest: None }
    }

    /// One tensor, contiguous.
    pub(super) fn nhwc(&self) -> Result<Tensor> {
        match &self.rest {
            Some(rest) => Tensor::cat(&[&self.first, rest], 3),
            None => Ok(self.first.clone()),
        }
    }

    /// The one tensor or the two, contiguous, for kernels that read both.
    pub(super) fn parts(&self) -> (&Tensor, Option<&Tensor>) {
        (&self.first, self.rest.as_ref())
    }

    /// The numbers, for kernels on the CPU.
    pub(super) fn values(&self) -> Result<MapValues<impl Deref<Target = Storage>>> {
        Ok(MapValues {
            first: (values(&self.first)?, self.first.dim(3)?),
            rest: match &self.rest {
                Some(rest) => Some((values(rest)?, rest.dim(3)?)),
                None => None,
            },
        })
    }

    /// `(b, h, w, c)`
    pub fn dims(&self) -> Result<(usize, usize, usize, usize)> {
        let (b, h, w, c) = self.first.dims4()?;
        let more = self.rest.as_ref().map_or(Ok(0), |rest| rest.dim(3))?;
        Ok((b, h, w, c + more))
    }

    /// Height and width.
    pub fn size(&self) -> Result<(usize, usize)> {
        let (_, h, w, _) = self.dims()?;
        Ok((h, w))
    }

    /// The pixels as a sequence: `(b, h*w, c)`.
    pub fn tokens(&self) -> Result<Tensor> {
        let (b, h, w, c) = self.dims()?;
        self.nhwc()?.reshape((b, h * w, c))
    }

    /// A map of this one's height and width from a sequence `(b, h*w, c)` of any batch.
    pub fn with_tokens(&self, tokens: &Tensor) -> Result<Map> {
        let (h, w) = self.size()?;
        let (b, _, c) = tokens.dims3()?;
        Ok(Map::from_nhwc(tokens.reshape((b, h, w, c))?.contiguous()?))
    }

    /// The channels of both, this one's first.
    pub fn concat_channels(self, other: Map) -> Result<Map> {
        Ok(Self {
            first: self.nhwc()?,
            rest: Some(other.nhwc()?),
        })
    }

    /// `self * (1 + scale) + shift`, both `(b, c)`.
    pub fn scale_shift(&self, scale: &Tensor, shift: &Tensor) -> Result<Map> {
        let spread = |v: &Tensor| v.unsqueeze(1)?.unsqueeze(1);
        Ok(Map::from_nhwc(
            self.nhwc()?
                .broadcast_mul(&spread(&(scale + 1.0)?)?)?
                .broadcast_add(&spread(shift)?)?,
        ))
    }

    /// Nearest-neighbour interpolation to `(h, w)`, as torch's `interpolate(size=...)`, made in memory.
    pub(super) fn enlarged(&self, to: (usize, usize)) -> Result<Map> {
        let (h, w) = self.size()?;
        let lines = |from, to| -> Vec<u32> {
            (0..to)
                .map(|i| kernels::nearest(i, from, to) as u32)
                .collect()
        };
        let x = self.nhwc()?;
        let rows = Tensor::new(lines(h, to.0), x.device())?;
        let columns = Tensor::new(lines(w, to.1), x.device())?;
        Ok(Map::from_nhwc(
            x.index_select(&columns, 2)?.index_select(&rows, 1)?,
        ))
    }
}

/// The numbers of a map's one or two tensors, each with its channels.
pub(super) struct MapValues<S> {
    first: (Values<S>, usize),
    rest: Option<(Values<S>, usize)>,
}

impl<S: Deref<Target = Storage>> MapValues<S> {
    pub fn parts(&self) -> Result<Parts<'_>> {
        let first = (self.first.0.f32()?, self.first.1);
        Ok(match &self.rest {
            Some(rest) => Parts::joined(first, (rest.0.f32()?, rest.1)),
            None => Parts::whole(first.0, first.1),
        })
    }
}
