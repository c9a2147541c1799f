//! TCD: Zheng et al. 2024, "Trajectory Consistency Distillation", strategic stochastic sampling.
//!
//! Each call follows the trajectory to s = (1 - gamma) t_next and adds noise back up to t_next. gamma is `eta`: with 0, which
//! the reference's pipeline passes, no noise is added.
use super::{
    About, Request, Scheduler, Settings,
    algebra::{Prediction, combine},
    lcm::{self, KEYS},
    schedule::*,
};
use crate::engine::noise::Noise;
use candle_core::{Result, Tensor};

pub const ABOUT: About = About {
    timesteps: true,
    eta: true,
    ..About::new("tcd", "TCDScheduler", KEYS, |settings, request| {
        Ok(Box::new(Tcd::new(settings, request)?))
    })
};

pub struct Tcd {
    timesteps: Vec<f64>,
    calls: Vec<Call>,
    prediction: Prediction,
}

struct Call {
    alpha: f64,
    sigma: f64,
    alpha_s: f64,
    sigma_s: f64,
    /// The share of the sample at s and of the noise, where noise is added.
    noise: Option<(f64, f64)>,
}

impl Tcd {
    pub fn new(settings: &Settings, request: &Request) -> anyhow::Result<Self> {
        let (bar, gamma) = (alpha_bar(settings)?, request.eta.unwrap_or(0.0));
        let timesteps = lcm::distilled(settings, request)?;
        let places = indices(&timesteps, bar.len())?;
        let prediction = Prediction::of(settings);
        let mut calls = Vec::new();
        for (i, &t) in places.iter().enumerate() {
            let next = places.get(i + 1).copied().unwrap_or(0);
            // torch multiplies in f32 here, and the product is cut.
            let s = f32_of(f32_of(1.0 - gamma) * next as f64).floor() as usize;
            let ratio = bar[next] / bar[s];
            let last = i + 1 == places.len();
            let call = Call {
                alpha: bar[t].sqrt(),
                sigma: (1.0 - bar[t]).sqrt(),
                alpha_s: bar[s].sqrt(),
                sigma_s: (1.0 - bar[s]).sqrt(),
                noise: (gamma > 0.0 && !last).then(|| (ratio.sqrt(), (1.0 - ratio).sqrt())),
            };
            if let Some((share, noise)) = call.noise {
                ensure_finite(&[share, noise])?;
            }
            match prediction {
                Prediction::Epsilon => ensure_finite(&[1.0 / call.alpha])?,
                Prediction::Sample => ensure_finite(&[1.0 / call.sigma])?,
                Prediction::V => {}
            }
            calls.push(call);
        }
        Ok(Self {
            timesteps,
            calls,
            prediction,
        })
    }
}

impl Scheduler for Tcd {
    fn timesteps(&self) -> &[f64] {
        &self.timesteps
    }

    fn sigma(&self, i: usize) -> f64 {
        self.calls[i].sigma / self.calls[i].alpha
    }

    fn step(&mut self, i: usize, x: &Tensor, output: &Tensor, noise: &mut Noise) -> Result<Tensor> {
        let call = &self.calls[i];
        let output = output.to_dtype(x.dtype())?;
        // Clipping and thresholding, which the class has keys for, take no part in its step.
        let x0 = self.prediction.x0(call.alpha, call.sigma, x, &output)?;
        let eps = self.prediction.eps(call.alpha, call.sigma, x, &output)?;
        let at_s = combine(&[(call.alpha_s, &x0), (call.sigma_s, &eps)])?;
        match call.noise {
            Some((share, up)) => combine(&[(share, &at_s), (up, &noise.normal_like(x)?)]),
            None => Ok(at_s),
        }
    }
}
