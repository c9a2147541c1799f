//! Self-attention over the pixels of a map (Ho et al. 2020, section 4), in the UNets without a text and in the VAE:
//! `y = (x + to_out(attention(group_norm(x)))) / rescale`.
use crate::engine::nn::{GroupNorm, Linear, Map, SelfAttention};
use candle_core::Result;
use candle_nn::VarBuilder;

/// The parts of an attention block that differ between networks.
#[derive(Clone, Copy, Debug)]
pub struct AttentionStyle {
    pub head_dim: usize,
    /// None in a middle block under `resnet_time_scale_shift` "scale_shift", where the reference builds no norm.
    pub groups: Option<usize>,
    pub eps: f64,
    pub rescale: f64,
}

impl AttentionStyle {
    /// How many heads `channels` have; an error where not one fits.
    pub fn heads(&self, channels: usize) -> Result<usize> {
        let heads = channels.checked_div(self.head_dim).unwrap_or(0);
        if heads == 0 {
            candle_core::bail!(
                "attention_head_dim {} does not fit {channels} channels: it must be between 1 and {channels}",
                self.head_dim
            );
        }
        Ok(heads)
    }
}

pub struct AttentionBlock {
    group_norm: Option<GroupNorm>,
    attention: SelfAttention,
    to_out: Linear,
    rescale: f64,
}

impl AttentionBlock {
    pub fn load(vb: VarBuilder, channels: usize, style: AttentionStyle) -> Result<Self> {
        let heads = style.heads(channels)?;
        let inner = heads * style.head_dim;
        let linear = |name| Linear::load(vb.pp(name), channels, inner);
        let maps = [linear("to_q")?, linear("to_k")?, linear("to_v")?];
        Ok(Self {
            group_norm: style
                .groups
                .map(|groups| GroupNorm::load(vb.pp("group_norm"), groups, channels, style.eps))
                .transpose()?,
            attention: SelfAttention::new(maps, heads)?,
            to_out: Linear::load(vb.pp("to_out.0"), inner, channels)?,
            rescale: style.rescale,
        })
    }

    pub fn forward(&self, x: &Map) -> Result<Map> {
        let h = match &self.group_norm {
            Some(norm) => norm.forward(x)?.tokens()?,
            None => x.tokens()?,
        };
        let h = self.attention.forward(&h, false)?;
        let y = self.to_out.forward_residual(&h, &x.tokens()?)?;
        x.with_tokens(&if self.rescale == 1.0 {
            y
        } else {
            (y / self.rescale)?
        })
    }
}
