//! Samplers: how a sample at one noise level becomes one at the next.
use super::noise::Noise;
use candle_core::{Result, Tensor};

/// One sampler, ready to use: built for a number of steps and used for one batch.
///
/// Calls of the model are addressed by their index `i`, so timesteps may be fractional or repeat (PNDM, Heun).
pub trait Scheduler {
    /// The timestep that the model is given at each call, in order.
    fn timesteps(&self) -> &[f64];
    /// Standard deviation of the noise that the first call starts from.
    fn init_noise_sigma(&self) -> f64 {
        1.0
    }
    /// What the model sees at call `i`.
    fn scale_input(&self, _i: usize, x: &Tensor) -> Result<Tensor> {
        Ok(x.clone())
    }
    /// `x_t -> x_{t-1}`; `x` and `output` are `(b, c, h, w)`.
    fn step(&mut self, i: usize, x: &Tensor, output: &Tensor, noise: &mut Noise) -> Result<Tensor>;
}

// STUB below
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum SchedulerKind {
    Ddpm,
    Ddim,
    Pndm,
    #[value(name = "unipc")]
    UniPc,
    Euler,
    EulerAncestral,
    #[value(name = "dpmpp-2m")]
    Dpmpp2m,
}
