//! Pictures from a text by latent diffusion (Rombach et al. 2022): `StableDiffusionPipeline` of diffusers.
//!
//! ```text
//! text = tower(prompt);   latents = noise * init_noise_sigma
//! for each call:  eps = eps_uncond + guidance_scale * (eps_text - eps_uncond)        (Ho & Salimans 2022, equation 6)
//!                 latents = scheduler.step(eps)
//! picture = decoder(latents / scaling_factor)
//! ```
use super::{
    Sampling, check_channels, check_memory, choose_scheduler, load, scheduler_config, unet_bytes,
};
use crate::engine::checkpoint::{Checkpoint, Naming};
use crate::engine::models::clip::{ClipTextConfig, ClipTextModel};
use crate::engine::models::tokenizer::ClipTokenizer;
use crate::engine::models::unet::UNet;
use crate::engine::models::unet_config::{UNetConfig, UNetFile};
use crate::engine::models::vae::{VaeConfig, VaeDecoder};
use crate::engine::noise::Noise;
use crate::engine::runtime::Runtime;
use crate::engine::schedulers::SchedulerConfig;
use crate::engine::{denoise::denoise, output};
use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, Tensor};
use image::RgbImage;
use indicatif::ProgressBar;

/// transformers wrote a prefix before its version 5, and a buffer of positions before 4.31.
const TOWER: Naming = Naming {
    strip: "text_model.",
    ignore: &["position_ids"],
};
/// Nothing here encodes pictures.
const DECODER: Naming = Naming {
    strip: "",
    ignore: &["encoder.*", "quant_conv.*"],
};

#[derive(Clone, Debug)]
pub struct Txt2ImgRequest {
    pub prompt: String,
    pub negative_prompt: String,
    pub guidance_scale: f64,
    /// How far the spread of the guided prediction is brought back to that of the prompt's own, 0 to 1.
    pub guidance_rescale: f64,
    /// In pixels; None is the checkpoint's own.
    pub width: Option<u32>,
    pub height: Option<u32>,
    pub sampling: Sampling,
}

/// A run that was found possible: sizes, tokens, scheduler and seeds are settled, no weight has been read.
pub struct Txt2ImgPlan {
    text_encoder: ClipTextConfig,
    unet: UNetConfig,
    vae: VaeConfig,
    scheduler: SchedulerConfig,
    /// Calls of the model for one picture.
    calls: usize,
    sampling: Sampling,
    /// None: one pass with the prompt alone.
    guidance_scale: Option<f64>,
    guidance_rescale: f64,
    /// The negative prompt's first where there is guidance, then the prompt's.
    ids: Vec<Vec<u32>>,
    /// Height and width in pixels.
    pub size: (usize, usize),
}

impl Txt2ImgPlan {
    pub fn new(checkpoint: &Checkpoint, request: Txt2ImgRequest) -> Result<Self> {
        check_pipeline(checkpoint)?;
        let unet_file = checkpoint.json("unet", "config.json")?;
        let unet = checkpoint
            .config::<UNetFile>("unet")?
            .conditional()
            .context("unet/config.json")?;
        let vae: VaeConfig = checkpoint.config("vae")?;
        vae.check().context("vae/config.json")?;
        let text_encoder: ClipTextConfig = checkpoint.config("text_encoder")?;
        text_encoder.check().context("text_encoder/config.json")?;
        ensure!(
            unet.in_channels == vae.latent_channels && unet.out_channels == vae.latent_channels,
            "the UNet reads {} and writes {} channels and the VAE has {} latent channels: txt2img needs three equal numbers (inpainting models are not supported)",
            unet.in_channels,
            unet.out_channels,
            vae.latent_channels
        );
        ensure!(
            unet.cross_attention_dim == Some(text_encoder.hidden_size),
            "the UNet's cross_attention_dim {:?} is not the text encoder's hidden_size {}",
            unet.cross_attention_dim.unwrap_or_default(),
            text_encoder.hidden_size
        );
        let size = picture_size(&unet, &unet_file, &vae, request.height, request.width)?;

        let (scheduler, calls) = choose_scheduler(scheduler(checkpoint)?, &request.sampling)?;
        check_channels(&scheduler, unet.in_channels, unet.out_channels)?;

        let guidance_scale = (request.guidance_scale > 1.0).then_some(request.guidance_scale);
        let tokenizer = ClipTokenizer::load(checkpoint, "tokenizer")?;
        let positions = text_encoder.max_position_embeddings;
        let length = tokenizer.max_length().unwrap_or(positions);
        ensure!(
            length <= positions,
            "the tokenizer makes {length} tokens and the text encoder has {positions} positions: they do not belong together"
        );
        let negative = guidance_scale.map(|_| ("negative prompt", &request.negative_prompt));
        let ids = negative.into_iter().chain([("prompt", &request.prompt)]).map(|(name, text)| {
            let encoded = tokenizer.encode(text, length)?;
            if let Some(lost) = &encoded.lost {
                tracing::warn!("the {name} has more than the {} tokens that this model reads; lost: \"{lost}\"", encoded.ids.len());
            }
            let vocabulary = text_encoder.vocab_size;
            if let Some(id) = encoded.ids.iter().find(|&&id| id as usize >= vocabulary) {
                bail!("the tokenizer makes token {id} and the text encoder knows {vocabulary}: they do not belong together");
            }
            Ok(encoded.ids)
        });
        let ids: Vec<Vec<u32>> = ids.collect::<Result<_>>()?;

        let (h, w) = (size.0 / vae.scale(), size.1 / vae.scale());
        let top = vae
            .block_out_channels
            .iter()
            .take(2)
            .max()
            .copied()
            .unwrap_or(1);
        let decode = size.0 as u64 * size.1 as u64 * top as u64 * 4 * 3;
        check_memory(
            decode.max(unet_bytes(&unet, ids.len(), (h, w))),
            size.0,
            size.1,
            "try a smaller --width and --height",
        )?;
        Ok(Self {
            text_encoder,
            unet,
            vae,
            scheduler,
            calls,
            sampling: request.sampling,
            guidance_scale,
            guidance_rescale: request.guidance_rescale,
            ids,
            size,
        })
    }

    /// Calls of the UNet for all pictures; a call with guidance serves both halves.
    pub fn unet_calls(&self) -> u64 {
        (self.calls * self.sampling.images) as u64
    }

    /// What else a person needs to repeat the run.
    pub fn summary(&self) -> String {
        let guidance = self
            .guidance_scale
            .map_or("no guidance".to_string(), |scale| {
                match self.guidance_rescale {
                    0.0 => format!("guidance {scale}"),
                    phi => format!("guidance {scale} rescaled by {phi}"),
                }
            });
        format!(
            "{}x{}, {} steps of {}, {guidance}",
            self.size.1,
            self.size.0,
            self.sampling.request().steps,
            self.scheduler.kind().name()
        )
    }

    /// Reads the text first and lets its tower go before the UNet comes, so that the two are never in memory together.
    pub fn load(self, checkpoint: &Checkpoint, runtime: &Runtime) -> Result<Txt2Img> {
        let tower = load(checkpoint, "text_encoder", runtime, TOWER, |vb| {
            ClipTextModel::load(&self.text_encoder, vb, runtime.activations())
        })?;
        let states = tower.forward(&self.ids)?;
        drop(tower);
        let unet = load(checkpoint, "unet", runtime, Naming::default(), |vb| {
            UNet::load(&self.unet, vb, runtime.activations())
        })?;
        // force_upcast says that this VAE overflows in f16; bf16 and f32 have the range.
        let vae_runtime = if self.vae.force_upcast && runtime.activations() == DType::F16 {
            runtime.in_f32()
        } else {
            runtime.clone()
        };
        let decoder = load(checkpoint, "vae", &vae_runtime, DECODER, |vb| {
            VaeDecoder::load(&self.vae, vb, vae_runtime.activations())
        })?;
        Ok(Txt2Img {
            plan: self,
            states,
            unet,
            decoder,
            runtime: runtime.clone(),
        })
    }
}

/// A plan with its weights and its text's states.
pub struct Txt2Img {
    plan: Txt2ImgPlan,
    states: Tensor,
    unet: UNet,
    decoder: VaeDecoder,
    runtime: Runtime,
}

impl Txt2Img {
    /// Draws the pictures one after another and hands each over, with its seed, as soon as it is done.
    pub fn generate(
        &self,
        bar: &ProgressBar,
        mut on_image: impl FnMut(u64, RgbImage) -> Result<()>,
    ) -> Result<()> {
        let plan = &self.plan;
        let latent = (
            plan.vae.latent_channels,
            plan.size.0 / plan.vae.scale(),
            plan.size.1 / plan.vae.scale(),
        );
        let text = self.unet.text(&self.states)?;
        for seed in plan.sampling.seeds() {
            let mut noise = Noise::new(seed, 1);
            let mut scheduler = plan.scheduler.build(&plan.sampling.request())?;
            let start = noise.normal(latent, DType::F32, &self.runtime.device)?;
            let latents = denoise(&mut *scheduler, &start, &mut noise, bar, |x, t| match plan
                .guidance_scale
            {
                None => self.unet.forward(x, t, Some(&text)),
                Some(scale) => {
                    let both = self
                        .unet
                        .forward(&Tensor::cat(&[x, x], 0)?, t, Some(&text))?
                        .chunk(2, 0)?;
                    let (uncond, cond) = (&both[0], &both[1]);
                    let guided = (uncond + ((cond - uncond)? * scale)?)?;
                    rescale(guided, cond, plan.guidance_rescale)
                }
            })?;
            on_image(
                seed,
                output::to_rgb(&self.decoder.decode(&latents)?.get(0)?)?,
            )?;
        }
        Ok(())
    }
}

/// The checkpoint's scheduler, as its pipeline is built with it.
pub fn scheduler(checkpoint: &Checkpoint) -> Result<SchedulerConfig> {
    check_pipeline(checkpoint)?;
    Ok(scheduler_config(checkpoint)?.with_pipeline_override())
}

fn check_pipeline(checkpoint: &Checkpoint) -> Result<()> {
    match checkpoint.pipeline_class() {
        None | Some("StableDiffusionPipeline") => Ok(()),
        Some("DDPMPipeline" | "DDIMPipeline" | "PNDMPipeline") => {
            bail!("this checkpoint draws without a text; type: diffuse ddpm --model ...")
        }
        Some(class) => bail!(
            "model_index.json names {class}, which is not supported (accepted: StableDiffusionPipeline)"
        ),
    }
}

/// Height and width in pixels, by the reference's rules: the UNet's sample_size times the VAE's factor unless given,
/// with sample_size raised to 64 for files older than 0.9.0, and only multiples of 8.
fn picture_size(
    unet: &UNetConfig,
    file: &serde_json::Map<String, serde_json::Value>,
    vae: &VaeConfig,
    height: Option<u32>,
    width: Option<u32>,
) -> Result<(usize, usize)> {
    let one_number = file
        .get("sample_size")
        .is_some_and(serde_json::Value::is_u64);
    let old = file
        .get("_diffusers_version")
        .and_then(|v| v.as_str())
        .is_some_and(before_0_9);
    let own = unet.sample_size.map(|(h, w)| {
        if one_number && old && h < 64 {
            (64, 64)
        } else {
            (h, w)
        }
    });
    let pick = |given: Option<u32>, own: Option<usize>, flag: &str| {
        given
            .map(|side| side as usize)
            .or(own.map(|side| side * vae.scale()))
            .with_context(|| {
                format!("unet/config.json has no sample_size; give the size with --{flag}")
            })
    };
    let height = pick(height, own.map(|s| s.0), "height")?;
    let width = pick(width, own.map(|s| s.1), "width")?;
    let unit = vae.scale().max(8);
    for (flag, side) in [("height", height), ("width", width)] {
        if side == 0 || !side.is_multiple_of(unit) {
            let (below, above) = (side / unit * unit, side.div_ceil(unit).max(1) * unit);
            let candidates = if below == 0 {
                format!("{above}")
            } else {
                format!("{below} or {above}")
            };
            bail!(
                "{flag} {side} is not a multiple of {unit}, as this model needs; try --{flag} {candidates}"
            );
        }
    }
    Ok((height, width))
}

/// Whether a version such as "0.7.0.dev0" comes before 0.9.0, its pre-releases left aside.
fn before_0_9(version: &str) -> bool {
    let mut numbers = version.split('.').map(|part| part.parse::<u64>());
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor) < (0, 9),
        _ => false,
    }
}

/// Lin et al. 2024, section 3.4: the standard deviation of each picture's guided prediction becomes that of the prompt's own
/// prediction, in the share `phi` (the paper's letter).
fn rescale(guided: Tensor, cond: &Tensor, phi: f64) -> candle_core::Result<Tensor> {
    if phi == 0.0 {
        return Ok(guided);
    }
    let spread = |x: &Tensor| {
        x.to_dtype(DType::F32)?
            .flatten_from(1)?
            .var_keepdim(1)?
            .sqrt()
    };
    // phi std_cond / std_guided + (1 - phi), one number for each picture
    let factor = ((spread(cond)? / spread(&guided)?)? * phi)? + (1.0 - phi);
    let factor = factor?.to_dtype(guided.dtype())?;
    guided.broadcast_mul(&factor.unsqueeze(2)?.unsqueeze(3)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_before_0_9_are_told_from_later_ones() {
        for old in ["0.0.4", "0.7.0.dev0", "0.8.1", "0.2"] {
            assert!(before_0_9(old), "{old}");
        }
        for new in ["0.9.0", "0.9.0.dev0", "0.10.2", "0.42.1", "1.0.0", "", "x"] {
            assert!(!before_0_9(new), "{new}");
        }
    }
}
