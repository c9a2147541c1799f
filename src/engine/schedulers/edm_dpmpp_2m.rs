//! DPM-Solver++ multistep for EDM models: the weights of Lu et al. 2022 with alpha = 1, the network of Karras et al. 2022.
use super::{
    About, Key, Request, Rule, Scheduler, Settings,
    algebra::Clip,
    dpm_solver::{Form, Multistep, multistep},
    dpmpp_2m::{self, ALIASES, SOLVER},
    edm::{self, *},
    keys::*,
    schedule::*,
    sigmas::Level,
};
use crate::engine::noise::Noise;
use anyhow::ensure;
use candle_core::{Result, Tensor};

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
    steps: Multistep,
    sde: bool,
    edm: Edm,
    clip: Clip,
    init: f64,
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
        let steps = Multistep::new(settings, &level, |t, past| {
            ensure!(
                past.len() < 3 || !form.sde,
                "algorithm_type sde-dpmsolver++ has no third order here; set solver_order to 1 or 2"
            );
            Ok(multistep(form, heun, t, past))
        })?;
        Ok(Self {
            timesteps,
            sigmas,
            steps,
            sde: form.sde,
            edm,
            clip: Clip::of(settings)?,
            init: edm::init_noise_sigma(settings),
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
        let fresh = self.sde.then(|| noise.normal_like(x)).transpose()?;
        self.steps.step(i, x, self.clip.apply(x0)?, fresh.as_ref())
    }
}
