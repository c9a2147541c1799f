//! How fast this machine is, by trying.
use super::Work;
use crate::engine::nn::{Conv2d, ConvShape, Map, attention};
use crate::engine::runtime::Runtime;
use anyhow::Result;
use candle_core::{DType, Tensor};
use candle_nn::VarBuilder;
use std::time::Instant;

/// Seconds that each of the three trials is given.
const TRIAL: f64 = 0.15;

impl Runtime {
    /// Seconds that `work` takes here, about; finding out takes half of one.
    pub fn seconds(&self, work: Work) -> Result<f64> {
        // Of the size that UNets are made of, and one so small that the call is all of it.
        let (large, multiplications) = self.conv(320, 32)?;
        let (small, _) = self.conv(8, 4)?;
        let (multiplication, layer) = (mean(large)? / multiplications, mean(small)?);
        let (tokens, heads, head_dim) = (1024, 8, 8);
        let zeros = |rows| {
            Tensor::zeros(
                (1, rows, heads * head_dim),
                self.activations(),
                &self.device,
            )
        };
        let (q, kv) = (zeros(tokens)?, zeros(tokens)?);
        let scores = (tokens * tokens * heads) as f64;
        let spent = mean(|| Ok(attention(&q, &kv, &kv, heads, false)?))?;
        let apart = layer + 2.0 * scores * head_dim as f64 * multiplication;
        let score = (spent - apart).max(0.0) / scores;
        Ok(work.multiplications * multiplication + work.scores * score + work.layers * layer)
    }

    /// A convolution of 3 x 3 on two maps of `side` x `side`, and its multiplications.
    fn conv(&self, channels: usize, side: usize) -> Result<(impl Fn() -> Result<Tensor>, f64)> {
        let vb = VarBuilder::zeros(self.activations(), &self.device);
        let layer = Conv2d::load(vb, ConvShape::same(channels, channels, 3))?;
        let x = Tensor::zeros((2, channels, side, side), self.activations(), &self.device)?;
        let x = Map::from_nchw(&x)?;
        let run = move || Ok(layer.forward(&x)?.to_nchw()?);
        Ok((run, (2 * 9 * channels * channels * side * side) as f64))
    }
}

/// Seconds of a run. The mean and not the best: what others leave of the machine is what there is.
fn mean(run: impl Fn() -> Result<Tensor>) -> Result<f64> {
    let timed = || -> Result<f64> {
        let start = Instant::now();
        // On CUDA, reading a number back waits for the work.
        run()?.sum_all()?.to_dtype(DType::F32)?.to_scalar::<f32>()?;
        Ok(start.elapsed().as_secs_f64())
    };
    timed()?;
    let (mut spent, mut runs) = (0.0, 0.0);
    while spent < TRIAL {
        spent += timed()?;
        runs += 1.0;
    }
    Ok(spent / runs)
}
