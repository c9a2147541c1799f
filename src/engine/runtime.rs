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

// STUB below
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceChoice { Auto, Cpu, Cuda(usize) }
impl std::str::FromStr for DeviceChoice {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            _ => s.strip_prefix("cuda:").and_then(|n| n.parse().ok()).map(Self::Cuda)
                .ok_or_else(|| "give auto, cpu, cuda or cuda:N, as in cuda:1".to_string()),
        }
    }
}
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Precision { Auto, F32, F16, Bf16 }
impl Runtime {
    pub fn new(device: DeviceChoice, dtype: Precision) -> anyhow::Result<Runtime> {
        if let DeviceChoice::Cuda(n) = device { anyhow::bail!("no CUDA device {n}: this build has no CUDA; use --device cpu") }
        let weights = match dtype { Precision::Auto | Precision::F32 => DType::F32, Precision::F16 => DType::F16, Precision::Bf16 => DType::BF16 };
        Ok(Runtime { device: Device::Cpu, weights })
    }
}
