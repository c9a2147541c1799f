//! `UNet2DModel`.
use super::super::attention::AttentionStyle;
use super::super::blocks::{AttentionKind, BlockStyle};
use super::super::config::OneOrMany;
use super::super::resnet::TimeShift;
use super::{BlockType, MidType, UNetConfig, UNetFile};
use crate::engine::nn::Activation;
use anyhow::{Result, ensure};

impl UNetFile {
    /// The architecture of a `UNet2DModel`.
    pub fn unconditional(self) -> Result<UNetConfig> {
        use BlockType::{Attn, Plain};
        let down = self
            .down_block_types
            .clone()
            .unwrap_or(vec![Plain, Attn, Attn, Attn]);
        let up = self
            .up_block_types
            .clone()
            .unwrap_or(vec![Attn, Attn, Attn, Plain]);
        ensure!(
            !down.contains(&BlockType::CrossAttn) && !up.contains(&BlockType::CrossAttn),
            "CrossAttn blocks need a text: this UNet belongs to txt2img"
        );
        ensure!(
            self.addition_embed_type.is_none() && self.time_cond_proj_dim.is_none(),
            "addition_embed_type and time_cond_proj_dim belong to a UNet with a text, and this one has none"
        );
        let widths = self
            .block_out_channels
            .clone()
            .unwrap_or(vec![224, 448, 672, 896]);
        // Channels of a head; null is one head over all channels.
        let head_dim = match self.attention_head_dim.clone() {
            None => Some(8),
            Some(None) => None,
            Some(Some(OneOrMany::One(channels))) => Some(channels),
            Some(Some(OneOrMany::Many(_))) => anyhow::bail!(
                "attention_head_dim is a list: a UNet without a text takes one number"
            ),
        };
        let attention = |kind: BlockType, width: usize, style: AttentionStyle| match kind {
            Attn => AttentionKind::Pixels(AttentionStyle {
                head_dim: head_dim.unwrap_or(width),
                ..style
            }),
            _ => AttentionKind::None,
        };
        let parts = self.parts(
            &widths,
            down.len(),
            up.len(),
            (3, 3),
            self.act_fn,
            Activation::Silu,
            Activation::Silu,
        )?;
        let style = AttentionStyle {
            head_dim: 0,
            groups: Some(self.norm_num_groups),
            eps: self.norm_eps,
            rescale: 1.0,
        };
        let layers = self
            .layers_per_block
            .for_blocks(down.len(), "layers_per_block")?;
        let last = *widths.last().expect("the lists are not empty");
        let mid_groups = self
            .attn_norm_num_groups
            .or((self.resnet_time_scale_shift == TimeShift::Default)
                .then_some(self.norm_num_groups));
        let mid_style = AttentionStyle {
            groups: mid_groups,
            rescale: self.mid_block_scale_factor,
            ..style
        };
        let mid = match self.mid_block_type.unwrap_or(Some(MidType::UNetMidBlock2D)) {
            None => None,
            Some(_) => Some(BlockStyle {
                resnet: self.mid_resnet(parts.time_embed_dim),
                layers: vec![if self.add_attention {
                    attention(Attn, last, mid_style)
                } else {
                    AttentionKind::None
                }],
            }),
        };
        let resnet = self.resnet(parts.time_embed_dim);
        let down = down.iter().enumerate().map(|(i, &kind)| BlockStyle {
            resnet,
            layers: vec![attention(kind, widths[i], style); layers[i]],
        });
        let up = up.iter().enumerate().map(|(i, &kind)| {
            let level = widths.len() - 1 - i;
            BlockStyle {
                resnet,
                layers: vec![attention(kind, widths[level], style); layers[level] + 1],
            }
        });
        let config = UNetConfig {
            down: down.collect(),
            mid,
            up: up.collect(),
            ..parts
        };
        config.checked()
    }
}
