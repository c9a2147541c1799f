//! Reading fixtures, and the bound by which networks are compared.
use candle_core::{DType, Device, Tensor};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// Cargo says where the fixtures are when it runs a test; a test that was built elsewhere is told the same way.
pub fn fixture(name: &str) -> PathBuf {
    let root = std::env::var("CARGO_MANIFEST_DIR");
    Path::new(root.as_deref().unwrap_or(env!("CARGO_MANIFEST_DIR")))
        .join("tests/fixtures")
        .join(name)
}

pub fn tensors(path: &Path) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(path, &Device::Cpu)
        .unwrap_or_else(|err| panic!("{}: {err}", path.display()))
}

/// The largest difference between two tensors of one shape, in f64.
pub fn distance(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.dims(), b.dims());
    let wide = |x: &Tensor| x.to_dtype(DType::F64).unwrap();
    let largest = (wide(a) - wide(b))
        .unwrap()
        .abs()
        .unwrap()
        .flatten_all()
        .unwrap()
        .max(0)
        .unwrap();
    largest.to_scalar().unwrap()
}

pub fn magnitude(a: &Tensor) -> f64 {
    distance(a, &a.zeros_like().unwrap())
}
