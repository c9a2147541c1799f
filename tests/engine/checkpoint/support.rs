//! Checkpoint folders made for a test.
use candle_core::{DType, Device, Tensor};
use diffuse::engine::checkpoint::{Checkpoint, Naming, Weights};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

pub fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

/// A checkpoint folder with one component, `unet`, and what `fill` puts there.
pub fn checkpoint(fill: impl FnOnce(&Path)) -> (tempfile::TempDir, Checkpoint) {
    let folder = tempfile::tempdir().unwrap();
    let unet = folder.path().join("unet");
    std::fs::create_dir(&unet).unwrap();
    std::fs::write(unet.join("config.json"), r#"{"sample_size": 32}"#).unwrap();
    fill(&unet);
    let checkpoint = Checkpoint::open(folder.path().to_str().unwrap(), "main").unwrap();
    (folder, checkpoint)
}

pub fn save(path: &Path, tensors: &[(&str, Tensor)]) {
    let tensors: HashMap<&str, Tensor> = tensors.iter().cloned().collect();
    candle_core::safetensors::save(&tensors, path).unwrap();
}

pub fn numbers(shape: &[usize]) -> Tensor {
    let count: usize = shape.iter().product();
    Tensor::arange(0f32, count as f32, &Device::Cpu)
        .unwrap()
        .reshape(shape)
        .unwrap()
}

pub fn open(checkpoint: &Checkpoint, naming: Naming) -> anyhow::Result<Weights> {
    Weights::open(&checkpoint.prepare_weights("unet", DType::F32)?, naming)
}

/// What the program prints in place of a picture.
pub fn said<T>(result: anyhow::Result<T>) -> String {
    line(&result.err().expect("this must be refused"))
}

/// The whole chain of an error on one line, as the program prints it: with RUST_BACKTRACE, of which the program takes no notice, errors of
/// candle end with a trace.
pub fn line(err: &anyhow::Error) -> String {
    let text = format!("{err:#}");
    let line = text.split("\n   0: ").next().unwrap_or_default();
    assert!(!line.contains('\n'), "an error of several lines: {text}");
    line.to_owned()
}
