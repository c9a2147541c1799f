//! The place of `card` in a build without CUDA, where no tensor lies on a card.
pub use super::no_recording::{Recording, free, record, trim, warm};
use super::{Args, Card, Work};
use candle_core::{Device, Result, Shape, Tensor};

pub fn serves(_device: &Device) -> bool {
    false
}

pub fn card(_device: &Device) -> Result<Card> {
    candle_core::bail!("this build has no CUDA")
}

pub fn run<A: Args>(_work: Work<A>, _inputs: &[Option<&Tensor>], _shape: Shape) -> Result<Tensor> {
    candle_core::bail!("this build has no CUDA")
}
