//! The timestep's embedding: a sinusoid (Vaswani et al. 2017, section 3.5) and a two-layer network (Ho et al. 2020, appendix B).
//!
//! ```text
//! f_k   = 10000^(-k / (half - freq_shift)),   k = 0 .. half-1,   half = channels / 2
//! temb  = W2 act(W1 [sin(t f), cos(t f)] + b1) + b2
//! ```
//! The sinusoid is taken in f32 whatever the model's dtype: `t f` reaches 1000, where f16 steps by half a radian.
use crate::engine::nn::{Activation, Linear};
use candle_core::{DType, Device, Result, Tensor};
use candle_nn::VarBuilder;

/// How a checkpoint lays the sinusoid out.
#[derive(Clone, Copy, Debug)]
pub struct Sinusoid {
    pub channels: usize,
    /// Cosines first.
    pub flip_sin_to_cos: bool,
    pub freq_shift: f64,
}

impl Sinusoid {
    /// The row of timestep `t`: `(1, channels)` in f32 on the CPU. The last column of an odd count is zero.
    pub fn of(&self, t: f64) -> Result<Tensor> {
        let half = self.channels / 2;
        let angle = |k: usize| {
            let exponent =
                -(10000f64.ln() as f32) * k as f32 / (half as f64 - self.freq_shift) as f32;
            t as f32 * exponent.exp()
        };
        let sines = (0..half).map(|k| angle(k).sin());
        let cosines = (0..half).map(|k| angle(k).cos());
        let mut row: Vec<f32> = if self.flip_sin_to_cos {
            cosines.chain(sines).collect()
        } else {
            sines.chain(cosines).collect()
        };
        row.resize(self.channels, 0.0);
        Tensor::from_vec(row, (1, self.channels), &Device::Cpu)
    }
}

/// Two layers and an activation between them: `W2 act(W1 x + b1) + b2`.
pub struct Mlp {
    linear_1: Linear,
    activation: Activation,
    linear_2: Linear,
}

impl Mlp {
    pub fn load(
        vb: VarBuilder,
        inputs: usize,
        width: usize,
        activation: Activation,
    ) -> Result<Self> {
        Ok(Self {
            linear_1: Linear::load(vb.pp("linear_1"), inputs, width)?,
            activation,
            linear_2: Linear::load(vb.pp("linear_2"), width, width)?,
        })
    }

    /// `(b, inputs)` to `(b, width)`
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.linear_2
            .forward(&self.activation.of(&self.linear_1.forward(x)?)?)
    }
}

/// `time_embedding` of a checkpoint.
pub struct TimestepEmbedding {
    sinusoid: Sinusoid,
    /// Of a UNet that takes the guidance scale as an input, with the width of its sinusoid.
    cond_proj: Option<(Linear, usize)>,
    mlp: Mlp,
    dtype: DType,
    device: Device,
}

impl TimestepEmbedding {
    /// `guidance` is `time_cond_proj_dim`.
    pub fn load(
        vb: VarBuilder,
        sinusoid: Sinusoid,
        width: usize,
        activation: Activation,
        guidance: Option<usize>,
        dtype: DType,
    ) -> Result<Self> {
        let cond_proj =
            |inputs| Linear::load_no_bias(vb.pp("cond_proj"), inputs, sinusoid.channels);
        Ok(Self {
            cond_proj: match guidance {
                Some(inputs) => Some((cond_proj(inputs)?, inputs)),
                None => None,
            },
            device: vb.device().clone(),
            mlp: Mlp::load(vb, sinusoid.channels, width, activation)?,
            sinusoid,
            dtype,
        })
    }

    /// What a guidance scale adds to the sinusoid of every timestep: `(1, channels)`.
    pub fn guidance(&self, scale: f64) -> Result<Tensor> {
        match &self.cond_proj {
            Some((layer, inputs)) => layer.forward(&self.place(guidance(scale, *inputs)?)?),
            None => candle_core::bail!("this UNet does not take the guidance scale as an input"),
        }
    }

    /// The sinusoid of a timestep, where the network is and in its dtype: `(1, channels)`.
    pub fn sinusoid(&self, t: f64) -> Result<Tensor> {
        self.place(self.sinusoid.of(t)?)
    }

    /// `(1, width)`, the same for every image of a batch, of the sinusoid; `guidance` is what [`TimestepEmbedding::guidance`] gave.
    pub fn forward(&self, sinusoid: &Tensor, guidance: Option<&Tensor>) -> Result<Tensor> {
        match guidance {
            Some(guidance) => self.mlp.forward(&(sinusoid + guidance)?),
            None => self.mlp.forward(sinusoid),
        }
    }

    fn place(&self, x: Tensor) -> Result<Tensor> {
        x.to_dtype(self.dtype)?.to_device(&self.device)
    }
}

/// The sinusoid of a guidance scale, `(1, channels)` in f32 on the CPU: that of `1000 (scale - 1)`, sines first, the frequencies
/// reaching 1/10000. The formula of the paper has `scale - 1` where the pipelines' guidance has `scale`.
fn guidance(scale: f64, channels: usize) -> Result<Tensor> {
    let half = channels / 2;
    let step = 10000f32.ln() / (half as f32 - 1.0);
    let w = (scale - 1.0) as f32 * 1000.0;
    let angle = |k: usize| w * (k as f32 * -step).exp();
    let mut row: Vec<f32> = (0..half).map(|k| angle(k).sin()).collect();
    row.extend((0..half).map(|k| angle(k).cos()));
    row.resize(channels, 0.0);
    Tensor::from_vec(row, (1, channels), &Device::Cpu)
}
