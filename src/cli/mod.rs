//! The command line: flags, checks that need no model, and the run of each command.
mod args;
mod ddpm;
mod names;
mod schedule;
mod terminal;
mod txt2img;
mod usage;

use anyhow::Result;
use clap::{CommandFactory, Parser, Subcommand};
use std::process::ExitCode;
use terminal::Terminal;

/// Draw pictures with diffusion models
///
/// Opens any checkpoint in the diffusers layout, a folder or a name on huggingface.co, and draws the pixels that diffusers draws.
#[derive(Debug, Parser)]
#[command(name = "diffuse", version, arg_required_else_help = true, args_override_self = true, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  diffuse txt2img \"astronaut riding a horse\" --steps 25
  diffuse ddpm --model google/ddpm-cat-256 --scheduler ddim --steps 50";

#[derive(Debug, Subcommand)]
enum Command {
    Ddpm(ddpm::DdpmArgs),
    Txt2img(txt2img::Txt2ImgArgs),
}

/// The command line as clap knows it, for completions.
pub fn command() -> clap::Command {
    Cli::command()
}

/// Runs the command line of this process: 0 when all is done, 1 after a failure, 2 for a command line that cannot be meant,
/// 130 when interrupted.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(err) => return usage::report(&err),
    };
    let terminal = Terminal::new();
    match cli.run(&terminal) {
        Ok(()) => {
            terminal.bar().finish_and_clear();
            ExitCode::SUCCESS
        }
        Err(err) => {
            terminal.error(&format!("{err:#}"));
            ExitCode::FAILURE
        }
    }
}

impl Cli {
    fn run(self, terminal: &Terminal) -> Result<()> {
        match self.command {
            Command::Ddpm(args) => ddpm::run(args, terminal),
            Command::Txt2img(args) => txt2img::run(args, terminal),
        }
    }
}
