//! What a picture costs, from the configurations alone: the networks as lists of parts, and from those their work and their memory.
mod maps;
mod speed;
mod work;

pub use work::Work;

use super::models::autoencoder::Autoencoder;
use super::models::blocks::AttentionKind;
use super::models::tiny_vae::TinyVaeConfig;
use super::models::unet_config::UNetConfig;
use super::models::vae::VaeConfig;

/// Parts of a network in the order they run.
#[derive(Debug, Default)]
pub struct Network(Vec<Part>);

/// One of them, which reads a map of `from` channels and writes one of `to`.
#[derive(Clone, Copy, Debug)]
struct Part {
    kind: Kind,
    from: usize,
    to: usize,
    /// Pixels of the map that is written.
    pixels: f64,
    /// Those of the map that is read.
    pixels_read: f64,
    /// Numbers in the maps that wait meanwhile for the other side of the U.
    kept: f64,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    /// Of this many rows and columns.
    Conv(usize),
    /// Two convolutions of 3 x 3, with a shortcut of 1 x 1 where the channels change.
    Resnet,
    /// Three convolutions of 3 x 3.
    TinyBlock,
    /// With as many heads.
    Pixels { heads: usize },
    /// With as many heads and transformer blocks, and the tokens of the text.
    Text {
        heads: usize,
        blocks: usize,
        tokens: usize,
    },
}

impl Network {
    /// A UNet's call for one sample of `(h, w)` that reads `tokens` tokens.
    pub fn unet(config: &UNetConfig, (h, w): (usize, usize), tokens: usize) -> Self {
        let widths = &config.block_out_channels;
        let pixels = |level: usize| ((h >> level).max(1) * (w >> level).max(1)) as f64;
        let (first, last) = (widths[0], widths.len() - 1);
        let mut net = Self::default();
        net.conv(config.conv_in_kernel, config.in_channels, first, pixels(0));
        // Channels and pixels of the maps that wait. The newest is what the next part reads.
        let mut skips = vec![(first, pixels(0))];
        let sum = |maps: &[(usize, f64)]| maps.iter().map(|(c, p)| *c as f64 * p).sum::<f64>();
        for (i, style) in config.down.iter().enumerate() {
            let (to, p) = (widths[i], pixels(i));
            for &kind in &style.layers {
                let from = skips.last().map_or(first, |map| map.0);
                net.resnet(from, to, p, sum(&skips[..skips.len() - 1]));
                net.attention(kind, to, p, tokens, sum(&skips));
                skips.push((to, p));
            }
            if i < last {
                net.resize(to, p, pixels(i + 1), sum(&skips[..skips.len() - 1]));
                skips.push((to, pixels(i + 1)));
            }
        }
        if let Some(style) = &config.mid {
            let (width, p, kept) = (widths[last], pixels(last), sum(&skips));
            net.resnet(width, width, p, kept);
            for &kind in &style.layers {
                net.attention(kind, width, p, tokens, kept);
                net.resnet(width, width, p, kept);
            }
        }
        let mut below = widths[last];
        for (i, style) in config.up.iter().enumerate() {
            let level = last - i;
            let (to, p) = (widths[level], pixels(level));
            for &kind in &style.layers {
                let skip = skips.pop().map_or(0, |map| map.0);
                net.resnet(below + skip, to, p, sum(&skips));
                net.attention(kind, to, p, tokens, sum(&skips));
                below = to;
            }
            if level > 0 {
                net.resize(to, p, pixels(level - 1), sum(&skips));
            }
        }
        net.end(
            config.conv_out_kernel,
            first,
            config.out_channels,
            pixels(0),
        );
        net
    }

    /// Decoding one picture of `(h, w)` latents.
    pub fn decoder(config: &Autoencoder, (h, w): (usize, usize)) -> Self {
        match config {
            Autoencoder::Kl(config) => Self::kl_decoder(config, (h * w) as f64),
            Autoencoder::Tiny(config) => Self::tiny_decoder(config, (h * w) as f64),
        }
    }

    fn kl_decoder(config: &VaeConfig, mut pixels: f64) -> Self {
        let widths: Vec<usize> = config.block_out_channels.iter().rev().copied().collect();
        let top = widths[0];
        let mut net = Self::default();
        net.conv(3, config.latent_channels, top, pixels);
        net.resnet(top, top, pixels, 0.0);
        if config.mid_block_add_attention {
            net.push(Kind::Pixels { heads: 1 }, top, top, pixels, 0.0);
        }
        net.resnet(top, top, pixels, 0.0);
        let mut from = top;
        for (i, &to) in widths.iter().enumerate() {
            net.resnet(from, to, pixels, 0.0);
            for _ in 0..config.layers_per_block {
                net.resnet(to, to, pixels, 0.0);
            }
            if i + 1 < widths.len() {
                net.resize(to, pixels, 4.0 * pixels, 0.0);
                pixels *= 4.0;
            }
            from = to;
        }
        net.end(3, from, config.out_channels, pixels);
        net
    }

    fn tiny_decoder(config: &TinyVaeConfig, mut pixels: f64) -> Self {
        let width = config.width();
        let mut net = Self::default();
        net.conv(3, config.latent_channels, width, pixels);
        for (i, &blocks) in config.num_decoder_blocks.iter().enumerate() {
            for _ in 0..blocks {
                net.push(Kind::TinyBlock, width, width, pixels, 0.0);
            }
            if i + 1 < config.num_decoder_blocks.len() {
                net.resize(width, pixels, 4.0 * pixels, 0.0);
                pixels *= 4.0;
            }
        }
        net.end(3, width, config.out_channels, pixels);
        net
    }

    fn push(&mut self, kind: Kind, from: usize, to: usize, pixels: f64, kept: f64) {
        self.0.push(Part {
            kind,
            from,
            to,
            pixels,
            pixels_read: pixels,
            kept,
        });
    }

    fn conv(&mut self, kernel: usize, from: usize, to: usize, pixels: f64) {
        self.push(Kind::Conv(kernel), from, to, pixels, 0.0);
    }

    fn resnet(&mut self, from: usize, to: usize, pixels: f64, kept: f64) {
        self.push(Kind::Resnet, from, to, pixels, kept);
    }

    fn attention(
        &mut self,
        kind: AttentionKind,
        width: usize,
        pixels: f64,
        tokens: usize,
        kept: f64,
    ) {
        let kind = match kind {
            AttentionKind::None => return,
            AttentionKind::Pixels(style) => Kind::Pixels {
                heads: (width / style.head_dim.max(1)).max(1),
            },
            AttentionKind::Text(style) => Kind::Text {
                heads: style.heads,
                blocks: style.layers,
                tokens,
            },
        };
        self.push(kind, width, width, pixels, kept);
    }

    /// A convolution of 3 x 3 between two sizes.
    fn resize(&mut self, width: usize, pixels_read: f64, pixels: f64, kept: f64) {
        self.0.push(Part {
            kind: Kind::Conv(3),
            from: width,
            to: width,
            pixels,
            pixels_read,
            kept,
        });
    }

    /// The last convolution, whose norm's result it reads.
    fn end(&mut self, kernel: usize, from: usize, to: usize, pixels: f64) {
        self.push(Kind::Conv(kernel), from, to, pixels, from as f64 * pixels);
    }
}
