//! STUB
use super::{super::{checkpoint::Checkpoint, runtime::Runtime}, Sampling};
use anyhow::Result;
#[derive(Clone, Debug)]
pub struct Txt2ImgRequest { pub prompt: String, pub negative_prompt: String, pub guidance_scale: f64, pub width: Option<u32>, pub height: Option<u32>, pub sampling: Sampling }
pub struct Txt2ImgPlan(Txt2ImgRequest);
pub struct Txt2Img(Txt2ImgRequest);
impl Txt2ImgPlan {
    pub fn new(_: &Checkpoint, r: Txt2ImgRequest) -> Result<Self> { Ok(Self(r)) }
    pub fn unet_calls(&self) -> u64 { (self.0.sampling.steps * self.0.sampling.images) as u64 }
    pub fn summary(&self) -> String { format!("{} steps of ddpm", self.0.sampling.steps) }
    pub fn load(self, _: &Checkpoint, _: &Runtime) -> Result<Txt2Img> { Ok(Txt2Img(self.0)) }
}
impl Txt2Img {
    pub fn generate(&self, bar: &indicatif::ProgressBar, on_image: impl FnMut(u64, image::RgbImage) -> Result<()>) -> Result<()> {
        super::fake(&self.0.sampling, (self.0.width.unwrap_or(64), self.0.height.unwrap_or(64)), bar, on_image)
    }
}
