//! Samplers: how a sample at one noise level becomes one at the next.
//!
//! [`SchedulerConfig`] reads the file, [`SchedulerKind`] names the class, [`SchedulerConfig::build`] gives the sampler for one run.
//! To add one: its file, and its lines in this file (the compiler lists the missing ones).
mod algebra;
mod config;
mod ddim;
mod ddpm;
mod dpmpp_2m;
mod euler;
mod euler_ancestral;
mod pndm;
pub mod schedule;
mod sigmas;
mod unipc;

use super::noise::Noise;
use candle_core::{Result, Tensor};
use clap::ValueEnum;
pub use config::{Key, Request, Rule, SchedulerConfig, Settings, Source};

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

/// The samplers by their names on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, ValueEnum)]
pub enum SchedulerKind {
    Ddpm,
    Ddim,
    Pndm,
    Unipc,
    Euler,
    EulerAncestral,
    #[value(name = "dpmpp-2m")]
    Dpmpp2m,
}

impl SchedulerKind {
    /// The class of diffusers that this is.
    pub fn class(self) -> &'static str {
        match self {
            Self::Ddpm => "DDPMScheduler",
            Self::Ddim => "DDIMScheduler",
            Self::Pndm => "PNDMScheduler",
            Self::Unipc => "UniPCMultistepScheduler",
            Self::Euler => "EulerDiscreteScheduler",
            Self::EulerAncestral => "EulerAncestralDiscreteScheduler",
            Self::Dpmpp2m => "DPMSolverMultistepScheduler",
        }
    }

    /// The keys that the class reads.
    pub fn keys(self) -> &'static [Key] {
        match self {
            Self::Ddpm => ddpm::KEYS,
            Self::Ddim => ddim::KEYS,
            Self::Pndm => pndm::KEYS,
            Self::Unipc => unipc::KEYS,
            Self::Euler => euler::KEYS,
            Self::EulerAncestral => euler_ancestral::KEYS,
            Self::Dpmpp2m => dpmpp_2m::KEYS,
        }
    }

    /// The word that the class takes another class's `word` for; `word` itself where it has an own meaning.
    fn alias<'a>(self, key: &str, word: &'a str) -> &'a str {
        match (self, key, word) {
            (Self::Unipc, "solver_type", "midpoint" | "heun" | "logrho") => "bh2",
            (Self::Dpmpp2m, "solver_type", "logrho" | "bh1" | "bh2") => "midpoint",
            (Self::Dpmpp2m, "algorithm_type", "deis") => "dpmsolver++",
            _ => word,
        }
    }

    fn build(self, settings: &Settings, request: &Request) -> anyhow::Result<Box<dyn Scheduler>> {
        Ok(match self {
            Self::Ddpm => Box::new(ddpm::Ddpm::new(settings, request)?),
            Self::Ddim => Box::new(ddim::Ddim::new(settings, request)?),
            Self::Pndm => Box::new(pndm::Pndm::new(settings, request)?),
            Self::Unipc => Box::new(unipc::UniPc::new(settings, request)?),
            Self::Euler => Box::new(euler::Euler::new(settings, request)?),
            Self::EulerAncestral => {
                Box::new(euler_ancestral::EulerAncestral::new(settings, request)?)
            }
            Self::Dpmpp2m => Box::new(dpmpp_2m::Dpmpp2m::new(settings, request)?),
        })
    }
}
