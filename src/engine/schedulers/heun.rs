//! Heun's method on the probability-flow equation: Karras et al. 2022, algorithm 1.
//!
//! Each step but the last has two calls of the model: at its start, and at the point where Euler's method would end.
use super::{
    About, Key, Request, Rule, Scheduler, Settings,
    algebra::{Clip, Prediction, combine},
    euler,
    keys::*,
    schedule::*,
    sigmas::{self, Habits},
};
use crate::engine::noise::Noise;
use candle_core::{Result, Tensor};

pub const KEYS: &[Key] = &[
    TRAIN,
    SD_BETA_START,
    SD_BETA_END,
    Key(
        "beta_schedule",
        Rule::Word(&["linear", "scaled_linear", "squaredcos_cap_v2", "exp"]),
    ),
    TRAINED,
    PREDICTION,
    KARRAS,
    EXPONENTIAL,
    BETA_SIGMAS,
    Key("clip_sample", Rule::Flag(false)),
    CLIP_RANGE,
    LINSPACE,
    OFFSET,
    SIGMA_MIN,
    SIGMA_MAX,
];

pub const ABOUT: About = About {
    timesteps: true,
    ..About::new(
        "heun",
        "HeunDiscreteScheduler",
        KEYS,
        |settings, request| Ok(Box::new(Heun::new(settings, request)?)),
    )
};

pub struct Heun {
    timesteps: Vec<f64>,
    calls: Vec<Call>,
    init: f64,
    prediction: Prediction,
    clip: Clip,
    /// x_i and d_i of the step that is half done.
    half: Option<(Tensor, Tensor)>,
}

struct Call {
    /// What the model sees.
    sigma: f64,
    /// `t_{i+1} - t_i`
    dt: f64,
    corrects: bool,
}

impl Heun {
    pub fn new(settings: &Settings, request: &Request) -> anyhow::Result<Self> {
        let levels =
            sigmas::continuous(settings, &alpha_bar(settings)?, request, Habits::default())?;
        ensure_finite(levels.sigmas.iter().chain(&levels.timesteps))?;
        let (mut timesteps, mut calls) = (Vec::new(), Vec::new());
        let n = levels.timesteps.len();
        for i in 0..n {
            let (sigma, next) = (levels.sigmas[i], levels.sigmas[i + 1]);
            let dt = next - sigma;
            timesteps.push(levels.timesteps[i]);
            calls.push(Call {
                sigma,
                dt,
                corrects: false,
            });
            // t_{i+1} != 0
            if i + 1 < n {
                timesteps.push(levels.timesteps[i + 1]);
                calls.push(Call {
                    sigma: next,
                    dt,
                    corrects: true,
                });
            }
        }
        Ok(Self {
            timesteps,
            calls,
            init: sigmas::init_noise_sigma(settings, &levels.sigmas),
            prediction: Prediction::of(settings),
            clip: Clip::of(settings)?,
            half: None,
        })
    }
}

impl Scheduler for Heun {
    fn timesteps(&self) -> &[f64] {
        &self.timesteps
    }

    fn sigma(&self, i: usize) -> f64 {
        self.calls[i].sigma
    }

    fn init_noise_sigma(&self) -> f64 {
        self.init
    }

    fn scale_input(&self, i: usize, x: &Tensor) -> Result<Tensor> {
        euler::scale(self.calls[i].sigma, x)
    }

    fn step(
        &mut self,
        i: usize,
        x: &Tensor,
        output: &Tensor,
        _noise: &mut Noise,
    ) -> Result<Tensor> {
        let Call {
            sigma,
            dt,
            corrects,
        } = self.calls[i];
        let output = output.to_dtype(x.dtype())?;
        let x0 = self
            .clip
            .apply(euler::x0(self.prediction, sigma, x, &output)?)?;
        let d = ((x - x0)? / sigma)?;
        match self.half.take() {
            // x_{i+1} = x_i + (t_{i+1} - t_i) (d_i / 2 + d'_i / 2)
            Some((start, first)) if corrects => {
                combine(&[(1.0, &start), (0.5 * dt, &first), (0.5 * dt, &d)])
            }
            _ => {
                let next = combine(&[(1.0, x), (dt, &d)])?;
                self.half = Some((x.clone(), d));
                Ok(next)
            }
        }
    }
}
