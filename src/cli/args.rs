//! Flags that both commands share, and the values they take.
use super::{names::Names, schedule::ScheduleArgs, terminal::Terminal};
use crate::engine::pipelines::Sampling;
use crate::engine::runtime::{DeviceChoice, Precision, Runtime};
use crate::engine::schedulers::SchedulerKind;
use anyhow::{Context, Result};
use clap::{
    ArgAction, Args, ValueHint,
    builder::{PossibleValue, TypedValueParser},
};
use std::ffi::OsStr;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::path::PathBuf;
use std::str::FromStr;

#[derive(Debug, Args)]
#[command(next_help_heading = "Sampling")]
pub struct SamplingArgs {
    /// Denoising steps, at most the model's training steps (most have 1000)
    #[arg(long, value_name = "N", default_value_t = 50, allow_negative_numbers = true,
          value_parser = steps)]
    steps: usize,
    /// Sampler [default: the one that the model names]
    #[arg(long, value_name = "NAME", value_enum)]
    scheduler: Option<SchedulerKind>,
    /// Where the noise starts; the same seed draws the same picture [default: drawn and reported]
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = seed)]
    seed: Option<u64>,
    /// Pictures to draw; picture k has the seed plus k
    #[arg(short, long, value_name = "N", default_value_t = 1, allow_negative_numbers = true,
          value_parser = images)]
    num_images: usize,
    #[command(flatten)]
    pub schedule: ScheduleArgs,
}

impl SamplingArgs {
    /// What the engine takes, with a seed drawn where none was given.
    pub fn sampling(&self) -> Sampling {
        Sampling {
            seed: self.seed.unwrap_or_else(draw_seed),
            images: self.num_images,
            steps: self.steps,
            scheduler: self.scheduler,
            overrides: self.schedule.overrides(),
        }
    }
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Output")]
pub struct OutputArgs {
    /// Where the PNG goes; of several pictures OUT.png makes OUT-1.png, OUT-2.png, ... [default: a new name in this folder]
    #[arg(short, long, value_name = "PATH", value_hint = ValueHint::FilePath, value_parser = png_path)]
    output: Option<PathBuf>,
    /// Replace files that exist at --output
    #[arg(long)]
    overwrite: bool,
}

impl OutputArgs {
    /// The names of the pictures, checked: `subject` is what they show, for names that are made up.
    pub fn names(self, subject: &str, sampling: &Sampling) -> Result<Names> {
        match self.output {
            Some(path) => Names::given(path, sampling.images, self.overwrite),
            None => Names::made_up(subject),
        }
    }
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Machine")]
pub struct MachineArgs {
    /// auto, cpu, cuda or cuda:N; auto is CUDA where this build and machine have it
    #[arg(long, value_name = "NAME", default_value = "auto", value_parser = DeviceParser, hide_possible_values = true)]
    device: DeviceChoice,
    /// Precision of the weights; auto is f16 on CUDA and f32 on the CPU
    #[arg(long, value_name = "NAME", default_value = "auto", value_enum)]
    dtype: Precision,
    /// Threads on the CPU [default: one for each core]
    #[arg(long, value_name = "N", allow_negative_numbers = true,
          value_parser = threads)]
    threads: Option<usize>,
    /// Say nothing on stderr but errors
    #[arg(short, long, conflicts_with = "verbose")]
    quiet: bool,
    /// Say more on stderr; twice for all
    #[arg(short, long, action = ArgAction::Count)]
    verbose: u8,
}

impl MachineArgs {
    /// Threads, Ctrl-C, log: what is to be in place before anything else happens.
    pub fn start(&self, terminal: &Terminal) -> Result<()> {
        terminal.start(self.quiet, self.verbose)?;
        if let Some(threads) = self.threads {
            rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .build_global()
                .with_context(|| format!("starting {threads} threads; try fewer --threads"))?;
        }
        Ok(())
    }

    pub fn runtime(&self) -> Result<Runtime> {
        Runtime::new(self.device, self.dtype)
    }
}

/// The model's revision: a flag beside `--model`, whose default is each command's own.
#[derive(Debug, Args)]
pub struct RevisionArgs {
    /// Branch, tag or commit of a model on huggingface.co
    #[arg(long, value_name = "REV", default_value = "main")]
    pub revision: String,
}

/// A seed below 2^32: larger ones draw the same pictures again.
fn draw_seed() -> u64 {
    // The standard library seeds its hash maps from the system's random numbers.
    RandomState::new().build_hasher().finish() >> 32
}

fn steps(text: &str) -> Result<usize, String> {
    // The upper end is the model's, which is not open yet.
    whole(text, u32::MAX as usize, "a whole number of 1 or more")
}

fn images(text: &str) -> Result<usize, String> {
    whole(text, 100_000, "a whole number from 1 to 100000")
}

fn threads(text: &str) -> Result<usize, String> {
    whole(text, 1024, "a whole number from 1 to 1024")
}

fn whole(text: &str, most: usize, accepted: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(n) if (1..=most).contains(&n) => Ok(n),
        _ => Err(format!("give {accepted}")),
    }
}

fn seed(text: &str) -> Result<u64, String> {
    text.parse()
        .map_err(|_| format!("give a whole number from 0 to {}", u64::MAX))
}

pub fn guidance_scale(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(scale) if scale.is_finite() => Ok(scale),
        _ => Err("give a finite number, as in 7.5; 1 or less is no guidance".to_owned()),
    }
}

/// Width or height of a picture whose model works on blocks of pixels.
pub fn side(text: &str) -> Result<u32, String> {
    const MOST: u32 = 65_536;
    let side: u32 = match text.parse() {
        Ok(side) if (8..=MOST).contains(&side) => side,
        _ => return Err(format!("give a multiple of 8 from 8 to {MOST}")),
    };
    let below = side / 8 * 8;
    if side == below {
        Ok(side)
    } else {
        Err(format!("not a multiple of 8; try {below} or {}", below + 8))
    }
}

fn png_path(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    let is_png = path
        .extension()
        .is_some_and(|ext| ext.eq_ignore_ascii_case("png"));
    if is_png {
        Ok(path)
    } else {
        Err("pictures are PNG files; give a name that ends in .png".to_owned())
    }
}

/// Any device; shells are offered those that have no number.
#[derive(Clone)]
struct DeviceParser;

impl TypedValueParser for DeviceParser {
    type Value = DeviceChoice;

    fn parse_ref(
        &self,
        command: &clap::Command,
        arg: Option<&clap::Arg>,
        value: &OsStr,
    ) -> Result<DeviceChoice, clap::Error> {
        DeviceChoice::from_str.parse_ref(command, arg, value)
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue>>> {
        Some(Box::new(
            ["auto", "cpu", "cuda"].map(PossibleValue::new).into_iter(),
        ))
    }
}
