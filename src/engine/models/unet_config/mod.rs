//! `unet/config.json` of `UNet2DModel` and `UNet2DConditionModel`, reduced to what the structure needs.
//!
//! Two traps of the field: `attention_head_dim` is the channels of a head in the first class and the number of heads in the
//! second (diffusers issue 2011), and an absent key takes the class's default, which differs between the two.
mod conditional;
mod unconditional;

use super::blocks::BlockStyle;
use super::condition::AddedStyle;
use super::config::{OneOrMany, check_count, height_and_width, refuse_unsupported};
use super::resnet::{ResnetStyle, TimeShift};
use super::timestep::Sinusoid;
use crate::engine::nn::Activation;
use anyhow::{Result, ensure};
use serde::Deserialize;
use serde_json::{Map, Value, json};

/// The architecture of a UNet, every default filled in.
#[derive(Clone, Debug)]
pub struct UNetConfig {
    pub sample_size: Option<(usize, usize)>,
    pub in_channels: usize,
    pub out_channels: usize,
    pub center_input_sample: bool,
    pub sinusoid: Sinusoid,
    pub time_embed_dim: usize,
    pub time_activation: Activation,
    pub block_out_channels: Vec<usize>,
    pub down: Vec<BlockStyle>,
    pub mid: Option<BlockStyle>,
    pub up: Vec<BlockStyle>,
    pub downsample_padding: usize,
    pub norm_num_groups: usize,
    pub norm_eps: f64,
    pub activation: Activation,
    pub out_activation: Activation,
    pub conv_in_kernel: usize,
    pub conv_out_kernel: usize,
    /// Width of the text's states; None for a UNet without a text.
    pub cross_attention_dim: Option<usize>,
    /// What is added to the timestep's embedding, where anything is.
    pub added: Option<AddedStyle>,
    /// Width of the guidance scale's sinusoid, where the scale is an input and guidance takes one pass.
    pub guidance_channels: Option<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
enum BlockType {
    #[serde(
        rename = "DownBlock2D",
        alias = "UpBlock2D",
        alias = "UNetResDownBlock2D",
        alias = "UNetResUpBlock2D"
    )]
    Plain,
    #[serde(
        rename = "AttnDownBlock2D",
        alias = "AttnUpBlock2D",
        alias = "UNetResAttnDownBlock2D",
        alias = "UNetResAttnUpBlock2D"
    )]
    Attn,
    #[serde(
        rename = "CrossAttnDownBlock2D",
        alias = "CrossAttnUpBlock2D",
        alias = "UNetResCrossAttnDownBlock2D",
        alias = "UNetResCrossAttnUpBlock2D"
    )]
    CrossAttn,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
enum MidType {
    UNetMidBlock2D,
    UNetMidBlock2DCrossAttn,
}

/// `transformer_layers_per_block`: for all blocks, or for each block a number or a list with one for each of its layers.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum LayerCounts {
    All(usize),
    Each(Vec<OneOrMany<usize>>),
}

impl Default for LayerCounts {
    fn default() -> Self {
        Self::All(1)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
enum AdditionType {
    /// A pooled text and six sizes.
    #[serde(rename = "text_time")]
    TextTime,
}

/// The keys as they stand in the file. `Option` where the classes' defaults differ or null has a meaning.
#[derive(Deserialize)]
pub struct UNetFile {
    sample_size: Option<OneOrMany<usize>>,
    in_channels: Option<usize>,
    out_channels: Option<usize>,
    #[serde(default)]
    center_input_sample: bool,
    #[serde(default = "yes")]
    flip_sin_to_cos: bool,
    #[serde(default)]
    freq_shift: f64,
    down_block_types: Option<Vec<BlockType>>,
    #[serde(default, deserialize_with = "present")]
    mid_block_type: Option<Option<MidType>>,
    up_block_types: Option<Vec<BlockType>>,
    block_out_channels: Option<Vec<usize>>,
    #[serde(default = "two_layers")]
    layers_per_block: OneOrMany<usize>,
    #[serde(default = "one")]
    downsample_padding: usize,
    #[serde(default = "one_f64")]
    mid_block_scale_factor: f64,
    #[serde(default = "silu")]
    act_fn: Activation,
    #[serde(default, deserialize_with = "present")]
    attention_head_dim: Option<Option<OneOrMany<usize>>>,
    #[serde(default = "thirty_two")]
    norm_num_groups: usize,
    attn_norm_num_groups: Option<usize>,
    #[serde(default = "small_eps")]
    norm_eps: f64,
    #[serde(default)]
    resnet_time_scale_shift: TimeShift,
    time_embedding_dim: Option<usize>,
    #[serde(default = "yes")]
    add_attention: bool,
    cross_attention_dim: Option<OneOrMany<usize>>,
    #[serde(default)]
    transformer_layers_per_block: LayerCounts,
    reverse_transformer_layers_per_block: Option<Vec<OneOrMany<usize>>>,
    #[serde(default = "only_own")]
    only_cross_attention: OneOrMany<bool>,
    addition_embed_type: Option<AdditionType>,
    addition_time_embed_dim: Option<usize>,
    projection_class_embeddings_input_dim: Option<usize>,
    time_cond_proj_dim: Option<usize>,
    #[serde(default = "three")]
    conv_in_kernel: usize,
    #[serde(default = "three")]
    conv_out_kernel: usize,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

/// Keys of both classes that change the network, and the values under which nothing changes.
/// `dropout`, `resnet_skip_time_act`, `resnet_out_scale_factor`, `upcast_attention` and `use_linear_projection` change nothing here: the first
/// is off outside training, the next two serve block types that are refused, attention scores are always in f32 or better, and both
/// kinds of projection are the same product.
fn unsupported() -> Vec<(&'static str, Vec<Value>)> {
    vec![
        ("time_embedding_type", vec![json!("positional")]),
        ("time_embedding_act_fn", vec![]),
        ("timestep_post_act", vec![]),
        ("class_embed_type", vec![]),
        ("num_class_embeds", vec![]),
        ("encoder_hid_dim", vec![]),
        ("encoder_hid_dim_type", vec![]),
        ("num_attention_heads", vec![]),
        ("dual_cross_attention", vec![json!(false)]),
        ("class_embeddings_concat", vec![json!(false)]),
        ("attention_type", vec![json!("default")]),
        ("cross_attention_norm", vec![]),
        ("downsample_type", vec![json!("conv")]),
        ("upsample_type", vec![json!("conv")]),
    ]
}

impl UNetConfig {
    /// The same, if the heads of every attention fit its channels.
    fn checked(self) -> Result<Self> {
        let widths = &self.block_out_channels;
        let down = self.down.iter().zip(widths);
        let mid = self.mid.iter().zip(widths.last());
        let up = self.up.iter().zip(widths.iter().rev());
        for (block, &width) in down.chain(mid).chain(up) {
            for attention in &block.layers {
                attention.check(width)?;
            }
        }
        Ok(self)
    }
}

impl UNetFile {
    fn resnet(&self, time_embed_dim: usize) -> ResnetStyle {
        ResnetStyle {
            groups: self.norm_num_groups,
            eps: self.norm_eps,
            activation: self.act_fn,
            temb_channels: Some(time_embed_dim),
            time_shift: self.resnet_time_scale_shift,
            output_scale_factor: 1.0,
        }
    }

    fn mid_resnet(&self, time_embed_dim: usize) -> ResnetStyle {
        ResnetStyle {
            output_scale_factor: self.mid_block_scale_factor,
            ..self.resnet(time_embed_dim)
        }
    }

    /// What both classes share; the blocks are left empty.
    #[allow(
        clippy::too_many_arguments,
        reason = "the two callers differ in exactly these"
    )]
    fn parts(
        &self,
        widths: &[usize],
        down: usize,
        up: usize,
        channels: (usize, usize),
        activation: Activation,
        time_activation: Activation,
        out_activation: Activation,
    ) -> Result<UNetConfig> {
        let table = unsupported();
        let table: Vec<(&str, &[Value])> = table
            .iter()
            .map(|(key, values)| (*key, values.as_slice()))
            .collect();
        refuse_unsupported(&self.rest, &table)?;
        ensure!(
            down > 0 && down == up && down == widths.len(),
            "{down} down_block_types, {up} up_block_types and {} block_out_channels: the three must be equal and not zero",
            widths.len()
        );
        // Each halves the picture; published ones have seven at most.
        check_count("the number of down_block_types", down, 16)?;
        for &width in widths {
            check_count("block_out_channels", width, 1 << 16)?;
            ensure!(
                self.norm_num_groups > 0 && width.is_multiple_of(self.norm_num_groups),
                "norm_num_groups = {} does not divide block_out_channels {width}",
                self.norm_num_groups
            );
        }
        for layers in self.layers_per_block.for_blocks(down, "layers_per_block")? {
            check_count("layers_per_block", layers, 100)?;
        }
        ensure!(
            self.mid_block_scale_factor.is_finite() && self.mid_block_scale_factor != 0.0,
            "mid_block_scale_factor = {} is not a number to divide by",
            self.mid_block_scale_factor
        );
        ensure!(
            self.norm_eps.is_finite() && self.norm_eps >= 0.0,
            "norm_eps = {} is not a small positive number",
            self.norm_eps
        );
        for (key, kernel) in [
            ("conv_in_kernel", self.conv_in_kernel),
            ("conv_out_kernel", self.conv_out_kernel),
        ] {
            ensure!(
                kernel % 2 == 1 && kernel < 64,
                "{key} = {kernel}: it must be odd and below 64"
            );
        }
        ensure!(
            self.downsample_padding <= 1,
            "downsample_padding = {}: 0 and 1 are accepted",
            self.downsample_padding
        );
        let sinusoid = Sinusoid {
            channels: widths[0],
            flip_sin_to_cos: self.flip_sin_to_cos,
            freq_shift: self.freq_shift,
        };
        ensure!(
            (widths[0] / 2) as f64 > self.freq_shift,
            "freq_shift = {} leaves no frequencies for {} channels",
            self.freq_shift,
            widths[0]
        );
        Ok(UNetConfig {
            sample_size: self
                .sample_size
                .as_ref()
                .map(height_and_width)
                .transpose()?,
            in_channels: check_count(
                "in_channels",
                self.in_channels.unwrap_or(channels.0),
                1 << 12,
            )?,
            out_channels: check_count(
                "out_channels",
                self.out_channels.unwrap_or(channels.1),
                1 << 12,
            )?,
            center_input_sample: self.center_input_sample,
            sinusoid,
            time_embed_dim: check_count(
                "time_embedding_dim",
                self.time_embedding_dim.unwrap_or(4 * widths[0]),
                1 << 18,
            )?,
            time_activation,
            block_out_channels: widths.to_vec(),
            down: Vec::new(),
            mid: None,
            up: Vec::new(),
            downsample_padding: self.downsample_padding,
            norm_num_groups: self.norm_num_groups,
            norm_eps: self.norm_eps,
            activation,
            out_activation,
            conv_in_kernel: self.conv_in_kernel,
            conv_out_kernel: self.conv_out_kernel,
            cross_attention_dim: None,
            added: None,
            guidance_channels: None,
        })
    }
}

fn present<'de, D: serde::Deserializer<'de>, T: Deserialize<'de>>(
    value: D,
) -> Result<Option<T>, D::Error> {
    T::deserialize(value).map(Some)
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
fn thirty_two() -> usize {
    32
}
fn one_f64() -> f64 {
    1.0
}
fn small_eps() -> f64 {
    1e-5
}
fn silu() -> Activation {
    Activation::Silu
}
fn two_layers() -> OneOrMany<usize> {
    OneOrMany::One(2)
}
fn only_own() -> OneOrMany<bool> {
    OneOrMany::One(false)
}
