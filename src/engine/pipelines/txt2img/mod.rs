//! Pictures from a text by latent diffusion (Rombach et al. 2022): the pipelines of diffusers that [`class`] lists.
//!
//! ```text
//! text = towers(prompt);   latents = noise * init_noise_sigma
//! for each call:  eps = eps_uncond + guidance_scale * (eps_text - eps_uncond)        (Ho & Salimans 2022, equation 6)
//!                 latents = scheduler.step(eps)
//! picture = decoder(latents / scaling_factor)
//! ```
mod class;
mod reader;
mod size;
mod towers;
mod weights;

use super::decoding::{Decoders, Decoding};
use super::on_demand::OnDemand;
use super::{Guidance, Job, Only, Pipeline, Plan, Sampling, System, Watch};
use super::{check_channels, check_class, choose_scheduler, load, scheduler_config};
use crate::engine::checkpoint::{Checkpoint, Naming};
use crate::engine::cuda::graph;
use crate::engine::models::autoencoder::Autoencoder;
use crate::engine::models::clip::ClipTextModel;
use crate::engine::models::condition::Conditioning;
use crate::engine::models::unet::UNet;
use crate::engine::models::unet_config::{UNetConfig, UNetFile};
use crate::engine::noise::Noise;
use crate::engine::progress::{Phase, Progress};
use crate::engine::runtime::{self, Runtime};
use crate::engine::schedulers::SchedulerConfig;
use crate::engine::{cost::Network, denoise::denoise};
use anyhow::{Context, Result, ensure};
use candle_core::{DType, Tensor};
pub use class::{Class, UNCONDITIONAL};
use image::RgbImage;
use reader::Reader;
pub use size::Sizes;
use towers::Towers;

/// transformers wrote a prefix before its version 5, and a buffer of positions before 4.31. A tower may stand in a file beside what whole
/// CLIP adds.
const PROJECTING: Naming = Naming {
    strip: "text_model.",
    ignore: &[
        "position_ids",
        "logit_scale",
        "vision_model.*",
        "visual_projection.*",
    ],
    layers: None,
};
const TOWER: Naming = Naming {
    ignore: &[
        "position_ids",
        "logit_scale",
        "vision_model.*",
        "visual_projection.*",
        "text_projection.*",
    ],
    ..PROJECTING
};

/// What to draw. None is what the checkpoint or its pipeline has.
#[derive(Clone, Debug, Default)]
pub struct Txt2ImgRequest {
    pub prompt: String,
    /// None and an empty one differ where the model has states of its own for a text that is not there.
    pub negative_prompt: Option<String>,
    pub guidance_scale: Option<f64>,
    /// How far the spread of the guided prediction is brought back to that of the prompt's own, 0 to 1.
    pub guidance_rescale: f64,
    /// Layers to leave out at the end of the text encoders, beyond those that the pipeline leaves out itself.
    pub clip_skip: Option<usize>,
    /// Read texts of any length, in chunks.
    pub long_prompt: bool,
    /// Read parentheses as weights.
    pub prompt_weights: bool,
    /// In pixels.
    pub width: Option<u32>,
    pub height: Option<u32>,
    pub sizes: Sizes,
    pub sampling: Sampling,
}

/// The configurations of a latent diffusion model, and its tokenizers.
pub struct Txt2ImgSystem {
    class: Class,
    towers: Towers,
    unet: UNetConfig,
    /// As it stands, for what it says of old versions.
    unet_file: serde_json::Map<String, serde_json::Value>,
    decoding: Decoding,
    scheduler: SchedulerConfig,
}

impl Txt2ImgSystem {
    pub fn read(checkpoint: &Checkpoint) -> Result<Self> {
        let class = Class::of(checkpoint)?;
        check_class(checkpoint, "unet", &["UNet2DConditionModel"])?;
        let unet_file = checkpoint.json("unet", "config.json")?;
        let unet = checkpoint
            .config::<UNetFile>("unet")?
            .conditional()
            .context("unet/config.json")?;
        let mut decoding = Decoding::read(checkpoint)?;
        if let Autoencoder::Kl(vae) = &mut decoding.vae {
            vae.force_upcast &= class.upcasts_vae();
            if !class.centres_latents() {
                vae.latents_mean = None;
            }
        }
        let latent_channels = decoding.vae.latent_channels();
        ensure!(
            unet.in_channels == latent_channels && unet.out_channels == latent_channels,
            "the UNet reads {} and writes {} channels and the VAE has {} latent channels: txt2img needs three equal numbers{}",
            unet.in_channels,
            unet.out_channels,
            latent_channels,
            match unet.in_channels {
                9 => " (9 are read by inpainting models, which are not supported)",
                8 => " (8 are read by models that edit pictures, which are not supported)",
                _ => "",
            }
        );
        ensure!(
            class != Class::LatentConsistency || unet.guidance_channels.is_some(),
            "unet/config.json has no time_cond_proj_dim, and {} takes its guidance through it",
            class.name()
        );
        let scheduler = scheduler(checkpoint)?;
        let towers = Towers::read(checkpoint, class)?;
        towers.check(&unet)?;
        Ok(Self {
            class,
            towers,
            unet,
            unet_file,
            decoding,
            scheduler,
        })
    }

    /// The components that LoRAs may change.
    fn changed(&self) -> Vec<&'static str> {
        let towers = self.towers.iter().map(|tower| tower.component);
        towers.chain(["unet"]).collect()
    }

    fn guidance(&self, request: &Txt2ImgRequest) -> Guidance {
        let scale = request
            .guidance_scale
            .unwrap_or(self.class.guidance_scale());
        let rescale = request.guidance_rescale;
        if self.unet.guidance_channels.is_some() {
            if request.negative_prompt.is_some() {
                tracing::warn!(
                    "this model has its guidance inside: the negative prompt is not read"
                );
            }
            if rescale > 0.0 {
                tracing::warn!("this model has its guidance inside: it is not rescaled");
            }
            return Guidance::Embedded { scale };
        }
        match scale > 1.0 {
            true => Guidance::TwoPasses { scale, rescale },
            false => Guidance::None,
        }
    }
}

impl System for Txt2ImgSystem {
    type Request = Txt2ImgRequest;

    fn plan(&self, request: &Txt2ImgRequest) -> Result<Plan> {
        let vae = &self.decoding.vae;
        let size = size::picture_size(
            &self.unet,
            &self.unet_file,
            self.class.corrects_size(),
            vae,
            request.height,
            request.width,
        )?;
        let (scheduler, sampler, calls) = choose_scheduler(
            self.scheduler.clone(),
            self.class.steps(),
            &request.sampling,
        )?;
        check_channels(&scheduler, self.unet.in_channels, self.unet.out_channels)?;
        let sizes = request.sizes.resolve(&self.unet, size)?;
        let text = self.towers.text(request, self.guidance(request), sizes)?;
        let (h, w) = (size.0 / vae.scale(), size.1 / vae.scale());
        let halves = text.halves.len();
        let call = Network::unet(&self.unet, (h, w), text.tokens);
        let decoder = Network::decoder(vae, (h, w));
        Ok(Plan {
            scheduler,
            request: sampler,
            calls,
            size,
            call_bytes: call.widest().saturating_mul(halves as u64),
            decode_bytes: decoder.widest(),
            work: call.work() * calls * halves + decoder.work(),
            smaller: "try a smaller --width and --height",
            text: Some(text),
        })
    }

    fn weights(&self, runtime: &Runtime) -> Vec<(&'static str, DType)> {
        let changed = self.changed().into_iter().map(|c| (c, runtime.weights));
        changed.chain(self.decoding.weights(runtime)).collect()
    }

    /// With `only`, the text is read first and its towers let go before the UNet comes: the two are never in memory together. Where it is for
    /// one batch, neither are the UNet and what the decoder makes.
    fn load<'a>(
        &self,
        checkpoint: &'a Checkpoint,
        runtime: &Runtime,
        only: Option<Only>,
        progress: &Progress,
    ) -> Result<Box<dyn Pipeline + 'a>> {
        checkpoint.fetch_weights(&self.weights(runtime))?;
        checkpoint.prepare_loras(&self.changed(), runtime.weights)?;
        let towers = progress.phase(Phase::Load, || {
            let towers = self.towers.iter().map(|tower| {
                let naming = Naming {
                    layers: Some(tower.config.num_hidden_layers),
                    ..if tower.projects { PROJECTING } else { TOWER }
                };
                load(checkpoint, tower.component, runtime, naming, |vb| {
                    let dtype = runtime.activations();
                    ClipTextModel::load(&tower.config, vb, dtype, tower.projects)
                })
            });
            towers.collect::<Result<_>>()
        })?;
        let mut reader = Reader::new(towers);
        if let Some(text) = only.and_then(|only| only.plan.text.as_ref()) {
            progress.phase(Phase::Text, || reader.only(&text.halves))?;
        }
        progress.phase(Phase::Load, || {
            let (config, device) = (self.unet.clone(), runtime.clone());
            let unet = OnDemand::new(&runtime.device, move || {
                load(checkpoint, "unet", &device, Naming::default(), |vb| {
                    UNet::load(&config, vb, device.activations())
                })
            })?;
            Ok(Box::new(Txt2Img {
                reader,
                unet,
                decoders: self.decoding.load(checkpoint, runtime)?,
                channels: self.decoding.vae.latent_channels(),
                scale: self.decoding.vae.scale(),
                at_once: only.is_some_and(|only| only.at_once),
                runtime: runtime.clone(),
            }) as Box<dyn Pipeline + 'a>)
        })
    }
}

struct Txt2Img<'a> {
    reader: Reader,
    unet: OnDemand<'a, UNet>,
    decoders: Decoders,
    /// Of the latents.
    channels: usize,
    /// Pixels for one latent, along each side.
    scale: usize,
    /// No batch follows the first.
    at_once: bool,
    runtime: Runtime,
}

impl Pipeline for Txt2Img<'_> {
    fn draw(&self, jobs: &[Job], progress: &Progress, watch: &mut Watch) -> Result<Vec<RgbImage>> {
        let plan = jobs.first().context("no picture was asked for")?.plan;
        let text = plan.text.as_ref().context("the picture has no text")?;
        let latent = (
            self.channels,
            plan.size.0 / self.scale,
            plan.size.1 / self.scale,
        );
        progress.start_batch(jobs.len(), plan.calls);
        let unet = progress.phase(Phase::Load, || self.unet.get())?;
        let condition = progress.phase(Phase::Text, || {
            let (context, pooled) = self.reader.batch(jobs)?;
            let given = Conditioning {
                context,
                pooled,
                sizes: text.sizes,
                guidance: match text.guidance {
                    Guidance::Embedded { scale } => Some(scale),
                    Guidance::None | Guidance::TwoPasses { .. } => None,
                },
            };
            Ok(unet.condition(&given)?)
        })?;
        let latents = progress.phase(Phase::Denoise, || {
            let mut noise = Noise::of(jobs.iter().map(|job| job.seed));
            let mut scheduler = plan.scheduler.build(&plan.request)?;
            let start = noise.normal(latent, DType::F32, &self.runtime.device)?;
            let mut calls = unet.calls(Some(&condition));
            denoise(
                &mut *scheduler,
                &start,
                &mut noise,
                |x, t| match text.guidance {
                    Guidance::None | Guidance::Embedded { .. } => calls.forward(x, t),
                    Guidance::TwoPasses {
                        scale,
                        rescale: phi,
                    } => {
                        let both = calls.forward(x, t)?.chunk(2, 0)?;
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
        drop((condition, unet));
        if self.at_once {
            self.unet.let_go();
        }
        // One after another: the decoder's maps are the largest of the run.
        progress.phase(Phase::Decode, || {
            let picture = |k| {
                let latents = latents.narrow(0, k, 1)?;
                let decode = || self.decoders.picture(&latents);
                match self.unet.make_room_for(decode) {
                    Err(error) if runtime::is_full(&error) => {
                        tracing::debug!("the card's memory is full: the decoder works in bands");
                        graph::trim(&self.runtime.device);
                        self.decoders.picture_in_bands(&latents)
                    }
                    whole => whole,
                }
            };
            (0..jobs.len()).map(picture).collect()
        })
    }
}

/// The checkpoint's scheduler, as its pipeline is built with it.
pub fn scheduler(checkpoint: &Checkpoint) -> Result<SchedulerConfig> {
    let class = Class::of(checkpoint)?;
    let config = scheduler_config(checkpoint)?;
    let config = match class.corrects_scheduler() {
        true => config.with_pipeline_override(),
        false => config,
    };
    Ok(match class.begins_scheduler() {
        true => config.begun(),
        false => config,
    })
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
