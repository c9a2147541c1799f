//! `diffuse txt2img`: a picture of what a text says.
use super::args::{self, SharedArgs};
use super::text::TextArgs;
use super::{Drawing, schedule};
use crate::engine::checkpoint::{Address, Checkpoint, Demo};
use crate::engine::pipelines::decoding::PREVIEW;
use crate::engine::pipelines::txt2img::{self, Class, Txt2ImgRequest, Txt2ImgSystem};
use crate::engine::schedulers::SchedulerConfig;
use anyhow::{Context, Result};
use clap::{Args, ValueHint};
use std::path::Path;
use std::str::FromStr;

/// Draw what a text says (latent diffusion with guidance)
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Txt2ImgArgs {
    /// What to draw
    #[arg(required_unless_present_any = ["prompts", "from", "print_schedule"])]
    prompt: Option<String>,
    /// A folder in the diffusers layout, a model on huggingface.co, a whole model in one .safetensors or .ckpt, or demo: a small one inside of the program
    ///
    /// A folder that exists goes before the hub; one of the name demo is ./demo.
    #[arg(long, value_name = "MODEL", default_value = "stable-diffusion-v1-5/stable-diffusion-v1-5", env = "DIFFUSE_MODEL", hide_env_values = true,
          value_hint = ValueHint::FilePath, value_parser = args::model())]
    model: String,
    /// How closely the picture follows the text; 1 or less is no guidance [default: that of the model's pipeline: 7.5, with two text encoders 5, for latent consistency models 8.5]
    #[arg(long, value_name = "SCALE", allow_negative_numbers = true, value_parser = args::guidance_scale)]
    guidance_scale: Option<f64>,
    /// Bring the guided prediction's spread back to the prompt's own, 0 to 1; for zero-SNR models
    #[arg(long, value_name = "SHARE", default_value_t = 0.0, allow_negative_numbers = true,
          value_parser = schedule::share)]
    guidance_rescale: f64,
    /// What to keep out of the picture
    #[arg(long, value_name = "TEXT")]
    negative_prompt: Option<String>,
    /// Width in pixels, a multiple of 8 [default: the model's]
    #[arg(long, value_name = "PIXELS", allow_negative_numbers = true, value_parser = args::side)]
    width: Option<u32>,
    /// Height in pixels, a multiple of 8 [default: the model's]
    #[arg(long, value_name = "PIXELS", allow_negative_numbers = true, value_parser = args::side)]
    height: Option<u32>,
    /// Configurations and tokenizer of a model that is one file: a folder or a model on huggingface.co, owner/name[@REVISION]
    #[arg(long, value_name = "MODEL", value_hint = ValueHint::DirPath, value_parser = args::model())]
    config: Option<String>,
    /// Another VAE: a folder or a model on huggingface.co, owner/name[@REVISION], an AutoencoderKL or an AutoencoderTiny
    #[arg(long, value_name = "MODEL", value_hint = ValueHint::DirPath, value_parser = args::model())]
    vae: Option<String>,
    /// Add a LoRA, WEIGHT times (1 unless given); may be given several times
    ///
    /// A file, a folder with one, owner/name of huggingface.co or owner/name/file.safetensors: in the layout of diffusers (PEFT) or
    /// of kohya, for the UNet and the text encoders. owner/name@REVISION is one at a branch, tag or commit.
    #[arg(long, value_name = "FILE[:WEIGHT]", value_hint = ValueHint::FilePath, value_parser = LoraArg::from_str)]
    lora: Vec<LoraArg>,
    /// A VAE for --save-steps and --animate alone, best a tiny one [default: a linear map to colours]
    #[arg(long, value_name = "MODEL", value_hint = ValueHint::DirPath, value_parser = args::model())]
    preview_vae: Option<String>,
    #[command(flatten)]
    text: TextArgs,
    #[command(flatten)]
    shared: SharedArgs,
}

/// `--lora FILE[:WEIGHT]`
#[derive(Clone, Debug)]
struct LoraArg {
    of: String,
    weight: f64,
}

impl FromStr for LoraArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let lora = |of: &str, weight| Self {
            of: Address::parse(of).map_or_else(|| of.to_owned(), |address| address.to_string()),
            weight,
        };
        // A file may have a colon in its name.
        if Path::new(text).exists() {
            return Ok(lora(text, 1.0));
        }
        let parsed = text
            .rsplit_once(':')
            .and_then(|(of, weight)| Some((of, weight.parse::<f64>().ok()?)));
        match parsed {
            Some((_, weight)) if !weight.is_finite() => {
                Err("give a finite weight, as in style.safetensors:0.8".to_owned())
            }
            Some(("", _)) => Err("give a file or owner/name before the colon".to_owned()),
            Some((of, weight)) => Ok(lora(of, weight)),
            None if text.is_empty() => Err("give a file or owner/name".to_owned()),
            None => match text.rsplit_once(':') {
                Some((of, weight)) if Path::new(of).exists() => Err(format!(
                    "{weight:?} is no number: give the weight as in {of}:0.8"
                )),
                _ => Ok(lora(text, 1.0)),
            },
        }
    }
}

const EXAMPLES: &str = "\
Examples:
  diffuse txt2img \"an astronaut riding a horse\" --model demo --steps 25
  diffuse txt2img \"astronaut riding a horse\" --steps 25
  diffuse txt2img \"a lighthouse at dusk\" --negative-prompt \"people\" --seed 7 -n 4 -o lighthouse.png
  diffuse txt2img \"a fox\" --model ./my-model --scheduler dpmpp-2m --width 768 --height 512";

impl Drawing for Txt2ImgArgs {
    const NAME: &'static str = "txt2img";
    const HAS_PROMPT: bool = true;
    const DEMO: Demo = Demo::Txt2img;
    type System = Txt2ImgSystem;

    fn model(&self) -> &str {
        &self.model
    }

    fn shared(&self) -> &SharedArgs {
        &self.shared
    }

    fn open(&self) -> Result<Checkpoint> {
        let revision = &self.shared.revision;
        revision.open_with(&self.model, Self::DEMO, self.config.as_deref())
    }

    fn attach(&self, checkpoint: &mut Checkpoint) -> Result<()> {
        if let Some(vae) = &self.vae {
            checkpoint.replace("vae", vae, "vae").context("--vae")?;
        }
        if let Some(vae) = &self.preview_vae {
            let replaced = checkpoint.replace(PREVIEW, vae, "vae");
            replaced.context("--preview-vae")?;
        }
        for lora in &self.lora {
            checkpoint
                .add_lora(&lora.of, lora.weight)
                .context("--lora")?;
        }
        Ok(())
    }

    fn prompts(&self) -> (&str, &str) {
        (
            self.prompt.as_deref().unwrap_or_default(),
            self.negative_prompt.as_deref().unwrap_or_default(),
        )
    }

    fn request(&self) -> Txt2ImgRequest {
        Txt2ImgRequest {
            prompt: self.prompt.clone().unwrap_or_default(),
            negative_prompt: self.negative_prompt.clone(),
            guidance_scale: self.guidance_scale,
            guidance_rescale: self.guidance_rescale,
            clip_skip: self.text.clip_skip,
            long_prompt: self.text.long_prompt,
            prompt_weights: self.text.prompt_weights,
            sizes: self.text.sizes(),
            width: self.width,
            height: self.height,
            sampling: self.shared.sampling.sampling(),
        }
    }

    fn scheduler(checkpoint: &Checkpoint) -> Result<(SchedulerConfig, usize)> {
        let steps = Class::of(checkpoint)?.steps();
        Ok((txt2img::scheduler(checkpoint)?, steps))
    }

    fn read(checkpoint: &Checkpoint) -> Result<Txt2ImgSystem> {
        Txt2ImgSystem::read(checkpoint)
    }
}
