//! The decoder of `AutoencoderKL` (Rombach et al. 2022, appendix G): from latents to pixels, eight times as wide in the published models.
use super::attention::AttentionStyle;
use super::blocks::{AttentionKind, BlockStyle, MidBlock, UpBlock};
use super::config::{check_count, check_decoder, refuse_unsupported};
use super::resnet::{ResnetStyle, TimeShift};
use super::transformer::TextSlots;
use crate::engine::nn::{Activation, Bands, Conv2d, ConvShape, GroupNorm, Map};
use anyhow::ensure;
use candle_core::{DType, Result, Tensor};
use candle_nn::VarBuilder;
use serde::Deserialize;
use serde_json::{Value, json};

/// `vae/config.json`. The encoder's keys are not read: nothing here encodes.
#[derive(Clone, Debug, Deserialize)]
pub struct VaeConfig {
    #[serde(default = "three")]
    pub out_channels: usize,
    #[serde(default = "one_block")]
    up_block_types: Vec<String>,
    #[serde(default = "one_width")]
    pub block_out_channels: Vec<usize>,
    #[serde(default = "one")]
    pub layers_per_block: usize,
    #[serde(default = "silu")]
    act_fn: Activation,
    #[serde(default = "four")]
    pub latent_channels: usize,
    #[serde(default = "thirty_two")]
    norm_num_groups: usize,
    #[serde(default = "published_scaling")]
    pub scaling_factor: f64,
    #[serde(default = "yes")]
    pub force_upcast: bool,
    #[serde(default = "yes")]
    use_post_quant_conv: bool,
    #[serde(default = "yes")]
    pub mid_block_add_attention: bool,
    /// Mean of each latent channel; with `latents_std` it takes the place of `scaling_factor` alone.
    pub latents_mean: Option<Vec<f64>>,
    latents_std: Option<Vec<f64>>,
    #[serde(flatten)]
    rest: serde_json::Map<String, Value>,
}

/// Every normalisation of the VAE.
const EPS: f64 = 1e-6;

impl VaeConfig {
    /// Refuses what the decoder cannot be.
    pub fn check(&self) -> anyhow::Result<()> {
        refuse_unsupported(
            &self.rest,
            &[
                ("shift_factor", &[json!(0.0), json!(0)]),
                ("norm_type", &[json!("group")]),
            ],
        )?;
        let blocks = self.block_out_channels.len();
        ensure!(
            (1..=8).contains(&blocks),
            "block_out_channels has {blocks} values; 1 to 8 are accepted"
        );
        ensure!(
            self.up_block_types.len() == blocks,
            "up_block_types has {} values for {blocks} block_out_channels",
            self.up_block_types.len()
        );
        for kind in &self.up_block_types {
            ensure!(
                kind == "UpDecoderBlock2D",
                "up_block_types: \"{kind}\" is not supported (accepted: \"UpDecoderBlock2D\")"
            );
        }
        for &width in &self.block_out_channels {
            check_count("block_out_channels", width, 1 << 14)?;
            ensure!(
                self.norm_num_groups > 0 && width.is_multiple_of(self.norm_num_groups),
                "norm_num_groups = {} does not divide block_out_channels {width}",
                self.norm_num_groups
            );
        }
        check_count("layers_per_block", self.layers_per_block, 100)?;
        check_count("latent_channels", self.latent_channels, 1 << 10)?;
        check_decoder(self.out_channels, self.scaling_factor)?;
        for (key, list) in [
            ("latents_mean", &self.latents_mean),
            ("latents_std", &self.latents_std),
        ] {
            let channels = self.latent_channels;
            ensure!(
                list.as_ref().is_none_or(|list| list.len() == channels),
                "{key} has another number of values than the {channels} latent_channels"
            );
        }
        Ok(())
    }

    /// Pixels along a side for one latent.
    pub fn scale(&self) -> usize {
        1 << (self.block_out_channels.len() - 1)
    }
}

pub struct VaeDecoder {
    scaling_factor: f64,
    /// Mean and standard deviation of each channel, `(1, c, 1, 1)` in f32.
    moments: Option<(Tensor, Tensor)>,
    post_quant_conv: Option<Conv2d>,
    conv_in: Conv2d,
    mid_block: MidBlock,
    up_blocks: Vec<UpBlock>,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
    dtype: DType,
}

impl VaeDecoder {
    /// Loads `post_quant_conv` and `decoder` of a VAE. `dtype` is that of the activations.
    pub fn load(config: &VaeConfig, vb: VarBuilder, dtype: DType) -> Result<Self> {
        let widths: Vec<usize> = config.block_out_channels.iter().rev().copied().collect();
        let top = widths[0];
        let resnet = ResnetStyle {
            groups: config.norm_num_groups,
            eps: EPS,
            activation: config.act_fn,
            temb_channels: None,
            time_shift: TimeShift::Default,
            output_scale_factor: 1.0,
        };
        let attention = AttentionStyle {
            head_dim: top,
            groups: Some(config.norm_num_groups),
            eps: EPS,
            rescale: 1.0,
        };
        let attention = if config.mid_block_add_attention {
            AttentionKind::Pixels(attention)
        } else {
            AttentionKind::None
        };
        let slots = TextSlots::default();
        let decoder = vb.pp("decoder");
        let layers = config.layers_per_block + 1;
        let up_blocks = widths.iter().enumerate().map(|(i, &to)| {
            let mut inputs = vec![to; layers];
            inputs[0] = widths[i.saturating_sub(1)];
            let style = BlockStyle {
                resnet,
                layers: vec![AttentionKind::None; layers],
            };
            UpBlock::load(
                decoder.pp("up_blocks").pp(i),
                &style,
                &inputs,
                to,
                i + 1 < widths.len(),
                &slots,
            )
        });
        let post_quant = ConvShape::same(config.latent_channels, config.latent_channels, 1);
        let last = widths[widths.len() - 1];
        Ok(Self {
            scaling_factor: config.scaling_factor,
            moments: match (&config.latents_mean, &config.latents_std) {
                (Some(mean), Some(std)) => {
                    let channels = |list: &Vec<f64>| {
                        let values: Vec<f32> = list.iter().map(|v| *v as f32).collect();
                        Tensor::new(values, vb.device())?.reshape((1, (), 1, 1))
                    };
                    Some((channels(mean)?, channels(std)?))
                }
                _ => None,
            },
            post_quant_conv: config
                .use_post_quant_conv
                .then(|| Conv2d::load(vb.pp("post_quant_conv"), post_quant))
                .transpose()?,
            conv_in: Conv2d::load(
                decoder.pp("conv_in"),
                ConvShape::same(config.latent_channels, top, 3),
            )?,
            mid_block: MidBlock::load(
                decoder.pp("mid_block"),
                &BlockStyle {
                    resnet,
                    layers: vec![attention],
                },
                top,
                &slots,
            )?,
            up_blocks: up_blocks.collect::<Result<_>>()?,
            conv_norm_out: GroupNorm::load(
                decoder.pp("conv_norm_out"),
                config.norm_num_groups,
                last,
                EPS,
            )?,
            conv_out: Conv2d::load(
                decoder.pp("conv_out"),
                ConvShape::same(last, config.out_channels, 3),
            )?,
            dtype,
        })
    }

    /// Latents as the UNet knows them, `(b, latent_channels, h, w)`, to pixels around [-1, 1], `(b, out_channels, h * scale, w * scale)`.
    pub fn decode(&self, latents: &Tensor) -> Result<Tensor> {
        let mut x = self.middle(latents)?;
        for block in &self.up_blocks {
            x = block.forward_alone(x)?;
        }
        // conv_act: SiLU whatever act_fn says, as in the reference.
        x = self.conv_norm_out.forward_act(&x, Activation::Silu)?;
        x = self.conv_out.forward(&x)?;
        x.to_nchw()
    }

    /// The same for one sample, `(1, latent_channels, h, w)`, with what `rows` of its latents become on the device at once; the pixels are in
    /// main memory.
    pub fn decode_in_bands(&self, latents: &Tensor, rows: usize) -> Result<Tensor> {
        let mut x = Bands::cut(&self.middle(latents)?, rows)?;
        for block in &self.up_blocks {
            x = block.forward_bands(x)?;
        }
        let norm = self.conv_norm_out.of_bands(&x)?;
        x = x.each(|x| {
            let x = norm.forward_act(x, Activation::Silu)?;
            self.conv_out.forward(&x)
        })?;
        x.joined()?.to_nchw()
    }

    /// What the first of the `up_blocks` takes.
    fn middle(&self, latents: &Tensor) -> Result<Map> {
        let latents = match &self.moments {
            // latents std / scaling_factor + mean
            Some((mean, std)) => (latents.to_dtype(DType::F32)?.broadcast_mul(std)?
                / self.scaling_factor)?
                .broadcast_add(mean)?,
            None => (latents / self.scaling_factor)?,
        };
        let mut x = Map::from_nchw(&latents.to_dtype(self.dtype)?)?;
        if let Some(conv) = &self.post_quant_conv {
            x = conv.forward(&x)?;
        }
        self.mid_block
            .forward(&self.conv_in.forward(&x)?, None, None)
    }
}

fn yes() -> bool {
    true
}
fn one() -> usize {
    1
}
fn three() -> usize {
    3
}
fn four() -> usize {
    4
}
fn thirty_two() -> usize {
    32
}
fn silu() -> Activation {
    Activation::Silu
}
fn one_block() -> Vec<String> {
    vec!["UpDecoderBlock2D".into()]
}
fn one_width() -> Vec<usize> {
    vec![64]
}
/// diffusers' default, which SD 1's configuration leaves out.
fn published_scaling() -> f64 {
    0.18215
}
