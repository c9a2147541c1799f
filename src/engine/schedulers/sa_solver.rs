//! SA-Solver: Xue et al. 2023, "SA-Solver: Stochastic Adams Solver for Fast Sampling of Diffusion Models".
//!
//! A predictor (stochastic Adams-Bashforth) and a corrector (stochastic Adams-Moulton) that share the step's noise. tau, how much of the
//! noise is added, is 1 at the training steps from 200 to 800 and 0 elsewhere, as the reference has it when no function is given.
use super::{
    About, Key, Request, Rule, Scheduler, Settings,
    dpm_solver::{Converter, Weights},
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
    Key("predictor_order", Rule::Count(2)),
    Key("corrector_order", Rule::Count(2)),
    PREDICTION,
    // A function cannot be in a file.
    Key("tau_func", Rule::Off),
    THRESHOLDING,
    RATIO,
    MAX_VALUE,
    Key(
        "algorithm_type",
        Rule::Word(&["data_prediction", "noise_prediction"]),
    ),
    Key("lower_order_final", Rule::Flag(true)),
    KARRAS,
    EXPONENTIAL,
    BETA_SIGMAS,
    NO_FLOW,
    FLOW_SHIFT,
    LAMBDA_MIN,
    VARIANCE,
    LINSPACE,
    OFFSET,
    SIGMA_MIN,
    SIGMA_MAX,
];

pub const ABOUT: About = About {
    random: true,
    ..About::new(
        "sa-solver",
        "SASolverScheduler",
        KEYS,
        |settings, request| Ok(Box::new(SaSolver::new(settings, request)?)),
    )
};

pub struct SaSolver {
    levels: sigmas::Levels,
    calls: Vec<Call>,
    converter: Converter,
    /// Newest first.
    outputs: VecDeque<Tensor>,
    /// The corrected sample that the last step started from, and that step's noise.
    last: Option<(Tensor, Tensor)>,
}

struct Call {
    corrector: Option<Weights>,
    predictor: Weights,
}

fn tau(t: f64) -> f64 {
    if (200.0..=800.0).contains(&t) {
        1.0
    } else {
        0.0
    }
}

impl SaSolver {
    pub fn new(settings: &Settings, request: &Request) -> anyhow::Result<Self> {
        let order = |key: &str| {
            let order = settings.count(key);
            ensure!(
                (1..=4).contains(&order),
                "{key} = {order} is not between 1 and 4"
            );
            Ok(order)
        };
        let (most_predictor, most_corrector) =
            (order("predictor_order")?, order("corrector_order")?);
        let x0 = settings.word("algorithm_type") == "data_prediction";
        ensure!(
            x0 || !settings.flag("thresholding"),
            "thresholding needs a prediction of x0; set algorithm_type to data_prediction"
        );
        let learned = settings.word("variance_type").starts_with("learned");
        ensure!(
            !learned,
            "variance_type {} is not possible with sa-solver: its noise would have the variance's channels too",
            settings.word("variance_type")
        );
        let bar = alpha_bar(settings)?;
        let levels = sigmas::cut(settings, &bar, request, sigmas::Cut::UniPc)?;
        let level: Vec<Level> = levels.sigmas.iter().map(|s| Level::of(*s)).collect();
        let t = &levels.timesteps;
        let n = t.len();
        let lower = settings.flag("lower_order_final");
        let cap = |most: usize, left: usize| if lower { most.min(left) } else { most };
        let mut calls = Vec::new();
        for i in 0..n {
            // The corrector of step i belongs to the step that led there: its noise, its tau, its order.
            let corrector = (i > 0).then(|| {
                let order = cap(most_corrector, n - i + 2).min(i + 1);
                let nodes: Vec<Level> = level[..=i].iter().rev().take(order).copied().collect();
                let step = Step::new(x0, tau(t[i - 1]), level[i - 1], level[i]);
                step.weights(&nodes, step.moulton_extra())
            });
            let order = cap(most_predictor, n - i).min(i + 1);
            let nodes: Vec<Level> = level[..=i].iter().rev().take(order).copied().collect();
            let step = Step::new(x0, tau(t[i]), level[i], level[i + 1]);
            let predictor = step.weights(&nodes, step.bashforth_extra(&nodes));
            for weights in corrector.iter().chain([&predictor]) {
                ensure_finite(weights.all())?;
            }
            calls.push(Call {
                corrector,
                predictor,
            });
        }
        Ok(Self {
            levels,
            calls,
            converter: Converter::new(settings, x0)?,
            outputs: VecDeque::new(),
            last: None,
        })
    }
}

/// One step from level s to level t.
struct Step {
    x0: bool,
    tau2: f64,
    s: Level,
    t: Level,
    h: f64,
    /// The exponent of the integral's weight `exp(-c (lambda_t - lambda))`.
    c: f64,
}

impl Step {
    fn new(x0: bool, tau: f64, s: Level, t: Level) -> Self {
        let tau2 = tau * tau;
        Self {
            x0,
            tau2,
            s,
            t,
            h: t.lambda - s.lambda,
            c: if x0 { 1.0 + tau2 } else { -1.0 },
        }
    }

    /// The outputs at `nodes` are interpolated in lambda (Lagrange) and integrated with the weight. `extra` goes from the second of two
    /// nodes to the first.
    fn weights(&self, nodes: &[Level], extra: f64) -> Weights {
        let (tau2, h) = (self.tau2, self.h);
        let (x, scale, noise) = if self.x0 {
            (
                (-tau2 * h).exp() * self.t.sigma / self.s.sigma,
                (1.0 + tau2) * self.t.alpha,
                self.t.sigma * (1.0 - (-2.0 * tau2 * h).exp()).sqrt(),
            )
        } else {
            (
                self.t.alpha / self.s.alpha,
                -(1.0 + tau2) * self.t.sigma,
                tau2.sqrt() * self.t.sigma * ((2.0 * h).exp() - 1.0).sqrt(),
            )
        };
        let moments = self.moments(nodes.len());
        // In s = lambda_t - lambda, so that the powers stay small.
        let place: Vec<f64> = nodes
            .iter()
            .map(|node| self.t.lambda - node.lambda)
            .collect();
        let mut outputs: Vec<f64> = (0..nodes.len())
            .map(|k| {
                let basis = lagrange(&place, k);
                basis.iter().zip(&moments).map(|(b, m)| b * m).sum()
            })
            .collect();
        if let (true, [first, second]) = (self.x0, &mut outputs[..]) {
            *first += extra;
            *second -= extra;
        }
        outputs.iter_mut().for_each(|w| *w *= scale);
        Weights { x, outputs, noise }
    }

    /// `int_0^h s^k exp(-c s) ds`, k = 0 to n - 1
    fn moments(&self, n: usize) -> Vec<f64> {
        let end = (-self.c * self.h).exp();
        let mut moments = vec![-(-self.c * self.h).exp_m1() / self.c];
        for k in 1..n {
            let boundary = self.h.powi(k as i32) * end;
            moments.push((k as f64 * moments[k - 1] - boundary) / self.c);
        }
        moments
    }

    /// `(c h - 1 + exp(-c h)) / c^2`
    fn linear(&self) -> f64 {
        let ch = self.c * self.h;
        (ch - 1.0 + (-ch).exp()) / (self.c * self.c)
    }

    /// With two nodes the authors' code does not integrate the slope with its weight but takes h^2 / 2 for it; this is the difference.
    fn bashforth_extra(&self, nodes: &[Level]) -> f64 {
        match nodes {
            [s0, s1] => (self.h * self.h / 2.0 - self.linear()) / (s0.lambda - s1.lambda),
            _ => 0.0,
        }
    }

    /// The same for the corrector.
    fn moulton_extra(&self) -> f64 {
        self.h / 2.0 - self.linear() / self.h
    }
}

/// The coefficients, of s^0 upwards, of the polynomial that is 1 at `nodes[k]` and 0 at the others.
fn lagrange(nodes: &[f64], k: usize) -> Vec<f64> {
    let mut polynomial = vec![1.0];
    for (j, node) in nodes.iter().enumerate().filter(|(j, _)| *j != k) {
        let scale = nodes[k] - nodes[j];
        let mut product = vec![0.0; polynomial.len() + 1];
        for (i, c) in polynomial.iter().enumerate() {
            product[i + 1] += c / scale;
            product[i] -= c * node / scale;
        }
        polynomial = product;
    }
    polynomial
}

impl Scheduler for SaSolver {
    fn timesteps(&self) -> &[f64] {
        &self.levels.timesteps
    }

    fn sigma(&self, i: usize) -> f64 {
        self.levels.sigmas[i]
    }

    fn step(&mut self, i: usize, x: &Tensor, output: &Tensor, noise: &mut Noise) -> Result<Tensor> {
        let converted = self.converter.convert(self.levels.sigmas[i], x, output)?;
        self.outputs.push_front(converted);
        self.outputs.truncate(4);
        let call = &self.calls[i];
        let corrected = match (&call.corrector, &self.last) {
            (Some(weights), Some((last, noise))) => {
                weights.sum(last, &self.outputs, Some(noise))?
            }
            _ => x.clone(),
        };
        let fresh = noise.normal_like(x)?;
        let next = call
            .predictor
            .sum(&corrected, &self.outputs, Some(&fresh))?;
        self.last = Some((corrected, fresh));
        Ok(next)
    }
}
