//! PNDM: Liu, Ren, Lin & Zhao 2022, "Pseudo Numerical Methods for Diffusion Models on Manifolds".
//!
//! `skip_prk_steps` true is PLMS: a linear multistep method whose second call repeats a timestep (an improved Euler start), so
//! n steps are n + 1 calls. False is F-PNDM: three Runge-Kutta steps of four calls first (formula (13), algorithm 2).
use super::{
    About, Key, Request, Rule, Scheduler, Settings,
    algebra::{Prediction, combine},
    keys::*,
    schedule::*,
};
use crate::engine::noise::Noise;
use anyhow::ensure;
use candle_core::{Result, Tensor};

pub const KEYS: &[Key] = &[
    TRAIN,
    BETA_START,
    BETA_END,
    BETAS,
    TRAINED,
    Key("skip_prk_steps", Rule::Flag(false)),
    Key("set_alpha_to_one", Rule::Flag(false)),
    NOISE_OR_V,
    LEADING,
    OFFSET,
];

pub const ABOUT: About = About::new("pndm", "PNDMScheduler", KEYS, |settings, request| {
    Ok(Box::new(Pndm::new(settings, request)?))
});

pub struct Pndm {
    timesteps: Vec<f64>,
    sigmas: Vec<f64>,
    calls: Vec<Call>,
    prediction: Prediction,
    /// The last outputs, newest last: e_theta of formula (12).
    outputs: Vec<Tensor>,
    /// Where the running Runge-Kutta step, or the improved Euler start, began.
    start: Option<Tensor>,
    sum: Option<Tensor>,
}

struct Call {
    kind: Kind,
    alpha: f64,
    sigma: f64,
    x: f64,
    e: f64,
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    RungeKutta(usize),
    First,
    Repeat,
    Multistep,
}

impl Pndm {
    pub fn new(settings: &Settings, request: &Request) -> anyhow::Result<Self> {
        let (bar, steps) = (alpha_bar(settings)?, request.steps);
        let grid = timesteps(settings, Grid::Whole, bar.len(), request)?;
        let ratio = (bar.len() / steps) as f64;
        let half = (bar.len() / steps / 2) as f64;
        let last = if settings.flag("set_alpha_to_one") {
            1.0
        } else {
            bar[0]
        };
        // (kind, timestep of the call, from, to)
        let mut plan: Vec<(Kind, f64, f64, f64)> = Vec::new();
        if settings.flag("skip_prk_steps") {
            for (i, &t) in grid.iter().enumerate() {
                plan.push((
                    if i == 0 { Kind::First } else { Kind::Multistep },
                    t,
                    t,
                    t - ratio,
                ));
                if i == 1 {
                    plan[1].0 = Kind::Repeat;
                    (plan[1].2, plan[1].3) = (t + ratio, t);
                    plan.push((Kind::Multistep, t, t, t - ratio));
                }
            }
        } else {
            ensure!(
                grid.len() >= 4,
                "{steps} steps: with skip_prk_steps false pndm needs 4 or more"
            );
            for k in 0..3 {
                let (from, to) = (grid[k], grid[k + 1]);
                // Four calls: at the start, twice half-way, and at the next timestep.
                let times = [from, to + half, to + half, to];
                for (stage, &t) in times.iter().enumerate() {
                    let back = if stage % 2 == 0 { half } else { 0.0 };
                    plan.push((Kind::RungeKutta(stage), t, from, t - back));
                }
            }
            plan.extend(
                grid[3..]
                    .iter()
                    .map(|&t| (Kind::Multistep, t, t, t - ratio)),
            );
        }
        let prediction = Prediction::of(settings);
        let mut calls = Vec::new();
        for &(kind, _, from, to) in &plan {
            let bar_t = bar[indices(&[from], bar.len())?[0]];
            let bar_prev = if to >= 0.0 {
                bar[indices(&[to], bar.len())?[0]]
            } else {
                last
            };
            // formula (11)
            let denominator =
                bar_t * (1.0 - bar_prev).sqrt() + (bar_t * (1.0 - bar_t) * bar_prev).sqrt();
            let (x, e) = ((bar_prev / bar_t).sqrt(), -(bar_prev - bar_t) / denominator);
            ensure_finite(&[x, e])?;
            calls.push(Call {
                kind,
                alpha: bar_t.sqrt(),
                sigma: (1.0 - bar_t).sqrt(),
                x,
                e,
            });
        }
        let timesteps: Vec<f64> = plan.iter().map(|p| p.1).collect();
        let sigmas = indices(&timesteps, bar.len())?
            .into_iter()
            .map(|t| ((1.0 - bar[t]) / bar[t]).sqrt())
            .collect();
        Ok(Self {
            timesteps,
            sigmas,
            calls,
            prediction,
            outputs: vec![],
            start: None,
            sum: None,
        })
    }

    fn remember(&mut self, output: &Tensor) {
        if self.outputs.len() == 4 {
            self.outputs.remove(0);
        }
        self.outputs.push(output.clone());
    }
}

impl Scheduler for Pndm {
    fn timesteps(&self) -> &[f64] {
        &self.timesteps
    }

    fn sigma(&self, i: usize) -> f64 {
        self.sigmas[i]
    }

    fn step(
        &mut self,
        i: usize,
        x: &Tensor,
        output: &Tensor,
        _noise: &mut Noise,
    ) -> Result<Tensor> {
        let kind = self.calls[i].kind;
        let output = &output.to_dtype(x.dtype())?;
        if matches!(kind, Kind::First | Kind::RungeKutta(0)) {
            self.start = Some(x.clone());
        }
        if matches!(kind, Kind::First | Kind::Multistep | Kind::RungeKutta(0)) {
            self.remember(output);
        }
        let e = &self.outputs;
        let output = match kind {
            Kind::First => output.clone(),
            Kind::Repeat => combine(&[(0.5, output), (0.5, &e[e.len() - 1])])?,
            // The Runge-Kutta weights 1/6, 1/3, 1/3, 1/6 of formula (13) gather in `sum`.
            Kind::RungeKutta(stage) => {
                let weight = if stage == 0 || stage == 3 {
                    1.0 / 6.0
                } else {
                    1.0 / 3.0
                };
                let sum = match self.sum.take() {
                    Some(sum) => combine(&[(1.0, &sum), (weight, output)])?,
                    None => (output * weight)?,
                };
                if stage == 3 {
                    sum
                } else {
                    self.sum = Some(sum);
                    output.clone()
                }
            }
            // formula (12) and its shorter beginnings
            Kind::Multistep => match &e[..] {
                [e0] => e0.clone(),
                [e1, e0] => combine(&[(3.0 / 2.0, e0), (-1.0 / 2.0, e1)])?,
                [e2, e1, e0] => {
                    combine(&[(23.0 / 12.0, e0), (-16.0 / 12.0, e1), (5.0 / 12.0, e2)])?
                }
                [e3, e2, e1, e0, ..] => combine(&[
                    (55.0 / 24.0, e0),
                    (-59.0 / 24.0, e1),
                    (37.0 / 24.0, e2),
                    (-9.0 / 24.0, e3),
                ])?,
                [] => output.clone(),
            },
        };
        let call = &self.calls[i];
        let from = match (kind, &self.start) {
            (Kind::Repeat | Kind::RungeKutta(_), Some(start)) => start,
            _ => x,
        };
        // With v-prediction the combined output is converted, not each of its parts.
        let e = self.prediction.eps(call.alpha, call.sigma, from, &output)?;
        combine(&[(call.x, from), (call.e, &e)])
    }
}
