//! The place of `card` in a build without CUDA, where no tensor lies on a card.
use super::{Args, Card, Work};
use candle_core::{DType, Device, Result, Shape, Tensor};

pub fn serves(_device: &Device) -> bool {
    false
}

pub fn card(_device: &Device) -> Result<Card> {
    candle_core::bail!("this build has no CUDA")
}

pub fn run<A: Args>(
    _work: Work<A>,
    _inputs: &[Option<&Tensor>],
    _result: (Shape, DType),
) -> Result<Tensor> {
    candle_core::bail!("this build has no CUDA")
}

/// Of a build that records nothing.
pub struct Recording;

impl Recording {
    pub fn start(&self) -> Result<()> {
        candle_core::bail!("this build has no CUDA")
    }
}

pub fn warm<T>(_device: &Device, f: impl FnOnce() -> Result<T>) -> Result<T> {
    f()
}

pub fn record(_device: &Device, _f: impl FnOnce() -> Result<()>) -> Result<Recording> {
    candle_core::bail!("this build has no CUDA")
}
