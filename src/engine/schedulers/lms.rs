//! Linear multistep (Adams-Bashforth) on the probability-flow equation in sigma, order 4, as in k-diffusion.
//!
//! The last derivatives are interpolated by a polynomial in sigma (Lagrange), and the polynomial is integrated over the step.
use super::{
    About, Key, Request, Scheduler, Settings,
    algebra::{Prediction, combine},
    euler,
    keys::*,
    schedule::*,
    sigmas::{self, Habits},
};
use crate::engine::noise::Noise;
use candle_core::{Result, Tensor};
use std::collections::VecDeque;

const ORDER: usize = 4;

pub const KEYS: &[Key] = &[
    TRAIN,
    BETA_START,
    BETA_END,
    BETAS,
    TRAINED,
    KARRAS,
    EXPONENTIAL,
    BETA_SIGMAS,
    PREDICTION,
    LINSPACE,
    OFFSET,
    SIGMA_MIN,
    SIGMA_MAX,
];

pub const ABOUT: About = About::new("lms", "LMSDiscreteScheduler", KEYS, |settings, request| {
    Ok(Box::new(Lms::new(settings, request)?))
});

pub struct Lms {
    levels: sigmas::Levels,
    /// Of each call: the weights of the derivatives, newest first.
    weights: Vec<Vec<f64>>,
    init: f64,
    prediction: Prediction,
    /// Newest first.
    derivatives: VecDeque<Tensor>,
}

impl Lms {
    pub fn new(settings: &Settings, request: &Request) -> anyhow::Result<Self> {
        let habits = Habits {
            karras_unbounded: true,
            ..Habits::default()
        };
        let levels = sigmas::continuous(settings, &alpha_bar(settings)?, request, habits)?;
        let sigma = &levels.sigmas;
        let mut weights = Vec::new();
        for i in 0..levels.timesteps.len() {
            let nodes: Vec<f64> = sigma[..=i].iter().rev().take(ORDER).copied().collect();
            let call: Vec<f64> = (0..nodes.len())
                .map(|k| integral(sigma[i], sigma[i + 1], |tau| lagrange(&nodes, k, tau)))
                .collect();
            ensure_finite(call.iter().chain([&sigma[i]]))?;
            weights.push(call);
        }
        let init = sigmas::init_noise_sigma(settings, sigma);
        Ok(Self {
            levels,
            weights,
            init,
            prediction: Prediction::of(settings),
            derivatives: VecDeque::new(),
        })
    }
}

/// `prod_{j != k} (tau - nodes_j) / (nodes_k - nodes_j)`
fn lagrange(nodes: &[f64], k: usize, tau: f64) -> f64 {
    let factor = |j: usize| (tau - nodes[j]) / (nodes[k] - nodes[j]);
    (0..nodes.len()).filter(|j| *j != k).map(factor).product()
}

/// Gauss and Legendre's rule of two points: exact for polynomials up to degree 3, which those of four nodes are.
fn integral(from: f64, to: f64, f: impl Fn(f64) -> f64) -> f64 {
    let (middle, half) = (0.5 * (from + to), 0.5 * (to - from));
    let offset = half / 3f64.sqrt();
    half * (f(middle - offset) + f(middle + offset))
}

impl Scheduler for Lms {
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
        euler::scale(self.levels.sigmas[i], x)
    }

    fn step(
        &mut self,
        i: usize,
        x: &Tensor,
        output: &Tensor,
        _noise: &mut Noise,
    ) -> Result<Tensor> {
        let sigma = self.levels.sigmas[i];
        let x0 = euler::x0(self.prediction, sigma, x, &output.to_dtype(x.dtype())?)?;
        self.derivatives.push_front(((x - x0)? / sigma)?);
        self.derivatives.truncate(ORDER);
        let mut terms = vec![(1.0, x)];
        terms.extend(self.weights[i].iter().copied().zip(&self.derivatives));
        combine(&terms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cubics_are_integrated_exactly() {
        let cubic = |x: f64| 4.0 * x * x * x - 3.0 * x * x + 2.0 * x - 1.0;
        let primitive = |x: f64| x.powi(4) - x.powi(3) + x * x - x;
        let off = integral(0.3, -2.1, cubic) - (primitive(-2.1) - primitive(0.3));
        assert!(off.abs() < 1e-12, "{off}");
    }
}
