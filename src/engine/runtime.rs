//! Where the numbers live and in what precision. The only place that opens a device.
use super::{cuda, memory};
use anyhow::Result;
use candle_core::{DType, Device, DeviceLocation};
use std::fmt;
use std::str::FromStr;

/// `--device`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceChoice {
    /// CUDA where this build and this machine have it, else the CPU.
    Auto,
    Cpu,
    /// The card of this number.
    Cuda(usize),
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            _ => {
                let number = text.strip_prefix("cuda:").and_then(|n| n.parse().ok());
                number
                    .map(Self::Cuda)
                    .ok_or_else(|| "auto, cpu, cuda and cuda:N (N = 0, 1, ...) are accepted".into())
            }
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Auto => write!(f, "auto"),
            Self::Cpu => write!(f, "cpu"),
            Self::Cuda(number) => write!(f, "cuda:{number}"),
        }
    }
}

/// `--dtype`
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Precision {
    /// f16 on CUDA, f32 on the CPU
    Auto,
    F32,
    F16,
    Bf16,
}

/// A device and the dtypes used on it.
#[derive(Clone, Debug)]
pub struct Runtime {
    pub device: Device,
    /// How weights are kept.
    pub weights: DType,
}

impl Runtime {
    /// Opens the device. `auto` falls back to the CPU; a card that was asked for by name and cannot be had is an error.
    pub fn new(device: DeviceChoice, precision: Precision) -> Result<Self> {
        let device = match device {
            DeviceChoice::Cpu => Device::Cpu,
            DeviceChoice::Cuda(number) => open_cuda(number)?,
            DeviceChoice::Auto => open_cuda(0).unwrap_or_else(|reason| {
                tracing::debug!("auto: the CPU, since {reason:#}");
                Device::Cpu
            }),
        };
        let weights = match (precision, device.is_cpu()) {
            (Precision::F32, _) | (Precision::Auto, true) => DType::F32,
            (Precision::F16, _) | (Precision::Auto, false) => DType::F16,
            (Precision::Bf16, _) => DType::BF16,
        };
        Ok(Self { device, weights })
    }

    /// The dtype of activations. On the CPU 16-bit weights are a saving of memory alone: the arithmetic is in f32.
    pub fn activations(&self) -> DType {
        match (&self.device, self.weights) {
            (Device::Cpu, DType::F16 | DType::BF16) => DType::F32,
            (_, dtype) => dtype,
        }
    }

    /// Bytes of a number of a map that comes of weights in `weights`.
    pub fn width(&self, weights: DType) -> u64 {
        match self.device {
            Device::Cpu => DType::F32,
            _ => weights,
        }
        .size_in_bytes() as u64
    }

    /// Bytes that can be had where the numbers live; None where that is not known.
    pub fn free_memory(&self) -> Option<u64> {
        match self.device {
            Device::Cpu => memory::available(),
            _ => cuda::free(&self.device),
        }
    }

    /// Bytes that are taken there beside `used` of a model and its maps. On a card, where they are the gaps of the driver's pool, the
    /// recordings and the kernels, within 7 % of the three peaks that were measured on an H200.
    pub fn own_memory(&self, used: u64) -> u64 {
        match self.device {
            Device::Cpu => memory::OWN + memory::slack(used + memory::OWN),
            _ => used / 8 + 150_000_000,
        }
    }

    /// The device as `--device` takes it.
    pub fn place(&self) -> String {
        match self.device.location() {
            DeviceLocation::Cpu => "cpu".to_string(),
            DeviceLocation::Cuda { gpu_id } => format!("cuda:{gpu_id}"),
            DeviceLocation::Metal { gpu_id } => format!("metal:{gpu_id}"),
        }
    }

    /// This runtime with weights and activations in f32.
    pub fn in_f32(&self) -> Self {
        Self {
            weights: DType::F32,
            ..self.clone()
        }
    }
}

impl fmt::Display for Runtime {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{} on {}", self.weights.as_str(), self.place())
    }
}

#[cfg(not(feature = "cuda"))]
fn open_cuda(number: usize) -> Result<Device> {
    anyhow::bail!(
        "device cuda:{number}: this build has no CUDA; use --device cpu, or build with --features cuda"
    );
}

#[cfg(feature = "cuda")]
fn open_cuda(number: usize) -> Result<Device> {
    use anyhow::Context;
    cuda::open::open(number).with_context(|| format!("device cuda:{number}"))
}

/// Whether an error says that a card's memory was too small.
pub fn is_full(error: &anyhow::Error) -> bool {
    format!("{error:#}").contains("CUDA_ERROR_OUT_OF_MEMORY")
}

/// An error with what to try, where a card's memory was too small.
pub fn explain(error: anyhow::Error) -> anyhow::Error {
    match is_full(&error) {
        true => error.context(
            "the card's memory is full; try --batch-size 1, a smaller --width and --height, --dtype f16, or --device cpu",
        ),
        false => error,
    }
}

/// Whether the first card can be used.
pub fn cuda_card() -> Result<()> {
    open_cuda(0).map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_card_says_what_to_try() {
        // As cudarc says it, inside of what candle and the loader say.
        let full =
            candle_core::Error::msg("DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")");
        let full = explain(anyhow::Error::new(full).context("loading unet"));
        let text = format!("{full:#}");
        assert!(
            text.starts_with("the card's memory is full; try --batch-size 1"),
            "{text}"
        );
        assert!(text.contains("loading unet"), "{text}");
        assert_eq!(explain(anyhow::anyhow!("other")).to_string(), "other");
    }
}
