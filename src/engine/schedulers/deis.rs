//! DEIS: Zhang & Chen 2023, "Fast Sampling of Diffusion Models with Exponential Integrator", multistep in log rho.
//!
//! With rho = sigma_t / alpha the probability-flow equation is d(x / alpha) = eps d rho. The last outputs are interpolated by a polynomial
//! in log rho, and the polynomial is integrated over the step: that paper's Adams-Bashforth methods in another variable.
use super::{
    About, Key, Request, Rule, Scheduler, Settings,
    dpm_solver::{Converter, Form, Multistep, Weights, multistep},
    keys::*,
    schedule::*,
    sigmas::{self, Level},
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
    Key("solver_order", Rule::Count(2)),
    PREDICTION,
    THRESHOLDING,
    RATIO,
    MAX_VALUE,
    Key(
        "algorithm_type",
        Rule::Word(&["deis", "dpmsolver", "dpmsolver++"]),
    ),
    Key(
        "solver_type",
        Rule::Word(&["logrho", "midpoint", "heun", "bh1", "bh2"]),
    ),
    Key("lower_order_final", Rule::Flag(true)),
    KARRAS,
    EXPONENTIAL,
    BETA_SIGMAS,
    NO_FLOW,
    FLOW_SHIFT,
    LINSPACE,
    OFFSET,
    NO_SHIFTING,
    SHIFT_TYPE,
    SIGMA_MIN,
    SIGMA_MAX,
];

pub const ABOUT: About = About {
    aliases: &[
        ("algorithm_type", "dpmsolver", "deis"),
        ("algorithm_type", "dpmsolver++", "deis"),
        ("solver_type", "midpoint", "logrho"),
        ("solver_type", "heun", "logrho"),
        ("solver_type", "bh1", "logrho"),
        ("solver_type", "bh2", "logrho"),
    ],
    ..About::new(
        "deis",
        "DEISMultistepScheduler",
        KEYS,
        |settings, request| Ok(Box::new(Deis::new(settings, request)?)),
    )
};

pub struct Deis {
    levels: sigmas::Levels,
    steps: Multistep,
    converter: Converter,
}

impl Deis {
    pub fn new(settings: &Settings, request: &Request) -> anyhow::Result<Self> {
        let order = settings.count("solver_order");
        ensure!(order >= 1, "solver_order = {order} is not 1, 2 or 3");
        let bar = alpha_bar(settings)?;
        let levels = sigmas::cut(settings, &bar, request, sigmas::Cut::UniPc)?;
        let steps = Multistep::new(settings, &levels.sigmas, |t, past| Ok(weights(t, past)))?;
        Ok(Self {
            levels,
            steps,
            converter: Converter::new(settings, false)?,
        })
    }
}

/// The weights of one step to `t` from `past`: s_0 (where x is), s_1, s_2, all in rho.
fn weights(t: f64, past: &[f64]) -> Weights {
    let (to, from) = (Level::of(t), Level::of(past[0]));
    let form = Form {
        x0: false,
        sde: false,
    };
    if past.len() == 1 {
        // Order 1 is DDIM, and DPM-Solver-1.
        return multistep(form, false, to, &[from]);
    }
    let logs: Vec<f64> = past.iter().map(|s| s.ln()).collect();
    let outputs = (0..past.len()).map(|k| {
        let others: Vec<f64> = logs
            .iter()
            .enumerate()
            .filter(|(j, _)| *j != k)
            .map(|(_, log)| *log)
            .collect();
        let denominator: f64 = others.iter().map(|log| logs[k] - log).product();
        to.alpha * (primitive(t, &others) - primitive(past[0], &others)) / denominator
    });
    Weights {
        x: to.alpha / from.alpha,
        outputs: outputs.collect(),
        noise: 0.0,
    }
}

/// The primitive in rho of `prod_j (log rho - c_j)` for one or two c.
fn primitive(rho: f64, c: &[f64]) -> f64 {
    let l = rho.ln();
    match c {
        [c] => rho * (l - 1.0 - c),
        _ => rho * (l * l - 2.0 * l + 2.0 - (c[0] + c[1]) * (l - 1.0) + c[0] * c[1]),
    }
}

impl Scheduler for Deis {
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
        let converted = self.converter.convert(self.levels.sigmas[i], x, output)?;
        self.steps.step(i, x, converted, None)
    }
}
