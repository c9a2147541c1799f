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

/// `time_embedding` of a checkpoint.
pub struct TimestepEmbedding {
    sinusoid: Sinusoid,
    linear_1: Linear,
    activation: Activation,
    linear_2: Linear,
    dtype: DType,
    device: Device,
}

impl TimestepEmbedding {
    pub fn load(
        vb: VarBuilder,
        sinusoid: Sinusoid,
        width: usize,
        activation: Activation,
        dtype: DType,
    ) -> Result<Self> {
        Ok(Self {
            linear_1: Linear::load(vb.pp("linear_1"), sinusoid.channels, width)?,
            linear_2: Linear::load(vb.pp("linear_2"), width, width)?,
            device: vb.device().clone(),
            sinusoid,
            activation,
            dtype,
        })
    }

    /// `(1, width)`, the same for every image of a batch.
    pub fn forward(&self, t: f64) -> Result<Tensor> {
        let x = self
            .sinusoid
            .of(t)?
            .to_dtype(self.dtype)?
            .to_device(&self.device)?;
        self.linear_2
            .forward(&self.activation.of(&self.linear_1.forward(&x)?)?)
    }
}
