//! From latents to pictures: the VAE's decoder, and what makes previews of the steps.
use super::load;
use crate::engine::checkpoint::{Checkpoint, Naming};
use crate::engine::models::autoencoder::{Autoencoder, Decoder};
use crate::engine::noise::Noise;
use crate::engine::output;
use crate::engine::preview::{self, Projection};
use crate::engine::runtime::Runtime;
use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device, Tensor};
use image::{RgbImage, imageops, imageops::FilterType};
use std::cell::OnceCell;

/// The component that makes previews: no checkpoint has it, `--preview-vae` brings it.
pub const PREVIEW: &str = "preview_vae";
/// Nothing here encodes pictures.
const DECODER: Naming = Naming {
    strip: "",
    // The last is of trainings.
    ignore: &["encoder.*", "quant_conv.*", "loss.*"],
    layers: None,
};
/// Rows of latents in a band: for 1024 pixels across, a band of the widest map of the published decoders is 32 MB in f16.
const BAND: usize = 8;

/// The configurations of the decoders.
pub struct Decoding {
    pub vae: Autoencoder,
    /// What makes previews, where it is another than `vae`.
    preview: Option<Autoencoder>,
}

impl Decoding {
    pub fn read(checkpoint: &Checkpoint) -> Result<Self> {
        let vae = Autoencoder::read(checkpoint, "vae")?;
        let preview = checkpoint.is_replaced(PREVIEW);
        let preview = preview.then(|| Autoencoder::read(checkpoint, PREVIEW));
        let preview = preview.transpose()?;
        if let Some(preview) = &preview {
            ensure!(
                preview.latent_channels() == vae.latent_channels(),
                "the VAE for previews has {} latent channels and the model's has {}: they do not belong together",
                preview.latent_channels(),
                vae.latent_channels()
            );
        }
        Ok(Self { vae, preview })
    }

    /// The components, and the precision that their weights are kept in.
    pub fn weights(&self, runtime: &Runtime) -> Vec<(&'static str, DType)> {
        let vae = ("vae", runtime_of(&self.vae, runtime).weights);
        let preview = self.preview.as_ref();
        let preview = preview.map(|vae| (PREVIEW, runtime_of(vae, runtime).weights));
        [vae].into_iter().chain(preview).collect()
    }

    pub fn load(&self, checkpoint: &Checkpoint, runtime: &Runtime) -> Result<Decoders> {
        let one = |component: &str, config: &Autoencoder| {
            let runtime = runtime_of(config, runtime);
            load(checkpoint, component, &runtime, DECODER, |vb| {
                Decoder::load(config, vb, runtime.activations())
            })
        };
        let preview = self.preview.as_ref();
        Ok(Decoders {
            decoder: one("vae", &self.vae)?,
            preview: preview.map(|vae| one(PREVIEW, vae)).transpose()?,
            scale: self.vae.scale(),
            projection: OnceCell::new(),
            device: runtime.device.clone(),
        })
    }
}

fn runtime_of(config: &Autoencoder, runtime: &Runtime) -> Runtime {
    match upcasts(config, runtime.activations()) {
        true => runtime.in_f32(),
        false => runtime.clone(),
    }
}

/// force_upcast says that a VAE overflows in f16; bf16 and f32 have the range.
fn upcasts(config: &Autoencoder, activations: DType) -> bool {
    config.force_upcast() && activations == DType::F16
}

/// Weights, ready to decode.
pub struct Decoders {
    decoder: Decoder,
    preview: Option<Decoder>,
    /// Pixels for one latent, along each side.
    scale: usize,
    /// From latents to colours, made when it is first needed.
    projection: OnceCell<Projection>,
    device: Device,
}

impl Decoders {
    /// The picture of one sample `(1, c, h, w)`.
    pub fn picture(&self, latents: &Tensor) -> Result<RgbImage> {
        output::to_rgb(&self.decoder.decode(latents)?.get(0)?)
    }

    /// The same picture where a card has no room for that: the decoder works on a band of rows at a time.
    pub fn picture_in_bands(&self, latents: &Tensor) -> Result<RgbImage> {
        output::to_rgb(&self.decoder.decode_in_bands(latents, BAND)?.get(0)?)
    }

    /// The same without the large decoder's price, at the same size.
    pub fn preview(&self, latents: &Tensor) -> Result<RgbImage> {
        let (_, channels, h, w) = latents.dims4()?;
        let small = match (&self.preview, &self.decoder) {
            (Some(decoder), _) | (None, decoder @ Decoder::Tiny(_)) => {
                decoder.decode(latents)?.get(0)?
            }
            _ => self.projection(channels)?.apply(latents)?,
        };
        let small = output::to_rgb(&small)?;
        let (width, height) = ((w * self.scale) as u32, (h * self.scale) as u32);
        if small.dimensions() == (width, height) {
            return Ok(small);
        }
        Ok(imageops::resize(
            &small,
            width,
            height,
            FilterType::Triangle,
        ))
    }

    fn projection(&self, channels: usize) -> Result<&Projection> {
        if self.projection.get().is_none() {
            let shape = preview::field_seed(channels);
            // Any seed does; the same one makes the same preview.
            let normal = Noise::new(0, 1).normal(shape, DType::F32, &self.device)?;
            let field = preview::field(channels, &normal)?;
            let fit = Projection::fit(&field, &self.decoder.decode(&field)?)?;
            let _ = self.projection.set(fit);
        }
        self.projection.get().context("it was just made")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_f16_is_left_and_only_where_force_upcast_says_so() {
        let vae = |keys| Autoencoder::Kl(serde_json::from_value(keys).unwrap());
        for (vae, leaves) in [
            (vae(json!({})), true),
            (vae(json!({"force_upcast": true})), true),
            (vae(json!({"force_upcast": false})), false),
            (Autoencoder::Tiny(Default::default()), false),
        ] {
            assert_eq!(upcasts(&vae, DType::F16), leaves);
            assert!(!upcasts(&vae, DType::BF16) && !upcasts(&vae, DType::F32));
        }
    }
}
