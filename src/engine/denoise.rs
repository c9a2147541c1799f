//! The denoising loop: from noise to a sample, whatever the model and the scheduler.
use super::{noise::Noise, schedulers::Scheduler};
use anyhow::{Result, ensure};
use candle_core::Tensor;

/// Runs `scheduler` from the standard normal `start`, `(b, c, h, w)`, to a sample of the same shape.
///
/// `model` is called with the scaled input and the timestep, and gives the prediction that the scheduler was configured for.
/// `after` is told after each call how many were made, and what the model would see next: the sample with variance near one,
/// whatever the scheduler's own scale. A sample that is no longer finite ends the run with
/// an error that names the step.
pub fn denoise(
    scheduler: &mut dyn Scheduler,
    start: &Tensor,
    noise: &mut Noise,
    mut model: impl FnMut(&Tensor, f64) -> candle_core::Result<Tensor>,
    mut after: impl FnMut(usize, &Tensor) -> Result<()>,
) -> Result<Tensor> {
    let mut x = (start * scheduler.init_noise_sigma())?;
    for i in 0..scheduler.timesteps().len() {
        let t = scheduler.timesteps()[i];
        let output = model(&scheduler.scale_input(i, &x)?, t)?;
        x = scheduler.step(i, &x, &output, noise)?;
        // CUDA only queues work; reading one number back waits for it, so who watches is told the truth.
        let sum = x
            .abs()?
            .sum_all()?
            .to_dtype(candle_core::DType::F64)?
            .to_scalar::<f64>()?;
        ensure!(
            sum.is_finite(),
            "the sample is no longer finite after call {} of {} (timestep {t}); try --dtype f32, a smaller guidance scale or smaller weights of LoRAs",
            i + 1,
            scheduler.timesteps().len()
        );
        let next = match i + 1 < scheduler.timesteps().len() {
            true => scheduler.scale_input(i + 1, &x)?,
            false => x.clone(),
        };
        after(i + 1, &next)?;
    }
    Ok(x)
}
