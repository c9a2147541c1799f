//! DPM-Solver++ multistep: Lu et al. 2022, "DPM-Solver++" (formulas by that paper), and DPM-Solver, its form in eps.
//!
//! x at the next level is a weighted sum of x, the last predictions and noise; the weights are worked out when it is built.
use super::{
    Key, Request, Rule, Scheduler, Settings,
    algebra::{Clip, Prediction, combine},
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
    Key(
        "algorithm_type",
        Rule::Word(&[
            "dpmsolver++",
            "dpmsolver",
            "sde-dpmsolver",
            "sde-dpmsolver++",
            "deis",
        ]),
    ),
    Key(
        "solver_type",
        Rule::Word(&["midpoint", "heun", "logrho", "bh1", "bh2"]),
    ),
    Key("lower_order_final", Rule::Flag(true)),
    Key("euler_at_final", Rule::Flag(false)),
    KARRAS,
    EXPONENTIAL,
    BETA_SIGMAS,
    Key("use_lu_lambdas", Rule::Flag(false)),
    Key("use_flow_sigmas", Rule::Off),
    Key("flow_shift", Rule::Inert),
    FINAL_SIGMAS,
    Key("lambda_min_clipped", Rule::Number(f64::NEG_INFINITY)),
    Key(
        "variance_type",
        Rule::Word(&[
            "",
            "learned",
            "learned_range",
            "fixed_small",
            "fixed_small_log",
            "fixed_large",
            "fixed_large_log",
        ]),
    ),
    LINSPACE,
    OFFSET,
    ZERO_SNR,
    Key("use_dynamic_shifting", Rule::Off),
    Key("time_shift_type", Rule::Inert),
    // No arguments of the class, but its code asks the config for them, so another class's values count.
    Key("sigma_min", Rule::MaybeNumber),
    Key("sigma_max", Rule::MaybeNumber),
];

pub struct Dpmpp2m {
    levels: sigmas::Levels,
    calls: Vec<Call>,
    form: Form,
    prediction: Prediction,
    clip: Clip,
    /// Newest first.
    outputs: VecDeque<Tensor>,
}

/// What the solver's integral is over, and whether it adds noise.
#[derive(Clone, Copy, PartialEq)]
struct Form {
    x0: bool,
    sde: bool,
}

struct Call {
    x: f64,
    outputs: Vec<f64>,
    noise: f64,
}

impl Dpmpp2m {
    pub fn new(settings: &Settings, request: &Request) -> anyhow::Result<Self> {
        let order = settings.count("solver_order");
        ensure!(
            (1..=3).contains(&order),
            "solver_order = {order} is not between 1 and 3"
        );
        let algorithm = settings.word("algorithm_type");
        let form = Form {
            x0: algorithm.ends_with("++") || algorithm == "deis",
            sde: algorithm.starts_with("sde"),
        };
        ensure!(
            form.x0 || settings.word("final_sigmas_type") != "zero",
            "algorithm_type {algorithm} needs final_sigmas_type sigma_min; in eps the last step cannot reach zero"
        );
        ensure!(
            order < 3 || form.x0 || !form.sde,
            "algorithm_type sde-dpmsolver has no third order; set solver_order to 1 or 2"
        );
        let heun = settings.word("solver_type") == "heun";
        let levels = sigmas::cut(
            settings,
            &alpha_bar_above_zero(settings)?,
            request.steps,
            sigmas::Cut::DpmSolver,
        )?;
        let n = levels.timesteps.len();
        let level: Vec<Level> = levels.sigmas.iter().map(|s| Level::of(*s)).collect();
        let short = settings.flag("lower_order_final") && n < 15;
        let mut calls = Vec::new();
        for i in 0..n {
            let lower = i == n - 1
                && (settings.flag("euler_at_final")
                    || short
                    || settings.word("final_sigmas_type") == "zero");
            let order = if lower {
                1
            } else {
                order
                    .min(i + 1)
                    .min(if i + 2 == n && short { 2 } else { 3 })
            };
            let past: Vec<Level> = level[..=i].iter().rev().take(order).copied().collect();
            let call = weights(form, heun, level[i + 1], &past);
            ensure_finite(call.outputs.iter().chain([&call.x, &call.noise]))?;
            calls.push(call);
        }
        Ok(Self {
            levels,
            calls,
            form,
            prediction: Prediction::of(settings),
            clip: Clip::of(settings)?,
            outputs: VecDeque::new(),
        })
    }
}

/// The weights of one step to level `t` from `past`: s_0 (where x is), s_1, s_2, as many as the order.
fn weights(form: Form, heun: bool, t: Level, past: &[Level]) -> Call {
    let s0 = past[0];
    let h = t.lambda - s0.lambda;
    // x_t = a x + b D0 + c D1 + d D2 + noise
    let (a, scale, e) = match form {
        // formula (8), and (18) of its SDE
        Form {
            x0: true,
            sde: false,
        } => (t.sigma / s0.sigma, t.alpha, -h),
        Form {
            x0: true,
            sde: true,
        } => (t.sigma / s0.sigma * (-h).exp(), t.alpha, -2.0 * h),
        // DPM-Solver, formula (3.7), and its SDE
        Form { x0: false, .. } => (t.alpha / s0.alpha, t.sigma, h),
    };
    let doubled = if form.sde && !form.x0 { 2.0 } else { 1.0 };
    // phi_1, phi_2, phi_3 of e, each with its sign
    let phi1 = -doubled * scale * (e.exp() - 1.0);
    let sign = if form.x0 { 1.0 } else { -doubled };
    let phi2 = sign
        * scale
        * if form.x0 {
            (e.exp() - 1.0) / -e + 1.0
        } else {
            (e.exp() - 1.0) / e - 1.0
        };
    let noise = match form {
        Form { sde: false, .. } => 0.0,
        Form { x0: true, .. } => t.sigma * (1.0 - (-2.0 * h).exp()).sqrt(),
        Form { x0: false, .. } => t.sigma * ((2.0 * h).exp() - 1.0).sqrt(),
    };
    let outputs = match past {
        [_] => vec![phi1],
        [_, s1] => {
            let r0 = (s0.lambda - s1.lambda) / h;
            let d1 = if heun { phi2 } else { 0.5 * phi1 } / r0;
            vec![phi1 + d1, -d1]
        }
        _ => {
            let (r0, r1) = (
                (s0.lambda - past[1].lambda) / h,
                (past[1].lambda - past[2].lambda) / h,
            );
            let k = if form.x0 { -e } else { e };
            let phi3 = -scale
                * if form.x0 {
                    (e.exp() - 1.0 + k) / (k * k) - 0.5
                } else {
                    (e.exp() - 1.0 - k) / (k * k) - 0.5
                };
            let phi3 = if form.sde {
                scale * ((1.0 - e.exp() - k) / (k * k) - 0.5)
            } else {
                phi3
            };
            // D1 = D1_0 + r0/(r0+r1) (D1_0 - D1_1);  D2 = (D1_0 - D1_1) / (r0+r1)
            let difference = (phi2 * r0 + phi3) / (r0 + r1);
            let (d10, d11) = ((phi2 + difference) / r0, -difference / r1);
            vec![phi1 + d10, d11 - d10, -d11]
        }
    };
    Call {
        x: a,
        outputs,
        noise,
    }
}

impl Scheduler for Dpmpp2m {
    fn timesteps(&self) -> &[f64] {
        &self.levels.timesteps
    }

    fn step(&mut self, i: usize, x: &Tensor, output: &Tensor, noise: &mut Noise) -> Result<Tensor> {
        let Level { alpha, sigma, .. } = Level::of(self.levels.sigmas[i]);
        let mut output = output.to_dtype(x.dtype())?;
        if output.dim(1)? == 2 * x.dim(1)? {
            output = output.narrow(1, 0, x.dim(1)?)?;
        }
        let x0 = || {
            self.clip
                .apply(self.prediction.x0(alpha, sigma, x, &output)?)
        };
        let converted = match (self.form.x0, self.clip) {
            (true, _) => x0()?,
            (false, Clip::Keep) => self.prediction.eps(alpha, sigma, x, &output)?,
            (false, _) => (combine(&[(1.0, x), (-alpha, &x0()?)])? / sigma)?,
        };
        self.outputs.push_front(converted);
        self.outputs.truncate(3);
        let call = &self.calls[i];
        let fresh = if self.form.sde {
            noise.normal_like(x)?
        } else {
            x.clone()
        };
        let mut terms = vec![(call.x, x), (call.noise, &fresh)];
        terms.extend(call.outputs.iter().copied().zip(&self.outputs));
        combine(&terms)
    }
}
