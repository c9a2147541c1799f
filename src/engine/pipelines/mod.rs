//! The two systems. Each has a plan, made from configurations alone so that mistakes cost no download and no wait, and a pipeline, which has the weights.
pub mod ddpm;
mod overrides;
pub mod txt2img;

use super::checkpoint::{Checkpoint, Naming, Weights};
use super::memory;
use super::models::unet_config::UNetConfig;
use super::runtime::Runtime;
use super::schedulers::{Report, Request, SchedulerConfig, SchedulerKind};
use anyhow::{Context, Result, ensure};
use candle_nn::VarBuilder;
pub use overrides::Overrides;

/// What both commands ask of the loop.
#[derive(Clone, Debug)]
pub struct Sampling {
    /// The first picture's; picture `k` has `seed + k`.
    pub seed: u64,
    pub images: usize,
    pub steps: usize,
    /// None is the class that the checkpoint names.
    pub scheduler: Option<SchedulerKind>,
    pub overrides: Overrides,
}

impl Sampling {
    /// How the scheduler is to run.
    pub fn request(&self) -> Request {
        self.overrides.request(self.steps)
    }

    fn seeds(&self) -> impl Iterator<Item = u64> {
        let first = self.seed;
        (0..self.images as u64).map(move |k| first.wrapping_add(k))
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
    sampling: &Sampling,
) -> Result<(SchedulerConfig, usize)> {
    let (config, request) = (
        sampling.overrides.scheduler(config, sampling.scheduler)?,
        sampling.request(),
    );
    let calls = config.build(&request)?.timesteps().len();
    for (key, value) in config.changes(&request)? {
        tracing::debug!("{} sets {key} to {value} itself", config.kind().class());
    }
    Ok((config, calls))
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
pub fn report(config: SchedulerConfig, sampling: &Sampling) -> Result<Report> {
    let (config, _) = choose_scheduler(config, sampling)?;
    config.report(&sampling.request())
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
        let weights = Weights::open(&files, naming)?;
        let model = build(weights.var_builder(runtime.weights, &runtime.device))?;
        weights.finish()?;
        anyhow::Ok(model)
    };
    load().with_context(|| format!("loading {component}"))
}

/// Bytes of a UNet's maps at its widest moment, for a batch of `(h, w)`: every kept map, and at each level the
/// concatenation, its norm, two convolutions' maps and the residual.
fn unet_bytes(config: &UNetConfig, batch: usize, (h, w): (usize, usize)) -> u64 {
    let pixels = |level: usize| (h as u64 >> level).max(1) * (w as u64 >> level).max(1);
    let widths = &config.block_out_channels;
    let kept: u64 = widths
        .iter()
        .enumerate()
        .map(|(i, &c)| pixels(i) * c as u64 * (config.down[i].layers as u64 + 1))
        .sum();
    let working = widths
        .iter()
        .enumerate()
        .map(|(i, &c)| pixels(i) * (c + widths[(i + 1).min(widths.len() - 1)]) as u64 * 4)
        .max()
        .unwrap_or(0);
    (kept + working) * batch as u64 * 4
}

/// Refuses a size whose maps do not fit, before anything is read.
fn check_memory(need: u64, height: usize, width: usize, try_instead: &str) -> Result<()> {
    memory::check(
        need,
        memory::available(),
        &format!("a picture of {width}x{height}"),
        try_instead,
    )
}
