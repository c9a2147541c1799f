//! What a picture costs, from the configurations alone: multiplications of the networks, and how many of them this machine does in a second.
//!
//! Convolutions of k x k from a to b channels on p pixels are `k^2 a b p` multiplications, attention of n queries to m keys
//! in c channels `2 n m c`, and a product of p rows `a b p`. Norms and activations are left out: the speed is measured on
//! a convolution with all that goes with it, and the whole is an estimate.
use super::models::autoencoder::Autoencoder;
use super::models::blocks::AttentionKind;
use super::models::tiny_vae::TinyVaeConfig;
use super::models::unet_config::UNetConfig;
use super::models::vae::VaeConfig;
use super::nn::{Conv2d, ConvShape, Map};
use super::runtime::Runtime;
use anyhow::Result;
use candle_core::{DType, Tensor};
use candle_nn::VarBuilder;
use std::time::Instant;

/// A call of the UNet for one sample of `(h, w)` that reads `tokens` tokens.
pub fn unet_call(config: &UNetConfig, (h, w): (usize, usize), tokens: usize) -> f64 {
    let widths = &config.block_out_channels;
    let pixels = |level: usize| ((h >> level).max(1) * (w >> level).max(1)) as f64;
    let (first, last) = (widths[0], widths.len() - 1);
    let ends = conv(3, config.in_channels, first) + conv(3, first, config.out_channels);
    let mut total = ends * pixels(0);
    for (i, style) in config.down.iter().enumerate() {
        let from = if i == 0 { first } else { widths[i - 1] };
        for (layer, &kind) in style.layers.iter().enumerate() {
            let from = if layer == 0 { from } else { widths[i] };
            total += layer_cost(kind, from, widths[i], pixels(i), tokens);
        }
        if i < last {
            total += conv(3, widths[i], widths[i]) * pixels(i + 1);
        }
    }
    if let Some(style) = &config.mid {
        let (width, p) = (widths[last], pixels(last));
        total += resnet(width, width) * p;
        for &kind in &style.layers {
            total += layer_cost(kind, width, width, p, tokens);
        }
    }
    for (i, style) in config.up.iter().enumerate() {
        let level = last - i;
        let (to, below) = (widths[level], widths[(level + 1).min(last)]);
        let kept_last = widths[level.saturating_sub(1)];
        for (layer, &kind) in style.layers.iter().enumerate() {
            let kept = if layer + 1 == style.layers.len() {
                kept_last
            } else {
                to
            };
            let from = if layer == 0 { below } else { to } + kept;
            total += layer_cost(kind, from, to, pixels(level), tokens);
        }
        if level > 0 {
            total += conv(3, to, to) * pixels(level - 1);
        }
    }
    total
}

/// Decoding one picture of `(h, w)` latents.
pub fn decode(config: &Autoencoder, size: (usize, usize)) -> f64 {
    match config {
        Autoencoder::Kl(config) => decode_kl(config, size),
        Autoencoder::Tiny(config) => decode_tiny(config, size),
    }
}

fn decode_tiny(config: &TinyVaeConfig, (h, w): (usize, usize)) -> f64 {
    let (width, mut pixels) = (config.width(), (h * w) as f64);
    let mut total = conv(3, config.latent_channels, width) * pixels;
    for (i, &blocks) in config.num_decoder_blocks.iter().enumerate() {
        total += 3.0 * blocks as f64 * conv(3, width, width) * pixels;
        let mut to = config.out_channels;
        if i + 1 < config.num_decoder_blocks.len() {
            (pixels, to) = (4.0 * pixels, width);
        }
        total += conv(3, width, to) * pixels;
    }
    total
}

fn decode_kl(config: &VaeConfig, (h, w): (usize, usize)) -> f64 {
    let widths: Vec<usize> = config.block_out_channels.iter().rev().copied().collect();
    let (top, p) = (widths[0], (h * w) as f64);
    let mut total = (conv(3, config.latent_channels, top) + 2.0 * resnet(top, top)) * p;
    total += (4 * top * top) as f64 * p + 2.0 * p * p * top as f64;
    let (mut from, mut pixels) = (top, p);
    for (i, &to) in widths.iter().enumerate() {
        total +=
            resnet(from, to) * pixels + config.layers_per_block as f64 * resnet(to, to) * pixels;
        if i + 1 < widths.len() {
            pixels *= 4.0;
            total += conv(3, to, to) * pixels;
        }
        from = to;
    }
    total + conv(3, from, config.out_channels) * pixels
}

fn conv(kernel: usize, from: usize, to: usize) -> f64 {
    (kernel * kernel * from * to) as f64
}

fn resnet(from: usize, to: usize) -> f64 {
    let shortcut = if from == to { 0.0 } else { conv(1, from, to) };
    conv(3, from, to) + conv(3, to, to) + shortcut
}

fn layer_cost(kind: AttentionKind, from: usize, to: usize, p: f64, tokens: usize) -> f64 {
    let c = to as f64;
    let square = c * c * p;
    let attention = match kind {
        AttentionKind::None => 0.0,
        AttentionKind::Pixels(_) => 4.0 * square + 2.0 * p * p * c,
        AttentionKind::Text(text) => {
            // Self-attention, the text's queries and output, and the gated pair of layers.
            let own = 4.0 * square + 2.0 * p * p * c;
            let other = 2.0 * square + 2.0 * p * tokens as f64 * c;
            2.0 * square + text.layers as f64 * (own + other + 12.0 * square)
        }
    };
    resnet(from, to) * p + attention
}

impl Runtime {
    /// Multiplications in a second, by a convolution of the size that UNets are made of; takes about a third of one.
    pub fn speed(&self) -> Result<f64> {
        const CHANNELS: usize = 320;
        const SIDE: usize = 32;
        let vb = VarBuilder::zeros(self.activations(), &self.device);
        let layer = Conv2d::load(vb, ConvShape::same(CHANNELS, CHANNELS, 3))?;
        let x = Tensor::zeros((2, CHANNELS, SIDE, SIDE), self.activations(), &self.device)?;
        let x = Map::from_nchw(&x)?;
        let run = || -> Result<f64> {
            let start = Instant::now();
            let y = layer.forward(&x)?.to_nchw()?;
            // On CUDA, reading a number back waits for the work.
            y.sum_all()?.to_dtype(DType::F32)?.to_scalar::<f32>()?;
            Ok(start.elapsed().as_secs_f64())
        };
        run()?;
        // The mean and not the best: what others leave of the machine is what there is.
        let (mut spent, mut runs) = (0.0, 0.0);
        while spent < 0.3 {
            spent += run()?;
            runs += 1.0;
        }
        Ok(2.0 * conv(3, CHANNELS, CHANNELS) * (SIDE * SIDE) as f64 * runs / spent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::models::unet_config::UNetFile;
    use serde::de::DeserializeOwned;

    fn read<C: DeserializeOwned>(file: &str) -> Result<C> {
        let path = format!("{}/assets/{file}", env!("CARGO_MANIFEST_DIR"));
        Ok(serde_json::from_slice(&std::fs::read(path)?)?)
    }

    fn is_near(ours: f64, torch: f64) {
        assert!((ours / torch - 1.0).abs() < 0.005, "{ours} of {torch}");
    }

    // torch.utils.flop_counter on diffusers' models of the same configurations, halved: it counts additions too.
    #[test]
    fn the_multiplications_are_those_that_torch_counts() -> Result<()> {
        let ddpm = read::<UNetFile>("tiny-ddpm/unet/config.json")?.unconditional()?;
        is_near(unet_call(&ddpm, (16, 16), 0), 7_835_904.0);
        is_near(
            decode_kl(&read("tiny-sd/vae/config.json")?, (8, 8)),
            19_247_104.0,
        );
        // torch makes keys and values of the text in every call, which is once in a run here: 1.5 of 401.6 billion in
        // Stable Diffusion 1.5 and much more in this one.
        let sd = read::<UNetFile>("tiny-sd/unet/config.json")?.conditional()?;
        let ours = unet_call(&sd, (8, 8), 77);
        assert!((3_500_000.0..3_940_864.0).contains(&ours), "{ours}");
        Ok(())
    }
}
