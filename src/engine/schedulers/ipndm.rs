//! iPNDM: the improved PNDM of Zhang & Chen 2023 (the DEIS paper), on a schedule of its own: alpha = cos, sigma = sin, timesteps 1 to 0.
//!
//! A linear multistep method (Adams-Bashforth, order 4) that starts with shorter formulas.
use super::{About, Key, Request, Scheduler, Settings, algebra::combine, keys::*, schedule::*};
use crate::engine::noise::Noise;
use anyhow::ensure;
use candle_core::{Result, Tensor};
use std::{collections::VecDeque, f64::consts::PI};

pub const KEYS: &[Key] = &[TRAIN, TRAINED];

pub const ABOUT: About = About {
    own_range: true,
    ..About::new("ipndm", "IPNDMScheduler", KEYS, |settings, request| {
        Ok(Box::new(Ipndm::new(settings, request)?))
    })
};

pub struct Ipndm {
    timesteps: Vec<f64>,
    /// One more than there are timesteps.
    alphas: Vec<f64>,
    sigmas: Vec<f64>,
    /// Newest first.
    outputs: VecDeque<Tensor>,
}

impl Ipndm {
    pub fn new(settings: &Settings, request: &Request) -> anyhow::Result<Self> {
        let n = request.steps;
        let sigmas: Vec<f64> = match settings.numbers("trained_betas") {
            Some(list) => list.into_iter().map(f32_of).collect(),
            None => {
                let places = linspace_f32(1.0, 0.0, n + 1);
                let angle = |u: f64| f32_of(f32_of(u * f32_of(PI)) / 2.0);
                places
                    .into_iter()
                    .map(|u| {
                        let sine = f32_of(angle(u).sin());
                        f32_of(sine * sine)
                    })
                    .collect()
            }
        };
        ensure!(
            sigmas.len() > 1,
            "trained_betas needs 2 numbers or more: one more than there are calls"
        );
        ensure!(
            sigmas.iter().all(|s| (0.0..=1.0).contains(s)),
            "trained_betas: each is between 0 and 1"
        );
        let alphas: Vec<f64> = sigmas
            .iter()
            .map(|s| f32_of(f32_of(1.0 - f32_of(s * s)).sqrt()))
            .collect();
        let time = |(s, a): (&f64, &f64)| f32_of(f32_of(f32_of(s.atan2(*a)) / f32_of(PI)) * 2.0);
        let timesteps: Vec<f64> = sigmas
            .iter()
            .zip(&alphas)
            .map(time)
            .take(sigmas.len() - 1)
            .collect();
        settings.ensure_first_once(&timesteps)?;
        Ok(Self {
            timesteps,
            alphas,
            sigmas,
            outputs: VecDeque::new(),
        })
    }
}

impl Scheduler for Ipndm {
    fn timesteps(&self) -> &[f64] {
        &self.timesteps
    }

    fn sigma(&self, i: usize) -> f64 {
        self.sigmas[i] / self.alphas[i]
    }

    fn step(
        &mut self,
        i: usize,
        x: &Tensor,
        output: &Tensor,
        _noise: &mut Noise,
    ) -> Result<Tensor> {
        let (alpha, sigma) = (self.alphas[i], self.sigmas[i]);
        let output = output.to_dtype(x.dtype())?;
        self.outputs
            .push_front(combine(&[(sigma, x), (alpha, &output)])?);
        self.outputs.truncate(4);
        let weights: &[f64] = match self.outputs.len() {
            1 => &[1.0],
            2 => &[3.0 / 2.0, -1.0 / 2.0],
            3 => &[23.0 / 12.0, -16.0 / 12.0, 5.0 / 12.0],
            _ => &[55.0 / 24.0, -59.0 / 24.0, 37.0 / 24.0, -9.0 / 24.0],
        };
        let terms: Vec<_> = weights.iter().copied().zip(&self.outputs).collect();
        let e = combine(&terms)?;
        // In this order: at the start alpha is 0, and so is x - sigma e, exactly.
        let x0 = (combine(&[(1.0, x), (-sigma, &e)])? / alpha.max(1e-8))?;
        combine(&[(self.alphas[i + 1], &x0), (self.sigmas[i + 1], &e)])
    }
}
