//! LCM: Luo et al. 2023, "Latent Consistency Models", multistep latent consistency sampling.
//!
//! Each call predicts x0; all but the last add fresh noise for the next level. The timesteps are some of the
//! `original_inference_steps` that the model was distilled on.
use super::{
    About, Key, Request, Rule, Scheduler, Settings,
    algebra::{Clip, Prediction, combine},
    keys::*,
    schedule::*,
};
use crate::engine::noise::Noise;
use anyhow::ensure;
use candle_core::{Result, Tensor};

/// sigma_data of the boundary condition's scalings
const SIGMA_DATA: f64 = 0.5;

pub const SCALED: Key = Key(
    "beta_schedule",
    Rule::Word(&["scaled_linear", "linear", "squaredcos_cap_v2"]),
);
/// TCD has the same.
pub const KEYS: &[Key] = &[
    TRAIN,
    SD_BETA_START,
    SD_BETA_END,
    SCALED,
    TRAINED,
    Key("original_inference_steps", Rule::Count(50)),
    Key("clip_sample", Rule::Flag(false)),
    CLIP_RANGE,
    // The last level is never looked up, and the timesteps are placed by the distilled ones alone.
    Key("set_alpha_to_one", Rule::Flag(true)),
    OFFSET,
    PREDICTION,
    THRESHOLDING,
    RATIO,
    MAX_VALUE,
    LEADING,
    Key("timestep_scaling", Rule::Number(10.0)),
    ZERO_SNR,
];

pub const ABOUT: About = About {
    timesteps: true,
    random: true,
    ..About::new("lcm", "LCMScheduler", KEYS, |settings, request| {
        Ok(Box::new(Lcm::new(settings, request)?))
    })
};

/// The timesteps of a run: those asked for, or evenly chosen ones of the distilled.
pub fn distilled(settings: &Settings, request: &Request) -> anyhow::Result<Vec<f64>> {
    let (train, original) = (
        settings.count("num_train_timesteps"),
        settings.count("original_inference_steps"),
    );
    ensure!(
        (1..=train).contains(&original),
        "original_inference_steps = {original} is not between 1 and num_train_timesteps ({train})"
    );
    if let Some(list) = &request.timesteps {
        return Ok(list.clone());
    }
    let steps = request.steps;
    ensure!(
        steps <= original,
        "{steps} steps: the timesteps are chosen among original_inference_steps = {original}; take no more, or raise that key"
    );
    let k = train / original;
    let chosen = linspace_open(original as f64, steps).map(|place| {
        let index = original - 1 - place.floor() as usize;
        ((index + 1) * k - 1) as f64
    });
    Ok(chosen.collect())
}

/// numpy.linspace from 0 without its end
fn linspace_open(end: f64, n: usize) -> impl Iterator<Item = f64> {
    let step = end / n as f64;
    (0..n).map(move |i| i as f64 * step)
}

pub struct Lcm {
    timesteps: Vec<f64>,
    calls: Vec<Call>,
    prediction: Prediction,
    clip: Clip,
}

struct Call {
    alpha: f64,
    sigma: f64,
    c_skip: f64,
    c_out: f64,
    /// The next level's alpha and sigma; None after the last call.
    next: Option<(f64, f64)>,
}

impl Lcm {
    pub fn new(settings: &Settings, request: &Request) -> anyhow::Result<Self> {
        let bar = alpha_bar(settings)?;
        let timesteps = distilled(settings, request)?;
        let places = indices(&timesteps, bar.len())?;
        let (prediction, clip) = (Prediction::of(settings), Clip::of(settings)?);
        let mut calls = Vec::new();
        for (i, &t) in places.iter().enumerate() {
            let scaled = t as f64 * settings.number("timestep_scaling");
            let square = scaled * scaled + SIGMA_DATA * SIGMA_DATA;
            let call = Call {
                alpha: bar[t].sqrt(),
                sigma: (1.0 - bar[t]).sqrt(),
                c_skip: SIGMA_DATA * SIGMA_DATA / square,
                c_out: scaled / square.sqrt(),
                next: places
                    .get(i + 1)
                    .map(|&next| (bar[next].sqrt(), (1.0 - bar[next]).sqrt())),
            };
            ensure_finite(&[call.c_skip, call.c_out])?;
            clip.ensure_x0(prediction, call.alpha)?;
            calls.push(call);
        }
        Ok(Self {
            timesteps,
            calls,
            prediction,
            clip,
        })
    }
}

impl Scheduler for Lcm {
    fn timesteps(&self) -> &[f64] {
        &self.timesteps
    }

    fn sigma(&self, i: usize) -> f64 {
        self.calls[i].sigma / self.calls[i].alpha
    }

    fn step(&mut self, i: usize, x: &Tensor, output: &Tensor, noise: &mut Noise) -> Result<Tensor> {
        let call = &self.calls[i];
        let output = output.to_dtype(x.dtype())?;
        let x0 = self
            .clip
            .apply(self.prediction.x0(call.alpha, call.sigma, x, &output)?)?;
        // f(x, t) = c_skip(t) x + c_out(t) x0
        let denoised = combine(&[(call.c_out, &x0), (call.c_skip, x)])?;
        match call.next {
            Some((alpha, sigma)) => combine(&[(alpha, &denoised), (sigma, &noise.normal_like(x)?)]),
            None => Ok(denoised),
        }
    }
}
