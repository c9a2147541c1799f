//! STUB
use super::{super::{checkpoint::Checkpoint, runtime::Runtime}, Sampling};
use anyhow::Result;
pub struct DdpmPlan(Sampling);
pub struct Ddpm(Sampling);
impl DdpmPlan {
    pub fn new(_: &Checkpoint, s: Sampling) -> Result<Self> {
        anyhow::ensure!(s.steps <= 1000, "--steps {} is above the model's 1000 training steps; give 1 to 1000", s.steps);
        Ok(Self(s))
    }
    pub fn unet_calls(&self) -> u64 { (self.0.steps * self.0.images) as u64 }
    pub fn summary(&self) -> String { format!("{} steps of ddpm, 32 x 32", self.0.steps) }
    pub fn load(self, _: &Checkpoint, _: &Runtime) -> Result<Ddpm> { Ok(Ddpm(self.0)) }
}
impl Ddpm {
    pub fn generate(&self, bar: &indicatif::ProgressBar, on_image: impl FnMut(u64, image::RgbImage) -> Result<()>) -> Result<()> {
        super::fake(&self.0, (32, 32), bar, on_image)
    }
}
