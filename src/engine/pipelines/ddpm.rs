//! Unconditional diffusion in pixel space (Ho et al. 2020): `DDPMPipeline`, `DDIMPipeline` and `PNDMPipeline` of diffusers.
use super::{
    Sampling, check_channels, check_memory, choose_scheduler, load, scheduler_config, unet_bytes,
};
use crate::engine::checkpoint::{Checkpoint, Naming};
use crate::engine::models::unet::UNet;
use crate::engine::models::unet_config::{UNetConfig, UNetFile};
use crate::engine::noise::Noise;
use crate::engine::runtime::Runtime;
use crate::engine::schedulers::{SchedulerConfig, SchedulerKind};
use crate::engine::{denoise::denoise, output};
use anyhow::{Context, Result, bail, ensure};
use candle_core::DType;
use image::RgbImage;
use indicatif::ProgressBar;

/// A run that was found possible: sizes, scheduler and seeds are settled, no weight has been read.
pub struct DdpmPlan {
    unet: UNetConfig,
    scheduler: SchedulerConfig,
    /// Calls of the model for one picture.
    calls: usize,
    sampling: Sampling,
    /// Height and width in pixels.
    pub size: (usize, usize),
}

impl DdpmPlan {
    pub fn new(checkpoint: &Checkpoint, sampling: Sampling) -> Result<Self> {
        check_pipeline(checkpoint)?;
        let unet = checkpoint
            .config::<UNetFile>("unet")?
            .unconditional()
            .context("unet/config.json")?;
        let (height, width) = unet.sample_size.context(
            "unet/config.json: sample_size is missing, so the size of the picture is unknown",
        )?;
        let halvings = unet.down.len() - 1;
        ensure!(
            height > 0
                && width > 0
                && height.is_multiple_of(1 << halvings)
                && width.is_multiple_of(1 << halvings),
            "unet/config.json: sample_size {height}x{width} cannot be halved {halvings} times"
        );
        check_memory(
            unet_bytes(&unet, 1, (height, width)),
            height,
            width,
            "this model has one size: run it on a larger machine",
        )?;
        ensure!(
            matches!(unet.in_channels, 1 | 3),
            "unet/config.json: in_channels = {}: a picture has 3, or 1",
            unet.in_channels
        );

        let (scheduler, calls) = choose_scheduler(scheduler(checkpoint)?, &sampling)?;
        check_channels(&scheduler, unet.in_channels, unet.out_channels)?;
        Ok(Self {
            unet,
            scheduler,
            calls,
            sampling,
            size: (height, width),
        })
    }

    /// Calls of the UNet for all pictures.
    pub fn unet_calls(&self) -> u64 {
        (self.calls * self.sampling.images) as u64
    }

    /// What else a person needs to repeat the run.
    pub fn summary(&self) -> String {
        format!(
            "{}x{}, {} steps of {}",
            self.size.1,
            self.size.0,
            self.sampling.request().steps,
            self.scheduler.kind().name()
        )
    }

    pub fn load(self, checkpoint: &Checkpoint, runtime: &Runtime) -> Result<Ddpm> {
        let unet = load(checkpoint, "unet", runtime, Naming::default(), |vb| {
            UNet::load(&self.unet, vb, runtime.activations())
        })?;
        Ok(Ddpm {
            plan: self,
            unet,
            runtime: runtime.clone(),
        })
    }
}

fn check_pipeline(checkpoint: &Checkpoint) -> Result<()> {
    match checkpoint.pipeline_class() {
        Some(class) if class.starts_with("StableDiffusion") => bail!(
            "this checkpoint draws from a text ({class}); type: diffuse txt2img PROMPT --model ..."
        ),
        _ => Ok(()),
    }
}

/// The checkpoint's scheduler, as its pipeline is built with it.
pub fn scheduler(checkpoint: &Checkpoint) -> Result<SchedulerConfig> {
    check_pipeline(checkpoint)?;
    let scheduler = scheduler_config(checkpoint)?;
    // DDIMPipeline and PNDMPipeline rebuild whatever scheduler they are given as their own.
    Ok(match checkpoint.pipeline_class() {
        Some("DDIMPipeline") => scheduler.swap(SchedulerKind::Ddim),
        Some("PNDMPipeline") => scheduler.swap(SchedulerKind::Pndm),
        _ => scheduler,
    })
}

/// A plan with its weights.
pub struct Ddpm {
    plan: DdpmPlan,
    unet: UNet,
    runtime: Runtime,
}

impl Ddpm {
    /// Draws the pictures one after another and hands each over, with its seed, as soon as it is done.
    pub fn generate(
        &self,
        bar: &ProgressBar,
        mut on_image: impl FnMut(u64, RgbImage) -> Result<()>,
    ) -> Result<()> {
        let (h, w) = self.plan.size;
        for seed in self.plan.sampling.seeds() {
            let mut noise = Noise::new(seed, 1);
            let mut scheduler = self.plan.scheduler.build(&self.plan.sampling.request())?;
            let start = noise.normal(
                (self.plan.unet.in_channels, h, w),
                DType::F32,
                &self.runtime.device,
            )?;
            let x = denoise(&mut *scheduler, &start, &mut noise, bar, |x, t| {
                self.unet.forward(x, t, None)
            })?;
            on_image(seed, output::to_rgb(&x.get(0)?)?)?;
        }
        Ok(())
    }
}
