//! The vocabulary that models are written in: layers which hold weights and choose their kernel once, at load, by device.
//!
//! Two families stand behind every layer: the kernels of this program (CPU, f32 arithmetic) and candle's own operations
//! (CUDA, and f64 on the CPU, where the tests take the arithmetic's exact value from them).
mod activation;
mod attention;
mod conv;
mod linear;
mod map;
mod norm;

pub use activation::Activation;
pub use attention::attention;
pub use conv::{Conv2d, ConvShape};
pub use linear::Linear;
pub use map::Map;
pub use norm::{GroupNorm, LayerNorm};

use super::kernels::Weights;
use candle_core::{CpuStorage, DType, Device, Result, Shape, Storage, Tensor};
use candle_nn::VarBuilder;

/// Whether this program's own kernels serve a layer whose weights come from `vb`.
fn own_kernels(vb: &VarBuilder) -> bool {
    vb.device().is_cpu() && matches!(vb.dtype(), DType::F32 | DType::F16 | DType::BF16)
}

/// Whether this program's own kernels serve an activation.
fn own_kernels_for(x: &Tensor) -> bool {
    x.device().is_cpu() && x.dtype() == DType::F32
}

/// A parameter that the kernels keep in f32 whatever the weights' dtype: biases, norms.
fn small(vb: &VarBuilder, length: usize, name: &str) -> Result<Vec<f32>> {
    vb.get(length, name)?.to_dtype(DType::F32)?.to_vec1()
}

/// Calls `f` with the values of a contiguous tensor on the CPU.
fn with_cpu<R>(
    x: &Tensor,
    f: impl FnOnce(&CpuStorage, std::ops::Range<usize>) -> Result<R>,
) -> Result<R> {
    let x = x.contiguous()?;
    let (storage, layout) = x.storage_and_layout();
    let start = layout.start_offset();
    match &*storage {
        Storage::Cpu(cpu) => f(cpu, start..start + layout.shape().elem_count()),
        _ => candle_core::bail!("a CPU kernel was given a tensor of another device"),
    }
}

/// Calls `f` with the values of an f32 tensor on the CPU.
fn with_f32<R>(x: &Tensor, f: impl FnOnce(&[f32]) -> R) -> Result<R> {
    with_cpu(x, |storage, range| {
        Ok(f(&storage.as_slice::<f32>()?[range]))
    })
}

/// [`with_f32`] for a tensor that may not be there.
fn with_optional<R>(x: Option<&Tensor>, f: impl FnOnce(Option<&[f32]>) -> R) -> Result<R> {
    match x {
        Some(x) => with_f32(x, |x| f(Some(x))),
        None => Ok(f(None)),
    }
}

/// Calls `f` with the values of a weight in its own dtype.
fn with_weights<R>(w: &Tensor, f: impl FnOnce(Weights) -> R) -> Result<R> {
    with_cpu(w, |storage, range| match storage {
        CpuStorage::F32(w) => Ok(f(Weights::F32(&w[range]))),
        CpuStorage::F16(w) => Ok(f(Weights::F16(&w[range]))),
        CpuStorage::BF16(w) => Ok(f(Weights::BF16(&w[range]))),
        other => candle_core::bail!("weights of {other:?} have no kernel"),
    })
}

/// A tensor of `shape` on the CPU, written by `f`: a kernel, which writes every number and reads none before it has.
///
/// The memory is not zeroed first: on large maps that costs as much as a whole pass over them.
fn write_f32(shape: impl Into<Shape>, f: impl FnOnce(&mut [f32])) -> Result<Tensor> {
    let shape = shape.into();
    let count = shape.elem_count();
    let mut y: Vec<f32> = Vec::with_capacity(count);
    // SAFETY: the room is there; any bytes are an f32, and each is written before it is read, by f's contract.
    #[allow(clippy::uninit_vec)]
    unsafe {
        y.set_len(count)
    };
    f(&mut y);
    Tensor::from_vec(y, shape, &Device::Cpu)
}
