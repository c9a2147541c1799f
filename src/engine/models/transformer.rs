//! The transformer between the pixels and the text (Rombach et al. 2022, section 3.3 and appendix E.2.1).
//!
//! ```text
//! x = proj_in(norm(map));   for each block:
//!     x = x + attn1(norm1(x))                 the pixels among themselves
//!     x = x + attn2(norm2(x), text)           the pixels and the text
//!     x = x + ff(norm3(x))                    ff(x) = W (a * gelu(g)) + b,  (a, g) = the halves of proj(x)   (GEGLU, Shazeer 2020)
//! y = map + proj_out(x)
//! ```
//! The keys and values of the text do not change from step to step: [`Text`] holds them, made once a prompt.
//! Several texts may look at one map, as the two of guidance do: until the first attention to the text, their maps are the same one.
use crate::engine::nn::{Geglu, GroupNorm, LayerNorm, Linear, Map, SelfAttention, attention};
use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;
use std::cell::Cell;

/// The text as the cross-attention layers of one UNet need it: a pair of keys and values `(rows, n, inner)` for each layer.
pub struct Text {
    rows: usize,
    pairs: Vec<(Tensor, Tensor)>,
}

impl Text {
    /// A pair for each of `attentions`, in the order in which they were loaded.
    pub fn new<'a>(
        attentions: impl Iterator<Item = &'a TextAttention>,
        states: &Tensor,
    ) -> Result<Self> {
        let pairs = attentions.map(|a| Ok((a.to_k.forward(states)?, a.to_v.forward(states)?)));
        Ok(Self {
            rows: states.dim(0)?,
            pairs: pairs.collect::<Result<_>>()?,
        })
    }

    /// `x` once for each text that looks at it: `(b, ...)` becomes `(rows, ...)`, all of the batch, then all of it again.
    fn spread(&self, x: &Tensor) -> Result<Tensor> {
        let b = x.dim(0)?;
        if b == self.rows {
            return Ok(x.clone());
        }
        if b == 0 || !self.rows.is_multiple_of(b) {
            candle_core::bail!("{} texts for a batch of {b}", self.rows);
        }
        Tensor::cat(&vec![x; self.rows / b], 0)
    }

    /// The same for a map.
    pub fn spread_map(&self, map: &Map) -> Result<Map> {
        map.with_tokens(&self.spread(&map.tokens()?)?)
    }
}

/// What all transformers of one resolution share.
#[derive(Clone, Copy, Debug)]
pub struct TransformerStyle {
    pub heads: usize,
    pub layers: usize,
    pub text_width: usize,
    pub groups: usize,
    /// The first attention of each block looks at the text too.
    pub only_cross_attention: bool,
}

impl TransformerStyle {
    /// The width of all heads together; an error where they do not fit `channels`.
    pub fn inner(&self, channels: usize) -> Result<usize> {
        let inner = self.heads * channels.checked_div(self.heads).unwrap_or(0);
        if inner == 0 {
            candle_core::bail!(
                "attention_head_dim {} does not fit {channels} channels: it is the number of heads, between 1 and {channels}",
                self.heads
            );
        }
        Ok(inner)
    }
}

/// Hands every attention that looks at the text its place in [`Text`], in the order of loading.
#[derive(Default)]
pub struct TextSlots(Cell<usize>);

impl TextSlots {
    fn next(&self) -> usize {
        self.0.replace(self.0.get() + 1)
    }
}

pub struct Transformer2D {
    norm: GroupNorm,
    proj_in: Linear,
    transformer_blocks: Vec<BasicTransformerBlock>,
    proj_out: Linear,
}

impl Transformer2D {
    pub fn load(
        vb: VarBuilder,
        channels: usize,
        style: TransformerStyle,
        slots: &TextSlots,
    ) -> Result<Self> {
        let inner = style.inner(channels)?;
        let blocks = (0..style.layers).map(|i| {
            BasicTransformerBlock::load(vb.pp("transformer_blocks").pp(i), inner, style, slots)
        });
        Ok(Self {
            norm: GroupNorm::load(vb.pp("norm"), style.groups, channels, 1e-6)?,
            // A 1x1 convolution or, under use_linear_projection, a linear layer: the same numbers.
            proj_in: Linear::load(vb.pp("proj_in"), channels, inner)?,
            transformer_blocks: blocks.collect::<Result<_>>()?,
            proj_out: Linear::load(vb.pp("proj_out"), inner, channels)?,
        })
    }

    pub fn forward(&self, map: &Map, text: &Text) -> Result<Map> {
        let mut x = self.proj_in.forward(&self.norm.forward(map)?.tokens()?)?;
        for block in &self.transformer_blocks {
            x = block.forward(x, text)?;
        }
        // Without blocks nothing has spread it.
        let (x, residual) = (text.spread(&x)?, text.spread(&map.tokens()?)?);
        map.with_tokens(&self.proj_out.forward_residual(&x, &residual)?)
    }

    /// The attentions that look at the text, in the order of loading.
    pub fn text_attentions(&self) -> impl Iterator<Item = &TextAttention> {
        self.transformer_blocks
            .iter()
            .flat_map(BasicTransformerBlock::text_attentions)
    }
}

struct BasicTransformerBlock {
    norm1: LayerNorm,
    attn1: Attention,
    norm2: LayerNorm,
    attn2: TextAttention,
    norm3: LayerNorm,
    ff_in: Geglu,
    ff_out: Linear,
}

impl BasicTransformerBlock {
    fn load(
        vb: VarBuilder,
        width: usize,
        style: TransformerStyle,
        slots: &TextSlots,
    ) -> Result<Self> {
        let norm = |name| LayerNorm::load(vb.pp(name), width, 1e-5);
        let text = |name| TextAttention::load(vb.pp(name), width, style, slots);
        Ok(Self {
            norm1: norm("norm1")?,
            attn1: match style.only_cross_attention {
                true => Attention::Text(text("attn1")?),
                false => Attention::Own(OwnAttention::load(vb.pp("attn1"), width, style.heads)?),
            },
            norm2: norm("norm2")?,
            attn2: text("attn2")?,
            norm3: norm("norm3")?,
            ff_in: Geglu::load(vb.pp("ff.net.0.proj"), width, 8 * width)?,
            ff_out: Linear::load(vb.pp("ff.net.2"), 4 * width, width)?,
        })
    }

    fn forward(&self, mut x: Tensor, text: &Text) -> Result<Tensor> {
        x = self.attn1.forward(&self.norm1.forward(&x)?, &x, text)?;
        x = self.attn2.forward(&self.norm2.forward(&x)?, &x, text)?;
        let h = self.ff_in.forward(&self.norm3.forward(&x)?)?;
        self.ff_out.forward_residual(&h, &x)
    }

    fn text_attentions(&self) -> impl Iterator<Item = &TextAttention> {
        let first = match &self.attn1 {
            Attention::Text(attention) => Some(attention),
            Attention::Own(_) => None,
        };
        first.into_iter().chain([&self.attn2])
    }
}

enum Attention {
    Own(OwnAttention),
    Text(TextAttention),
}

impl Attention {
    fn forward(&self, x: &Tensor, residual: &Tensor, text: &Text) -> Result<Tensor> {
        match self {
            Self::Own(attention) => attention.forward(x, residual),
            Self::Text(attention) => attention.forward(x, residual, text),
        }
    }
}

struct OwnAttention {
    attention: SelfAttention,
    to_out: Linear,
}

impl OwnAttention {
    fn load(vb: VarBuilder, width: usize, heads: usize) -> Result<Self> {
        let linear = |name| Linear::load_no_bias(vb.pp(name), width, width);
        let maps = [linear("to_q")?, linear("to_k")?, linear("to_v")?];
        Ok(Self {
            attention: SelfAttention::new(maps, heads)?,
            to_out: Linear::load(vb.pp("to_out.0"), width, width)?,
        })
    }

    fn forward(&self, x: &Tensor, residual: &Tensor) -> Result<Tensor> {
        let h = self.attention.forward(x, false)?;
        self.to_out.forward_residual(&h, residual)
    }
}

/// Attention whose keys and values come from the text.
pub struct TextAttention {
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    to_out: Linear,
    heads: usize,
    slot: usize,
}

impl TextAttention {
    fn load(
        vb: VarBuilder,
        width: usize,
        style: TransformerStyle,
        slots: &TextSlots,
    ) -> Result<Self> {
        Ok(Self {
            to_q: Linear::load_no_bias(vb.pp("to_q"), width, width)?,
            to_k: Linear::load_no_bias(vb.pp("to_k"), style.text_width, width)?,
            to_v: Linear::load_no_bias(vb.pp("to_v"), style.text_width, width)?,
            to_out: Linear::load(vb.pp("to_out.0"), width, width)?,
            heads: style.heads,
            slot: slots.next(),
        })
    }

    fn forward(&self, x: &Tensor, residual: &Tensor, text: &Text) -> Result<Tensor> {
        let (k, v) = &text.pairs[self.slot];
        let q = text.spread(&self.to_q.forward(x)?)?;
        let h = attention(&q, k, v, self.heads, false)?;
        self.to_out.forward_residual(&h, &text.spread(residual)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device};

    #[test]
    fn a_transformer_without_blocks_has_a_map_for_each_text_too() -> Result<()> {
        let style = TransformerStyle {
            heads: 1,
            layers: 0,
            text_width: 4,
            groups: 1,
            only_cross_attention: false,
        };
        let vb = VarBuilder::zeros(DType::F32, &Device::Cpu);
        let transformer = Transformer2D::load(vb, 4, style, &TextSlots::default())?;
        let text = Text {
            rows: 2,
            pairs: Vec::new(),
        };
        let map = Map::from_nchw(&Tensor::ones((1, 4, 3, 2), DType::F32, &Device::Cpu)?)?;
        assert_eq!(transformer.forward(&map, &text)?.dims()?, (2, 3, 2, 4));
        Ok(())
    }
}
