//! DPM-Solver++ multistep: Lu et al. 2022, "DPM-Solver++", its SDE, and DPM-Solver, its form in eps.
//!
//! x at the next level is a weighted sum of x, the last predictions and noise; the weights are worked out when it is built.
use super::{
    About, Key, Request, Rule, Scheduler, Settings,
    dpm_solver::{Converter, Form, Multistep, multistep},
    keys::*,
    schedule::*,
    sigmas::{self, Level},
};
use crate::engine::noise::Noise;
use anyhow::ensure;
use candle_core::{Result, Tensor};

pub const SOLVER: Key = Key(
    "solver_type",
    Rule::Word(&["midpoint", "heun", "logrho", "bh1", "bh2"]),
);
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
    SOLVER,
    Key("lower_order_final", Rule::Flag(true)),
    Key("euler_at_final", Rule::Flag(false)),
    KARRAS,
    EXPONENTIAL,
    BETA_SIGMAS,
    Key("use_lu_lambdas", Rule::Flag(false)),
    NO_FLOW,
    FLOW_SHIFT,
    FINAL_SIGMAS,
    LAMBDA_MIN,
    VARIANCE,
    LINSPACE,
    OFFSET,
    ZERO_SNR,
    NO_SHIFTING,
    SHIFT_TYPE,
    SIGMA_MIN,
    SIGMA_MAX,
];

/// What this class and its relatives read other classes' words as.
pub const ALIASES: &[(&str, &str, &str)] = &[
    ("solver_type", "logrho", "midpoint"),
    ("solver_type", "bh1", "midpoint"),
    ("solver_type", "bh2", "midpoint"),
    ("algorithm_type", "deis", "dpmsolver++"),
];

pub const ABOUT: About = About {
    aliases: ALIASES,
    timesteps: true,
    ..About::new(
        "dpmpp-2m",
        "DPMSolverMultistepScheduler",
        KEYS,
        |settings, request| Ok(Box::new(Dpmpp2m::new(settings, request)?)),
    )
};

/// The same class under the name of its SDE.
pub const SDE: About = About {
    name: "dpmpp-2m-sde",
    preset: Some(("algorithm_type", "sde-dpmsolver++")),
    random: true,
    ..ABOUT
};

pub struct Dpmpp2m {
    levels: sigmas::Levels,
    steps: Multistep,
    sde: bool,
    converter: Converter,
}

impl Dpmpp2m {
    pub fn new(settings: &Settings, request: &Request) -> anyhow::Result<Self> {
        let form = check(settings)?;
        ensure!(
            settings.count("solver_order") < 3 || form.x0 || !form.sde,
            "algorithm_type sde-dpmsolver has no third order; set solver_order to 1 or 2"
        );
        let heun = settings.word("solver_type") == "heun";
        let levels = sigmas::cut(
            settings,
            &alpha_bar_above_zero(settings)?,
            request,
            sigmas::Cut::DpmSolver,
        )?;
        let level: Vec<Level> = levels.sigmas.iter().map(|s| Level::of(*s)).collect();
        Ok(Self {
            levels,
            steps: Multistep::new(settings, &level, |t, past| {
                Ok(multistep(form, heun, t, past))
            })?,
            sde: form.sde,
            converter: Converter::new(settings, form.x0)?,
        })
    }
}

/// The form that the keys ask for, where its order and its end are possible.
pub fn check(settings: &Settings) -> anyhow::Result<Form> {
    let (order, form) = (settings.count("solver_order"), Form::of(settings));
    ensure!(order >= 1, "solver_order = {order} is not 1, 2 or 3");
    // The reference asks before it reads deis as dpmsolver++.
    ensure!(
        settings.word("algorithm_type").ends_with("++")
            || settings.word("final_sigmas_type") != "zero",
        "algorithm_type {} needs final_sigmas_type sigma_min; only dpmsolver++ and sde-dpmsolver++ reach zero",
        settings.word("algorithm_type")
    );
    Ok(form)
}

impl Scheduler for Dpmpp2m {
    fn timesteps(&self) -> &[f64] {
        &self.levels.timesteps
    }

    fn sigma(&self, i: usize) -> f64 {
        self.levels.sigmas[i]
    }

    fn step(&mut self, i: usize, x: &Tensor, output: &Tensor, noise: &mut Noise) -> Result<Tensor> {
        let converted = self.converter.convert(self.levels.sigmas[i], x, output)?;
        let fresh = self.sde.then(|| noise.normal_like(x)).transpose()?;
        self.steps.step(i, x, converted, fresh.as_ref())
    }
}
