//! The element-wise functions that checkpoints name.
use super::{Map, card_kernels_for, own_kernels_for, values};
use crate::engine::cuda::{self, activation::Function};
use crate::engine::kernels;

use candle_core::{Result, Tensor};
use serde::Deserialize;

/// `act_fn` of the UNets and the VAE, `hidden_act` of the text tower.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// `x * sigmoid(x)`
    #[serde(alias = "swish")]
    Silu,
    /// `x * tanh(ln(1 + e^x))`, Misra 2019
    Mish,
    /// `x * Phi(x)`, exact: `x/2 * (1 + erf(x / sqrt 2))`, Hendrycks & Gimpel 2016
    Gelu,
    /// GELU by its tanh approximation
    #[serde(alias = "gelu_pytorch_tanh")]
    GeluNew,
    /// `x * sigmoid(1.702 x)`, CLIP's own
    QuickGelu,
    Relu,
}

impl Activation {
    /// The function of every element.
    pub fn of(self, x: &Tensor) -> Result<Tensor> {
        if let (true, Some(kernel)) = (own_kernels_for(x), self.kernel()) {
            let mut y = values(&x.contiguous()?)?.f32()?.to_vec();
            kernel(&mut y);
            return Tensor::from_vec(y, x.shape(), x.device());
        }
        if card_kernels_for(x) {
            return cuda::activation::activation(&x.contiguous()?, self.function());
        }
        match self {
            Self::Silu => x.silu(),
            Self::Mish => x * (x.exp()? + 1.0)?.log()?.tanh()?,
            Self::Gelu => x.gelu_erf(),
            Self::GeluNew => x.gelu(),
            Self::QuickGelu => x * candle_nn::ops::sigmoid(&(x * 1.702)?)?,
            Self::Relu => x.relu(),
        }
    }

    pub fn of_map(self, x: &Map) -> Result<Map> {
        Ok(Map::from_nhwc(self.of(&x.nhwc()?)?))
    }

    fn function(self) -> Function {
        match self {
            Self::Silu => Function::Silu,
            Self::Mish => Function::Mish,
            Self::Gelu => Function::Gelu,
            Self::GeluNew => Function::GeluTanh,
            Self::QuickGelu => Function::QuickGelu,
            Self::Relu => Function::Relu,
        }
    }

    fn kernel(self) -> Option<fn(&mut [f32])> {
        match self {
            Self::Silu => Some(kernels::silu),
            Self::Gelu => Some(kernels::gelu_erf),
            Self::GeluNew => Some(kernels::gelu_tanh),
            Self::QuickGelu => Some(kernels::quick_gelu),
            // Rare; candle's serve.
            Self::Mish | Self::Relu => None,
        }
    }
}
