//! Pictures from a text by latent diffusion (Rombach et al. 2022): `StableDiffusionPipeline` of diffusers.
//!
//! ```text
//! text = tower(prompt);   latents = noise * init_noise_sigma
//! for each call:  eps = eps_uncond + guidance_scale * (eps_text - eps_uncond)        (Ho & Salimans 2022, equation 6)
//!                 latents = scheduler.step(eps)
//! picture = decoder(latents / scaling_factor)
//! ```
use super::decoding::{Decoders, Decoding};
use super::{Job, Pipeline, Plan, Sampling, System, Text, Watch};
use super::{check_channels, choose_scheduler, load, scheduler_config, unet_bytes};
use crate::engine::checkpoint::{Checkpoint, Naming};
use crate::engine::models::autoencoder::Autoencoder;
use crate::engine::models::clip::{ClipTextConfig, ClipTextModel};
use crate::engine::models::tokenizer::ClipTokenizer;
use crate::engine::models::unet::UNet;
use crate::engine::models::unet_config::{UNetConfig, UNetFile};
use crate::engine::noise::Noise;
use crate::engine::progress::{Phase, Progress};
use crate::engine::runtime::Runtime;
use crate::engine::schedulers::SchedulerConfig;
use crate::engine::{cost, denoise::denoise};
use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, Tensor};
use image::RgbImage;
use std::cell::RefCell;

/// transformers wrote a prefix before its version 5, and a buffer of positions before 4.31.
const TOWER: Naming = Naming {
    strip: "text_model.",
    ignore: &["position_ids"],
};

/// What to draw.
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

/// The configurations of a latent diffusion model, and its tokenizer.
pub struct Txt2ImgSystem {
    text_encoder: ClipTextConfig,
    tokenizer: ClipTokenizer,
    unet: UNetConfig,
    /// As it stands, for what it says of old versions.
    unet_file: serde_json::Map<String, serde_json::Value>,
    decoding: Decoding,
    scheduler: SchedulerConfig,
}

impl Txt2ImgSystem {
    pub fn read(checkpoint: &Checkpoint) -> Result<Self> {
        check_pipeline(checkpoint)?;
        let unet_file = checkpoint.json("unet", "config.json")?;
        let unet = checkpoint
            .config::<UNetFile>("unet")?
            .conditional()
            .context("unet/config.json")?;
        let decoding = Decoding::read(checkpoint)?;
        let latent_channels = decoding.vae.latent_channels();
        let text_encoder: ClipTextConfig = checkpoint.config("text_encoder")?;
        text_encoder.check().context("text_encoder/config.json")?;
        ensure!(
            unet.in_channels == latent_channels && unet.out_channels == latent_channels,
            "the UNet reads {} and writes {} channels and the VAE has {} latent channels: txt2img needs three equal numbers (inpainting models are not supported)",
            unet.in_channels,
            unet.out_channels,
            latent_channels
        );
        ensure!(
            unet.cross_attention_dim == Some(text_encoder.hidden_size),
            "the UNet's cross_attention_dim {:?} is not the text encoder's hidden_size {}",
            unet.cross_attention_dim.unwrap_or_default(),
            text_encoder.hidden_size
        );
        let scheduler = scheduler(checkpoint)?;
        let tokenizer = ClipTokenizer::load(checkpoint, "tokenizer")?;
        Ok(Self {
            text_encoder,
            tokenizer,
            unet,
            unet_file,
            decoding,
            scheduler,
        })
    }

    fn text(&self, request: &Txt2ImgRequest) -> Result<Text> {
        let guidance_scale = (request.guidance_scale > 1.0).then_some(request.guidance_scale);
        let positions = self.text_encoder.max_position_embeddings;
        let length = self.tokenizer.max_length().unwrap_or(positions);
        ensure!(
            length <= positions,
            "the tokenizer makes {length} tokens and the text encoder has {positions} positions: they do not belong together"
        );
        let mut lost = Vec::new();
        let negative = guidance_scale.map(|_| ("negative prompt", &request.negative_prompt));
        let ids = negative.into_iter().chain([("prompt", &request.prompt)]).map(|(name, text)| {
            let encoded = self.tokenizer.encode(text, length)?;
            if let Some(words) = encoded.lost {
                tracing::warn!("the {name} has more than the {} tokens that this model reads; lost: \"{words}\"", encoded.ids.len());
                lost.push((name, words));
            }
            let vocabulary = self.text_encoder.vocab_size;
            if let Some(id) = encoded.ids.iter().find(|&&id| id as usize >= vocabulary) {
                bail!("the tokenizer makes token {id} and the text encoder knows {vocabulary}: they do not belong together");
            }
            Ok(encoded.ids)
        });
        let ids = ids.collect::<Result<_>>()?;
        Ok(Text {
            guidance_scale,
            guidance_rescale: request.guidance_rescale,
            ids,
            lost,
        })
    }
}

impl System for Txt2ImgSystem {
    type Request = Txt2ImgRequest;

    fn plan(&self, request: &Txt2ImgRequest) -> Result<Plan> {
        let vae = &self.decoding.vae;
        let size = picture_size(
            &self.unet,
            &self.unet_file,
            vae,
            request.height,
            request.width,
        )?;
        let (scheduler, sampler, calls) =
            choose_scheduler(self.scheduler.clone(), &request.sampling)?;
        check_channels(&scheduler, self.unet.in_channels, self.unet.out_channels)?;
        let text = self.text(request)?;
        let (h, w) = (size.0 / vae.scale(), size.1 / vae.scale());
        let decode = size.0 as u64 * size.1 as u64 * vae.top_width() as u64 * 4 * 3;
        let plan = Plan {
            scheduler,
            request: sampler,
            calls,
            size,
            working_bytes: decode.max(unet_bytes(&self.unet, text.ids.len(), (h, w))),
            work: calls as f64
                * text.ids.len() as f64
                * cost::unet_call(&self.unet, (h, w), text.ids[0].len())
                + cost::decode(vae, (h, w)),
            text: Some(text),
        };
        plan.check_memory(1, "try a smaller --width and --height")?;
        Ok(plan)
    }

    fn components(&self) -> &'static [&'static str] {
        &["text_encoder", "unet", "vae"]
    }

    /// With `only`, the text is read first and its tower let go before the UNet comes: the two are never in memory together.
    fn load(
        &self,
        checkpoint: &Checkpoint,
        runtime: &Runtime,
        only: Option<&Plan>,
        progress: &Progress,
    ) -> Result<Box<dyn Pipeline>> {
        checkpoint.fetch_weights(&[
            ("text_encoder", runtime.weights),
            ("unet", runtime.weights),
            ("vae", self.decoding.weights(runtime)),
        ])?;
        checkpoint.prepare_loras(self.components(), runtime.weights)?;
        let tower = progress.phase(Phase::Load, || {
            load(checkpoint, "text_encoder", runtime, TOWER, |vb| {
                ClipTextModel::load(&self.text_encoder, vb, runtime.activations())
            })
        })?;
        let mut reader = Reader {
            tower: Some(tower),
            last: RefCell::default(),
        };
        if let Some(text) = only.and_then(|plan| plan.text.as_ref()) {
            progress.phase(Phase::Text, || reader.states(&text.ids))?;
            reader.tower = None;
        }
        progress.phase(Phase::Load, || {
            let unet = load(checkpoint, "unet", runtime, Naming::default(), |vb| {
                UNet::load(&self.unet, vb, runtime.activations())
            })?;
            Ok(Box::new(Txt2Img {
                reader,
                unet,
                decoders: self.decoding.load(checkpoint, runtime)?,
                channels: self.decoding.vae.latent_channels(),
                scale: self.decoding.vae.scale(),
                runtime: runtime.clone(),
            }) as Box<dyn Pipeline>)
        })
    }
}

/// The text tower, which reads each text once; without it, the one text that was read.
struct Reader {
    tower: Option<ClipTextModel>,
    last: RefCell<Option<(Vec<Vec<u32>>, Tensor)>>,
}

impl Reader {
    /// `(texts, tokens, hidden_size)`
    fn states(&self, ids: &[Vec<u32>]) -> Result<Tensor> {
        if let Some((read, states)) = &*self.last.borrow()
            && read == ids
        {
            return Ok(states.clone());
        }
        let tower = self
            .tower
            .as_ref()
            .context("the model was loaded for another text")?;
        let states = tower.forward(ids)?;
        *self.last.borrow_mut() = Some((ids.to_vec(), states.clone()));
        Ok(states)
    }

    /// The texts of a batch: the negative prompts of all jobs, where there is guidance, then the prompts of all.
    ///
    /// Each job's texts are read by themselves, so that its states do not depend on its company.
    fn batch(&self, jobs: &[Job]) -> Result<Tensor> {
        let texts = jobs.iter().filter_map(|job| job.plan.text.as_ref());
        let each: Vec<Tensor> = texts
            .map(|text| self.states(&text.ids))
            .collect::<Result<_>>()?;
        let halves = each.first().map_or(0, |states| states.dims()[0]);
        let rows: Vec<Tensor> = (0..halves)
            .flat_map(|half| each.iter().map(move |states| states.narrow(0, half, 1)))
            .collect::<candle_core::Result<_>>()?;
        Ok(Tensor::cat(&rows, 0)?)
    }
}

struct Txt2Img {
    reader: Reader,
    unet: UNet,
    decoders: Decoders,
    /// Of the latents.
    channels: usize,
    /// Pixels for one latent, along each side.
    scale: usize,
    runtime: Runtime,
}

impl Pipeline for Txt2Img {
    fn draw(&self, jobs: &[Job], progress: &Progress, watch: &mut Watch) -> Result<Vec<RgbImage>> {
        let plan = jobs.first().context("no picture was asked for")?.plan;
        let guidance = plan.text.as_ref().and_then(Text::guidance);
        let latent = (
            self.channels,
            plan.size.0 / self.scale,
            plan.size.1 / self.scale,
        );
        progress.start_batch(jobs.len(), plan.calls);
        let text = progress.phase(Phase::Text, || {
            Ok(self.unet.text(&self.reader.batch(jobs)?)?)
        })?;
        let latents = progress.phase(Phase::Denoise, || {
            let mut noise = Noise::of(jobs.iter().map(|job| job.seed));
            let mut scheduler = plan.scheduler.build(&plan.request)?;
            let start = noise.normal(latent, DType::F32, &self.runtime.device)?;
            denoise(
                &mut *scheduler,
                &start,
                &mut noise,
                |x, t| match guidance {
                    None => self.unet.forward(x, t, Some(&text)),
                    Some((scale, phi)) => {
                        let both = self.unet.forward(x, t, Some(&text))?.chunk(2, 0)?;
                        let (uncond, cond) = (&both[0], &both[1]);
                        let guided = (uncond + ((cond - uncond)? * scale)?)?;
                        rescale(guided, cond, phi)
                    }
                },
                |calls, x| {
                    progress.step();
                    watch(calls, &|k| self.decoders.preview(&x.narrow(0, k, 1)?))
                },
            )
        })?;
        // One after another: the decoder's maps are the largest of the run.
        progress.phase(Phase::Decode, || {
            (0..jobs.len())
                .map(|k| self.decoders.picture(&latents.narrow(0, k, 1)?))
                .collect()
        })
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
    vae: &Autoencoder,
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
