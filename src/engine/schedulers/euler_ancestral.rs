//! Euler's method with ancestral noise, as in k-diffusion: each step goes below the next level and adds noise back up to it.
use super::{
    About, Key, Request, Scheduler, Settings,
    algebra::Prediction,
    euler,
    keys::*,
    schedule::*,
    sigmas::{self, Habits},
};
use crate::engine::noise::Noise;
use candle_core::{Result, Tensor};

pub const KEYS: &[Key] = &[
    TRAIN, BETA_START, BETA_END, BETAS, TRAINED, NOISE_OR_V, LINSPACE, OFFSET, ZERO_SNR,
];

pub const ABOUT: About = About {
    random: true,
    ..About::new(
        "euler-ancestral",
        "EulerAncestralDiscreteScheduler",
        KEYS,
        |settings, request| Ok(Box::new(EulerAncestral::new(settings, request)?)),
    )
};

pub struct EulerAncestral {
    levels: sigmas::Levels,
    prediction: Prediction,
    init: f64,
}

impl EulerAncestral {
    pub fn new(settings: &Settings, request: &Request) -> anyhow::Result<Self> {
        let levels = sigmas::continuous(
            settings,
            &alpha_bar_above_zero(settings)?,
            request,
            Habits::default(),
        )?;
        ensure_finite(&levels.sigmas)?;
        let init = sigmas::init_noise_sigma(settings, &levels.sigmas);
        Ok(Self {
            levels,
            prediction: Prediction::of(settings),
            init,
        })
    }
}

/// The part of `next` that is fresh noise, and the level below it that the step goes to.
pub fn up_and_down(sigma: f64, next: f64) -> (f64, f64) {
    let up = (next * next * (sigma * sigma - next * next) / (sigma * sigma)).sqrt();
    (up, (next * next - up * up).sqrt())
}

impl Scheduler for EulerAncestral {
    fn timesteps(&self) -> &[f64] {
        &self.levels.timesteps
    }

    fn sigma(&self, i: usize) -> f64 {
        self.levels.sigmas[i]
    }

    fn init_noise_sigma(&self) -> f64 {
        self.init
    }

    fn scale_input(&self, i: usize, x: &Tensor) -> Result<Tensor> {
        euler::scale(self.levels.sigmas[i], x)
    }

    fn step(&mut self, i: usize, x: &Tensor, output: &Tensor, noise: &mut Noise) -> Result<Tensor> {
        let (sigma, next) = (self.levels.sigmas[i], self.levels.sigmas[i + 1]);
        let (up, down) = up_and_down(sigma, next);
        let x0 = euler::x0(self.prediction, sigma, x, &output.to_dtype(x.dtype())?)?;
        let d = ((x - x0)? / sigma)?;
        // The last step adds noise of weight 0; it is drawn all the same, as the reference does.
        (x + (d * (down - sigma))?)? + (noise.normal_like(x)? * up)?
    }
}
