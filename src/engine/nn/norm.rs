//! Normalisation: `y = (x - E[x]) / sqrt(Var[x] + eps) * weight + bias`, the moments in f32 or better.
use super::bands::{Bands, Moments};
use super::{Activation, Family, Map, small, values, wide, write_f32};
use crate::engine::cuda;
use crate::engine::kernels::{self, GroupNormShape};
use candle_core::{Device, Result, Tensor};
use candle_nn::VarBuilder;

/// The scale and the shift of every channel, where the kernel that uses them wants them.
enum Affine {
    Own { weight: Vec<f32>, bias: Vec<f32> },
    Card { weight: Tensor, bias: Tensor },
    Candle { weight: Tensor, bias: Tensor },
}

impl Affine {
    fn load(vb: VarBuilder, channels: usize) -> Result<Self> {
        let whole = |name| vb.get(channels, name);
        Ok(match Family::of_weights(&vb) {
            Family::Cpu => Self::Own {
                weight: small(&vb, channels, "weight")?,
                bias: small(&vb, channels, "bias")?,
            },
            Family::Card => Self::Card {
                weight: whole("weight")?,
                bias: whole("bias")?,
            },
            Family::Candle => Self::Candle {
                weight: whole("weight")?,
                bias: whole("bias")?,
            },
        })
    }
}

/// Over the pixels and channels of each group of channels of one image (Wu & He 2018).
pub struct GroupNorm {
    groups: usize,
    eps: f64,
    affine: Affine,
}

impl GroupNorm {
    /// Loads `weight` and `bias`, `(channels)`. `groups` divides `channels`.
    pub fn load(vb: VarBuilder, groups: usize, channels: usize, eps: f64) -> Result<Self> {
        if groups == 0 || !channels.is_multiple_of(groups) {
            candle_core::bail!(
                "{channels} channels cannot be normalised in {groups} groups: norm_num_groups must divide them"
            );
        }
        Ok(Self {
            groups,
            eps,
            affine: Affine::load(vb, channels)?,
        })
    }

    pub fn forward(&self, x: &Map) -> Result<Map> {
        self.run(x, false)
    }

    /// The activation of the normalised map; SiLU in the same pass.
    pub fn forward_act(&self, x: &Map, activation: Activation) -> Result<Map> {
        match activation {
            Activation::Silu => self.run(x, true),
            other => other.of_map(&self.run(x, false)?),
        }
    }

    /// For the bands of a map, with the moments of all of them.
    pub fn of_bands(&self, x: &Bands) -> Result<BandNorm> {
        let (weight, bias) = match &self.affine {
            Affine::Own { weight, bias } => {
                let tensor = |numbers: &[f32]| Tensor::new(numbers, &Device::Cpu);
                (tensor(weight)?, tensor(bias)?)
            }
            Affine::Card { weight, bias } | Affine::Candle { weight, bias } => {
                (weight.clone(), bias.clone())
            }
        };
        let (weight, bias) = (wide(&weight)?, wide(&bias)?);
        let moments = x.moments(self.groups);
        let channels = weight.dim(0)?;
        let of_channels = |f: &dyn Fn(&Moments) -> f64| {
            let numbers = (0..channels).map(|c| f(&moments[c * self.groups / channels]));
            Tensor::from_iter(numbers, x.device())?.to_dtype(weight.dtype())
        };
        let deviation = of_channels(&|group| (group.variance() + self.eps).sqrt())?;
        Ok(BandNorm {
            mean: of_channels(&|group| group.mean)?,
            scale: (&weight / deviation)?,
            bias,
        })
    }

    fn run(&self, x: &Map, silu: bool) -> Result<Map> {
        let (b, h, w, c) = x.dims()?;
        let y = match &self.affine {
            Affine::Own { weight, bias } => {
                let shape = GroupNormShape {
                    b,
                    pixels: h * w,
                    channels: c,
                    groups: self.groups,
                };
                let values = x.values()?;
                let parts = values.parts()?;
                // SAFETY: the kernel writes all of y and reads nothing of it before.
                unsafe {
                    write_f32((b, h, w, c), |y| {
                        kernels::group_norm(parts, shape, (weight, bias), self.eps as f32, silu, y)
                    })
                }?
            }
            Affine::Card { weight, bias } => {
                let affine = (weight, bias);
                cuda::norm::group_norm(x.parts(), affine, self.groups, self.eps, silu)?
            }
            Affine::Candle { weight, bias } => {
                let grouped = x
                    .nhwc()?
                    .reshape((b, h * w, self.groups, c / self.groups))?;
                let y = normalise(&grouped, &[1, 3], self.eps)?.reshape((b, h, w, c))?;
                let y = y.broadcast_mul(weight)?.broadcast_add(bias)?;
                if silu { y.silu()? } else { y }
            }
        };
        Ok(Map::from_nhwc(y))
    }
}

/// A group norm of one map, for its bands: `(x - mean) * scale + bias`, a number for each channel.
pub struct BandNorm {
    mean: Tensor,
    scale: Tensor,
    bias: Tensor,
}

impl BandNorm {
    /// Of a band, and its activation; rounded once.
    pub fn forward_act(&self, x: &Map, activation: Activation) -> Result<Map> {
        let x = x.nhwc()?;
        let y = wide(&x)?.broadcast_sub(&self.mean)?;
        let y = y.broadcast_mul(&self.scale)?.broadcast_add(&self.bias)?;
        Ok(Map::from_nhwc(activation.of(&y)?.to_dtype(x.dtype())?))
    }
}

/// Over the channels of each row (Ba et al. 2016).
pub struct LayerNorm {
    eps: f64,
    affine: Affine,
}

impl LayerNorm {
    /// Loads `weight` and `bias`, `(channels)`.
    pub fn load(vb: VarBuilder, channels: usize, eps: f64) -> Result<Self> {
        Ok(Self {
            eps,
            affine: Affine::load(vb, channels)?,
        })
    }

    /// `(.., channels)` to the same shape.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match &self.affine {
            Affine::Own { weight, bias } => {
                let x = x.contiguous()?;
                let values = values(&x)?;
                let values = values.f32()?;
                // SAFETY: as above.
                unsafe {
                    write_f32(x.shape(), |y| {
                        kernels::layer_norm(values, weight, bias, self.eps as f32, y)
                    })
                }
            }
            Affine::Card { weight, bias } => {
                cuda::norm::layer_norm(&x.contiguous()?, (weight, bias), self.eps)
            }
            Affine::Candle { weight, bias } => normalise(x, &[x.rank() - 1], self.eps)?
                .broadcast_mul(weight)?
                .broadcast_add(bias),
        }
    }
}

fn normalise(x: &Tensor, axes: &[usize], eps: f64) -> Result<Tensor> {
    let dtype = x.dtype();
    let x = wide(x)?;
    let centred = x.broadcast_sub(&x.mean_keepdim(axes)?)?;
    let variance = centred.sqr()?.mean_keepdim(axes)?;
    centred
        .broadcast_div(&(variance + eps)?.sqrt()?)?
        .to_dtype(dtype)
}
