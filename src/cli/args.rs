//! Flags that both commands share, and the values they take.
use super::output::{Output, Pattern};
use super::sampler_names::SamplerParser;
use super::{schedule::ScheduleArgs, terminal::Terminal};
use crate::engine::checkpoint::{Address, Checkpoint, Demo, Network};
use crate::engine::pipelines::Sampling;
use crate::engine::runtime::{DeviceChoice, Precision, Runtime};
use crate::engine::schedulers::SchedulerKind;
use anyhow::Context;
use clap::{
    ArgAction, Args, ValueHint,
    builder::{NonEmptyStringValueParser, PossibleValue, TypedValueParser},
};
use std::ffi::OsStr;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::path::PathBuf;
use std::str::FromStr;

#[derive(Debug, Args)]
#[command(next_help_heading = "Sampling")]
pub struct SamplingArgs {
    /// Denoising steps, at most the model's training steps (most have 1000) [default: 50; 4 for latent consistency models]
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = steps)]
    steps: Option<usize>,
    /// Sampler [default: the one that the model names]
    #[arg(long, value_name = "NAME", value_parser = SamplerParser::default())]
    scheduler: Option<SchedulerKind>,
    /// Where the noise starts; the same seed draws the same picture [default: drawn and reported]
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = seed)]
    seed: Option<u64>,
    /// Pictures to draw; the first has the seed, each further one the next
    #[arg(short, long, value_name = "N", default_value_t = 1, allow_negative_numbers = true,
          value_parser = images)]
    num_images: usize,
    #[command(flatten)]
    pub schedule: ScheduleArgs,
}

impl SamplingArgs {
    /// What the engine takes.
    pub fn sampling(&self) -> Sampling {
        Sampling {
            steps: self.steps,
            scheduler: self.scheduler,
            overrides: self.schedule.overrides(),
        }
    }

    /// The seeds of the pictures; where none was given, the first is `default` or drawn.
    pub fn seeds(&self, default: Option<u64>) -> Vec<u64> {
        let first = self.seed.or(default).unwrap_or_else(draw_seed);
        (0..self.num_images as u64)
            .map(|k| first.wrapping_add(k))
            .collect()
    }

    pub fn scheduler(&self) -> Option<SchedulerKind> {
        self.scheduler
    }

    pub fn images(&self) -> usize {
        self.num_images
    }
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Batches")]
pub struct BatchArgs {
    /// Draw a picture again from the settings that it carries; other flags go before them
    ///
    /// - is a picture on stdin. Tells whether the pixels are the same. Where it is written is not taken from the picture.
    #[arg(long, value_name = "IMAGE", value_hint = ValueHint::FilePath, conflicts_with = "prompts")]
    pub from: Option<PathBuf>,
    /// Print what would be done, with its price, and read no weights
    #[arg(long)]
    pub dry_run: bool,
    /// Draw every line of a file, or of stdin with "-": a prompt, or a JSON object of settings
    ///
    /// A line such as {"prompt": "a cat", "seed": 7, "steps": 20, "output": "cat.png"} sets these flags for its row alone. The model is loaded
    /// once. A row whose picture exists is skipped, so a broken run is resumed by running it again. A row without a seed
    /// has its number as seed.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub prompts: Option<PathBuf>,
    /// Pictures to draw at once; changes the speed and the memory, and no pixel on the CPU
    #[arg(long, value_name = "N", default_value_t = 1, allow_negative_numbers = true, value_parser = batch_size)]
    pub batch_size: usize,
    /// Take row I of every N: 1/8 to 8/8 on eight machines make what one would
    #[arg(long, value_name = "I/N", requires = "prompts")]
    pub shard: Option<Shard>,
}

/// `--shard I/N`, with 1 <= I <= N.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    pub index: usize,
    pub of: usize,
}

impl Shard {
    /// Whether row `number`, counted from 1, is this shard's.
    pub fn takes(self, number: usize) -> bool {
        number % self.of == self.index % self.of
    }
}

impl FromStr for Shard {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let numbers = text.split_once('/').map(|(i, n)| (i.parse(), n.parse()));
        match numbers {
            Some((Ok(index), Ok(of))) if (1..=of).contains(&index) => Ok(Self { index, of }),
            _ => Err("give I/N with I from 1 to N, as in 1/8".to_owned()),
        }
    }
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Output")]
pub struct OutputArgs {
    /// Where the PNG goes: a file, a folder, a pattern or - for stdout [default: a new name in this folder]
    ///
    /// A pattern has {index}, {seed}, {prompt}, {model}, {scheduler} or {steps} in its path, as in out/{index}-{prompt}.png. Of
    /// several pictures OUT.png makes OUT-1.png, OUT-2.png, ...
    #[arg(short, long, value_name = "PATH", value_hint = ValueHint::FilePath)]
    pub output: Option<Output>,
    /// Make the folders of --output that are missing
    #[arg(short, long)]
    pub parents: bool,
    /// Replace files that exist at --output
    #[arg(long)]
    pub overwrite: bool,
    /// Write no settings into the PNG
    #[arg(long)]
    pub no_metadata: bool,
    /// Print a JSON object for each picture in place of its path, or the schedule as one
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "To look at")]
pub struct LookArgs {
    /// Write a contact sheet of all pictures, with captions
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, value_parser = png_path)]
    pub grid: Option<PathBuf>,
    /// Write what every N-th step made, beside the picture: PICTURE-step-005.png
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = steps)]
    pub save_steps: Option<usize>,
    /// Write the denoising of each picture as an animated PNG or GIF, by the name's end
    ///
    /// Of several pictures FILM.png makes FILM-1.png, FILM-2.png, ...; for rows of --prompts give a pattern as --output takes it, as in
    /// films/{index}.gif.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, value_parser = Pattern::of_animation)]
    pub animate: Option<Pattern>,
    /// Draw each picture in the terminal
    ///
    /// By kitty's protocol or iTerm2's, in sixels or in half blocks, whichever of these the terminal has first. Inside of tmux, screen or
    /// zellij it is what these have.
    #[arg(long)]
    pub show: bool,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Machine")]
pub struct MachineArgs {
    /// auto, cpu, cuda or cuda:N; auto is CUDA where this build and machine have it
    #[arg(long, value_name = "NAME", default_value = "auto", env = "DIFFUSE_DEVICE", hide_env_values = true, value_parser = DeviceParser, hide_possible_values = true)]
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
    pub fn start(&self, terminal: &Terminal) -> anyhow::Result<()> {
        terminal.start(self.quiet, self.verbose)?;
        if let Some(threads) = self.threads {
            rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .build_global()
                .with_context(|| format!("starting {threads} threads; try fewer --threads"))?;
        }
        Ok(())
    }

    pub fn runtime(&self) -> anyhow::Result<Runtime> {
        Runtime::new(self.device, self.dtype)
    }
}

/// What both commands take.
#[derive(Debug, Args)]
pub struct SharedArgs {
    #[command(flatten)]
    pub revision: RevisionArgs,
    #[command(flatten)]
    pub sampling: SamplingArgs,
    #[command(flatten)]
    pub batch: BatchArgs,
    #[command(flatten)]
    pub output: OutputArgs,
    #[command(flatten)]
    pub look: LookArgs,
    #[command(flatten)]
    pub machine: MachineArgs,
}

/// The model's revision: a flag beside `--model`, whose default is each command's own. So it has no heading, whatever the flags
/// before it have.
#[derive(Debug, Args)]
#[command(next_help_heading = clap::builder::Resettable::<clap::builder::Str>::Reset)]
pub struct RevisionArgs {
    /// Branch, tag or commit of --model on huggingface.co
    #[arg(long, value_name = "REV", default_value = "main")]
    pub revision: String,
    /// Use what was downloaded before, and no network
    #[arg(long)]
    pub offline: bool,
}

impl RevisionArgs {
    /// Opens the model at this revision; `demo` is the one of that name.
    pub fn open(&self, model: &str, demo: Demo) -> anyhow::Result<Checkpoint> {
        self.open_with(model, demo, None)
    }

    /// The same; a model in one file with the configurations of another checkpoint.
    pub fn open_with(
        &self,
        model: &str,
        demo: Demo,
        config: Option<&str>,
    ) -> anyhow::Result<Checkpoint> {
        let network = match self.offline {
            true => Network::Forbidden,
            false => Network::Allowed,
        };
        let checkpoint = match Checkpoint::is_demo(model) {
            true => Checkpoint::demo(network, demo, config)?,
            false => Checkpoint::open_with(network, model, &self.revision, config)?,
        };
        if self.revision != "main" && checkpoint.commit().is_none() {
            tracing::warn!(
                "{model} is not on the hub: --revision {} is not used",
                self.revision
            );
        }
        Ok(checkpoint)
    }
}

/// A seed below 2^32: larger ones draw the same pictures again.
fn draw_seed() -> u64 {
    // The standard library seeds its hash maps from the system's random numbers.
    RandomState::new().build_hasher().finish() >> 32
}

fn steps(text: &str) -> Result<usize, String> {
    // The upper end is the model's, which is not open yet.
    whole(text, 1, u32::MAX as usize, "a whole number of 1 or more")
}

fn images(text: &str) -> Result<usize, String> {
    whole(text, 1, 100_000, "a whole number from 1 to 100000")
}

fn batch_size(text: &str) -> Result<usize, String> {
    whole(text, 1, 1024, "a whole number from 1 to 1024")
}

fn threads(text: &str) -> Result<usize, String> {
    whole(text, 1, 1024, "a whole number from 1 to 1024")
}

/// A whole number from `least` to `most`.
pub fn whole(text: &str, least: usize, most: usize, accepted: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(n) if (least..=most).contains(&n) => Ok(n),
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

/// A model: a path, an id or the address of its page, which becomes the id.
pub fn model() -> impl TypedValueParser<Value = String> {
    NonEmptyStringValueParser::new().map(|model| match Address::parse(&model) {
        Some(address) if address.file.is_none() => address.to_string(),
        _ => model,
    })
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
    let ext = path.extension().unwrap_or_default();
    if ["png", "apng"]
        .iter()
        .any(|png| ext.eq_ignore_ascii_case(png))
    {
        Ok(path)
    } else {
        Err("give a name that ends in .png".to_owned())
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
