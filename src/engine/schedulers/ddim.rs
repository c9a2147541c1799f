//! DDIM: Song, Meng & Ermon 2021, "Denoising Diffusion Implicit Models".
use super::{
    About, Key, Request, Rule, Scheduler, Settings,
    algebra::{Clip, Prediction, combine},
    keys::*,
    schedule::*,
};
use crate::engine::noise::Noise;
use candle_core::{Result, Tensor};

pub const KEYS: &[Key] = &[
    TRAIN,
    BETA_START,
    BETA_END,
    BETAS,
    TRAINED,
    Key("clip_sample", Rule::Flag(true)),
    Key("set_alpha_to_one", Rule::Flag(true)),
    OFFSET,
    PREDICTION,
    THRESHOLDING,
    RATIO,
    CLIP_RANGE,
    MAX_VALUE,
    LEADING,
    ZERO_SNR,
];

pub const ABOUT: About = About {
    eta: true,
    ..About::new("ddim", "DDIMScheduler", KEYS, |settings, request| {
        Ok(Box::new(Ddim::new(settings, request)?))
    })
};

pub struct Ddim {
    timesteps: Vec<f64>,
    calls: Vec<Call>,
    prediction: Prediction,
    clip: Clip,
}

struct Call {
    alpha: f64,
    sigma: f64,
    x0: f64,
    direction: f64,
    noise: f64,
}

impl Ddim {
    pub fn new(settings: &Settings, request: &Request) -> anyhow::Result<Self> {
        let bar = alpha_bar(settings)?;
        let timesteps = timesteps(settings, Grid::Whole, bar.len(), request)?;
        let (prediction, clip) = (Prediction::of(settings), Clip::of(settings)?);
        let last = if settings.flag("set_alpha_to_one") {
            1.0
        } else {
            bar[0]
        };
        let eta = request.eta.unwrap_or(0.0);
        let mut calls = Vec::new();
        for t in indices(&timesteps, bar.len())? {
            // The previous step is a whole ratio away, whatever the spacing.
            let bar_prev = t
                .checked_sub(bar.len() / request.steps)
                .map_or(last, |prev| bar[prev]);
            let bar_t = bar[t];
            // formula (16)
            let variance = (1.0 - bar_prev) / (1.0 - bar_t) * (1.0 - bar_t / bar_prev);
            let noise = if eta > 0.0 {
                eta * variance.sqrt()
            } else {
                0.0
            };
            // formula (12)
            let direction = 1.0 - bar_prev - noise * noise;
            // From zero SNR with eta 1 it is 0, to the last digits.
            let direction = match direction.abs() < 1e-12 {
                true => 0.0,
                false => direction.sqrt(),
            };
            let call = Call {
                alpha: bar_t.sqrt(),
                sigma: (1.0 - bar_t).sqrt(),
                x0: bar_prev.sqrt(),
                direction,
                noise,
            };
            ensure_finite(&[call.x0, call.direction, call.noise])?;
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

impl Scheduler for Ddim {
    fn timesteps(&self) -> &[f64] {
        &self.timesteps
    }

    fn sigma(&self, i: usize) -> f64 {
        self.calls[i].sigma / self.calls[i].alpha
    }

    fn step(&mut self, i: usize, x: &Tensor, output: &Tensor, noise: &mut Noise) -> Result<Tensor> {
        let call = &self.calls[i];
        let output = output.to_dtype(x.dtype())?;
        // eps is the network's own, not derived again from the clipped x0.
        let eps = self.prediction.eps(call.alpha, call.sigma, x, &output)?;
        let x0 = self
            .clip
            .apply(self.prediction.x0(call.alpha, call.sigma, x, &output)?)?;
        let mean = combine(&[(call.x0, &x0), (call.direction, &eps)])?;
        if call.noise == 0.0 {
            Ok(mean)
        } else {
            mean + (noise.normal_like(x)? * call.noise)?
        }
    }
}
