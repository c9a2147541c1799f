//! Unconditional diffusion in pixel space (Ho et al. 2020): `DDPMPipeline`, `DDIMPipeline` and `PNDMPipeline` of diffusers.
use super::txt2img::{Class, UNCONDITIONAL};
use super::{Job, Only, Pipeline, Plan, Sampling, System, Watch};
use super::{check_channels, check_class, choose_scheduler, load, scheduler_config};
use crate::engine::checkpoint::{Checkpoint, Naming};
use crate::engine::models::unet::UNet;
use crate::engine::models::unet_config::{UNetConfig, UNetFile};
use crate::engine::noise::Noise;
use crate::engine::progress::{Phase, Progress};
use crate::engine::runtime::Runtime;
use crate::engine::schedulers::{SchedulerConfig, SchedulerKind};
use crate::engine::{cost::Network, denoise::denoise, output};
use anyhow::{Context, Result, bail, ensure};
use candle_core::DType;
use image::RgbImage;

/// Steps where none are asked for. `DDPMPipeline` has 1000, which DDIM draws as well in 50.
pub const STEPS: usize = 50;

/// The configurations of an unconditional model.
pub struct DdpmSystem {
    unet: UNetConfig,
    scheduler: SchedulerConfig,
    /// Height and width in pixels.
    size: (usize, usize),
}

impl DdpmSystem {
    pub fn read(checkpoint: &Checkpoint) -> Result<Self> {
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
        ensure!(
            matches!(unet.in_channels, 1 | 3),
            "unet/config.json: in_channels = {}: a picture has 3, or 1",
            unet.in_channels
        );

        let scheduler = scheduler(checkpoint)?;
        Ok(Self {
            unet,
            scheduler,
            size: (height, width),
        })
    }
}

impl System for DdpmSystem {
    type Request = Sampling;

    fn plan(&self, sampling: &Sampling) -> Result<Plan> {
        let (scheduler, request, calls) =
            choose_scheduler(self.scheduler.clone(), STEPS, sampling)?;
        check_channels(&scheduler, self.unet.in_channels, self.unet.out_channels)?;
        let call = Network::unet(&self.unet, self.size, 0);
        Ok(Plan {
            scheduler,
            request,
            calls,
            size: self.size,
            text: None,
            call_bytes: call.widest(),
            decode_bytes: 0,
            work: call.work() * calls,
            smaller: "this model has one size: run it on a larger machine",
        })
    }

    fn weights(&self, runtime: &Runtime) -> Vec<(&'static str, DType)> {
        vec![("unet", runtime.weights)]
    }

    fn load<'a>(
        &self,
        checkpoint: &'a Checkpoint,
        runtime: &Runtime,
        _only: Option<Only>,
        progress: &Progress,
    ) -> Result<Box<dyn Pipeline + 'a>> {
        checkpoint.fetch_weights(&self.weights(runtime))?;
        let unet = progress.phase(Phase::Load, || {
            load(checkpoint, "unet", runtime, Naming::default(), |vb| {
                UNet::load(&self.unet, vb, runtime.activations())
            })
        })?;
        Ok(Box::new(Ddpm {
            unet,
            channels: self.unet.in_channels,
            runtime: runtime.clone(),
        }))
    }
}

fn check_pipeline(checkpoint: &Checkpoint) -> Result<()> {
    match checkpoint.pipeline_class() {
        Some(class) if Class::is_one(class) => bail!(
            "this checkpoint draws from a text ({class}); type: diffuse txt2img PROMPT --model ..."
        ),
        Some(class) if !UNCONDITIONAL.contains(&class) => bail!(
            "model_index.json names {class}, which is not supported (accepted: {})",
            UNCONDITIONAL.join(", ")
        ),
        _ => check_class(checkpoint, "unet", &["UNet2DModel"]),
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

struct Ddpm {
    unet: UNet,
    channels: usize,
    runtime: Runtime,
}

impl Pipeline for Ddpm {
    fn draw(&self, jobs: &[Job], progress: &Progress, watch: &mut Watch) -> Result<Vec<RgbImage>> {
        let plan = jobs.first().context("no picture was asked for")?.plan;
        let (h, w) = plan.size;
        progress.start_batch(jobs.len(), plan.calls);
        let x = progress.phase(Phase::Denoise, || {
            let mut noise = Noise::of(jobs.iter().map(|job| job.seed));
            let mut scheduler = plan.scheduler.build(&plan.request)?;
            let start = noise.normal((self.channels, h, w), DType::F32, &self.runtime.device)?;
            let mut calls = self.unet.calls(None);
            denoise(
                &mut *scheduler,
                &start,
                &mut noise,
                |x, t| calls.forward(x, t),
                |calls, x| {
                    progress.step();
                    watch(calls, &|k| output::to_rgb(&x.get(k)?))
                },
            )
        })?;
        (0..jobs.len())
            .map(|k| output::to_rgb(&x.get(k)?))
            .collect()
    }
}
