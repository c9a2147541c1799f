//! The residual block of both networks (He et al. 2016; Ho et al. 2020, appendix B; Dhariwal & Nichol 2021, section 3):
//!
//! ```text
//! h = conv1(act(norm1(x))) + W act(temb)
//! y = (shortcut(x) + conv2(act(norm2(h)))) / output_scale_factor
//! ```
//! With `resnet_time_scale_shift` "scale_shift" the timestep enters after `norm2` instead, as `norm2(h) * (1 + scale) + shift`.
use crate::engine::nn::{Activation, Bands, Conv2d, ConvShape, GroupNorm, Linear, Map};
use candle_core::{D, Result, Tensor};
use candle_nn::VarBuilder;
use serde::Deserialize;

/// `resnet_time_scale_shift`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TimeShift {
    #[default]
    Default,
    ScaleShift,
}

/// What all residual blocks of a network share.
#[derive(Clone, Copy, Debug)]
pub struct ResnetStyle {
    pub groups: usize,
    pub eps: f64,
    pub activation: Activation,
    /// Width of the timestep's embedding; the VAE has none.
    pub temb_channels: Option<usize>,
    pub time_shift: TimeShift,
    pub output_scale_factor: f64,
}

pub struct ResnetBlock {
    norm1: GroupNorm,
    conv1: Conv2d,
    time_emb_proj: Option<Linear>,
    norm2: GroupNorm,
    conv2: Conv2d,
    conv_shortcut: Option<Conv2d>,
    style: ResnetStyle,
}

impl ResnetBlock {
    pub fn load(
        vb: VarBuilder,
        in_channels: usize,
        out_channels: usize,
        style: ResnetStyle,
    ) -> Result<Self> {
        let projected = match style.time_shift {
            TimeShift::Default => out_channels,
            TimeShift::ScaleShift => 2 * out_channels,
        };
        Ok(Self {
            norm1: GroupNorm::load(vb.pp("norm1"), style.groups, in_channels, style.eps)?,
            conv1: Conv2d::load(
                vb.pp("conv1"),
                ConvShape::same(in_channels, out_channels, 3),
            )?,
            time_emb_proj: style
                .temb_channels
                .map(|width| Linear::load(vb.pp("time_emb_proj"), width, projected))
                .transpose()?,
            norm2: GroupNorm::load(vb.pp("norm2"), style.groups, out_channels, style.eps)?,
            conv2: Conv2d::load(
                vb.pp("conv2"),
                ConvShape::same(out_channels, out_channels, 3),
            )?,
            conv_shortcut: (in_channels != out_channels)
                .then(|| {
                    Conv2d::load(
                        vb.pp("conv_shortcut"),
                        ConvShape::same(in_channels, out_channels, 1),
                    )
                })
                .transpose()?,
            style,
        })
    }

    /// `temb` is `(1, width)`, or `(b, width)` where images differ, and has been through the activation, once for all blocks.
    pub fn forward(&self, x: &Map, temb: Option<&Tensor>) -> Result<Map> {
        let activation = self.style.activation;
        let shift = match (&self.time_emb_proj, temb) {
            (Some(projection), Some(temb)) => Some(projection.forward(temb)?),
            _ => None,
        };
        // One `h`, so that each map goes when the next is there: of a large picture one alone is hundreds of megabytes.
        let mut h = self.norm1.forward_act(x, activation)?;
        match (shift, self.style.time_shift) {
            (None, _) => {
                h = self.conv1.forward(&h)?;
                h = self.norm2.forward_act(&h, activation)?;
            }
            (Some(shift), TimeShift::Default) => {
                h = self.conv1.forward_shifted(&h, &shift)?;
                h = self.norm2.forward_act(&h, activation)?;
            }
            (Some(shift), TimeShift::ScaleShift) => {
                let parts = shift.chunk(2, D::Minus1)?;
                h = self.conv1.forward(&h)?;
                h = self.norm2.forward(&h)?.scale_shift(&parts[0], &parts[1])?;
                h = activation.of_map(&h)?;
            }
        }
        self.closed(&h, x)
    }

    /// The same for bands of a map, without a timestep.
    pub fn forward_bands(&self, x: &Bands) -> Result<Bands> {
        let activation = self.style.activation;
        let norm1 = self.norm1.of_bands(x)?;
        let h = x.each(|x| self.conv1.forward(&norm1.forward_act(x, activation)?))?;
        let norm2 = self.norm2.of_bands(&h)?;
        h.each_with(x, |h, x| self.closed(&norm2.forward_act(h, activation)?, x))
    }

    /// `(shortcut(x) + conv2(h)) / output_scale_factor`
    fn closed(&self, h: &Map, x: &Map) -> Result<Map> {
        let divisor = self.style.output_scale_factor;
        match &self.conv_shortcut {
            Some(shortcut) => {
                let x = shortcut.forward(x)?;
                self.conv2.forward_residual(h, &x, divisor)
            }
            None => self.conv2.forward_residual(h, x, divisor),
        }
    }
}
