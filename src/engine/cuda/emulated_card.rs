//! The place of `card` in tests: a card that is none. The kernels' source is compiled for this processor with `kernels/emulator.h`, and
//! tensors of the CPU serve as the card's while [`pretend`] lasts.
pub use super::no_recording::{Recording, free, record, trim, warm};
use super::{Args, Card, Work};
use candle_core::{CpuStorage, DType, Device, Result, Shape, Storage, Tensor};
use half::{bf16, f16};
use libloading::{Library, Symbol};
use std::cell::Cell;
use std::ffi::{CString, c_char};
use std::path::Path;
use std::process::Command;
use std::sync::{LazyLock, Mutex};

/// The emulator runs one kernel at a time.
static KERNELS: LazyLock<Mutex<Library>> = LazyLock::new(|| Mutex::new(compile()));

fn compile() -> Library {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/engine/cuda/kernels/all.cu");
    let folder = tempfile::tempdir().unwrap();
    let library = folder.path().join("kernels.so");
    let compiler = std::env::var_os("CXX").unwrap_or("c++".into());
    let status = Command::new(&compiler)
        .args([
            "-std=c++17",
            "-O2",
            "-w",
            "-U_FORTIFY_SOURCE",
            "-shared",
            "-fPIC",
            "-x",
            "c++",
        ])
        .arg(&source)
        .arg("-o")
        .arg(&library)
        .status()
        .unwrap_or_else(|e| panic!("{}: {e}", compiler.display()));
    assert!(status.success(), "the kernels are not C++");
    // SAFETY: nothing runs when it is loaded.
    unsafe { Library::new(&library) }.unwrap()
}

thread_local! {
    static PRETENDED: Cell<bool> = const { Cell::new(false) };
}

/// `f` with the CPU as a card, for this thread.
pub fn pretend<T>(f: impl FnOnce() -> T) -> T {
    PRETENDED.set(true);
    let result = f();
    PRETENDED.set(false);
    result
}

/// As the tests for a card ask for one.
pub fn on_card<T>(f: impl FnOnce(Device) -> T) -> T {
    pretend(|| f(Device::Cpu))
}

pub fn serves(device: &Device) -> bool {
    device.is_cpu() && PRETENDED.get()
}

/// So small that most shapes are more than it can do at once, and some are less.
pub fn card(_device: &Device) -> Result<Card> {
    Ok(Card {
        multiprocessors: 6,
        shared_bytes: 227 << 10,
        groups: true,
    })
}

/// Runs the kernels of `work`.
///
/// # Safety
/// The addresses are those of blocks of the sizes that the plan is for.
pub unsafe fn emulate<A: Args>(work: Work<A>, inputs: &[u64], result: u64, scratch: u64) {
    type Emulate<A> = unsafe extern "C" fn(
        name: *const c_char,
        args: *const A,
        grid: *const [u32; 3],
        block: *const [u32; 3],
        shared_bytes: usize,
    ) -> i32;
    let library = KERNELS.lock().unwrap_or_else(|e| e.into_inner());
    // SAFETY: what emulator.h declares.
    let emulate: Symbol<Emulate<A>> = unsafe { library.get(b"emulate") }.unwrap();
    for mut launch in work.launches {
        launch.args.place(inputs, result, scratch);
        let name = CString::new(launch.kernel).unwrap();
        let (grid, block) = (launch.grid, [launch.threads, 1, 1]);
        let shared_bytes = launch.shared_bytes as usize;
        // SAFETY: as the caller says.
        let status = unsafe { emulate(name.as_ptr(), &launch.args, &grid, &block, shared_bytes) };
        assert_eq!(status, 0, "{name:?}: see Kernel::start");
    }
}

/// As on a card, of the CPU's tensors.
pub fn run<A: Args>(work: Work<A>, inputs: &[Option<&Tensor>], shape: Shape) -> Result<Tensor> {
    let dtype = inputs[0].expect("a kernel has an input").dtype();
    let guards: Vec<_> = inputs
        .iter()
        .map(|x| x.map(Tensor::storage_and_layout))
        .collect();
    let mut addresses = Vec::new();
    for guard in &guards {
        let Some((storage, layout)) = guard else {
            addresses.push(0);
            continue;
        };
        let (start, _) = layout
            .contiguous_offsets()
            .expect("contiguous tensors alone");
        let Storage::Cpu(storage) = &**storage else {
            candle_core::bail!("a tensor that is not the CPU's")
        };
        addresses.push(match (storage, dtype) {
            (CpuStorage::F32(x), DType::F32) => x[start..].as_ptr() as u64,
            (CpuStorage::F16(x), DType::F16) => x[start..].as_ptr() as u64,
            (CpuStorage::BF16(x), DType::BF16) => x[start..].as_ptr() as u64,
            _ => candle_core::bail!("{:?} where {dtype:?} is wanted", storage),
        });
    }
    let mut scratch = vec![f32::NAN; work.scratch];
    let beside = scratch.as_mut_ptr() as u64;
    let numbers = shape.elem_count();
    macro_rules! result {
        ($one:expr) => {{
            let mut y = vec![$one; numbers];
            // SAFETY: the layers plan for the sizes of their tensors.
            unsafe { emulate(work, &addresses, y.as_mut_ptr() as u64, beside) };
            Tensor::from_vec(y, shape, &Device::Cpu)
        }};
    }
    match dtype {
        DType::F16 => result!(f16::NAN),
        DType::BF16 => result!(bf16::NAN),
        _ => result!(f32::NAN),
    }
}
