//! The command line: flags, checks that need no model, and the run that both commands share.
//!
//! ```text
//! words ─Line::parse─> rows ─plan─> pictures to draw ─run─> files, and a line on stdout for each
//! ```
mod args;
#[cfg_attr(not(unix), path = "ask_none.rs")]
mod ask;
mod colour;
mod ddpm;
#[cfg(test)]
mod fuzz;
mod look;
mod names;
mod order;
mod output;
mod plan;
mod replay;
mod report;
mod rows;
mod run;
mod sampler_names;
mod schedule;
mod settings;
mod show;
#[cfg_attr(windows, path = "signals_windows.rs")]
mod signals;
mod studio;
mod terminal;
mod text;
mod txt2img;
mod usage;

use crate::engine::checkpoint::{Checkpoint, Demo};
use crate::engine::{pipelines::System, schedulers::SchedulerConfig};
use anyhow::Result;
use args::SharedArgs;
use clap::builder::Resettable;
use clap::{Arg, ArgMatches, CommandFactory, FromArgMatches, Parser, Subcommand};
use std::ffi::OsString;
use std::process::ExitCode;
use terminal::Terminal;

/// Draw pictures with diffusion models
///
/// Opens any checkpoint in the diffusers layout, a folder or a name on huggingface.co, and draws the pixels that diffusers draws. --model demo
/// is a small one inside of the program, which needs no download.
#[derive(Debug, Parser)]
#[command(name = "diffuse", bin_name = "diffuse", version, disable_version_flag = true, arg_required_else_help = true, args_override_self = true, after_help = EXAMPLES)]
struct Cli {
    /// Print the version; with --verbose, what it was built with and what it found
    #[arg(short = 'V', long, action = clap::ArgAction::Version)]
    version: Option<bool>,
    /// With --version: features, processor, CUDA
    #[arg(short, long)]
    verbose: bool,
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  diffuse txt2img \"an astronaut riding a horse\" --model demo --steps 25
  diffuse txt2img \"astronaut riding a horse\" --steps 25
  diffuse ddpm --model google/ddpm-cat-256 --scheduler ddim --steps 50
  diffuse txt2img --prompts prompts.txt -o out/{index}-{prompt}.png --parents
  diffuse txt2img --from picture.png --steps 50

Environment:
  DIFFUSE_MODEL, DIFFUSE_DEVICE   what --model and --device are where they are not given
  HF_HOME, HF_HUB_CACHE, HF_HUB_OFFLINE, HF_TOKEN, HF_ENDPOINT   as for all Hugging Face tools
  RUST_LOG   what is logged, as in diffuse=debug
  NO_COLOR, CLICOLOR, CLICOLOR_FORCE   whether there is colour";

#[derive(Debug, Subcommand)]
enum Command {
    Ddpm(Box<ddpm::DdpmArgs>),
    Txt2img(Box<txt2img::Txt2ImgArgs>),
}

/// A command that draws: its own flags and what the engine makes of them.
trait Drawing: FromArgMatches + clap::Args {
    const NAME: &'static str;
    const HAS_PROMPT: bool;
    /// What `--model demo` is.
    const DEMO: Demo;
    type System: System;
    fn model(&self) -> &str;
    fn shared(&self) -> &SharedArgs;
    /// The prompt and the negative prompt.
    fn prompts(&self) -> (&str, &str);
    fn request(&self) -> <Self::System as System>::Request;
    /// The model, its configurations alone.
    fn open(&self) -> Result<Checkpoint> {
        self.shared().revision.open(self.model(), Self::DEMO)
    }
    /// Puts what flags bring in the place of the checkpoint's own.
    fn attach(&self, _checkpoint: &mut Checkpoint) -> Result<()> {
        Ok(())
    }
    /// The checkpoint's scheduler and how many steps it takes by default, read without the rest.
    fn scheduler(checkpoint: &Checkpoint) -> Result<(SchedulerConfig, usize)>;
    fn read(checkpoint: &Checkpoint) -> Result<Self::System>;
}

/// A command line of one command: its words, and what they mean.
struct Line<A> {
    words: Vec<OsString>,
    args: A,
    matches: ArgMatches,
}

impl<A: Drawing> Line<A> {
    fn parse(words: Vec<OsString>) -> Result<Self, clap::Error> {
        let mut matches = command().try_get_matches_from(&words)?;
        let Some((_, matches)) = matches
            .remove_subcommand()
            .filter(|(name, _)| name == A::NAME)
        else {
            return Err(command().error(
                clap::error::ErrorKind::InvalidSubcommand,
                format!("this is no command line of {}", A::NAME),
            ));
        };
        Ok(Self {
            words,
            args: A::from_arg_matches(&matches)?,
            matches,
        })
    }

    /// What the pictures of this line remember of it.
    fn remembered(&self) -> settings::Settings {
        settings::remembered(&command_of::<A>(), &self.matches)
    }
}

/// The command line as clap knows it. A variable of the environment that is empty is as one that is not set.
pub fn command() -> clap::Command {
    let heeded = |arg: Arg| match arg.get_env().and_then(std::env::var_os) {
        Some(value) if value.is_empty() => arg.env(Resettable::Reset),
        _ => arg,
    };
    Cli::command().mut_subcommands(|command| command.mut_args(heeded))
}

/// One of its commands.
fn command_of<A: Drawing>() -> clap::Command {
    let command = command();
    let command = command.find_subcommand(A::NAME);
    command.expect("it is a command").clone()
}

/// Runs the command line of this process: 0 when all is done, 1 after a failure or when no row of a batch was drawn, 2 for a
/// command line that cannot be meant, 3 when some rows failed. A signal that ends it is its end.
pub fn main() -> ExitCode {
    let mut words: Vec<OsString> = std::env::args_os().collect();
    if usage::asks_for_versions(&words[1.min(words.len())..]) {
        return usage::print_versions();
    }
    // --verbose before the command is the command's.
    let verbose = words.iter().skip(1);
    let verbose = verbose.take_while(|word| usage::is_verbose(word)).count();
    if words.len() > verbose + 1 {
        words[1..verbose + 2].rotate_right(1);
    }
    let matches = command().try_get_matches_from(&words);
    let cli = match matches.and_then(|matches| Cli::from_arg_matches(&matches)) {
        Ok(cli) => cli,
        Err(err) => return usage::report(&err, &words),
    };
    match cli.command {
        Command::Ddpm(_) => start::<ddpm::DdpmArgs>(words),
        Command::Txt2img(_) => start::<txt2img::Txt2ImgArgs>(words),
    }
}

fn start<A: Drawing>(words: Vec<OsString>) -> ExitCode {
    let line = match Line::<A>::parse(words.clone()) {
        Ok(line) => line,
        Err(err) => return usage::report(&err, &words),
    };
    let terminal = Terminal::new();
    match run::run(line, &terminal) {
        Ok(code) => {
            terminal.progress().finish();
            code
        }
        Err(err) => {
            terminal.error(&format!("{err:#}"));
            match err.is::<usage::Meaningless>() {
                true => ExitCode::from(2),
                false => ExitCode::FAILURE,
            }
        }
    }
}
