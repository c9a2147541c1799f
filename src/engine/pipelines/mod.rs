//! The two systems. Each reads its configurations, makes plans of them, so that mistakes cost no download and no wait, and only then loads weights.
//!
//! ```text
//! Checkpoint ─read─> System ─plan─> Plan (one for each request: sizes, tokens, scheduler; checked)
//!                       └────load─> Pipeline ─draw(plans and seeds)─> pictures
//! ```
pub mod ddpm;
pub mod decoding;
mod on_demand;
mod overrides;
mod text;
pub mod txt2img;

use super::checkpoint::{Checkpoint, Naming, Weights};
use super::cost::Work;
use super::memory;
use super::progress::Progress;
use super::runtime::Runtime;
use super::schedulers::{Report, Request, SchedulerConfig, SchedulerKind};
use anyhow::{Context, Result, bail, ensure};
use candle_core::DType;
use candle_nn::VarBuilder;
use image::RgbImage;
pub use overrides::Overrides;
pub use text::{Guidance, Half, Text, Tokens};

/// What both commands ask of the loop.
#[derive(Clone, Debug, Default)]
pub struct Sampling {
    /// None is as many as the checkpoint's pipeline takes.
    pub steps: Option<usize>,
    /// None is the class that the checkpoint names.
    pub scheduler: Option<SchedulerKind>,
    pub overrides: Overrides,
}

impl Sampling {
    /// How the scheduler is to run.
    fn request(&self, default_steps: usize) -> Request {
        self.overrides.request(self.steps.unwrap_or(default_steps))
    }
}

/// The configurations of a checkpoint, read and found possible; no weight has been read.
pub trait System {
    type Request;
    /// Settles sizes, tokens and scheduler of one request.
    fn plan(&self, request: &Self::Request) -> Result<Plan>;
    /// The components whose weights [`System::load`] reads, and the precision that they are kept in.
    fn weights(&self, runtime: &Runtime) -> Vec<(&'static str, DType)>;
    /// Reads the weights.
    fn load<'a>(
        &self,
        checkpoint: &'a Checkpoint,
        runtime: &Runtime,
        only: Option<Only>,
        progress: &Progress,
    ) -> Result<Box<dyn Pipeline + 'a>>;
}

/// What all pictures of a run have in common, so that it may take less memory.
#[derive(Clone, Copy)]
pub struct Only<'a> {
    pub plan: &'a Plan,
    /// They are drawn as one batch.
    pub at_once: bool,
}

/// Weights, ready to draw.
pub trait Pipeline {
    /// One picture for each job, drawn as one batch: the plans must be [`Plan::batches_with`] each other.
    ///
    /// Picture and batch are independent: on the CPU a job's picture is the same, bit for bit, whatever is drawn with it.
    /// `watch` is called after every call of the model.
    fn draw(&self, jobs: &[Job], progress: &Progress, watch: &mut Watch) -> Result<Vec<RgbImage>>;
}

/// A picture to draw.
#[derive(Clone, Copy, Debug)]
pub struct Job<'a> {
    pub plan: &'a Plan,
    pub seed: u64,
}

/// Told how many calls were made; the closure makes the sample of one job visible, in a size of its own choice.
pub type Watch<'a> = dyn FnMut(usize, &dyn Fn(usize) -> Result<RgbImage>) -> Result<()> + 'a;

/// A request that was found possible.
#[derive(Clone, Debug)]
pub struct Plan {
    pub scheduler: SchedulerConfig,
    /// How the scheduler is to run.
    pub request: Request,
    /// Calls of the UNet for one picture; a call with guidance serves both halves.
    pub calls: usize,
    /// Height and width in pixels.
    pub size: (usize, usize),
    pub text: Option<Text>,
    /// Bytes of the maps of one picture in a call of the UNet, at the widest moment.
    pub call_bytes: u64,
    /// The same of decoding, which takes one picture at a time.
    pub decode_bytes: u64,
    /// Of all calls and of the decoding.
    pub work: Work,
    /// What to type where it does not fit into memory.
    pub smaller: &'static str,
}

impl Plan {
    /// Whether pictures of the two can be drawn in one batch: all but the texts' words is equal.
    pub fn batches_with(&self, other: &Self) -> bool {
        let texts = match (&self.text, &other.text) {
            (Some(a), Some(b)) => a.batches_with(b),
            (None, None) => true,
            _ => false,
        };
        texts
            && (&self.scheduler, &self.request, self.size)
                == (&other.scheduler, &other.request, other.size)
    }

    /// What a person needs to repeat the run, beside model and seed.
    pub fn summary(&self) -> String {
        let guidance = match self.text.as_ref().map(|text| text.guidance) {
            None => String::new(),
            Some(Guidance::None) => ", no guidance".to_owned(),
            Some(Guidance::TwoPasses {
                scale,
                rescale: 0.0,
            }) => format!(", guidance {scale}"),
            Some(Guidance::TwoPasses { scale, rescale }) => {
                format!(", guidance {scale} rescaled by {rescale}")
            }
            Some(Guidance::Embedded { scale }) => format!(", guidance {scale} in one pass"),
        };
        format!(
            "{}x{}, {} of {}{guidance}",
            self.size.1,
            self.size.0,
            match self.request.steps {
                1 => "1 step".to_owned(),
                steps => format!("{steps} steps"),
            },
            self.scheduler.kind().name()
        )
    }

    /// Bytes of the maps of a batch, at the widest moment: of its calls, and of decoding one of its pictures.
    pub fn working_bytes(&self, pictures: usize) -> (u64, u64) {
        let calls = self.call_bytes.saturating_mul(pictures as u64);
        (calls, self.decode_bytes)
    }

    /// Refuses a batch whose maps do not fit, with `beside` bytes that the caller keeps of each picture, before anything is drawn. A card says so
    /// itself, when the UNet has made room.
    pub fn check_memory(&self, pictures: usize, beside: u64, runtime: &Runtime) -> Result<()> {
        if !runtime.device.is_cpu() {
            return Ok(());
        }
        let (height, width) = self.size;
        let (what, try_instead) = match pictures {
            1 => (format!("a picture of {width}x{height}"), self.smaller),
            n => (
                format!("a batch of {n} pictures of {width}x{height}"),
                "try a smaller --batch-size",
            ),
        };
        let (calls, decoding) = self.working_bytes(pictures);
        let kept = beside.saturating_mul(pictures as u64);
        let need = calls.max(decoding).saturating_add(kept);
        memory::check(need, memory::available(), &what, try_instead)
    }
}

/// The checkpoint's scheduler, of the class that the index names or, without an index, its own file does.
fn scheduler_config(checkpoint: &Checkpoint) -> Result<SchedulerConfig> {
    let file = checkpoint.json("scheduler", "scheduler_config.json")?;
    let config = match checkpoint.component_class("scheduler") {
        Some(class) => SchedulerKind::of_class(class).map(|kind| SchedulerConfig::new(kind, file)),
        None => SchedulerConfig::from_json(file),
    };
    config.context("the model's scheduler")
}

/// The scheduler of a run, as `Class.from_config` makes it where one was asked for, and its calls of the model for one picture.
fn choose_scheduler(
    config: SchedulerConfig,
    default_steps: usize,
    sampling: &Sampling,
) -> Result<(SchedulerConfig, Request, usize)> {
    let (config, request) = (
        sampling.overrides.scheduler(config, sampling.scheduler)?,
        sampling.request(default_steps),
    );
    let calls = config.build(&request)?.timesteps().len();
    for (key, value) in config.changes(&request)? {
        tracing::debug!("{} sets {key} to {value} itself", config.kind().class());
    }
    Ok((config, request, calls))
}

/// Refuses a component of another class than these.
fn check_class(checkpoint: &Checkpoint, component: &str, accepted: &[&str]) -> Result<()> {
    match checkpoint.component_class(component) {
        Some(class) if !accepted.contains(&class) => bail!(
            "model_index.json names {class} for {component}, which is not supported (accepted: {})",
            accepted.join(", ")
        ),
        _ => Ok(()),
    }
}

/// Refuses a network whose output is not what the scheduler reads: as many channels as it takes, or twice that where it predicts
/// a variance too.
fn check_channels(config: &SchedulerConfig, takes: usize, gives: usize) -> Result<()> {
    let learned = config.predicts_variance()?;
    // The solvers leave the variance away, so they do without it as well.
    let plain = gives == takes && !(learned && config.kind() == SchedulerKind::Ddpm);
    let name = config.kind().name();
    ensure!(
        plain || gives == 2 * takes && learned,
        "unet/config.json: out_channels = {gives} with in_channels = {takes}: {name} needs {} (variance_type {})",
        if learned { 2 * takes } else { takes },
        if learned { "learned" } else { "not learned" }
    );
    Ok(())
}

/// What the scheduler of a run is going to do. Of the checkpoint, only configurations are read.
pub fn report(
    config: SchedulerConfig,
    default_steps: usize,
    sampling: &Sampling,
) -> Result<Report> {
    let (config, request, _) = choose_scheduler(config, default_steps, sampling)?;
    config.report(&request)
}

/// Loads a component's weights into `build` and refuses a tensor that nothing asked for and `naming` does not ignore.
fn load<M>(
    checkpoint: &Checkpoint,
    component: &str,
    runtime: &Runtime,
    naming: Naming,
    build: impl FnOnce(VarBuilder) -> candle_core::Result<M>,
) -> Result<M> {
    let _span = tracing::info_span!("load", component).entered();
    let load = || {
        let files = checkpoint.prepare_weights(component, runtime.weights)?;
        let weights = Weights::open(&files, naming)?.patched(checkpoint.patches(component)?);
        let model = build(weights.var_builder(runtime.weights, &runtime.device))?;
        weights.finish()?;
        anyhow::Ok(model)
    };
    load().with_context(|| format!("loading {component}"))
}
