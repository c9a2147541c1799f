//! `diffuse ddpm`: a picture of what the model was trained on.
use super::args::{MachineArgs, OutputArgs, RevisionArgs, SamplingArgs};
use super::terminal::Terminal;
use crate::engine::checkpoint::Checkpoint;
use crate::engine::pipelines::{self, ddpm::DdpmPlan};
use anyhow::Result;
use clap::{Args, ValueHint, builder::NonEmptyStringValueParser};

/// Draw a picture of what the model was trained on (unconditional diffusion)
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct DdpmArgs {
    /// A folder in the diffusers layout, or a model on huggingface.co
    #[arg(long, value_name = "MODEL", default_value = "google/ddpm-cat-256",
          value_hint = ValueHint::DirPath, value_parser = NonEmptyStringValueParser::new())]
    model: String,
    #[command(flatten)]
    revision: RevisionArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    machine: MachineArgs,
}

const EXAMPLES: &str = "\
Examples:
  diffuse ddpm
  diffuse ddpm --model google/ddpm-celebahq-256 --scheduler ddim --steps 50 --seed 7
  diffuse ddpm --model ./my-model -n 4 -o cats.png";

pub fn run(args: DdpmArgs, terminal: &Terminal) -> Result<()> {
    args.machine.start(terminal)?;
    let sampling = args.sampling.sampling();
    if args.sampling.schedule.print_schedule {
        let checkpoint = Checkpoint::open(&args.model, &args.revision.revision)?;
        let report = pipelines::report(pipelines::ddpm::scheduler(&checkpoint)?, &sampling)?;
        return args.sampling.schedule.print(&report);
    }
    let mut names = args
        .output
        .names(&super::names::model_name(&args.model), &sampling)?;
    let runtime = args.machine.runtime()?;
    let checkpoint = Checkpoint::open(&args.model, &args.revision.revision)?;
    checkpoint.show_downloads(terminal.shows_progress());
    let plan = DdpmPlan::new(&checkpoint, sampling.clone())?;
    terminal.describe(
        &args.model,
        &args.revision.revision,
        &sampling,
        &plan.summary(),
        &runtime,
    );
    let calls = plan.unet_calls();
    let ddpm = plan.load(&checkpoint, &runtime)?;
    terminal.show_bar(calls);
    ddpm.generate(terminal.bar(), |seed, picture| {
        terminal.print_path(&names.write(seed, &picture)?)
    })
}
