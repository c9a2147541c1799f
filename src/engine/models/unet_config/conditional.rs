//! `UNet2DConditionModel`.
use super::super::attention::AttentionStyle;
use super::super::blocks::{AttentionKind, BlockStyle};
use super::super::condition::AddedStyle;
use super::super::config::{OneOrMany, check_count};
use super::super::timestep::Sinusoid;
use super::super::transformer::TransformerStyle;
use super::{BlockType, LayerCounts, MidType, UNetConfig, UNetFile};
use anyhow::{Context, Result, bail, ensure};

impl UNetFile {
    /// The architecture of a `UNet2DConditionModel`.
    pub fn conditional(self) -> Result<UNetConfig> {
        use BlockType::{Attn, CrossAttn, Plain};
        let down = self
            .down_block_types
            .clone()
            .unwrap_or(vec![CrossAttn, CrossAttn, CrossAttn, Plain]);
        let up = self
            .up_block_types
            .clone()
            .unwrap_or(vec![Plain, CrossAttn, CrossAttn, CrossAttn]);
        let widths = self
            .block_out_channels
            .clone()
            .unwrap_or(vec![320, 640, 1280, 1280]);
        let blocks = down.len();
        let heads = match self.attention_head_dim.clone() {
            None => OneOrMany::One(8),
            Some(Some(heads)) => heads,
            Some(None) => {
                bail!("attention_head_dim is null: a UNet with a text needs the number of heads")
            }
        };
        let heads = heads.for_blocks(blocks, "attention_head_dim")?;
        let text_widths = self
            .cross_attention_dim
            .clone()
            .unwrap_or(OneOrMany::One(1280))
            .for_blocks(blocks, "cross_attention_dim")?;
        ensure!(
            text_widths.windows(2).all(|w| w[0] == w[1]),
            "cross_attention_dim differs between blocks: one text has one width"
        );
        let only_cross = self
            .only_cross_attention
            .for_blocks(blocks, "only_cross_attention")?;
        let layers = self
            .layers_per_block
            .for_blocks(blocks, "layers_per_block")?;
        let guidance_channels = match self.time_cond_proj_dim {
            Some(channels) => {
                ensure!(
                    channels > 3,
                    "time_cond_proj_dim = {channels}: a sinusoid needs 4 or more"
                );
                Some(check_count("time_cond_proj_dim", channels, 1 << 16)?)
            }
            None => None,
        };
        let parts = self.parts(
            &widths,
            blocks,
            up.len(),
            (4, 4),
            self.act_fn,
            self.act_fn,
            self.act_fn,
        )?;
        let (depths, added) = (self.transformer_depths(&layers)?, self.added()?);
        let transformer = |level: usize, depth: usize, only_cross_attention: bool| {
            AttentionKind::Text(TransformerStyle {
                heads: heads[level],
                layers: depth,
                text_width: text_widths[level],
                groups: self.norm_num_groups,
                only_cross_attention,
            })
        };
        // The reference hands the heads of block i, and not of its mirror image, to an AttnUpBlock2D as the channels of a head.
        let pixels = |i: usize| {
            AttentionKind::Pixels(AttentionStyle {
                head_dim: heads[i],
                groups: Some(self.norm_num_groups),
                eps: self.norm_eps,
                rescale: 1.0,
            })
        };
        let mid = match self
            .mid_block_type
            .unwrap_or(Some(MidType::UNetMidBlock2DCrossAttn))
        {
            None => None,
            Some(MidType::UNetMidBlock2DCrossAttn) => Some(BlockStyle {
                resnet: self.mid_resnet(parts.time_embed_dim),
                layers: vec![transformer(blocks - 1, depths.mid, false)],
            }),
            // The reference builds this one for a UNet with a text as a single residual block.
            Some(MidType::UNetMidBlock2D) => Some(BlockStyle {
                resnet: self.mid_resnet(parts.time_embed_dim),
                layers: Vec::new(),
            }),
        };
        let resnet = self.resnet(parts.time_embed_dim);
        let down = down.iter().enumerate().map(|(i, &kind)| {
            let layer = |&depth: &usize| match kind {
                Plain => AttentionKind::None,
                Attn => pixels(i),
                CrossAttn => transformer(i, depth, only_cross[i]),
            };
            BlockStyle {
                resnet,
                layers: depths.down[i].iter().map(layer).collect(),
            }
        });
        let up = up.iter().enumerate().map(|(i, &kind)| {
            let level = blocks - 1 - i;
            let layer = |&depth: &usize| match kind {
                Plain => AttentionKind::None,
                Attn => pixels(i),
                CrossAttn => transformer(level, depth, only_cross[level]),
            };
            BlockStyle {
                resnet,
                layers: depths.up[i].iter().map(layer).collect(),
            }
        });
        let config = UNetConfig {
            down: down.collect(),
            mid,
            up: up.collect(),
            cross_attention_dim: Some(text_widths[0]),
            added,
            guidance_channels,
            ..parts
        };
        config.checked()
    }

    /// How many transformer blocks each layer has on the way down, in the middle and on the way up; `layers` are the layers of each
    /// block on the way down. Of a list inside the list the reference takes as many as there are layers.
    fn transformer_depths(&self, layers: &[usize]) -> Result<Depths> {
        const KEY: &str = "transformer_layers_per_block";
        const REVERSE: &str = "reverse_transformer_layers_per_block";
        let blocks = layers.len();
        let check = |list: &Vec<OneOrMany<usize>>, key: &str| {
            let values = list.len();
            ensure!(
                values == blocks,
                "{key} has {values} values for {blocks} blocks"
            );
            Ok(list.clone())
        };
        let given = match &self.transformer_layers_per_block {
            LayerCounts::All(depth) => vec![OneOrMany::One(*depth); blocks],
            LayerCounts::Each(list) => check(list, KEY)?,
        };
        let spread = |of: &OneOrMany<usize>, layers: usize, key: &str| -> Result<Vec<usize>> {
            let depths = match of {
                OneOrMany::One(depth) => vec![*depth; layers],
                OneOrMany::Many(depths) => depths.iter().copied().take(layers).collect(),
            };
            ensure!(
                depths.len() == layers,
                "{key} has a list of {} for a block of {layers} layers",
                depths.len()
            );
            for &depth in &depths {
                ensure!(depth <= 100, "{key} = {depth}: at most 100 are accepted");
            }
            Ok(depths)
        };
        let mirrored: Vec<OneOrMany<usize>> = match &self.reverse_transformer_layers_per_block {
            Some(list) => check(list, REVERSE)?,
            None => given.iter().rev().cloned().collect(),
        };
        ensure!(
            self.reverse_transformer_layers_per_block.is_some()
                || given.iter().all(|of| matches!(of, OneOrMany::One(_))),
            "{KEY} has lists inside: it needs {REVERSE} beside it"
        );
        let down = given.iter().zip(layers).map(|(of, &n)| spread(of, n, KEY));
        let up = mirrored.iter().zip(layers.iter().rev());
        let up = up.map(|(of, &n)| spread(of, n + 1, REVERSE));
        Ok(Depths {
            down: down.collect::<Result<_>>()?,
            mid: spread(&given[blocks - 1], 1, KEY)?[0],
            up: up.collect::<Result<_>>()?,
        })
    }

    /// What is added to the timestep's embedding.
    fn added(&self) -> Result<Option<AddedStyle>> {
        if self.addition_embed_type.is_none() {
            return Ok(None);
        }
        let need = |value: Option<usize>, key: &str| {
            let value =
                value.with_context(|| format!("addition_embed_type \"text_time\" needs {key}"))?;
            check_count(key, value, 1 << 16)
        };
        let channels = need(self.addition_time_embed_dim, "addition_time_embed_dim")?;
        let key = "projection_class_embeddings_input_dim";
        let inputs = need(self.projection_class_embeddings_input_dim, key)?;
        ensure!(
            (channels / 2) as f64 > self.freq_shift,
            "freq_shift = {} leaves no frequencies for addition_time_embed_dim {channels}",
            self.freq_shift
        );
        let pooled = inputs.checked_sub(6 * channels).filter(|&rest| rest > 0);
        Ok(Some(AddedStyle {
            sinusoid: Sinusoid {
                channels,
                flip_sin_to_cos: self.flip_sin_to_cos,
                freq_shift: self.freq_shift,
            },
            pooled: pooled.with_context(|| {
                format!(
                    "{key} = {inputs} has no room for a text beside six sizes of addition_time_embed_dim {channels}"
                )
            })?,
        }))
    }
}

struct Depths {
    down: Vec<Vec<usize>>,
    mid: usize,
    up: Vec<Vec<usize>>,
}
