//! Normalisation: `y = (x - E[x]) / sqrt(Var[x] + eps) * weight + bias`, the moments in f32 or better.
use super::{Activation, Map};
use candle_core::{DType, Result, Tensor};
use candle_nn::VarBuilder;

/// Over the pixels and channels of each group of channels of one image (Wu & He 2018).
pub struct GroupNorm {
    groups: usize,
    eps: f64,
    weight: Tensor,
    bias: Tensor,
}

impl GroupNorm {
    /// Loads `weight` and `bias`, `(channels)`. `groups` divides `channels`.
    pub fn load(vb: VarBuilder, groups: usize, channels: usize, eps: f64) -> Result<Self> {
        if groups == 0 || !channels.is_multiple_of(groups) {
            candle_core::bail!("{channels} channels cannot be normalised in {groups} groups: norm_num_groups must divide them");
        }
        Ok(Self { groups, eps, weight: vb.get(channels, "weight")?, bias: vb.get(channels, "bias")? })
    }

    pub fn forward(&self, x: &Map) -> Result<Map> {
        let (b, h, w, c) = x.dims()?;
        let grouped = x.nhwc().reshape((b, h * w, self.groups, c / self.groups))?;
        let y = normalise(&grouped, &[1, 3], self.eps)?.reshape((b, h, w, c))?;
        Ok(Map::from_nhwc(y.broadcast_mul(&self.weight)?.broadcast_add(&self.bias)?))
    }

    /// The activation of the normalised map, in one pass where a kernel has it.
    pub fn forward_act(&self, x: &Map, activation: Activation) -> Result<Map> {
        activation.of_map(&self.forward(x)?)
    }
}

/// Over the channels of each row (Ba et al. 2016).
pub struct LayerNorm {
    eps: f64,
    weight: Tensor,
    bias: Tensor,
}

impl LayerNorm {
    /// Loads `weight` and `bias`, `(channels)`.
    pub fn load(vb: VarBuilder, channels: usize, eps: f64) -> Result<Self> {
        Ok(Self { eps, weight: vb.get(channels, "weight")?, bias: vb.get(channels, "bias")? })
    }

    /// `(.., channels)` to the same shape.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let last = x.rank() - 1;
        normalise(x, &[last], self.eps)?.broadcast_mul(&self.weight)?.broadcast_add(&self.bias)
    }
}

fn normalise(x: &Tensor, axes: &[usize], eps: f64) -> Result<Tensor> {
    let dtype = x.dtype();
    let x = match dtype {
        DType::F16 | DType::BF16 => x.to_dtype(DType::F32)?,
        _ => x.clone(),
    };
    let centred = x.broadcast_sub(&x.mean_keepdim(axes)?)?;
    let variance = centred.sqr()?.mean_keepdim(axes)?;
    centred.broadcast_div(&(variance + eps)?.sqrt()?)?.to_dtype(dtype)
}
