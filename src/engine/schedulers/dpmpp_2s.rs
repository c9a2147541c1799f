//! DPM-Solver++ singlestep (2S and, with solver_order 3, 3S): Lu et al. 2022, "DPM-Solver++", algorithm 1, its SDE, and DPM-Solver.
//!
//! The levels are walked in groups of `solver_order`. Inside a group every step starts again at the group's first sample, with the
//! outputs made since: orders 1, 2, 3, 1, 2, 3, ... Where the count does not divide, the last groups are shorter.
use super::{
    About, Key, Request, Rule, Scheduler, Settings,
    dpm_solver::{Converter, Form, Parts, Weights},
    dpmpp_2m::{self, ALIASES, SOLVER},
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
    Key(
        "algorithm_type",
        Rule::Word(&["dpmsolver++", "dpmsolver", "sde-dpmsolver++", "deis"]),
    ),
    SOLVER,
    Key("lower_order_final", Rule::Flag(false)),
    KARRAS,
    EXPONENTIAL,
    BETA_SIGMAS,
    NO_FLOW,
    FLOW_SHIFT,
    FINAL_SIGMAS,
    LAMBDA_MIN,
    VARIANCE,
    NO_SHIFTING,
    SHIFT_TYPE,
    SIGMA_MIN,
    SIGMA_MAX,
];

pub const ABOUT: About = About {
    aliases: ALIASES,
    timesteps: true,
    forced: Some(("lower_order_final", forces_lower_order_final)),
    ..About::new(
        "dpmpp-2s",
        "DPMSolverSinglestepScheduler",
        KEYS,
        |settings, request| Ok(Box::new(Dpmpp2s::new(settings, request)?)),
    )
};

/// Whether the class sets lower_order_final itself: where the steps do not divide by the order, or the end is sigma 0.
fn forces_lower_order_final(settings: &Settings, request: &Request) -> bool {
    let uneven = !request
        .steps
        .is_multiple_of(settings.count("solver_order").max(1));
    let to_zero = settings.word("final_sigmas_type") == "zero";
    !settings.flag("lower_order_final") && (uneven || to_zero)
}

pub struct Dpmpp2s {
    levels: sigmas::Levels,
    calls: Vec<Weights>,
    sde: bool,
    converter: Converter,
    /// Newest first.
    outputs: VecDeque<Tensor>,
    /// Where the group began.
    start: Option<Tensor>,
}

impl Dpmpp2s {
    pub fn new(settings: &Settings, request: &Request) -> anyhow::Result<Self> {
        let form = dpmpp_2m::check(settings)?;
        let order = settings.count("solver_order");
        ensure!(order <= 3, "solver_order = {order} is not 1, 2 or 3");
        ensure!(
            form.x0 || !settings.flag("thresholding"),
            "thresholding needs a prediction of x0; set algorithm_type to dpmsolver++"
        );
        let heun = settings.word("solver_type") == "heun";
        let levels = sigmas::cut(
            settings,
            &alpha_bar(settings)?,
            request,
            sigmas::Cut::Singlestep,
        )?;
        let level: Vec<Level> = levels.sigmas.iter().map(|s| Level::of(*s)).collect();
        let mut calls = Vec::new();
        for (i, order) in orders(settings, request).into_iter().enumerate() {
            let past: Vec<Level> = level[..=i].iter().rev().take(order).copied().collect();
            let call = weights(form, heun, level[i + 1], &past);
            ensure_finite(call.all())?;
            calls.push(call);
        }
        Ok(Self {
            levels,
            calls,
            sde: form.sde,
            converter: Converter::new(settings, form.x0)?,
            outputs: VecDeque::new(),
            start: None,
        })
    }
}

/// The order of each step.
fn orders(settings: &Settings, request: &Request) -> Vec<usize> {
    let (n, order) = (request.steps, settings.count("solver_order"));
    let mut orders: Vec<usize> = (0..n).map(|i| i % order + 1).collect();
    let lower = settings.flag("lower_order_final") || forces_lower_order_final(settings, request);
    let to_zero = settings.word("final_sigmas_type") == "zero";
    if to_zero || lower && n.is_multiple_of(order) {
        orders[n - 1] = 1;
    }
    orders
}

/// The weights of one step to level `t` from the oldest of `past` (newest first), as many as the order.
fn weights(form: Form, heun: bool, t: Level, past: &[Level]) -> Weights {
    let s = past[past.len() - 1];
    let h = t.lambda - s.lambda;
    let Parts {
        a: x,
        phi: [phi1, phi2, phi3],
        noise,
    } = form.parts(s, t);
    let r = |level: Level| (level.lambda - s.lambda) / h;
    let outputs = match past {
        [_] => vec![phi1],
        // D1 = (m0 - m1) / r0
        [s0, _] => {
            let d1 = if heun { phi2 } else { 0.5 * phi1 } / r(*s0);
            vec![d1, phi1 - d1]
        }
        [s0, s1, ..] => {
            let (r0, r1) = (r(*s0), r(*s1));
            // D1_0 = (m1 - m2) / r1;  D1_1 = (m0 - m2) / r0
            let (d10, d11) = if heun {
                // D1 = (r0 D1_0 - r1 D1_1) / (r0 - r1);  D2 = 2 (D1_1 - D1_0) / (r0 - r1)
                (
                    (phi2 * r0 - 2.0 * phi3) / (r0 - r1),
                    (2.0 * phi3 - phi2 * r1) / (r0 - r1),
                )
            } else {
                (0.0, phi2)
            };
            vec![d11 / r0, d10 / r1, phi1 - d10 / r1 - d11 / r0]
        }
        [] => vec![],
    };
    Weights { x, outputs, noise }
}

impl Scheduler for Dpmpp2s {
    fn timesteps(&self) -> &[f64] {
        &self.levels.timesteps
    }

    fn sigma(&self, i: usize) -> f64 {
        self.levels.sigmas[i]
    }

    fn step(&mut self, i: usize, x: &Tensor, output: &Tensor, noise: &mut Noise) -> Result<Tensor> {
        let converted = self.converter.convert(self.levels.sigmas[i], x, output)?;
        self.outputs.push_front(converted);
        self.outputs.truncate(3);
        let fresh = self.sde.then(|| noise.normal_like(x)).transpose()?;
        let call = &self.calls[i];
        let start = match self.start.take() {
            Some(start) if call.outputs.len() > 1 => start,
            _ => x.clone(),
        };
        let next = call.sum(&start, &self.outputs, fresh.as_ref())?;
        self.start = Some(start);
        Ok(next)
    }
}
