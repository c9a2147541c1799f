//! `diffuse ddpm`: a picture of what the model was trained on.
use super::Drawing;
use super::args::{self, SharedArgs};
use crate::engine::checkpoint::{Checkpoint, Demo};
use crate::engine::pipelines::Sampling;
use crate::engine::pipelines::ddpm::{self, DdpmSystem};
use crate::engine::schedulers::SchedulerConfig;
use anyhow::Result;
use clap::{Args, ValueHint};

/// Draw a picture of what the model was trained on (unconditional diffusion)
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct DdpmArgs {
    /// A folder in the diffusers layout, a model on huggingface.co, or demo: a small one inside of the program
    ///
    /// A folder that exists goes before the hub; one of the name demo is ./demo.
    #[arg(long, value_name = "MODEL", default_value = "google/ddpm-cat-256", env = "DIFFUSE_MODEL", hide_env_values = true,
          value_hint = ValueHint::DirPath, value_parser = args::model())]
    model: String,
    #[command(flatten)]
    shared: SharedArgs,
}

const EXAMPLES: &str = "\
Examples:
  diffuse ddpm --model demo
  diffuse ddpm
  diffuse ddpm --model google/ddpm-celebahq-256 --scheduler ddim --steps 50 --seed 7
  diffuse ddpm --model ./my-model -n 4 -o cats.png";

impl Drawing for DdpmArgs {
    const NAME: &'static str = "ddpm";
    const HAS_PROMPT: bool = false;
    const DEMO: Demo = Demo::Ddpm;
    type System = DdpmSystem;

    fn model(&self) -> &str {
        &self.model
    }

    fn shared(&self) -> &SharedArgs {
        &self.shared
    }

    fn prompts(&self) -> (&str, &str) {
        ("", "")
    }

    fn request(&self) -> Sampling {
        self.shared.sampling.sampling()
    }

    fn scheduler(checkpoint: &Checkpoint) -> Result<(SchedulerConfig, usize)> {
        Ok((ddpm::scheduler(checkpoint)?, ddpm::STEPS))
    }

    fn read(checkpoint: &Checkpoint) -> Result<DdpmSystem> {
        DdpmSystem::read(checkpoint)
    }
}
