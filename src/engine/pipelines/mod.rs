//! STUB
pub mod ddpm;
pub mod txt2img;
use super::schedulers::SchedulerKind;
#[derive(Clone, Debug)]
pub struct Sampling { pub seed: u64, pub images: usize, pub steps: usize, pub scheduler: Option<SchedulerKind> }
pub(crate) fn fake(s: &Sampling, (w, h): (u32, u32), bar: &indicatif::ProgressBar, mut on: impl FnMut(u64, image::RgbImage) -> anyhow::Result<()>) -> anyhow::Result<()> {
    for k in 0..s.images as u64 {
        let seed = s.seed.wrapping_add(k);
        for i in 0..s.steps { std::thread::sleep(std::time::Duration::from_millis(20)); tracing::debug!(step = i); bar.inc(1); }
        let mut n = super::noise::Noise::new(seed, 1);
        let t = n.normal((3, h as usize, w as usize), candle_core::DType::F32, &candle_core::Device::Cpu)?.get(0)?;
        on(seed, super::output::to_rgb(&t)?)?;
    }
    Ok(())
}
