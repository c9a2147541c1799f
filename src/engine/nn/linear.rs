//! The affine map of a row.
use super::{Activation, Family, small, values, write_f32};
use crate::engine::cuda::{product, weight::Weight};
use crate::engine::kernels::{Epilogue, PackedLinear};
use candle_core::{D, Result, Shape, Tensor};
use candle_nn::VarBuilder;

/// `y = x W^T + bias` on the last axis.
pub enum Linear {
    Packed(PackedLinear),
    Card {
        weight: Weight,
        bias: Option<Tensor>,
    },
    Candle {
        weight: Tensor,
        bias: Option<Tensor>,
    },
}

impl Linear {
    /// Loads `weight` `(outputs, inputs)` and `bias` `(outputs)`.
    pub fn load(vb: VarBuilder, inputs: usize, outputs: usize) -> Result<Self> {
        Self::load_with(vb, inputs, outputs, true)
    }

    pub fn load_no_bias(vb: VarBuilder, inputs: usize, outputs: usize) -> Result<Self> {
        Self::load_with(vb, inputs, outputs, false)
    }

    fn load_with(vb: VarBuilder, inputs: usize, outputs: usize, bias: bool) -> Result<Self> {
        let weight = vb.get((outputs, inputs), "weight")?;
        let whole = || bias.then(|| vb.get(outputs, "bias")).transpose();
        Ok(match Family::of_weights(&vb) {
            Family::Cpu => {
                let bias = bias.then(|| small(&vb, outputs, "bias")).transpose()?;
                let weight = values(&weight)?;
                let weight = weight.weights()?;
                Self::Packed(PackedLinear::pack(weight, outputs, inputs, bias.as_deref()))
            }
            Family::Card => Self::Card {
                weight: Weight::of_linear(&weight)?,
                bias: whole()?,
            },
            Family::Candle => Self::Candle {
                weight,
                bias: whole()?,
            },
        })
    }

    /// One map to the outputs of all of `parts` beside each other, where that is quicker: on a card. They take the same inputs.
    pub fn joined(parts: &[Self]) -> Result<Option<Self>> {
        let mut on_card = Vec::new();
        for part in parts {
            match part {
                Self::Card { weight, bias } => on_card.push((weight, bias.clone())),
                _ => return Ok(None),
            }
        }
        let (weights, biases): (Vec<_>, Vec<_>) = on_card.into_iter().unzip();
        let Some(weight) = Weight::joined(&weights)? else {
            return Ok(None);
        };
        let bias = match biases.into_iter().collect::<Option<Vec<_>>>() {
            Some(biases) => Some(Tensor::cat(&biases, 0)?),
            None => None,
        };
        Ok(Some(Self::Card { weight, bias }))
    }

    /// `(.., inputs)` to `(.., outputs)`
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.run(x, None)
    }

    /// `x W^T + bias + residual`
    pub fn forward_residual(&self, x: &Tensor, residual: &Tensor) -> Result<Tensor> {
        self.run(x, Some(residual))
    }

    fn run(&self, x: &Tensor, residual: Option<&Tensor>) -> Result<Tensor> {
        match self {
            Self::Packed(linear) => {
                let (m, shape) = rows(x, linear.out_features())?;
                let (x, residual) = (
                    x.contiguous()?,
                    residual.map(Tensor::contiguous).transpose()?,
                );
                let x = values(&x)?;
                let residual = residual.as_ref().map(values).transpose()?;
                let epilogue = Epilogue {
                    residual: residual.as_ref().map(|v| v.f32()).transpose()?,
                    ..Epilogue::default()
                };
                let x = x.f32()?;
                // SAFETY: the kernel writes all of y and reads nothing of it before.
                unsafe { write_f32(shape, |y| linear.run(x, m, epilogue, y)) }
            }
            Self::Card { weight, bias } => {
                let residual = residual.map(Tensor::contiguous).transpose()?;
                let extras = product::Extras {
                    bias: bias.as_ref(),
                    residual: residual.as_ref(),
                    ..product::Extras::default()
                };
                product::linear(&x.contiguous()?, weight, extras)
            }
            Self::Candle { weight, bias } => {
                let mut y = x.broadcast_matmul(&weight.t()?)?;
                if let Some(bias) = bias {
                    y = y.broadcast_add(bias)?;
                }
                match residual {
                    Some(residual) => y + residual,
                    None => Ok(y),
                }
            }
        }
    }
}

/// `a * gelu(g)`, where `(a, g)` are the halves of `x W^T + bias` (GEGLU, Shazeer 2020).
pub struct Geglu(Linear);

impl Geglu {
    /// Loads `weight` `(outputs, inputs)` and `bias` `(outputs)`. `outputs` is even.
    pub fn load(vb: VarBuilder, inputs: usize, outputs: usize) -> Result<Self> {
        let linear = match Family::of_weights(&vb) {
            Family::Card => Linear::Card {
                weight: Weight::of_gated(&vb.get((outputs, inputs), "weight")?)?,
                bias: Some(Weight::bias_of_gated(&vb.get(outputs, "bias")?)?),
            },
            Family::Cpu | Family::Candle => Linear::load(vb, inputs, outputs)?,
        };
        Ok(Self(linear))
    }

    /// `(.., inputs)` to `(.., outputs / 2)`
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match &self.0 {
            Linear::Packed(linear) => {
                let (m, shape) = rows(x, linear.out_features() / 2)?;
                let x = x.contiguous()?;
                let x = values(&x)?;
                let x = x.f32()?;
                // SAFETY: the kernel writes all of y and reads nothing of it before.
                unsafe { write_f32(shape, |y| linear.run_geglu(x, m, y)) }
            }
            Linear::Card { weight, bias } => {
                let extras = product::Extras {
                    bias: bias.as_ref(),
                    geglu: true,
                    ..product::Extras::default()
                };
                product::linear(&x.contiguous()?, weight, extras)
            }
            Linear::Candle { .. } => {
                let halves = self.0.forward(x)?.chunk(2, D::Minus1)?;
                &halves[0] * Activation::Gelu.of(&halves[1])?
            }
        }
    }
}

/// The number of rows of `x` and the shape of a result with `outputs` columns.
fn rows(x: &Tensor, outputs: usize) -> Result<(usize, Shape)> {
    let mut dims = x.dims().to_vec();
    let inputs = dims.pop().unwrap_or(1);
    dims.push(outputs);
    Ok((x.elem_count() / inputs.max(1), Shape::from(dims)))
}
