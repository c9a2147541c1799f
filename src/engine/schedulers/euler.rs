//! Euler's method on the probability-flow equation: Karras et al. 2022, algorithm 2 with S_churn = 0.
use super::{
    About, Key, Request, Rule, Scheduler, Settings,
    algebra::Prediction,
    keys::*,
    schedule::*,
    sigmas::{self, Habits},
};
use crate::engine::noise::Noise;
use candle_core::{Result, Tensor};

pub const KEYS: &[Key] = &[
    TRAIN,
    BETA_START,
    BETA_END,
    BETAS,
    TRAINED,
    Key(
        "prediction_type",
        Rule::Word(&["epsilon", "v_prediction", "sample", "original_sample"]),
    ),
    Key("interpolation_type", Rule::Word(&["linear", "log_linear"])),
    KARRAS,
    EXPONENTIAL,
    BETA_SIGMAS,
    SIGMA_MIN,
    SIGMA_MAX,
    LINSPACE,
    Key("timestep_type", Rule::Word(&["discrete", "continuous"])),
    OFFSET,
    ZERO_SNR,
    FINAL_SIGMAS,
];

pub const ABOUT: About = About {
    timesteps: true,
    sigmas: true,
    ..About::new(
        "euler",
        "EulerDiscreteScheduler",
        KEYS,
        |settings, request| Ok(Box::new(Euler::new(settings, request)?)),
    )
};

pub struct Euler {
    levels: sigmas::Levels,
    prediction: Prediction,
    init: f64,
}

impl Euler {
    pub fn new(settings: &Settings, request: &Request) -> anyhow::Result<Self> {
        let levels = sigmas::continuous(
            settings,
            &alpha_bar_above_zero(settings)?,
            request,
            Habits::default(),
        )?;
        ensure_finite(levels.sigmas.iter().chain(&levels.timesteps))?;
        let init = sigmas::init_noise_sigma(settings, &levels.sigmas);
        Ok(Self {
            levels,
            prediction: Prediction::of(settings),
            init,
        })
    }
}

/// x0 from `x = x0 + sigma eps` when the network saw `x / sqrt(sigma^2 + 1)`.
pub fn x0(prediction: Prediction, sigma: f64, x: &Tensor, output: &Tensor) -> Result<Tensor> {
    let root = (sigma * sigma + 1.0).sqrt();
    match prediction {
        Prediction::Epsilon => x - (output * sigma)?,
        Prediction::Sample => Ok(output.clone()),
        // c_out and c_skip of table 1 with sigma_data = 1
        Prediction::V => (output * (-sigma / root))? + (x / (root * root))?,
    }
}

/// `c_in` of table 1 with sigma_data = 1.
pub fn scale(sigma: f64, x: &Tensor) -> Result<Tensor> {
    x / (sigma * sigma + 1.0).sqrt()
}

impl Scheduler for Euler {
    fn timesteps(&self) -> &[f64] {
        &self.levels.timesteps
    }

    fn sigma(&self, i: usize) -> f64 {
        self.levels.sigmas[i]
    }

    fn init_noise_sigma(&self) -> f64 {
        self.init
    }

    fn scale_input(&self, i: usize, x: &Tensor) -> Result<Tensor> {
        scale(self.levels.sigmas[i], x)
    }

    fn step(
        &mut self,
        i: usize,
        x: &Tensor,
        output: &Tensor,
        _noise: &mut Noise,
    ) -> Result<Tensor> {
        let (sigma, next) = (self.levels.sigmas[i], self.levels.sigmas[i + 1]);
        let x0 = x0(self.prediction, sigma, x, &output.to_dtype(x.dtype())?)?;
        // d_i = (x_i - D(x_i)) / t_i;  x_{i+1} = x_i + (t_{i+1} - t_i) d_i
        let d = ((x - x0)? / sigma)?;
        x + (d * (next - sigma))?
    }
}
