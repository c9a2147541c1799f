//! Whether a card can be used, asked step by step, so that what is missing is said by name:
//!
//! the driver's library, the driver, the card, its compute capability, the driver's version, and last one number computed there.
//!
//! cudarc asks for the driver's answers as Rust enums and takes them for granted in places; the questions here are its C interface's,
//! where an answer is a number.
use super::card;
use anyhow::{Context, Result, anyhow, bail, ensure};
use candle_core::{DType, Device, Tensor, cuda_backend::kernels};
use std::ffi::{CStr, c_char, c_int, c_uint};
use std::fmt;

/// Opens the card of this number. The error is all of the sentence but the device's name.
pub fn open(number: usize) -> Result<Device> {
    let build = Build::of(kernels::FILL.ptx())
        .ok_or_else(|| anyhow!("this build's kernels say no version; use --device cpu"))?;
    open_driver()?;
    let card = Card::find(number)?;
    card.runs(build)?;
    let device = Device::new_cuda(number).context("cannot be used; use --device cpu")?;
    if let Device::Cuda(card) = &device {
        // SAFETY: all work is on one stream, in whose order every block is given out, used and given back. The events would tell other
        // streams of it.
        unsafe { card.disable_event_tracking() };
    }
    first_number(&device).context("cannot compute; use --device cpu")?;
    card::card(&device).context("does not take the kernels of this build; use --device cpu")?;
    Ok(device)
}

/// 1 + 1 by one of candle's kernels: what the driver thinks of them it says at the first.
fn first_number(device: &Device) -> Result<()> {
    let two = Tensor::ones(1, DType::F32, device)?.affine(1., 1.)?;
    let two = two.to_vec1::<f32>()?;
    ensure!(two == [2.], "1 + 1 = {two:?}");
    Ok(())
}

/// What the kernels of this build were compiled for, as the head of their PTX says.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Build {
    /// `.version 9.0`
    ptx: (u32, u32),
    /// `.target sm_90`
    capability: (u32, u32),
    kin: Kin,
}

/// The cards beside its own that PTX of a compute capability runs on.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kin {
    /// sm_90: all later ones
    Later,
    /// sm_100f: later ones of the same major number
    Family,
    /// sm_90a: none
    None,
}

impl Build {
    fn of(ptx: &str) -> Option<Self> {
        let word = |name: &str| {
            ptx.lines()
                .find_map(|line| line.strip_prefix(name)?.split([' ', ',']).next())
        };
        let (major, minor) = word(".version ")?.trim().split_once('.')?;
        let target = word(".target sm_")?.trim();
        let (digits, kin) = match target.strip_suffix('a') {
            Some(digits) => (digits, Kin::None),
            None => match target.strip_suffix('f') {
                Some(digits) => (digits, Kin::Family),
                None => (target, Kin::Later),
            },
        };
        let capability: u32 = digits.parse().ok()?;
        Some(Self {
            ptx: (major.parse().ok()?, minor.parse().ok()?),
            capability: (capability / 10, capability % 10),
            kin,
        })
    }

    /// The first CUDA whose driver knows this PTX: 7.y came with CUDA 11.y, 8.y with 12.y, 9.y with 13.y, but that 12.6 had no new one
    /// (PTX ISA, "Release Notes").
    fn cuda(self) -> (u32, u32) {
        match self.ptx {
            (8, minor @ 6..) => (12, minor + 1),
            (major, minor) => (major + 4, minor),
        }
    }

    fn runs_on(self, card: (u32, u32)) -> bool {
        match self.kin {
            Kin::None => card == self.capability,
            Kin::Family => card.0 == self.capability.0 && card >= self.capability,
            Kin::Later => card >= self.capability,
        }
    }
}

impl fmt::Display for Build {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let (major, minor) = self.capability;
        match self.kin {
            Kin::None => write!(f, "{major}.{minor} alone"),
            Kin::Family => write!(f, "{major}.{minor} to {major}.9"),
            Kin::Later => write!(f, "{major}.{minor} and later"),
        }
    }
}

/// The first cards with the instructions that our own kernels are written in.
const LEAST_CAPABILITY: (u32, u32) = (8, 0);

/// A card as the driver describes it.
struct Card {
    name: String,
    capability: (u32, u32),
    /// The newest CUDA that the driver knows.
    driver: (u32, u32),
}

impl Card {
    /// Starts the driver and looks for the card of this number.
    fn find(number: usize) -> Result<Self> {
        ask(cuInit(0))?;
        let count = answer(|count| cuDeviceGetCount(count))?;
        let index = c_int::try_from(number)
            .ok()
            .filter(|&number| number < count);
        let Some(index) = index else {
            match count {
                ..1 => bail!(no_card()),
                1 => bail!("this machine has one card; use --device cuda:0, or cpu"),
                _ => bail!(
                    "this machine has {count} cards; use --device cuda:0 to cuda:{}, or cpu",
                    count - 1
                ),
            }
        };
        let device = answer(|device| cuDeviceGet(device, index))?;
        let attribute = |attribute| -> Result<u32> {
            let value = answer(|value| cuDeviceGetAttribute(value, attribute, device))?;
            u32::try_from(value)
                .with_context(|| format!("the driver says {value} for attribute {attribute}"))
        };
        let capability = (
            attribute(COMPUTE_CAPABILITY_MAJOR)?,
            attribute(COMPUTE_CAPABILITY_MINOR)?,
        );
        let driver = answer(|version| cuDriverGetVersion(version))?;
        let driver = u32::try_from(driver).unwrap_or(0);
        let mut name = [0u8; 256];
        // SAFETY: there is room for the length that is given, less one, and a zero.
        ask(unsafe { cuDeviceGetName(name.as_mut_ptr().cast(), name.len() as c_int - 1, device) })?;
        let name = CStr::from_bytes_until_nul(&name).expect("the last byte was left zero");
        Ok(Self {
            name: name.to_string_lossy().into_owned(),
            capability,
            driver: (driver / 1000, driver % 1000 / 10),
        })
    }

    /// Whether the card and its driver run the kernels of this build.
    fn runs(&self, build: Build) -> Result<()> {
        let (name, (major, minor)) = (&self.name, self.capability);
        ensure!(
            self.capability >= LEAST_CAPABILITY,
            "the {name} has compute capability {major}.{minor}, the kernels need {}.{} (Ampere) or later; use --device cpu",
            LEAST_CAPABILITY.0,
            LEAST_CAPABILITY.1
        );
        ensure!(
            build.runs_on(self.capability),
            "the {name} has compute capability {major}.{minor}, this build is for {build}; build with CUDA_COMPUTE_CAP={major}{minor}, \
             or use --device cpu"
        );
        let (cuda, driver) = (build.cuda(), self.driver);
        ensure!(
            driver >= cuda,
            "the NVIDIA driver is for CUDA {}.{}, this build needs {}.{}; update the driver, build with an older CUDA, or use \
             --device cpu",
            driver.0,
            driver.1,
            cuda.0,
            cuda.1
        );
        Ok(())
    }
}

fn no_card() -> String {
    let visible = match std::env::var("CUDA_VISIBLE_DEVICES") {
        Ok(value) => format!(" (CUDA_VISIBLE_DEVICES is '{value}')"),
        Err(_) => String::new(),
    };
    format!("the NVIDIA driver finds no card{visible}; use --device cpu")
}

// cuda.h's CUdevice_attribute
const COMPUTE_CAPABILITY_MAJOR: c_int = 75;
const COMPUTE_CAPABILITY_MINOR: c_int = 76;

// The safe ones ask for nothing but the addresses that they write to: a driver that has not started says so.
unsafe extern "C" {
    safe fn cuInit(flags: c_uint) -> c_int;
    safe fn cuDriverGetVersion(version: &mut c_int) -> c_int;
    safe fn cuDeviceGetCount(count: &mut c_int) -> c_int;
    safe fn cuDeviceGet(device: &mut c_int, index: c_int) -> c_int;
    safe fn cuDeviceGetAttribute(value: &mut c_int, attribute: c_int, device: c_int) -> c_int;
    fn cuDeviceGetName(name: *mut c_char, length: c_int, device: c_int) -> c_int;
    safe fn cuGetErrorName(error: c_int, name: &mut *const c_char) -> c_int;
}

/// The number that a function of the driver writes.
fn answer(question: impl Fn(&mut c_int) -> c_int) -> Result<c_int> {
    let mut answer = 0;
    ask(question(&mut answer))?;
    Ok(answer)
}

/// What the driver returned, as a sentence if it is an error. The numbers are cuda.h's CUresult.
fn ask(returned: c_int) -> Result<()> {
    let why = match returned {
        0 => return Ok(()),
        34 => "libcuda.so.1 is the toolkit's stub, not the NVIDIA driver; take its folder out of LD_LIBRARY_PATH".to_owned(),
        100 | 101 => bail!(no_card()),
        302 => "libcuda.so.1 is too old a driver, or none; update the NVIDIA driver".to_owned(),
        802 => "the machine's cards are not ready yet; see that nvidia-fabricmanager runs".to_owned(),
        803 => "the NVIDIA driver's library and its kernel module are of different versions; restart the machine".to_owned(),
        804 => "libcuda.so.1 is a compatibility package that this card cannot use; take its folder out of LD_LIBRARY_PATH".to_owned(),
        _ => format!("the NVIDIA driver does not work: {}; see what nvidia-smi says", error_name(returned)),
    };
    bail!("{why}, or use --device cpu")
}

fn error_name(error: c_int) -> String {
    let mut name = std::ptr::null();
    // The address of a text of the driver's, or null for an error that it does not know.
    let returned = cuGetErrorName(error, &mut name);
    if returned != 0 || name.is_null() {
        return format!("error {error}");
    }
    // SAFETY: it is such a text, which the driver never frees.
    unsafe { CStr::from_ptr(name) }
        .to_string_lossy()
        .into_owned()
}

#[cfg(all(
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64")
))]
fn open_driver() -> Result<()> {
    super::libraries::open_driver().map_err(|reason| {
        anyhow!("there is no NVIDIA driver ({reason}); install it, or use --device cpu")
    })
}

/// Elsewhere the system's loader has opened it before `main`.
#[cfg(not(all(
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64")
)))]
fn open_driver() -> Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn build(version: &str, target: &str) -> Build {
        let ptx = format!(
            "//\n// Generated by NVIDIA NVVM Compiler\n//\n\n.version {version}\n.target {target}\n.address_size 64\n"
        );
        Build::of(&ptx).expect("it is a head")
    }

    #[test]
    fn the_head_of_the_kernels_says_what_they_are_for() {
        let found = build("9.0", "sm_90a");
        assert_eq!(
            (found.ptx, found.capability, found.kin),
            ((9, 0), (9, 0), Kin::None)
        );
        assert_eq!(build("8.4", "sm_86, debug").capability, (8, 6));
        assert_eq!(build("9.1", "sm_121f").capability, (12, 1));
        assert_eq!(Build::of(".version 9.0\n"), None);
        assert!(Build::of(kernels::FILL.ptx()).is_some());
    }

    #[test]
    fn a_ptx_needs_the_cuda_that_it_came_with() {
        let cuda = |version| build(version, "sm_80").cuda();
        assert_eq!(cuda("7.8"), (11, 8));
        assert_eq!(cuda("8.5"), (12, 5));
        assert_eq!(cuda("8.6"), (12, 7));
        assert_eq!(cuda("8.8"), (12, 9));
        assert_eq!(cuda("9.1"), (13, 1));
    }

    #[test]
    fn kernels_run_on_later_cards_unless_they_are_of_one_architecture() {
        let runs = |target, card| build("9.0", target).runs_on(card);
        assert!(runs("sm_80", (8, 0)) && runs("sm_80", (8, 6)) && runs("sm_80", (12, 0)));
        assert!(!runs("sm_80", (7, 5)));
        assert!(runs("sm_90a", (9, 0)) && !runs("sm_90a", (10, 0)) && !runs("sm_90a", (8, 9)));
        assert!(runs("sm_100f", (10, 3)) && !runs("sm_100f", (12, 0)));
    }

    #[test]
    fn a_card_or_a_driver_that_the_build_is_not_for_is_named_with_the_way_out() {
        let card = |capability, driver| {
            let name = "NVIDIA A10".to_owned();
            Card {
                name,
                capability,
                driver,
            }
            .runs(build("9.0", "sm_90a"))
        };
        card((9, 0), (13, 0)).expect("it runs");
        assert_eq!(
            card((8, 6), (13, 0)).unwrap_err().to_string(),
            "the NVIDIA A10 has compute capability 8.6, this build is for 9.0 alone; build with CUDA_COMPUTE_CAP=86, or use --device cpu"
        );
        assert_eq!(
            card((7, 5), (13, 0)).unwrap_err().to_string(),
            "the NVIDIA A10 has compute capability 7.5, the kernels need 8.0 (Ampere) or later; use --device cpu"
        );
        assert_eq!(
            card((9, 0), (12, 8)).unwrap_err().to_string(),
            "the NVIDIA driver is for CUDA 12.8, this build needs 13.0; update the driver, build with an older CUDA, or use --device cpu"
        );
    }
}
