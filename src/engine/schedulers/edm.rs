//! What the two EDM classes share: Karras et al. 2022, "Elucidating the Design Space of Diffusion-Based Generative Models", table 1.
use super::{
    Key, Rule, Settings,
    algebra::{Prediction, combine},
    keys::*,
};
use anyhow::ensure;
use candle_core::{Result, Tensor};

pub const EDM_SIGMA_MIN: Key = Key("sigma_min", Rule::Number(0.002));
pub const EDM_SIGMA_MAX: Key = Key("sigma_max", Rule::Number(80.0));
pub const SIGMA_DATA: Key = Key("sigma_data", Rule::Number(0.5));
pub const SCHEDULE: Key = Key("sigma_schedule", Rule::Word(&["karras", "exponential"]));
pub const RHO: Key = Key("rho", Rule::Number(7.0));
pub const EDM_PREDICTION: Key = NOISE_OR_V;

/// The preconditioning: what the network sees, and what its output means.
pub struct Edm {
    sigma_data: f64,
    prediction: Prediction,
}

impl Edm {
    pub fn new(settings: &Settings) -> anyhow::Result<Self> {
        for key in ["sigma_min", "sigma_max", "sigma_data", "rho"] {
            let value = settings.number(key);
            ensure!(
                value > 0.0 && value.is_finite(),
                "{key} = {value} is not a positive number"
            );
        }
        Ok(Self {
            sigma_data: settings.number("sigma_data"),
            prediction: Prediction::of(settings),
        })
    }

    fn total(&self, sigma: f64) -> f64 {
        sigma * sigma + self.sigma_data * self.sigma_data
    }

    /// `c_in x`
    pub fn scale(&self, sigma: f64, x: &Tensor) -> Result<Tensor> {
        x / self.total(sigma).sqrt()
    }

    /// `c_skip x + c_out output`; with v-prediction the sign of c_out is turned.
    pub fn x0(&self, sigma: f64, x: &Tensor, output: &Tensor) -> Result<Tensor> {
        let total = self.total(sigma);
        let c_out = sigma * self.sigma_data / total.sqrt();
        let sign = if self.prediction == Prediction::V {
            -1.0
        } else {
            1.0
        };
        let c_skip = self.sigma_data * self.sigma_data / total;
        combine(&[(c_skip, x), (sign * c_out, output)])
    }
}

/// `c_noise`, the timesteps: a quarter of log sigma.
pub fn c_noise(sigmas: &[f64]) -> Vec<f64> {
    use super::schedule::f32_of;
    sigmas
        .iter()
        .map(|s| f32_of(0.25 * f32_of(s.ln())))
        .collect()
}

/// The standard deviation of the first sample.
pub fn init_noise_sigma(settings: &Settings) -> f64 {
    let max = settings.number("sigma_max");
    (max * max + 1.0).sqrt()
}

/// `n` sigmas from sigma_max down to sigma_min, geometric, as the reference's f32 has them (one is sigma_min alone).
pub fn exponential(settings: &Settings, n: usize) -> Vec<f64> {
    use super::schedule::{f32_of, linspace_f32};
    let (min, max) = (settings.number("sigma_min"), settings.number("sigma_max"));
    let ascending = linspace_f32(min.ln(), max.ln(), n);
    ascending
        .into_iter()
        .rev()
        .map(|l| f32_of(l.exp()))
        .collect()
}

/// Formula (5): sigma^(1/rho) runs evenly along `ramp`, 0 to 1; `round` is what each operation's result is stored as.
pub fn karras(settings: &Settings, ramp: &[f64], round: impl Fn(f64) -> f64) -> Vec<f64> {
    let rho = settings.number("rho");
    let root = |key: &str| settings.number(key).powf(1.0 / rho);
    let (min, max) = (root("sigma_min"), root("sigma_max"));
    let sigma = |r: &f64| round(round(round(max) + round(r * round(min - max))).powf(rho));
    ramp.iter().map(sigma).collect()
}
