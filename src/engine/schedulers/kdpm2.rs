//! DPM-Solver-2 (Lu et al. 2022, "DPM-Solver") in sigma, as in k-diffusion ("DPM2"): the midpoint method whose middle lies half-way in
//! log sigma.
//!
//! Each step but the last has two calls of the model: at its start and at its middle.
use super::{
    About, Key, Request, Scheduler, Settings,
    algebra::{Prediction, combine},
    euler,
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
    KARRAS,
    EXPONENTIAL,
    BETA_SIGMAS,
    NOISE_OR_V,
    LINSPACE,
    OFFSET,
    SIGMA_MIN,
    SIGMA_MAX,
];

pub const ABOUT: About = About::new(
    "kdpm2",
    "KDPM2DiscreteScheduler",
    KEYS,
    |settings, request| Ok(Box::new(Midpoint::new(settings, request, false)?)),
);

/// The midpoint method, with ancestral noise or without.
pub struct Midpoint {
    timesteps: Vec<f64>,
    calls: Vec<Call>,
    init: f64,
    ancestral: bool,
    prediction: Prediction,
    /// Where the step that is half done began.
    start: Option<Tensor>,
}

#[derive(Clone, Copy)]
struct Call {
    /// What the model sees.
    sigma: f64,
    /// How far the derivative is followed from the step's start.
    dt: f64,
    /// At the middle of a step, which ends it: the standard deviation of the noise that is added, 0 too.
    up: Option<f64>,
}

impl Midpoint {
    pub fn new(settings: &Settings, request: &Request, ancestral: bool) -> anyhow::Result<Self> {
        let habits = Habits {
            rounds_karras: true,
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
            let mut call = Call {
                sigma,
                dt: -sigma,
                up: None,
            };
            if i + 1 == n {
                // The last step is Euler's.
                calls.push(call);
                break;
            }
            let (up, down) = if ancestral {
                up_and_down_f32(sigma, next)
            } else {
                (0.0, next)
            };
            let middle = middle_f32(sigma, down);
            call.dt = middle - sigma;
            calls.push(call);
            timesteps.push(f32_of(sigmas::timestep_of(middle, &logs)));
            calls.push(Call {
                sigma: middle,
                dt: down - sigma,
                up: Some(up),
            });
        }
        settings.ensure_first_once(&timesteps)?;
        ensure_finite(
            calls
                .iter()
                .flat_map(|c| [Some(&c.sigma), Some(&c.dt), c.up.as_ref()])
                .flatten(),
        )?;
        Ok(Self {
            timesteps,
            calls,
            init: sigmas::init_noise_sigma(settings, &sigmas),
            ancestral,
            prediction: Prediction::of(settings),
            start: None,
        })
    }
}

/// Half-way in log sigma, by the roundings of the reference's f32 tables.
fn middle_f32(from: f64, to: f64) -> f64 {
    let (from, to) = (f32_of(from.ln()), f32_of(to.ln()));
    f32_of(f32_of(to - f32_of(f32_of(to - from) * 0.5)).exp())
}

/// `euler_ancestral::up_and_down` by the roundings of the reference's f32 tables.
///
/// Down is a small difference of them: one place in sigma moves it by parts in a hundred, and the middle by parts in a thousand.
fn up_and_down_f32(sigma: f64, next: f64) -> (f64, f64) {
    let square = |x: f64| f32_of(x * x);
    let (s2, n2) = (square(sigma), square(next));
    let up = f32_of(f32_of(f32_of(n2 * f32_of(s2 - n2)) / s2).sqrt());
    (up, f32_of(f32_of(n2 - square(up)).sqrt()))
}

impl Scheduler for Midpoint {
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
        let Call { sigma, dt, up } = self.calls[i];
        let x0 = euler::x0(self.prediction, sigma, x, &output.to_dtype(x.dtype())?)?;
        let d = ((x - x0)? / sigma)?;
        let start = match self.start.take() {
            Some(start) if up.is_some() => start,
            _ => {
                self.start = Some(x.clone());
                x.clone()
            }
        };
        let next = combine(&[(1.0, &start), (dt, &d)])?;
        match up {
            Some(up) if self.ancestral => next + (noise.normal_like(x)? * up)?,
            _ => Ok(next),
        }
    }
}
