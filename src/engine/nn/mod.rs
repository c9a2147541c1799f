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

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::VarBuilder;

/// Whether this program's own kernels serve a layer whose weights come from `vb`.
fn own_kernels(vb: &VarBuilder) -> bool {
    vb.device().is_cpu() && vb.dtype() != DType::F64
}

/// The dtype that activations have beside weights of `vb`.
fn activations(vb: &VarBuilder) -> DType {
    match (vb.device(), vb.dtype()) {
        (Device::Cpu, DType::F16 | DType::BF16) => DType::F32,
        (_, dtype) => dtype,
    }
}

/// Calls `f` with the values of a contiguous f32 tensor on the CPU.
fn with_f32<R>(x: &Tensor, f: impl FnOnce(&[f32]) -> R) -> Result<R> {
    let x = x.contiguous()?;
    let (storage, layout) = x.storage_and_layout();
    match &*storage {
        candle_core::Storage::Cpu(cpu) => {
            let start = layout.start_offset();
            Ok(f(&cpu.as_slice::<f32>()?[start..start + layout.shape().elem_count()]))
        }
        _ => candle_core::bail!("a CPU kernel was given a tensor of another device"),
    }
}
