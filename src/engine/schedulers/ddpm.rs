//! DDPM: Ho, Jain & Abbeel 2020, "Denoising Diffusion Probabilistic Models", ancestral sampling (algorithm 2).
use super::{
    About, Key, Request, Rule, Scheduler, Settings,
    algebra::{Clip, Prediction, combine},
    keys::*,
    schedule::*,
};
use crate::engine::noise::Noise;
use candle_core::{Result, Tensor, bail};

const VARIANCES: &[&str] = &[
    "fixed_small",
    "fixed_small_log",
    "fixed_large",
    "fixed_large_log",
    "learned",
    "learned_range",
    // null, as DPM-Solver's files have it: as the first
    "",
];
pub const KEYS: &[Key] = &[
    TRAIN,
    BETA_START,
    BETA_END,
    Key(
        "beta_schedule",
        Rule::Word(&[
            "linear",
            "scaled_linear",
            "squaredcos_cap_v2",
            "sigmoid",
            "laplace",
        ]),
    ),
    TRAINED,
    Key("variance_type", Rule::Word(VARIANCES)),
    Key("clip_sample", Rule::Flag(true)),
    PREDICTION,
    THRESHOLDING,
    RATIO,
    CLIP_RANGE,
    MAX_VALUE,
    LEADING,
    OFFSET,
    ZERO_SNR,
];

pub const ABOUT: About = About {
    timesteps: true,
    random: true,
    ..About::new("ddpm", "DDPMScheduler", KEYS, |settings, request| {
        Ok(Box::new(Ddpm::new(settings, request)?))
    })
};

pub struct Ddpm {
    timesteps: Vec<f64>,
    calls: Vec<Call>,
    prediction: Prediction,
    clip: Clip,
}

struct Call {
    alpha: f64,
    sigma: f64,
    x0: f64,
    x: f64,
    noise: Spread,
}

/// The standard deviation of the noise that is added.
enum Spread {
    Nothing,
    Fixed(f64),
    /// The network predicts the variance.
    Learned,
    /// The network predicts where the log-variance lies between these two (Nichol & Dhariwal 2021, formula (15)).
    Range {
        low: f64,
        high: f64,
    },
}

impl Ddpm {
    pub fn new(settings: &Settings, request: &Request) -> anyhow::Result<Self> {
        let bar = alpha_bar(settings)?;
        let timesteps = timesteps(settings, Grid::Whole, bar.len(), request)?;
        let places = indices(&timesteps, bar.len())?;
        let variance_type = settings.word("variance_type");
        let (prediction, clip) = (Prediction::of(settings), Clip::of(settings)?);
        let mut calls = Vec::new();
        for (i, &t) in places.iter().enumerate() {
            let (bar_t, bar_prev) = (bar[t], places.get(i + 1).map_or(1.0, |&prev| bar[prev]));
            let alpha_t = bar_t / bar_prev;
            let beta_t = 1.0 - alpha_t;
            // beta~_t, beside formula (7)
            let variance = ((1.0 - bar_prev) / (1.0 - bar_t) * beta_t).max(1e-20);
            let noise = match variance_type {
                _ if t == 0 => Spread::Nothing,
                "fixed_large" => Spread::Fixed(beta_t.sqrt()),
                // The reference takes the root of this logarithm, which is NaN: refused below.
                "fixed_large_log" => Spread::Fixed(beta_t.ln().sqrt()),
                "learned" => Spread::Learned,
                "learned_range" => Spread::Range {
                    low: variance.ln(),
                    high: beta_t.ln(),
                },
                _ => Spread::Fixed(variance.sqrt()),
            };
            // mu~_t, formula (7)
            let (x0, x) = (
                bar_prev.sqrt() * beta_t / (1.0 - bar_t),
                alpha_t.sqrt() * (1.0 - bar_prev) / (1.0 - bar_t),
            );
            let call = Call {
                alpha: bar_t.sqrt(),
                sigma: (1.0 - bar_t).sqrt(),
                x0,
                x,
                noise,
            };
            let spread = if let Spread::Fixed(spread) = call.noise {
                spread
            } else {
                0.0
            };
            ensure_finite(&[x0, x, spread])?;
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

impl Scheduler for Ddpm {
    fn timesteps(&self) -> &[f64] {
        &self.timesteps
    }

    fn sigma(&self, i: usize) -> f64 {
        self.calls[i].sigma / self.calls[i].alpha
    }

    fn step(&mut self, i: usize, x: &Tensor, output: &Tensor, noise: &mut Noise) -> Result<Tensor> {
        let call = &self.calls[i];
        let output = output.to_dtype(x.dtype())?;
        let channels = x.dim(1)?;
        let (output, learned) = match (output.dim(1)?, &call.noise) {
            (n, _) if n == channels => (output, None),
            (n, _) if n == 2 * channels => (
                output.narrow(1, 0, channels)?,
                Some(output.narrow(1, channels, channels)?),
            ),
            (n, _) => bail!("the network gave {n} channels for a sample of {channels}"),
        };
        // formula (15)
        let x0 = self
            .clip
            .apply(self.prediction.x0(call.alpha, call.sigma, x, &output)?)?;
        let mean = combine(&[(call.x0, &x0), (call.x, x)])?;
        let spread = match (&call.noise, learned) {
            (Spread::Nothing, _) => return Ok(mean),
            (Spread::Fixed(spread), _) => return mean + (noise.normal_like(x)? * *spread)?,
            (Spread::Learned, Some(variance)) => variance.sqrt()?,
            (Spread::Range { low, high }, Some(v)) => {
                ((v * (0.25 * (high - low)))? + 0.25 * (high + low))?.exp()?
            }
            (_, None) => bail!(
                "variance_type is learned, but the network gave {channels} channels instead of {}",
                2 * channels
            ),
        };
        mean + (spread * noise.normal_like(x)?)?
    }
}
