//! Where the numbers live and in what precision. The only place that opens a CUDA device.
use candle_core::{DType, Device};

/// A device and the dtypes used on it.
#[derive(Clone, Debug)]
pub struct Runtime {
    pub device: Device,
    /// How weights are kept.
    pub weights: DType,
}

impl Runtime {
    /// The dtype of activations. On the CPU 16-bit weights are a saving of memory alone: the arithmetic is in f32.
    pub fn activations(&self) -> DType {
        match (&self.device, self.weights) {
            (Device::Cpu, DType::F16 | DType::BF16) => DType::F32,
            (_, dtype) => dtype,
        }
    }
}
