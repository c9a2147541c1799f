//! What a run of the UNet is conditioned on beside the timestep.
//!
//! ```text
//! text         keys and values of every layer that looks at it                                         (Rombach et al. 2022)
//! + added      add_embedding([pooled, sinusoids of six sizes]), added to the timestep's embedding       (Podell et al. 2023, section 2.2)
//! + guidance   cond_proj(sinusoid of 1000 (scale - 1)), added to the timestep's sinusoid                 (Luo et al. 2023, section 4.1)
//! ```
//! None of the three changes from call to call, so each is made once a run.
use super::timestep::{Mlp, Sinusoid};
use super::transformer::Text;
use crate::engine::nn::Activation;
use candle_core::{DType, Device, Result, Tensor};
use candle_nn::VarBuilder;

/// What the text encoders and the caller give.
#[derive(Clone, Debug)]
pub struct Conditioning {
    /// The states of the text: `(b, n, cross_attention_dim)`.
    pub context: Tensor,
    /// One vector for each text, where the UNet reads one: `(b, width)`.
    pub pooled: Option<Tensor>,
    /// Original height and width, top and left of the crop, target height and width, in pixels; the same for the whole batch.
    pub sizes: Option<[f64; 6]>,
    /// The scale of a UNet that was distilled to take it as an input.
    pub guidance: Option<f64>,
}

impl Conditioning {
    /// A text and nothing else.
    pub fn text(context: Tensor) -> Self {
        Self {
            context,
            pooled: None,
            sizes: None,
            guidance: None,
        }
    }
}

/// The same, ready for the calls.
pub struct Condition {
    pub(super) text: Text,
    /// `(b, time_embed_dim)`, one row for each text.
    pub(super) added: Option<Tensor>,
    /// `(1, channels of the sinusoid)`
    pub(super) guidance: Option<Tensor>,
}

/// What `add_embedding` reads, under `addition_embed_type` "text_time".
#[derive(Clone, Copy, Debug)]
pub struct AddedStyle {
    /// Of each of the six sizes.
    pub sinusoid: Sinusoid,
    /// Width of the pooled text.
    pub pooled: usize,
}

/// `add_embedding` of a checkpoint.
pub struct AddedEmbedding {
    style: AddedStyle,
    mlp: Mlp,
    dtype: DType,
    device: Device,
}

impl AddedEmbedding {
    /// `width` is that of the timestep's embedding.
    pub fn load(vb: VarBuilder, style: AddedStyle, width: usize, dtype: DType) -> Result<Self> {
        let inputs = style.pooled + 6 * style.sinusoid.channels;
        Ok(Self {
            style,
            dtype,
            device: vb.device().clone(),
            // SiLU whatever act_fn says, as in the reference.
            mlp: Mlp::load(vb, inputs, width, Activation::Silu)?,
        })
    }

    /// `pooled` is `(b, width)`; gives `(b, time_embed_dim)`.
    pub fn forward(&self, pooled: &Tensor, sizes: &[f64; 6]) -> Result<Tensor> {
        let (b, width) = pooled.dims2()?;
        if width != self.style.pooled {
            candle_core::bail!(
                "this UNet reads a pooled text of {}, and the text encoder gives {width}",
                self.style.pooled
            );
        }
        let rows = sizes.iter().map(|size| self.style.sinusoid.of(*size));
        let rows: Vec<Tensor> = rows.collect::<Result<_>>()?;
        let sizes = Tensor::cat(&rows, 1)?
            .to_dtype(self.dtype)?
            .to_device(&self.device)?
            .repeat((b, 1))?;
        let pooled = pooled.to_dtype(self.dtype)?.to_device(&self.device)?;
        self.mlp.forward(&Tensor::cat(&[pooled, sizes], 1)?)
    }
}
