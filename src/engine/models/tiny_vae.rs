//! The decoder of `AutoencoderTiny` (TAESD, Bohan 2023): a few dozen convolutions that learned to draw what the large decoder draws.
//!
//! ```text
//! x = act(conv(3 tanh(latents / 3)))
//! for each block:  x = conv(2x larger(x)),  after  x = relu(x + conv(act(conv(act(conv(x))))))  some times
//! picture = 2 x - 1
//! ```
//! The last block is not enlarged. `latent_magnitude` and `latent_shift` are for keeping latents as bytes, and no part of decoding.
use super::config::{check_count, check_decoder, refuse_unsupported};
use crate::engine::nn::{Activation, Conv2d, ConvShape, Map};
use anyhow::ensure;
use candle_core::{DType, Result, Tensor};
use candle_nn::VarBuilder;
use serde::Deserialize;
use serde_json::{Value, json};

/// `vae/config.json` of an `AutoencoderTiny`. The encoder's keys are not read.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub struct TinyVaeConfig {
    pub out_channels: usize,
    pub decoder_block_out_channels: Vec<usize>,
    act_fn: Activation,
    pub latent_channels: usize,
    pub num_decoder_blocks: Vec<usize>,
    pub scaling_factor: f64,
    #[serde(flatten)]
    rest: serde_json::Map<String, Value>,
}

impl Default for TinyVaeConfig {
    fn default() -> Self {
        Self {
            out_channels: 3,
            decoder_block_out_channels: vec![64; 4],
            act_fn: Activation::Relu,
            latent_channels: 4,
            num_decoder_blocks: vec![3, 3, 3, 1],
            scaling_factor: 1.0,
            rest: serde_json::Map::new(),
        }
    }
}

impl TinyVaeConfig {
    /// Refuses what the decoder cannot be.
    pub fn check(&self) -> anyhow::Result<()> {
        refuse_unsupported(
            &self.rest,
            &[
                ("upsample_fn", &[json!("nearest")]),
                ("upsampling_scaling_factor", &[json!(2)]),
                ("shift_factor", &[json!(0.0), json!(0)]),
            ],
        )?;
        let widths = &self.decoder_block_out_channels;
        let blocks = widths.len();
        ensure!(
            (1..=8).contains(&blocks),
            "decoder_block_out_channels has {blocks} values; 1 to 8 are accepted"
        );
        ensure!(
            widths.iter().all(|width| *width == widths[0]),
            "decoder_block_out_channels = {widths:?}: each block reads what the one before writes, so they must be equal"
        );
        ensure!(
            self.num_decoder_blocks.len() == blocks,
            "num_decoder_blocks has {} values for {blocks} decoder_block_out_channels",
            self.num_decoder_blocks.len()
        );
        check_count("decoder_block_out_channels", widths[0], 1 << 14)?;
        check_count("latent_channels", self.latent_channels, 1 << 10)?;
        for &layers in &self.num_decoder_blocks {
            ensure!(
                layers <= 100,
                "num_decoder_blocks = {layers}: at most 100 are accepted"
            );
        }
        check_decoder(self.out_channels, self.scaling_factor)?;
        Ok(())
    }

    /// Channels between the layers.
    pub fn width(&self) -> usize {
        self.decoder_block_out_channels[0]
    }

    /// Pixels along a side for one latent.
    pub fn scale(&self) -> usize {
        1 << (self.num_decoder_blocks.len() - 1)
    }
}

pub struct TinyVaeDecoder {
    scaling_factor: f64,
    conv_in: Conv2d,
    activation: Activation,
    stages: Vec<Stage>,
    dtype: DType,
}

/// Residual blocks of one size, and the convolution after them.
struct Stage {
    blocks: Vec<Block>,
    /// Whether the map is enlarged before `conv`.
    enlarges: bool,
    conv: Conv2d,
}

struct Block {
    conv: [Conv2d; 3],
    activation: Activation,
}

impl TinyVaeDecoder {
    /// Loads `decoder` of a tiny VAE. `dtype` is that of the activations.
    pub fn load(config: &TinyVaeConfig, vb: VarBuilder, dtype: DType) -> Result<Self> {
        let layers = vb.pp("decoder.layers");
        let width = config.width();
        let same = ConvShape::same(width, width, 3);
        // One list of layers: functions without weights have numbers too.
        let mut numbers = 2..;
        let mut next = || layers.pp(numbers.next().unwrap_or_default());
        let mut stages = Vec::new();
        for (i, &blocks) in config.num_decoder_blocks.iter().enumerate() {
            let blocks = (0..blocks)
                .map(|_| Block::load(next(), width, config.act_fn))
                .collect::<Result<_>>()?;
            let enlarges = i + 1 < config.num_decoder_blocks.len();
            let conv = if enlarges {
                next();
                Conv2d::load_no_bias(next(), same)?
            } else {
                Conv2d::load(next(), ConvShape::same(width, config.out_channels, 3))?
            };
            stages.push(Stage {
                blocks,
                enlarges,
                conv,
            });
        }
        Ok(Self {
            scaling_factor: config.scaling_factor,
            conv_in: Conv2d::load(
                layers.pp(0),
                ConvShape::same(config.latent_channels, width, 3),
            )?,
            activation: config.act_fn,
            stages,
            dtype,
        })
    }

    /// Latents as the UNet knows them, `(b, latent_channels, h, w)`, to pixels around [-1, 1], `(b, out_channels, h * scale, w * scale)`.
    pub fn decode(&self, latents: &Tensor) -> Result<Tensor> {
        let x = (latents / self.scaling_factor)?.to_dtype(self.dtype)?;
        let x = Map::from_nchw(&((x / 3.0)?.tanh()? * 3.0)?)?;
        let mut x = self.activation.of_map(&self.conv_in.forward(&x)?)?;
        for stage in &self.stages {
            for block in &stage.blocks {
                x = block.forward(&x)?;
            }
            x = if stage.enlarges {
                let (h, w) = x.size()?;
                stage.conv.forward_enlarged(&x, (2 * h, 2 * w))?
            } else {
                stage.conv.forward(&x)?
            };
        }
        (x.to_nchw()? * 2.0)? - 1.0
    }
}

impl Block {
    fn load(vb: VarBuilder, width: usize, activation: Activation) -> Result<Self> {
        let conv = |i: usize| Conv2d::load(vb.pp("conv").pp(i), ConvShape::same(width, width, 3));
        Ok(Self {
            conv: [conv(0)?, conv(2)?, conv(4)?],
            activation,
        })
    }

    fn forward(&self, x: &Map) -> Result<Map> {
        let mut h = self.activation.of_map(&self.conv[0].forward(x)?)?;
        h = self.activation.of_map(&self.conv[1].forward(&h)?)?;
        // fuse: ReLU whatever act_fn says, as in the reference.
        Activation::Relu.of_map(&self.conv[2].forward_residual(&h, x, 1.0)?)
    }
}
