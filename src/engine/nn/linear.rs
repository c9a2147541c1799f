//! The affine map of a row.
use super::Activation;
use candle_core::{D, Result, Tensor};
use candle_nn::VarBuilder;

/// `y = x W^T + bias` on the last axis.
pub struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Linear {
    /// Loads `weight` `(outputs, inputs)` and `bias` `(outputs)`.
    pub fn load(vb: VarBuilder, inputs: usize, outputs: usize) -> Result<Self> {
        let bias = Some(vb.get(outputs, "bias")?);
        Ok(Self { bias, ..Self::load_no_bias(vb, inputs, outputs)? })
    }

    pub fn load_no_bias(vb: VarBuilder, inputs: usize, outputs: usize) -> Result<Self> {
        Ok(Self { weight: vb.get((outputs, inputs), "weight")?, bias: None })
    }

    /// `(.., inputs)` to `(.., outputs)`
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let y = x.broadcast_matmul(&self.weight.t()?)?;
        match &self.bias {
            Some(bias) => y.broadcast_add(bias),
            None => Ok(y),
        }
    }

    /// `a * gelu(g)`, where `(a, g)` are the halves of `x W^T + bias` (GEGLU, Shazeer 2020): `(.., outputs / 2)`.
    pub fn forward_geglu(&self, x: &Tensor) -> Result<Tensor> {
        let halves = self.forward(x)?.chunk(2, D::Minus1)?;
        &halves[0] * Activation::Gelu.of(&halves[1])?
    }

    /// `x W^T + bias + residual`
    pub fn forward_residual(&self, x: &Tensor, residual: &Tensor) -> Result<Tensor> {
        self.forward(x)? + residual
    }
}
