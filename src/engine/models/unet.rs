//! The network that predicts the noise: `UNet2DModel` (Ho et al. 2020) and `UNet2DConditionModel` (Rombach et al. 2022), one structure.
//!
//! ```text
//! temb = time_embedding(t) + added;   h = conv_in(x);   down (keeping maps), mid, up (taking them back);   conv_out(act(conv_norm_out(h)))
//! ```
//! Everything that differs between the two is decided by [`super::unet_config`] from the checkpoint's own numbers.
use super::blocks::{DownBlock, MidBlock, UpBlock};
use super::condition::{AddedEmbedding, Condition, Conditioning};
use super::timestep::TimestepEmbedding;
use super::transformer::{Text, TextAttention, TextSlots};
use super::unet_config::UNetConfig;
use crate::engine::cuda::graph::Recorder;
use crate::engine::nn::{Activation, Conv2d, ConvShape, GroupNorm, Map};
use candle_core::{DType, Device, Result, Tensor};
use candle_nn::VarBuilder;

pub struct UNet {
    center_input_sample: bool,
    activation: Activation,
    time_embedding: TimestepEmbedding,
    add_embedding: Option<AddedEmbedding>,
    conv_in: Conv2d,
    down_blocks: Vec<DownBlock>,
    mid_block: Option<MidBlock>,
    up_blocks: Vec<UpBlock>,
    conv_norm_out: GroupNorm,
    out_activation: Activation,
    conv_out: Conv2d,
    dtype: DType,
    device: Device,
}

impl UNet {
    /// `dtype` is that of the activations.
    pub fn load(config: &UNetConfig, vb: VarBuilder, dtype: DType) -> Result<Self> {
        let slots = TextSlots::default();
        let widths = &config.block_out_channels;
        let first = widths[0];
        let blocks = config.down.len();

        let down_blocks = (0..blocks).map(|i| {
            let from = if i == 0 { first } else { widths[i - 1] };
            let downsample = (i + 1 < blocks).then_some(config.downsample_padding);
            DownBlock::load(
                vb.pp("down_blocks").pp(i),
                &config.down[i],
                (from, widths[i]),
                downsample,
                &slots,
            )
        });
        let down_blocks = down_blocks.collect::<Result<_>>()?;
        let mid_block = config
            .mid
            .as_ref()
            .map(|style| MidBlock::load(vb.pp("mid_block"), style, widths[blocks - 1], &slots))
            .transpose()?;
        let up_blocks = (0..blocks).map(|i| {
            // Numbered from the bottom: block i mirrors the down block `blocks - 1 - i`.
            let level = blocks - 1 - i;
            let (to, below) = (widths[level], widths[(level + 1).min(blocks - 1)]);
            let kept_last = widths[level.saturating_sub(1)];
            let layers = config.up[i].layers.len();
            let inputs: Vec<usize> = (0..layers)
                .map(|j| if j == 0 { below } else { to } + if j + 1 == layers { kept_last } else { to })
                .collect();
            UpBlock::load(vb.pp("up_blocks").pp(i), &config.up[i], &inputs, to, i + 1 < blocks, &slots)
        });
        Ok(Self {
            center_input_sample: config.center_input_sample,
            activation: config.activation,
            time_embedding: TimestepEmbedding::load(
                vb.pp("time_embedding"),
                config.sinusoid,
                config.time_embed_dim,
                config.time_activation,
                config.guidance_channels,
                dtype,
            )?,
            add_embedding: config
                .added
                .map(|style| {
                    let vb = vb.pp("add_embedding");
                    AddedEmbedding::load(vb, style, config.time_embed_dim, dtype)
                })
                .transpose()?,
            conv_in: Conv2d::load(
                vb.pp("conv_in"),
                ConvShape::same(config.in_channels, first, config.conv_in_kernel),
            )?,
            down_blocks,
            mid_block,
            up_blocks: up_blocks.collect::<Result<_>>()?,
            conv_norm_out: GroupNorm::load(
                vb.pp("conv_norm_out"),
                config.norm_num_groups,
                first,
                config.norm_eps,
            )?,
            out_activation: config.out_activation,
            conv_out: Conv2d::load(
                vb.pp("conv_out"),
                ConvShape::same(first, config.out_channels, config.conv_out_kernel),
            )?,
            dtype,
            device: vb.device().clone(),
        })
    }

    /// Prepares what the calls of a run are conditioned on.
    pub fn condition(&self, given: &Conditioning) -> Result<Condition> {
        let down = self.down_blocks.iter().flat_map(DownBlock::text_attentions);
        let mid = self.mid_block.iter().flat_map(MidBlock::text_attentions);
        let up = self.up_blocks.iter().flat_map(UpBlock::text_attentions);
        let attentions: Vec<&TextAttention> = down.chain(mid).chain(up).collect();
        let context = given
            .context
            .to_dtype(self.dtype)?
            .to_device(&self.device)?;
        let added = match (&self.add_embedding, &given.pooled, &given.sizes) {
            (None, ..) => None,
            (Some(layer), Some(pooled), Some(sizes)) => Some(layer.forward(pooled, sizes)?),
            _ => candle_core::bail!("this UNet reads a pooled text and sizes, and there are none"),
        };
        let guidance = given
            .guidance
            .map(|scale| self.time_embedding.guidance(scale));
        Ok(Condition {
            text: Text::new(attentions.into_iter(), &context)?,
            added,
            guidance: guidance.transpose()?,
        })
    }

    /// `x` is `(b, in_channels, h, w)` in any dtype, `t` the timestep of the whole batch; gives `(b, out_channels, h, w)` in the dtype of `x`.
    ///
    /// A condition of `n b` rows gives `(n b, ...)`: what `n` copies of `x` would give, one after another. What does not depend on the
    /// condition is computed once for all of them.
    pub fn forward(&self, x: &Tensor, t: f64, condition: Option<&Condition>) -> Result<Tensor> {
        self.calls(condition).forward(x, t)
    }

    /// The calls of a run: the same condition, and the same shape of `x`.
    pub fn calls<'a>(&'a self, condition: Option<&'a Condition>) -> Calls<'a> {
        Calls {
            unet: self,
            condition,
            recorder: Recorder::default(),
        }
    }

    /// `sinusoid` is the timestep's.
    fn call(&self, x: &Tensor, sinusoid: &Tensor, condition: Option<&Condition>) -> Result<Tensor> {
        let dtype = x.dtype();
        let text = condition.map(|given| &given.text);
        let x = if self.center_input_sample {
            ((x * 2.0)? - 1.0)?
        } else {
            x.clone()
        };
        let guidance = condition.and_then(|given| given.guidance.as_ref());
        let mut temb = self.time_embedding.forward(sinusoid, guidance)?;
        if let Some(added) = condition.and_then(|given| given.added.as_ref()) {
            temb = temb.broadcast_add(added)?;
        }
        let temb = self.activation.of(&temb)?;

        let mut x = self
            .conv_in
            .forward(&Map::from_nchw(&x.to_dtype(self.dtype)?)?)?;
        if let (Some(text), true) = (text, temb.dim(0)? > 1) {
            // The texts differ in the timestep's embedding already.
            x = text.spread_map(&x)?;
        }
        let mut skips = vec![x.clone()];
        for block in &self.down_blocks {
            x = block.forward(x, &temb, text, &mut skips)?;
        }
        if let Some(mid) = &self.mid_block {
            x = mid.forward(&x, Some(&temb), text)?;
        }
        if let Some(text) = text {
            for map in skips.iter_mut().chain([&mut x]) {
                *map = text.spread_map(map)?;
            }
        }
        for block in &self.up_blocks {
            x = block.forward(x, &temb, text, &mut skips)?;
        }
        x = self.conv_norm_out.forward_act(&x, self.out_activation)?;
        self.conv_out.forward(&x)?.to_nchw()?.to_dtype(dtype)
    }
}

/// The calls of a UNet in one run.
pub struct Calls<'a> {
    unet: &'a UNet,
    condition: Option<&'a Condition>,
    recorder: Recorder,
}

impl Calls<'_> {
    /// As [`UNet::forward`].
    pub fn forward(&mut self, x: &Tensor, t: f64) -> Result<Tensor> {
        let (unet, condition) = (self.unet, self.condition);
        // Made on the host, so outside of what a card repeats by itself.
        let sinusoid = unet.time_embedding.sinusoid(t)?;
        let call = |given: &[&Tensor]| unet.call(given[0], given[1], condition);
        self.recorder.call(&[x, &sinusoid], call)
    }
}
