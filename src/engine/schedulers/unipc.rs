//! UniPC: Zhao et al. 2023, "UniPC: A Unified Predictor-Corrector Framework for Fast Sampling of Diffusion Models".
//!
//! The corrector (algorithm 1) improves the sample that the last step predicted, with the output that it led to; the predictor
//! (algorithm 2) then takes the next step. Both are weighted sums whose weights are worked out when it is built.
use super::{
    About, Key, Request, Rule, Scheduler, Settings,
    algebra::{Clip, Prediction, combine},
    keys::*,
    schedule::*,
    sigmas::{self, Level},
};
use crate::engine::noise::Noise;
use anyhow::ensure;
use candle_core::{Result, Tensor};
use std::collections::VecDeque;

pub const KEYS: &[Key] = &[
    TRAIN,
    BETA_START,
    BETA_END,
    BETAS,
    TRAINED,
    Key("solver_order", Rule::Count(2)),
    PREDICTION,
    THRESHOLDING,
    RATIO,
    MAX_VALUE,
    Key("predict_x0", Rule::Flag(true)),
    Key(
        "solver_type",
        Rule::Word(&["bh2", "bh1", "midpoint", "heun", "logrho"]),
    ),
    Key("lower_order_final", Rule::Flag(true)),
    Key("disable_corrector", Rule::Counts),
    Key("solver_p", Rule::Off),
    KARRAS,
    EXPONENTIAL,
    BETA_SIGMAS,
    NO_FLOW,
    FLOW_SHIFT,
    LINSPACE,
    OFFSET,
    FINAL_SIGMAS,
    ZERO_SNR,
    NO_SHIFTING,
    SHIFT_TYPE,
    SIGMA_MIN,
    SIGMA_MAX,
    Key("shift_terminal", Rule::Off),
];

pub const ABOUT: About = About {
    aliases: &[
        ("solver_type", "midpoint", "bh2"),
        ("solver_type", "heun", "bh2"),
        ("solver_type", "logrho", "bh2"),
    ],
    ..About::new(
        "unipc",
        "UniPCMultistepScheduler",
        KEYS,
        |settings, request| Ok(Box::new(UniPc::new(settings, request)?)),
    )
};

pub struct UniPc {
    levels: sigmas::Levels,
    calls: Vec<Call>,
    predict_x0: bool,
    prediction: Prediction,
    clip: Clip,
    /// Newest first.
    outputs: VecDeque<Tensor>,
    /// The corrected sample that the last step started from.
    last: Option<Tensor>,
}

struct Call {
    corrector: Option<Weights>,
    predictor: Weights,
}

/// `x` times the sample, `outputs` times the outputs, newest first.
struct Weights {
    x: f64,
    outputs: Vec<f64>,
}

impl UniPc {
    pub fn new(settings: &Settings, request: &Request) -> anyhow::Result<Self> {
        let max_order = settings.count("solver_order");
        ensure!(
            (1..=8).contains(&max_order),
            "solver_order = {max_order} is not between 1 and 8"
        );
        let predict_x0 = settings.flag("predict_x0");
        let form = Form {
            predict_x0,
            bh1: settings.word("solver_type") == "bh1",
        };
        let levels = sigmas::cut(
            settings,
            &alpha_bar_above_zero(settings)?,
            request,
            sigmas::Cut::UniPc,
        )?;
        let level: Vec<Level> = levels.sigmas.iter().map(|s| Level::of(*s)).collect();
        let n = levels.timesteps.len();
        let disabled = settings.numbers("disable_corrector").unwrap_or_default();
        let mut calls = Vec::new();
        let mut last_order = 0;
        for i in 0..n {
            let corrected = i > 0 && !disabled.contains(&(i as f64 - 1.0));
            let corrector =
                corrected.then(|| form.corrector(level[i], &past(&level[..i], last_order)));
            let cap = if settings.flag("lower_order_final") {
                max_order.min(n - i)
            } else {
                max_order
            };
            let order = cap.min(i + 1);
            let predictor = form.predictor(level[i + 1], &past(&level[..=i], order));
            for weights in corrector.iter().chain([&predictor]) {
                ensure_finite(weights.outputs.iter().chain([&weights.x]))?;
            }
            calls.push(Call {
                corrector,
                predictor,
            });
            last_order = order;
        }
        let (prediction, clip) = (Prediction::of(settings), Clip::of(settings)?);
        // Prediction of eps takes no part in thresholding.
        let clip = if predict_x0 { clip } else { Clip::Keep };
        Ok(Self {
            levels,
            calls,
            predict_x0,
            prediction,
            clip,
            outputs: VecDeque::new(),
            last: None,
        })
    }
}

/// The last `order` levels, newest first.
fn past(levels: &[Level], order: usize) -> Vec<Level> {
    levels.iter().rev().take(order).copied().collect()
}

#[derive(Clone, Copy)]
struct Form {
    predict_x0: bool,
    bh1: bool,
}

impl Form {
    /// `x_t = a x - b m_0 - c sum_k rho_k D_k`, D_k = (m_k - m_0) / r_k: the parts without rho.
    fn parts(self, t: Level, past: &[Level]) -> Parts {
        let s0 = past[0];
        let h = t.lambda - s0.lambda;
        let hh = if self.predict_x0 { -h } else { h };
        let b_h = if self.bh1 { hh } else { hh.exp_m1() };
        let (a, scale) = if self.predict_x0 {
            (t.sigma / s0.sigma, t.alpha)
        } else {
            (t.alpha / s0.alpha, t.sigma)
        };
        let mut r: Vec<f64> = past[1..]
            .iter()
            .map(|s| (s.lambda - s0.lambda) / h)
            .collect();
        r.push(1.0);
        // b_k = k! phi_k(h) / B(h), beside formula (5)
        let (mut phi, mut factorial, mut b) = (hh.exp_m1() / hh - 1.0, 1.0, Vec::new());
        for k in 1..=past.len() {
            b.push(phi * factorial / b_h);
            factorial *= (k + 1) as f64;
            phi = phi / hh - 1.0 / factorial;
        }
        Parts {
            a,
            b0: scale * hh.exp_m1(),
            c: scale * b_h,
            r,
            b,
        }
    }

    fn predictor(self, t: Level, past: &[Level]) -> Weights {
        let p = self.parts(t, past);
        let n = past.len() - 1;
        let rho = match n {
            0 => vec![],
            1 => vec![0.5],
            _ => vandermonde(&p.r[..n], &p.b[..n]),
        };
        // 0 times an infinite B(h) is NaN in the reference too, so it is refused.
        let mut outputs = vec![-p.b0 - 0.0 * p.c];
        for (rho, r) in rho.iter().zip(&p.r) {
            outputs[0] += p.c * rho / r;
            outputs.push(-p.c * rho / r);
        }
        Weights { x: p.a, outputs }
    }

    /// Weights of the new output first.
    fn corrector(self, t: Level, past: &[Level]) -> Weights {
        let p = self.parts(t, past);
        let n = past.len() - 1;
        let rho = if n == 0 {
            vec![0.5]
        } else {
            vandermonde(&p.r, &p.b)
        };
        let mut outputs = vec![-p.c * rho[n], -p.b0 + p.c * rho[n]];
        for (rho, r) in rho[..n].iter().zip(&p.r) {
            outputs[1] += p.c * rho / r;
            outputs.push(-p.c * rho / r);
        }
        Weights { x: p.a, outputs }
    }
}

struct Parts {
    a: f64,
    b0: f64,
    c: f64,
    r: Vec<f64>,
    b: Vec<f64>,
}

/// Solves `sum_k r_k^j rho_k = b_j`, j = 0.. (theorem 3.1), by elimination with pivots.
fn vandermonde(r: &[f64], b: &[f64]) -> Vec<f64> {
    let n = r.len();
    let row = |j: usize| {
        r.iter()
            .map(|r| r.powi(j as i32))
            .chain([b[j]])
            .collect::<Vec<f64>>()
    };
    let mut rows: Vec<Vec<f64>> = (0..n).map(row).collect();
    for k in 0..n {
        let pivot = (k..n)
            .max_by(|i, j| rows[*i][k].abs().total_cmp(&rows[*j][k].abs()))
            .unwrap_or(k);
        rows.swap(k, pivot);
        let top = rows[k].clone();
        for (_, row) in rows.iter_mut().enumerate().filter(|(i, _)| *i != k) {
            let factor = row[k] / top[k];
            row.iter_mut().zip(&top).for_each(|(v, t)| *v -= factor * t);
        }
    }
    (0..n).map(|k| rows[k][n] / rows[k][k]).collect()
}

impl Scheduler for UniPc {
    fn timesteps(&self) -> &[f64] {
        &self.levels.timesteps
    }

    fn sigma(&self, i: usize) -> f64 {
        self.levels.sigmas[i]
    }

    fn step(
        &mut self,
        i: usize,
        x: &Tensor,
        output: &Tensor,
        _noise: &mut Noise,
    ) -> Result<Tensor> {
        let Level { alpha, sigma, .. } = Level::of(self.levels.sigmas[i]);
        let output = output.to_dtype(x.dtype())?;
        let converted = match self.predict_x0 {
            true => self
                .clip
                .apply(self.prediction.x0(alpha, sigma, x, &output)?)?,
            false => self.prediction.eps(alpha, sigma, x, &output)?,
        };
        self.outputs.push_front(converted);
        let call = &self.calls[i];
        let sum = |weights: &Weights, x: &Tensor| {
            let terms = weights.outputs.iter().copied().zip(&self.outputs);
            combine(
                &[(weights.x, x)]
                    .into_iter()
                    .chain(terms)
                    .collect::<Vec<_>>(),
            )
        };
        let corrected = match (&call.corrector, &self.last) {
            (Some(weights), Some(last)) => sum(weights, last)?,
            _ => x.clone(),
        };
        let next = sum(&call.predictor, &corrected)?;
        self.last = Some(corrected);
        self.outputs.truncate(9);
        Ok(next)
    }
}
