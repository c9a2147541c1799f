//! The denoising loop: from noise to a sample, whatever the model and the scheduler.
use super::{noise::Noise, schedulers::Scheduler};
use anyhow::{Result, ensure};
use candle_core::Tensor;
use indicatif::ProgressBar;

/// Runs `scheduler` from the standard normal `start`, `(b, c, h, w)`, to a sample of the same shape.
///
/// `model` is called with the scaled input and the timestep, and gives the prediction that the scheduler was configured for.
/// `bar` moves once per call. A sample that is no longer finite ends the run with an error that names the step.
pub fn denoise(
    scheduler: &mut dyn Scheduler,
    start: &Tensor,
    noise: &mut Noise,
    bar: &ProgressBar,
    mut model: impl FnMut(&Tensor, f64) -> candle_core::Result<Tensor>,
) -> Result<Tensor> {
    let mut x = (start * scheduler.init_noise_sigma())?;
    for i in 0..scheduler.timesteps().len() {
        let t = scheduler.timesteps()[i];
        let output = model(&scheduler.scale_input(i, &x)?, t)?;
        x = scheduler.step(i, &x, &output, noise)?;
        // CUDA only queues work; reading one number back waits for it, so the bar tells the truth.
        let sum = x
            .abs()?
            .sum_all()?
            .to_dtype(candle_core::DType::F64)?
            .to_scalar::<f64>()?;
        ensure!(
            sum.is_finite(),
            "the sample is no longer finite after step {} of {} (timestep {t}); try --dtype f32",
            i + 1,
            scheduler.timesteps().len()
        );
        bar.inc(1);
    }
    Ok(x)
}
