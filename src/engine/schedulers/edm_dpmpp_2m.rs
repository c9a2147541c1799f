//! DPM-Solver++ multistep for EDM models: the weights of Lu et al. 2022 with alpha = 1, the network of Karras et al. 2022.
use super::{
    About, Key, Request, Rule, Scheduler, Settings,
    algebra::Clip,
    dpm_solver::{Form, Weights, multistep, multistep_orders},
    dpmpp_2m::{self, ALIASES, SOLVER},
    edm::{self, *},
    keys::*,
    schedule::*,
    sigmas::Level,
};
use crate::engine::noise::Noise;
use anyhow::ensure;
use candle_core::{Result, Tensor};
use std::collections::VecDeque;

pub const KEYS: &[Key] = &[
    EDM_SIGMA_MIN,
    EDM_SIGMA_MAX,
    SIGMA_DATA,
    SCHEDULE,
    TRAIN,
    EDM_PREDICTION,
    RHO,
    Key("solver_order", Rule::Count(2)),
    THRESHOLDING,
    RATIO,
    MAX_VALUE,
    Key(
        "algorithm_type",
        Rule::Word(&["dpmsolver++", "sde-dpmsolver++", "deis"]),
    ),
    SOLVER,
    Key("lower_order_final", Rule::Flag(true)),
    Key("euler_at_final", Rule::Flag(false)),
    FINAL_SIGMAS,
];

pub const ABOUT: About = About {
    aliases: ALIASES,
    own_range: true,
    ..About::new(
        "edm-dpmpp-2m",
        "EDMDPMSolverMultistepScheduler",
        KEYS,
        |settings, request| Ok(Box::new(EdmDpmpp2m::new(settings, request)?)),
    )
};

pub struct EdmDpmpp2m {
    timesteps: Vec<f64>,
    sigmas: Vec<f64>,
    calls: Vec<Weights>,
    sde: bool,
    edm: Edm,
    clip: Clip,
    init: f64,
    /// Newest first.
    outputs: VecDeque<Tensor>,
}

impl EdmDpmpp2m {
    pub fn new(settings: &Settings, request: &Request) -> anyhow::Result<Self> {
        let form: Form = dpmpp_2m::check(settings)?;
        let edm = Edm::new(settings)?;
        let n = request.steps;
        let mut sigmas = match settings.word("sigma_schedule") {
            "exponential" => edm::exponential(settings, n),
            _ => edm::karras(settings, &linspace_f32(0.0, 1.0, n), f32_of),
        };
        let timesteps = edm::c_noise(&sigmas);
        settings.ensure_first_once(&timesteps)?;
        sigmas.push(if settings.word("final_sigmas_type") == "sigma_min" {
            f32_of(settings.number("sigma_min"))
        } else {
            0.0
        });
        let level: Vec<Level> = sigmas
            .iter()
            .map(|&sigma| Level {
                alpha: 1.0,
                sigma,
                lambda: -sigma.ln(),
            })
            .collect();
        let heun = settings.word("solver_type") == "heun";
        let mut calls = Vec::new();
        for (i, order) in multistep_orders(settings, n).into_iter().enumerate() {
            ensure!(
                order < 3 || !form.sde,
                "algorithm_type sde-dpmsolver++ has no third order here; set solver_order to 1 or 2"
            );
            let past: Vec<Level> = level[..=i].iter().rev().take(order).copied().collect();
            let call = multistep(form, heun, level[i + 1], &past);
            ensure_finite(call.all())?;
            calls.push(call);
        }
        Ok(Self {
            timesteps,
            sigmas,
            calls,
            sde: form.sde,
            edm,
            clip: Clip::of(settings)?,
            init: edm::init_noise_sigma(settings),
            outputs: VecDeque::new(),
        })
    }
}

impl Scheduler for EdmDpmpp2m {
    fn timesteps(&self) -> &[f64] {
        &self.timesteps
    }

    fn sigma(&self, i: usize) -> f64 {
        self.sigmas[i]
    }

    fn init_noise_sigma(&self) -> f64 {
        self.init
    }

    fn scale_input(&self, i: usize, x: &Tensor) -> Result<Tensor> {
        self.edm.scale(self.sigmas[i], x)
    }

    fn step(&mut self, i: usize, x: &Tensor, output: &Tensor, noise: &mut Noise) -> Result<Tensor> {
        let output = output.to_dtype(x.dtype())?;
        let x0 = self.edm.x0(self.sigmas[i], x, &output)?;
        self.outputs.push_front(self.clip.apply(x0)?);
        self.outputs.truncate(3);
        let fresh = self.sde.then(|| noise.normal_like(x)).transpose()?;
        self.calls[i].sum(x, &self.outputs, fresh.as_ref())
    }
}
