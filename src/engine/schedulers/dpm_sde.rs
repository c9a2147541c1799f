//! DPM-Solver++(2S) on the SDE in sigma, as in k-diffusion ("DPM++ SDE"): each step but the last goes to its middle in log sigma and
//! then, with the prediction made there, from its start to its end; both with ancestral noise.
//!
//! The noise of both parts is one Brownian motion over sigma. The reference draws it from a tree of another random generator (and, unless
//! the config sets noise_sampler_seed, from a seed of its own), so no seed gives its pictures. Here the motion walks from level to level with
//! the run's own noise: the same law, and the same picture for the same seed.
use super::{
    About, Key, Request, Rule, Scheduler, Settings,
    algebra::{Prediction, combine},
    euler,
    euler_ancestral::up_and_down,
    keys::*,
    schedule::*,
    sigmas::{self, Habits, Levels},
};
use crate::engine::noise::Noise;
use candle_core::{Result, Tensor};

pub const KEYS: &[Key] = &[
    TRAIN,
    SD_BETA_START,
    SD_BETA_END,
    BETAS,
    TRAINED,
    NOISE_OR_V,
    KARRAS,
    EXPONENTIAL,
    BETA_SIGMAS,
    Key("noise_sampler_seed", Rule::MaybeCount),
    LINSPACE,
    OFFSET,
    SIGMA_MIN,
    SIGMA_MAX,
];

pub const ABOUT: About = About {
    random: true,
    ..About::new(
        "dpm-sde",
        "DPMSolverSDEScheduler",
        KEYS,
        |settings, request| Ok(Box::new(DpmSde::new(settings, request)?)),
    )
};

pub struct DpmSde {
    timesteps: Vec<f64>,
    calls: Vec<Call>,
    init: f64,
    prediction: Prediction,
    /// The seed of the Brownian motion where the file gives one, and its noise.
    seed: Option<u64>,
    own_noise: Option<Noise>,
    /// Where the step that is half done began, and the motion from there to its middle.
    half: Option<(Tensor, Tensor)>,
}

#[derive(Clone, Copy)]
struct Call {
    /// What the model sees.
    sigma: f64,
    x: f64,
    x0: f64,
    up: f64,
    stage: Stage,
}

#[derive(Clone, Copy, PartialEq)]
enum Stage {
    ToMiddle,
    /// With the shares of the motion to the middle and of the motion on from there.
    ToEnd(f64, f64),
    Last,
}

impl DpmSde {
    pub fn new(settings: &Settings, request: &Request) -> anyhow::Result<Self> {
        let habits = Habits {
            in_f64: true,
            karras_unbounded: true,
            ..Habits::default()
        };
        let bar = alpha_bar(settings)?;
        let Levels {
            timesteps: t,
            sigmas,
        } = sigmas::continuous(settings, &bar, request, habits)?;
        let logs = sigmas::log_table(&sigmas::table(&bar));
        let (mut timesteps, mut calls) = (Vec::new(), Vec::new());
        let n = t.len();
        for i in 0..n {
            let (sigma, next) = (sigmas[i], sigmas[i + 1]);
            timesteps.push(t[i]);
            if i + 1 == n {
                // Euler's step to sigma 0 is x0 itself.
                calls.push(Call {
                    sigma,
                    x: 0.0,
                    x0: 1.0,
                    up: 0.0,
                    stage: Stage::Last,
                });
                break;
            }
            let middle = (sigma * next).sqrt();
            timesteps.push(sigmas::timestep_of(middle, &logs));
            let call = |seen: f64, to: f64, stage: Stage| {
                let (up, down) = up_and_down(sigma, to);
                Call {
                    sigma: seen,
                    // exp(-h) and 1 - exp(-h), h from sigma to sigma_down in -log sigma
                    x: down / sigma,
                    x0: 1.0 - down / sigma,
                    up: up.min(to),
                    stage,
                }
            };
            let share = |length: f64| (length / (sigma - next)).sqrt();
            calls.push(call(sigma, middle, Stage::ToMiddle));
            let (before, after) = (share(sigma - middle), share(middle - next));
            ensure_finite(&[before, after])?;
            let to_end = Stage::ToEnd(before, after);
            calls.push(call(middle, next, to_end));
        }
        settings.ensure_first_once(&timesteps)?;
        ensure_finite(calls.iter().flat_map(|c| [&c.sigma, &c.x, &c.up]))?;
        Ok(Self {
            timesteps,
            calls,
            init: sigmas::init_noise_sigma(settings, &sigmas),
            prediction: Prediction::of(settings),
            seed: settings.maybe_count("noise_sampler_seed"),
            own_noise: None,
            half: None,
        })
    }

    fn draw(&mut self, x: &Tensor, noise: &mut Noise) -> Result<Tensor> {
        match self.seed {
            None => noise.normal_like(x),
            Some(seed) => {
                let images = x.dim(0)?;
                // One seed for all pictures, as the file says.
                let own = self
                    .own_noise
                    .get_or_insert_with(|| Noise::of(vec![seed; images]));
                own.normal_like(x)
            }
        }
    }
}

impl Scheduler for DpmSde {
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

    fn step(&mut self, i: usize, x: &Tensor, output: &Tensor, noise: &mut Noise) -> Result<Tensor> {
        let call = self.calls[i];
        let x0 = euler::x0(self.prediction, call.sigma, x, &output.to_dtype(x.dtype())?)?;
        if call.stage == Stage::Last {
            return Ok(x0);
        }
        let fresh = self.draw(x, noise)?;
        let (start, fresh) = match (call.stage, self.half.take()) {
            (Stage::ToEnd(before, after), Some((start, to_middle))) => {
                (start, combine(&[(before, &to_middle), (after, &fresh)])?)
            }
            _ => {
                self.half = Some((x.clone(), fresh.clone()));
                (x.clone(), fresh)
            }
        };
        combine(&[(call.x, &start), (call.x0, &x0), (call.up, &fresh)])
    }
}
