//! The steps of the U (Ronneberger et al. 2015): residual blocks, each with an optional attention, and an optional change of size.
//! One structure serves diffusers' `DownBlock2D`, `AttnDownBlock2D`, `CrossAttnDownBlock2D`, their mirror images and the VAE's decoder.
use super::attention::{AttentionBlock, AttentionStyle};
use super::resnet::{ResnetBlock, ResnetStyle};
use super::transformer::{Text, TextAttention, TextSlots, Transformer2D, TransformerStyle};
use crate::engine::nn::{Bands, Conv2d, ConvShape, Map};
use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;

/// What follows each residual block.
#[derive(Clone, Copy, Debug)]
pub enum AttentionKind {
    None,
    Pixels(AttentionStyle),
    Text(TransformerStyle),
}

impl AttentionKind {
    /// Refuses heads that do not fit `channels`.
    pub fn check(&self, channels: usize) -> Result<()> {
        match self {
            Self::None => Ok(()),
            Self::Pixels(style) => style.heads(channels).map(drop),
            Self::Text(style) => style.inner(channels).map(drop),
        }
    }
}

enum Attention {
    Pixels(AttentionBlock),
    Text(Transformer2D),
}

impl Attention {
    fn load(
        vb: VarBuilder,
        channels: usize,
        kind: AttentionKind,
        slots: &TextSlots,
    ) -> Result<Option<Self>> {
        Ok(match kind {
            AttentionKind::None => None,
            AttentionKind::Pixels(style) => {
                Some(Self::Pixels(AttentionBlock::load(vb, channels, style)?))
            }
            AttentionKind::Text(style) => {
                Some(Self::Text(Transformer2D::load(vb, channels, style, slots)?))
            }
        })
    }

    fn forward(&self, x: &Map, text: Option<&Text>) -> Result<Map> {
        match (self, text) {
            (Self::Pixels(attention), _) => attention.forward(x),
            (Self::Text(transformer), Some(text)) => transformer.forward(x, text),
            (Self::Text(_), None) => {
                candle_core::bail!("this UNet is conditioned on text, and there is none")
            }
        }
    }

    fn text_attentions(&self) -> impl Iterator<Item = &TextAttention> {
        let transformer = match self {
            Self::Text(transformer) => Some(transformer),
            Self::Pixels(_) => None,
        };
        transformer
            .into_iter()
            .flat_map(Transformer2D::text_attentions)
    }
}

/// One residual block and what follows it.
struct Layer {
    resnet: ResnetBlock,
    attention: Option<Attention>,
}

impl Layer {
    /// Takes `x`, which is not needed any more when the attention begins.
    fn forward(&self, mut x: Map, temb: Option<&Tensor>, text: Option<&Text>) -> Result<Map> {
        x = self.resnet.forward(&x, temb)?;
        match &self.attention {
            Some(attention) => attention.forward(&x, text),
            None => Ok(x),
        }
    }
}

/// What the blocks of one resolution are made of.
#[derive(Clone, Debug)]
pub struct BlockStyle {
    pub resnet: ResnetStyle,
    /// One for each layer: what follows its residual block or, in the middle, comes before it.
    pub layers: Vec<AttentionKind>,
}

impl BlockStyle {
    fn load_layer(
        &self,
        vb: &VarBuilder,
        i: usize,
        from: usize,
        to: usize,
        slots: &TextSlots,
    ) -> Result<Layer> {
        Ok(Layer {
            resnet: ResnetBlock::load(vb.pp("resnets").pp(i), from, to, self.resnet)?,
            attention: Attention::load(vb.pp("attentions").pp(i), to, self.layers[i], slots)?,
        })
    }
}

/// Residual blocks, then half the size.
pub struct DownBlock {
    layers: Vec<Layer>,
    downsampler: Option<Conv2d>,
}

impl DownBlock {
    /// `downsample` is `downsample_padding` where the block halves its map. Padding 0 means one row of zeros at the bottom and right.
    pub fn load(
        vb: VarBuilder,
        style: &BlockStyle,
        channels: (usize, usize),
        downsample: Option<usize>,
        slots: &TextSlots,
    ) -> Result<Self> {
        let (from, to) = channels;
        let layers = (0..style.layers.len())
            .map(|i| style.load_layer(&vb, i, if i == 0 { from } else { to }, to, slots));
        let downsampler = downsample.map(|padding| {
            let padding = if padding == 0 {
                (0, 1)
            } else {
                (padding, padding)
            };
            let shape = ConvShape {
                in_channels: to,
                out_channels: to,
                kernel: 3,
                stride: 2,
                padding,
            };
            Conv2d::load(vb.pp("downsamplers.0.conv"), shape)
        });
        Ok(Self {
            layers: layers.collect::<Result<_>>()?,
            downsampler: downsampler.transpose()?,
        })
    }

    /// Gives the last map; every map on the way is kept for the other side of the U.
    pub fn forward(
        &self,
        mut x: Map,
        temb: &Tensor,
        text: Option<&Text>,
        skips: &mut Vec<Map>,
    ) -> Result<Map> {
        for layer in &self.layers {
            x = layer.forward(x, Some(temb), text)?;
            skips.push(x.clone());
        }
        if let Some(conv) = &self.downsampler {
            x = conv.forward(&x)?;
            skips.push(x.clone());
        }
        Ok(x)
    }

    pub fn text_attentions(&self) -> impl Iterator<Item = &TextAttention> {
        self.layers
            .iter()
            .filter_map(|l| l.attention.as_ref())
            .flat_map(Attention::text_attentions)
    }
}

/// A residual block, then for each layer an attention and another residual block.
pub struct MidBlock {
    first: ResnetBlock,
    rest: Vec<(Option<Attention>, ResnetBlock)>,
}

impl MidBlock {
    pub fn load(
        vb: VarBuilder,
        style: &BlockStyle,
        channels: usize,
        slots: &TextSlots,
    ) -> Result<Self> {
        let resnet =
            |i: usize| ResnetBlock::load(vb.pp("resnets").pp(i), channels, channels, style.resnet);
        let rest = style.layers.iter().enumerate().map(|(i, &kind)| {
            Ok((
                Attention::load(vb.pp("attentions").pp(i), channels, kind, slots)?,
                resnet(i + 1)?,
            ))
        });
        Ok(Self {
            first: resnet(0)?,
            rest: rest.collect::<Result<_>>()?,
        })
    }

    pub fn forward(&self, x: &Map, temb: Option<&Tensor>, text: Option<&Text>) -> Result<Map> {
        let mut x = self.first.forward(x, temb)?;
        for (attention, resnet) in &self.rest {
            if let Some(attention) = attention {
                x = attention.forward(&x, text)?;
            }
            x = resnet.forward(&x, temb)?;
        }
        Ok(x)
    }

    pub fn text_attentions(&self) -> impl Iterator<Item = &TextAttention> {
        self.rest
            .iter()
            .filter_map(|(attention, _)| attention.as_ref())
            .flat_map(Attention::text_attentions)
    }
}

/// Residual blocks, then twice the size.
pub struct UpBlock {
    layers: Vec<Layer>,
    upsampler: Option<Conv2d>,
}

impl UpBlock {
    /// `inputs` are the channels that each layer reads, one for each layer of `style`: what comes from below and, in a UNet, the kept map beside it.
    pub fn load(
        vb: VarBuilder,
        style: &BlockStyle,
        inputs: &[usize],
        to: usize,
        upsample: bool,
        slots: &TextSlots,
    ) -> Result<Self> {
        let layers = inputs
            .iter()
            .enumerate()
            .map(|(i, &from)| style.load_layer(&vb, i, from, to, slots));
        let upsampler =
            upsample.then(|| Conv2d::load(vb.pp("upsamplers.0.conv"), ConvShape::same(to, to, 3)));
        Ok(Self {
            layers: layers.collect::<Result<_>>()?,
            upsampler: upsampler.transpose()?,
        })
    }

    /// A UNet's: each layer takes the newest kept map. The new size is that of the map kept next, which for odd sizes is not the double.
    pub fn forward(
        &self,
        mut x: Map,
        temb: &Tensor,
        text: Option<&Text>,
        skips: &mut Vec<Map>,
    ) -> Result<Map> {
        for layer in &self.layers {
            let skip = skips
                .pop()
                .expect("a UNet keeps as many maps on its way down as it takes on its way up");
            x = layer.forward(x.concat_channels(skip)?, Some(temb), text)?;
        }
        match (&self.upsampler, skips.last()) {
            (Some(conv), Some(next)) => conv.forward_enlarged(&x, next.size()?),
            _ => Ok(x),
        }
    }

    /// The VAE's: nothing kept, no timestep, always twice the size.
    pub fn forward_alone(&self, mut x: Map) -> Result<Map> {
        for layer in &self.layers {
            x = layer.forward(x, None, None)?;
        }
        match &self.upsampler {
            Some(conv) => {
                let (h, w) = x.size()?;
                conv.forward_enlarged(&x, (2 * h, 2 * w))
            }
            None => Ok(x),
        }
    }

    /// The same for bands of a map.
    pub fn forward_bands(&self, mut x: Bands) -> Result<Bands> {
        for layer in &self.layers {
            if layer.attention.is_some() {
                candle_core::bail!("attention needs all rows of a map at once");
            }
            x = layer.resnet.forward_bands(&x)?;
        }
        match &self.upsampler {
            Some(conv) => x.each(|x| {
                let (h, w) = x.size()?;
                conv.forward_enlarged(x, (2 * h, 2 * w))
            }),
            None => Ok(x),
        }
    }

    pub fn text_attentions(&self) -> impl Iterator<Item = &TextAttention> {
        self.layers
            .iter()
            .filter_map(|l| l.attention.as_ref())
            .flat_map(Attention::text_attentions)
    }
}
