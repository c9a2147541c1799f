//! CLIP's text tower (Radford et al. 2021, section 2.4): a causal transformer with the norms before the layers.
//!
//! ```text
//! x = token_embedding[ids] + position_embedding
//! for each layer:  x = x + attention(layer_norm1(x));   x = x + fc2(act(fc1(layer_norm2(x))))
//! y = final_layer_norm(x);   pooled = text_projection(y at the text's end)
//! ```
use super::config::check_count;
use crate::engine::checkpoint::json;
use crate::engine::nn::{Activation, LayerNorm, Linear, SelfAttention};
use anyhow::ensure;
use candle_core::{DType, Result, Tensor};
use candle_nn::VarBuilder;
use serde::Deserialize;
use serde_json::{Map, Value};

/// `text_encoder/config.json`; absent keys take transformers' defaults.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub struct ClipTextConfig {
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub max_position_embeddings: usize,
    pub hidden_act: Activation,
    pub layer_norm_eps: f64,
    /// The token at whose place a text is pooled.
    pub eos_token_id: Option<u32>,
    /// Whether the pipeline gives the tokens that pad no attention.
    pub use_attention_mask: Option<bool>,
    /// Width of the pooled text; none in a tower without a projection.
    pub projection_dim: Option<usize>,
}

/// What configurations of before transformers 4.31 have as `eos_token_id`, whatever the vocabulary: the text then ends at
/// its largest id.
const OLD_EOS: u32 = 2;

impl Default for ClipTextConfig {
    fn default() -> Self {
        Self {
            vocab_size: 49408,
            hidden_size: 512,
            intermediate_size: 2048,
            num_hidden_layers: 12,
            num_attention_heads: 8,
            max_position_embeddings: 77,
            hidden_act: Activation::QuickGelu,
            layer_norm_eps: 1e-5,
            eos_token_id: Some(49407),
            use_attention_mask: None,
            projection_dim: Some(512),
        }
    }
}

impl ClipTextConfig {
    /// Of a `config.json`, which may be that of whole CLIP.
    pub fn of(file: &Map<String, Value>) -> anyhow::Result<Self> {
        let text = file.get("text_config").and_then(Value::as_object);
        let config: Self = json::decode(text.unwrap_or(file))?;
        config.check()?;
        Ok(config)
    }

    /// Refuses what the tower cannot be.
    pub fn check(&self) -> anyhow::Result<()> {
        check_count("vocab_size", self.vocab_size, 1 << 24)?;
        check_count("hidden_size", self.hidden_size, 1 << 16)?;
        check_count("intermediate_size", self.intermediate_size, 1 << 20)?;
        check_count("num_hidden_layers", self.num_hidden_layers, 1000)?;
        if let Some(width) = self.projection_dim {
            check_count("projection_dim", width, 1 << 16)?;
        }
        check_count(
            "max_position_embeddings",
            self.max_position_embeddings,
            1 << 16,
        )?;
        check_count(
            "num_attention_heads",
            self.num_attention_heads,
            self.hidden_size,
        )?;
        ensure!(
            self.hidden_size.is_multiple_of(self.num_attention_heads),
            "num_attention_heads = {} does not divide hidden_size {}",
            self.num_attention_heads,
            self.hidden_size
        );
        Ok(())
    }
}

/// Which states of the tower are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Depth {
    /// Layers left out at the end.
    pub skip: usize,
    /// Whether the final norm follows.
    pub norm: bool,
}

impl Depth {
    /// What the tower was trained to give.
    pub const WHOLE: Self = Self {
        skip: 0,
        norm: true,
    };
}

/// What the tower makes of a text.
pub struct Read {
    /// `(b, n, hidden_size)`
    pub states: Tensor,
    /// `(b, projection_dim)`, of a tower with a projection.
    pub pooled: Option<Tensor>,
}

/// `CLIPTextModel` or, with a projection, `CLIPTextModelWithProjection`.
pub struct ClipTextModel {
    token_embedding: Tensor,
    position_embedding: Tensor,
    layers: Vec<EncoderLayer>,
    final_layer_norm: LayerNorm,
    projection: Option<Linear>,
    eos: Option<u32>,
}

impl ClipTextModel {
    /// `dtype` is that of the activations.
    pub fn load(
        config: &ClipTextConfig,
        vb: VarBuilder,
        dtype: DType,
        with_projection: bool,
    ) -> Result<Self> {
        let width = config.hidden_size;
        let embeddings = vb.pp("embeddings");
        let layers = (0..config.num_hidden_layers)
            .map(|i| EncoderLayer::load(config, vb.pp("encoder.layers").pp(i)));
        let projection = with_projection.then(|| {
            let Some(projected) = config.projection_dim else {
                candle_core::bail!("the tower projects and has no projection_dim");
            };
            Linear::load_no_bias(vb.pp("text_projection"), width, projected)
        });
        Ok(Self {
            token_embedding: embeddings
                .get((config.vocab_size, width), "token_embedding.weight")?,
            position_embedding: embeddings
                .get(
                    (config.max_position_embeddings, width),
                    "position_embedding.weight",
                )?
                .to_dtype(dtype)?,
            layers: layers.collect::<Result<_>>()?,
            final_layer_norm: LayerNorm::load(
                vb.pp("final_layer_norm"),
                width,
                config.layer_norm_eps,
            )?,
            projection: projection.transpose()?,
            eos: config.eos_token_id,
        })
    }

    /// `ids` are `b` rows of equal length `n`, at most `max_position_embeddings`. `depth.skip` is at most the number of layers.
    pub fn forward(&self, ids: &[Vec<u32>], depth: Depth) -> Result<Read> {
        let n = ids[0].len();
        let (device, dtype) = (
            self.token_embedding.device(),
            self.position_embedding.dtype(),
        );
        let flat = Tensor::from_vec(ids.concat(), ids.len() * n, device)?;
        let tokens = self
            .token_embedding
            .index_select(&flat, 0)?
            .to_dtype(dtype)?;
        let mut x = tokens
            .reshape((ids.len(), n, ()))?
            .broadcast_add(&self.position_embedding.narrow(0, 0, n)?)?;
        let (first, last) = self
            .layers
            .split_at(self.layers.len().saturating_sub(depth.skip));
        for layer in first {
            x = layer.forward(&x)?;
        }
        let states = match depth.norm {
            true => self.final_layer_norm.forward(&x)?,
            false => x.clone(),
        };
        let Some(projection) = &self.projection else {
            let pooled = None;
            return Ok(Read { states, pooled });
        };
        // The pooled text is the whole tower's, wherever the states are taken.
        for layer in last {
            x = layer.forward(&x)?;
        }
        let x = self.final_layer_norm.forward(&x)?;
        let ends = ids.iter().enumerate().map(|(row, ids)| {
            let end = x.narrow(0, row, 1)?;
            end.narrow(1, self.end(ids), 1)?.squeeze(1)
        });
        let ends = Tensor::cat(&ends.collect::<Result<Vec<_>>>()?, 0)?;
        let pooled = Some(projection.forward(&ends)?);
        Ok(Read { states, pooled })
    }

    /// Where a text ends: at the first token that says so or, as the reference has it, at 0 where none does.
    fn end(&self, ids: &[u32]) -> usize {
        let place = match self.eos {
            Some(eos) if eos != OLD_EOS => ids.iter().position(|&id| id == eos),
            _ => {
                let largest = ids.iter().max();
                ids.iter().position(|id| Some(id) == largest)
            }
        };
        place.unwrap_or(0)
    }
}

struct EncoderLayer {
    layer_norm1: LayerNorm,
    attention: SelfAttention,
    out_proj: Linear,
    layer_norm2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
    activation: Activation,
}

impl EncoderLayer {
    fn load(config: &ClipTextConfig, vb: VarBuilder) -> Result<Self> {
        let width = config.hidden_size;
        let projection = |name| Linear::load(vb.pp("self_attn").pp(name), width, width);
        let maps = [
            projection("q_proj")?,
            projection("k_proj")?,
            projection("v_proj")?,
        ];
        Ok(Self {
            layer_norm1: LayerNorm::load(vb.pp("layer_norm1"), width, config.layer_norm_eps)?,
            attention: SelfAttention::new(maps, config.num_attention_heads)?,
            out_proj: projection("out_proj")?,
            layer_norm2: LayerNorm::load(vb.pp("layer_norm2"), width, config.layer_norm_eps)?,
            fc1: Linear::load(vb.pp("mlp.fc1"), width, config.intermediate_size)?,
            fc2: Linear::load(vb.pp("mlp.fc2"), config.intermediate_size, width)?,
            activation: config.hidden_act,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let h = self.layer_norm1.forward(x)?;
        let h = self.attention.forward(&h, true)?;
        let x = self.out_proj.forward_residual(&h, x)?;
        let h = self
            .activation
            .of(&self.fc1.forward(&self.layer_norm2.forward(&x)?)?)?;
        self.fc2.forward_residual(&h, &x)
    }
}
