//! Euler's method for EDM models: Karras et al. 2022, algorithm 2 with S_churn = 0 and without its second order.
use super::{
    About, Key, Request, Scheduler, Settings,
    edm::{self, *},
    keys::*,
    schedule::*,
};
use crate::engine::noise::Noise;
use candle_core::{Result, Tensor};

pub const KEYS: &[Key] = &[
    EDM_SIGMA_MIN,
    EDM_SIGMA_MAX,
    SIGMA_DATA,
    SCHEDULE,
    TRAIN,
    EDM_PREDICTION,
    RHO,
    FINAL_SIGMAS,
];

pub const ABOUT: About = About {
    own_range: true,
    ..About::new(
        "edm-euler",
        "EDMEulerScheduler",
        KEYS,
        |settings, request| Ok(Box::new(EdmEuler::new(settings, request)?)),
    )
};

pub struct EdmEuler {
    timesteps: Vec<f64>,
    sigmas: Vec<f64>,
    edm: Edm,
    init: f64,
}

impl EdmEuler {
    pub fn new(settings: &Settings, request: &Request) -> anyhow::Result<Self> {
        let edm = Edm::new(settings)?;
        let n = request.steps;
        let mut sigmas: Vec<f64> = match settings.word("sigma_schedule") {
            "exponential" => edm::exponential(settings, n),
            _ => edm::karras(settings, &linspace(0.0, 1.0, n), |x| x)
                .into_iter()
                .map(f32_of)
                .collect(),
        };
        let timesteps = edm::c_noise(&sigmas);
        settings.ensure_first_once(&timesteps)?;
        sigmas.push(if settings.word("final_sigmas_type") == "sigma_min" {
            sigmas[n - 1]
        } else {
            0.0
        });
        ensure_finite(sigmas.iter().chain(&timesteps))?;
        Ok(Self {
            timesteps,
            sigmas,
            edm,
            init: edm::init_noise_sigma(settings),
        })
    }
}

impl Scheduler for EdmEuler {
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

    fn step(
        &mut self,
        i: usize,
        x: &Tensor,
        output: &Tensor,
        _noise: &mut Noise,
    ) -> Result<Tensor> {
        let (sigma, next) = (self.sigmas[i], self.sigmas[i + 1]);
        let x0 = self.edm.x0(sigma, x, &output.to_dtype(x.dtype())?)?;
        let d = ((x - x0)? / sigma)?;
        x + (d * (next - sigma))?
    }
}
