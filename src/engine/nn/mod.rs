//! The vocabulary that models are written in: layers which hold weights and choose their kernel once, at load, by device.
//!
//! Three families stand behind every layer: this program's kernels for the CPU (f32 arithmetic), its kernels for a card, and candle's
//! own operations (f64, where the tests take the arithmetic's exact value from them).
mod activation;
mod attention;
mod bands;
mod conv;
mod linear;
mod map;
mod norm;

pub use activation::Activation;
pub use attention::{SelfAttention, attention};
pub use bands::Bands;
pub use conv::{Conv2d, ConvShape};
pub use linear::{Geglu, Linear};
pub use map::Map;
pub use norm::{GroupNorm, LayerNorm};

use super::cuda;
use super::kernels::{self, Weights};
use candle_core::{CpuStorage, DType, Device, Result, Shape, Storage, Tensor};
use candle_nn::VarBuilder;
use std::ops::{Deref, Range};

/// Which kernels serve numbers, decided by where they are and their dtype.
#[derive(PartialEq)]
enum Family {
    Cpu,
    Card,
    Candle,
}

impl Family {
    fn of(device: &Device, dtype: DType) -> Self {
        match (device, dtype) {
            (device, DType::F32 | DType::F16 | DType::BF16) if cuda::serves(device) => Self::Card,
            (Device::Cpu, DType::F32 | DType::F16 | DType::BF16) => Self::Cpu,
            _ => Self::Candle,
        }
    }

    /// That of a layer, by its weights.
    fn of_weights(vb: &VarBuilder) -> Self {
        Self::of(vb.device(), vb.dtype())
    }
}

/// Whether this program's own kernels serve an activation on a card.
fn card_kernels_for(x: &Tensor) -> bool {
    Family::of(x.device(), x.dtype()) == Family::Card
}

/// Whether this program's own kernels serve an activation on the CPU, where all of them are in f32.
fn own_kernels_for(x: &Tensor) -> bool {
    x.dtype() == DType::F32 && Family::of(x.device(), x.dtype()) == Family::Cpu
}

/// A parameter that the kernels keep in f32 whatever the weights' dtype: biases, norms.
fn small(vb: &VarBuilder, length: usize, name: &str) -> Result<Vec<f32>> {
    vb.get(length, name)?.to_dtype(DType::F32)?.to_vec1()
}

/// As what sums are taken in: f32 for 16 bits.
fn wide(x: &Tensor) -> Result<Tensor> {
    match x.dtype() {
        DType::F16 | DType::BF16 => x.to_dtype(DType::F32),
        _ => Ok(x.clone()),
    }
}

/// The numbers of a tensor on the CPU, borrowed from it. `S` is candle's guard, whose type has no public name.
struct Values<S> {
    storage: S,
    range: Range<usize>,
}

/// An error for a tensor whose numbers do not follow each other: `contiguous()` first.
fn values(x: &Tensor) -> Result<Values<impl Deref<Target = Storage>>> {
    let (storage, layout) = x.storage_and_layout();
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(Values {
            storage,
            range: start..end,
        }),
        None => candle_core::bail!("a CPU kernel was given a strided tensor"),
    }
}

impl<S: Deref<Target = Storage>> Values<S> {
    fn cpu(&self) -> Result<&CpuStorage> {
        match &*self.storage {
            Storage::Cpu(cpu) => Ok(cpu),
            _ => candle_core::bail!("a CPU kernel was given a tensor of another device"),
        }
    }

    fn f32(&self) -> Result<&[f32]> {
        Ok(&self.cpu()?.as_slice::<f32>()?[self.range.clone()])
    }

    /// In the tensor's own dtype.
    fn weights(&self) -> Result<Weights<'_>> {
        let range = self.range.clone();
        Ok(match self.cpu()? {
            CpuStorage::F32(w) => Weights::F32(&w[range]),
            CpuStorage::F16(w) => Weights::F16(&w[range]),
            CpuStorage::BF16(w) => Weights::BF16(&w[range]),
            other => candle_core::bail!("weights of {other:?} have no kernel"),
        })
    }
}

/// A tensor of `shape` on the CPU, written by `f`.
///
/// # Safety
/// `f` writes every number and reads none before it has; all kernels do.
unsafe fn write_f32(shape: impl Into<Shape>, f: impl FnOnce(&mut [f32])) -> Result<Tensor> {
    let shape = shape.into();
    // SAFETY: f writes every number and reads none before, and where it panics nobody has them.
    let mut y = unsafe { kernels::unwritten(shape.elem_count()) };
    f(&mut y);
    Tensor::from_vec(y, shape, &Device::Cpu)
}
