//! The pipelines of diffusers that draw from a text with a UNet, and what differs between them beside their networks.
use crate::engine::checkpoint::Checkpoint;
use crate::engine::models::clip::Depth;
use anyhow::{Result, bail};

/// The class that `model_index.json` names; a checkpoint without that file is the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// `StableDiffusionPipeline`: the last states of one text encoder (Rombach et al. 2022).
    StableDiffusion,
    /// `StableDiffusionXLPipeline`: the last states but one of up to two text encoders (Podell et al. 2023).
    StableDiffusionXl,
    /// `LatentConsistencyModelPipeline`: as the first, with guidance as an input of the UNet (Luo et al. 2023).
    LatentConsistency,
}

/// Those of `diffuse ddpm`.
pub const UNCONDITIONAL: [&str; 3] = ["DDPMPipeline", "DDIMPipeline", "PNDMPipeline"];

impl Class {
    const ALL: [Self; 3] = [
        Self::StableDiffusion,
        Self::StableDiffusionXl,
        Self::LatentConsistency,
    ];

    /// The class of a checkpoint.
    pub fn of(checkpoint: &Checkpoint) -> Result<Self> {
        let Some(name) = checkpoint.pipeline_class() else {
            return Ok(Self::StableDiffusion);
        };
        if let Some(class) = Self::ALL.into_iter().find(|class| class.name() == name) {
            return Ok(class);
        }
        if UNCONDITIONAL.contains(&name) {
            bail!("this checkpoint draws without a text; type: diffuse ddpm --model ...");
        }
        bail!(
            "model_index.json names {name}, which is not supported (accepted: {})",
            Self::ALL.map(Self::name).join(", ")
        )
    }

    /// Whether a class of `model_index.json` is one of these.
    pub fn is_one(name: &str) -> bool {
        Self::ALL.into_iter().any(|class| class.name() == name)
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::StableDiffusion => "StableDiffusionPipeline",
            Self::StableDiffusionXl => "StableDiffusionXLPipeline",
            Self::LatentConsistency => "LatentConsistencyModelPipeline",
        }
    }

    /// `num_inference_steps` of the pipeline's call.
    pub fn steps(self) -> usize {
        match self {
            Self::StableDiffusion | Self::StableDiffusionXl => 50,
            Self::LatentConsistency => 4,
        }
    }

    /// `guidance_scale` of the pipeline's call.
    pub fn guidance_scale(self) -> f64 {
        match self {
            Self::StableDiffusion => 7.5,
            Self::StableDiffusionXl => 5.0,
            Self::LatentConsistency => 8.5,
        }
    }

    /// The states of the text encoders that the UNet reads, `clip_skip` more layers left out.
    pub fn depth(self, clip_skip: usize) -> Depth {
        match self {
            Self::StableDiffusion | Self::LatentConsistency => Depth {
                skip: clip_skip,
                norm: true,
            },
            Self::StableDiffusionXl => Depth {
                skip: clip_skip + 1,
                norm: false,
            },
        }
    }

    /// Whether the pipeline corrects `steps_offset` and `clip_sample` of its scheduler.
    pub fn corrects_scheduler(self) -> bool {
        self == Self::StableDiffusion
    }

    /// Whether the pipeline tells its scheduler that it begins with its first call.
    pub fn begins_scheduler(self) -> bool {
        self == Self::StableDiffusionXl
    }

    /// Whether the pipeline takes UNets of before diffusers 0.9.0 for larger than their files say.
    pub fn corrects_size(self) -> bool {
        self == Self::StableDiffusion
    }

    /// Whether the pipeline decodes in f32 where the VAE's `force_upcast` asks for it; the others decode in f16 whatever it says.
    pub fn upcasts_vae(self) -> bool {
        self == Self::StableDiffusionXl
    }

    /// Whether the pipeline reads `latents_mean` and `latents_std` of the VAE.
    pub fn centres_latents(self) -> bool {
        self == Self::StableDiffusionXl
    }
}
