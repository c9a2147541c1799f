//! `diffuse txt2img`: a picture of what a text says.
use super::args::{self, MachineArgs, OutputArgs, RevisionArgs, SamplingArgs};
use super::schedule;
use super::terminal::Terminal;
use crate::engine::checkpoint::Checkpoint;
use crate::engine::pipelines::{
    self,
    txt2img::{Txt2ImgPlan, Txt2ImgRequest},
};
use anyhow::Result;
use clap::{Args, ValueHint, builder::NonEmptyStringValueParser};

/// Draw what a text says (latent diffusion with guidance)
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Txt2ImgArgs {
    /// What to draw
    #[arg(required_unless_present = "print_schedule")]
    prompt: Option<String>,
    /// A folder in the diffusers layout, or a model on huggingface.co
    #[arg(long, value_name = "MODEL", default_value = "stable-diffusion-v1-5/stable-diffusion-v1-5",
          value_hint = ValueHint::DirPath, value_parser = NonEmptyStringValueParser::new())]
    model: String,
    #[command(flatten)]
    revision: RevisionArgs,
    /// How closely the picture follows the text; 1 or less is no guidance
    #[arg(long, value_name = "SCALE", default_value_t = 7.5, allow_negative_numbers = true,
          value_parser = args::guidance_scale)]
    guidance_scale: f64,
    /// Bring the guided prediction's spread back to the prompt's own, 0 to 1; for zero-SNR models
    #[arg(long, value_name = "SHARE", default_value_t = 0.0, allow_negative_numbers = true,
          value_parser = schedule::share)]
    guidance_rescale: f64,
    /// What to keep out of the picture
    #[arg(
        long,
        value_name = "TEXT",
        default_value = "",
        hide_default_value = true
    )]
    negative_prompt: String,
    /// Width in pixels, a multiple of 8 [default: the model's]
    #[arg(long, value_name = "PIXELS", allow_negative_numbers = true, value_parser = args::side)]
    width: Option<u32>,
    /// Height in pixels, a multiple of 8 [default: the model's]
    #[arg(long, value_name = "PIXELS", allow_negative_numbers = true, value_parser = args::side)]
    height: Option<u32>,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    machine: MachineArgs,
}

const EXAMPLES: &str = "\
Examples:
  diffuse txt2img \"astronaut riding a horse\" --steps 25
  diffuse txt2img \"a lighthouse at dusk\" --negative-prompt \"people\" --seed 7 -n 4 -o lighthouse.png
  diffuse txt2img \"a fox\" --model ./my-model --scheduler dpmpp-2m --width 768 --height 512";

pub fn run(args: Txt2ImgArgs, terminal: &Terminal) -> Result<()> {
    args.machine.start(terminal)?;
    let sampling = args.sampling.sampling();
    if args.sampling.schedule.print_schedule {
        let checkpoint = Checkpoint::open(&args.model, &args.revision.revision)?;
        let report = pipelines::report(pipelines::txt2img::scheduler(&checkpoint)?, &sampling)?;
        return args.sampling.schedule.print(&report);
    }
    let prompt = args.prompt.unwrap_or_default();
    let mut names = args.output.names(&prompt, &sampling)?;
    let runtime = args.machine.runtime()?;
    let checkpoint = Checkpoint::open(&args.model, &args.revision.revision)?;
    checkpoint.show_downloads(terminal.shows_progress());
    let request = Txt2ImgRequest {
        prompt,
        negative_prompt: args.negative_prompt,
        guidance_scale: args.guidance_scale,
        guidance_rescale: args.guidance_rescale,
        width: args.width,
        height: args.height,
        sampling: sampling.clone(),
    };
    let plan = Txt2ImgPlan::new(&checkpoint, request)?;
    terminal.describe(
        &args.model,
        &args.revision.revision,
        &sampling,
        &plan.summary(),
        &runtime,
    );
    let calls = plan.unet_calls();
    let txt2img = plan.load(&checkpoint, &runtime)?;
    terminal.show_bar(calls);
    txt2img.generate(terminal.bar(), |seed, picture| {
        terminal.print_path(&names.write(seed, &picture)?)
    })
}
