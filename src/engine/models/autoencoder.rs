//! The two kinds of decoder that a checkpoint may bring, behind one name.
use super::tiny_vae::{TinyVaeConfig, TinyVaeDecoder};
use super::vae::{VaeConfig, VaeDecoder};
use crate::engine::checkpoint::{Checkpoint, torch_class};
use anyhow::{Context, bail};
use candle_core::{DType, Result, Tensor};
use candle_nn::VarBuilder;

/// A VAE's configuration, by the class that the checkpoint names.
#[derive(Clone, Debug)]
pub enum Autoencoder {
    Kl(VaeConfig),
    Tiny(TinyVaeConfig),
}

impl Autoencoder {
    /// Reads `component/config.json` and refuses what the decoder cannot be.
    pub fn read(checkpoint: &Checkpoint, component: &str) -> anyhow::Result<Self> {
        let file = || format!("{component}/config.json");
        let json = checkpoint.json(component, "config.json")?;
        let own = json.get("_class_name").and_then(|class| class.as_str());
        let own = own.map(torch_class);
        match checkpoint.component_class(component).or(own) {
            None | Some("AutoencoderKL") => {
                let config: VaeConfig = checkpoint.config(component)?;
                config.check().with_context(file)?;
                Ok(Self::Kl(config))
            }
            Some("AutoencoderTiny") => {
                let config: TinyVaeConfig = checkpoint.config(component)?;
                config.check().with_context(file)?;
                Ok(Self::Tiny(config))
            }
            Some(class) => bail!(
                "{}: {class} is not supported (accepted: AutoencoderKL, AutoencoderTiny)",
                file()
            ),
        }
    }

    pub fn latent_channels(&self) -> usize {
        match self {
            Self::Kl(config) => config.latent_channels,
            Self::Tiny(config) => config.latent_channels,
        }
    }

    /// Pixels along a side for one latent.
    pub fn scale(&self) -> usize {
        match self {
            Self::Kl(config) => config.scale(),
            Self::Tiny(config) => config.scale(),
        }
    }

    /// Whether decoding overflows in f16. The tiny one never does.
    pub fn force_upcast(&self) -> bool {
        matches!(self, Self::Kl(config) if config.force_upcast)
    }
}

/// From latents to pixels.
pub enum Decoder {
    Kl(Box<VaeDecoder>),
    Tiny(Box<TinyVaeDecoder>),
}

impl Decoder {
    /// `dtype` is that of the activations.
    pub fn load(config: &Autoencoder, vb: VarBuilder, dtype: DType) -> Result<Self> {
        Ok(match config {
            Autoencoder::Kl(config) => Self::Kl(Box::new(VaeDecoder::load(config, vb, dtype)?)),
            Autoencoder::Tiny(config) => {
                Self::Tiny(Box::new(TinyVaeDecoder::load(config, vb, dtype)?))
            }
        })
    }

    /// Latents as the UNet knows them, `(b, latent_channels, h, w)`, to pixels around [-1, 1], `(b, out_channels, h * scale, w * scale)`.
    pub fn decode(&self, latents: &Tensor) -> Result<Tensor> {
        match self {
            Self::Kl(decoder) => decoder.decode(latents),
            Self::Tiny(decoder) => decoder.decode(latents),
        }
    }

    /// The same for one sample with little on the device at once, as `rows` of latents tell; the pixels are in main memory. The tiny one's maps
    /// have a quarter of the channels: they are not divided.
    pub fn decode_in_bands(&self, latents: &Tensor, rows: usize) -> Result<Tensor> {
        match self {
            Self::Kl(decoder) => decoder.decode_in_bands(latents, rows),
            Self::Tiny(decoder) => decoder.decode(latents),
        }
    }
}
