//! NVIDIA's driver, opened when a card is asked for and not before, so that one program serves machines with and without it; and in the
//! place of NVIDIA's other libraries, nothing, so that no machine has to have them.
//!
//! candle asks cudarc to link the driver, cuBLAS, cuRAND and NVRTC. A program so linked names them as libraries that it cannot start
//! without, and where one is missing the system's loader ends it before `main`. cudarc's own way around this, `dynamic-loading`, cannot
//! be had: candle's manifest excludes it. So the program brings every function of those libraries itself, and the linker, which leaves
//! out libraries that nothing is missing from, does not name them:
//!
//! ```text
//! cudarc ──calls──> cuInit: jump to *slot ──> before `open`: return CUDA_ERROR_SHARED_OBJECT_SYMBOL_NOT_FOUND
//!                                         └─> after it: libcuda.so.1's cuInit, found by dlsym
//!                   cublasCreate_v2: a handle of nothing
//!                   cublasGemmEx: return CUBLAS_STATUS_NOT_SUPPORTED
//! ```
//!
//! - A jump keeps every argument where it is, so no signature is repeated here.
//! - A function that this machine's driver lacks goes on returning the error.
//! - Products and random numbers on a card are this program's own. candle makes a handle of cuBLAS and of cuRAND for each device and
//!   uses them for operations that no network here has: the handles stand for nothing, and such an operation ends with an error.
//! - The names are in libraries.s. A function that is not among them is linked as ever: the program works, but needs the library
//!   to start. A test sees that (`tests/cli/cuda.rs`).
//! - The symbols are weak, so that a definition linked elsewhere goes first, and hidden, so that libraries that the driver opens do not
//!   find these in the place of their own.
//! - candle-kernels also links 33 MB of kernels for GGUF weights, which register themselves with libcudart before `main`. No network
//!   here uses them. Their names are defined too, as a trap, and the archive stays out.
use std::arch::global_asm;
use std::ffi::{CStr, c_char, c_void};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicPtr, Ordering};

/// How the processor jumps to where a slot points, returns a number and the address of a text, gives out a handle, stops.
#[cfg(target_arch = "x86_64")]
macro_rules! processor {
    () => {
        r"
        .macro diffuse_jump slot
            jmpq *\slot(%rip)
        .endm
        .macro diffuse_return number
            movl $\number, %eax
            retq
        .endm
        .macro diffuse_return_address of
            leaq \of(%rip), %rax
            retq
        .endm
        .macro diffuse_return_handle
            movq $1, (%rdi)
            movl $0, %eax
            retq
        .endm
        .macro diffuse_trap
            ud2
        .endm
        "
    };
}

#[cfg(target_arch = "aarch64")]
macro_rules! processor {
    () => {
        r"
        .macro diffuse_jump slot
            adrp x16, \slot
            ldr x16, [x16, :lo12:\slot]
            br x16
        .endm
        .macro diffuse_return number
            mov w0, #\number
            ret
        .endm
        .macro diffuse_return_address of
            adrp x0, \of
            add x0, x0, :lo12:\of
            ret
        .endm
        .macro diffuse_return_handle
            mov x1, #1
            str x1, [x0]
            mov w0, #0
            ret
        .endm
        .macro diffuse_trap
            udf #0
        .endm
        "
    };
}

#[cfg(target_arch = "x86_64")]
macro_rules! asm {
    ($($text:expr),*) => { global_asm!($($text),*, options(att_syntax, raw)); };
}

#[cfg(target_arch = "aarch64")]
macro_rules! asm {
    ($($text:expr),*) => { global_asm!($($text),*, options(raw)); };
}

asm!(
    processor!(),
    r#"
    // The function \name, defined as what follows up to diffuse_end.
    .macro diffuse_function name
        .pushsection .text.diffuse, "ax", @progbits
        .balign 8
        .weak \name
        .hidden \name
        .type \name, @function
        \name:
    .endm

    .macro diffuse_end name
        .size \name, . - \name
        .popsection
    .endm

    // Functions of the driver: a jump through a slot each, the slots one after another, and so their names.
    .macro diffuse_jumps names:vararg
        .irp name, \names
            diffuse_function \name
                diffuse_jump .Ldiffuse_slot_\name
            diffuse_end \name
            .pushsection .data.diffuse, "aw", @progbits
            .Ldiffuse_slot_\name:
                .quad .Ldiffuse_missing
            .popsection
            .pushsection .rodata.diffuse, "a", @progbits
                .asciz "\name"
            .popsection
        .endr
    .endm

    // Functions that return a number.
    .macro diffuse_returns number, names:vararg
        .irp name, \names
            diffuse_function \name
                diffuse_return \number
            diffuse_end \name
        .endr
    .endm

    // Functions that return a text.
    .macro diffuse_returns_text names:vararg
        .irp name, \names
            diffuse_function \name
                diffuse_return_address .Ldiffuse_text
            diffuse_end \name
        .endr
    .endm

    // Functions that write a handle to where their first argument points.
    .macro diffuse_handles names:vararg
        .irp name, \names
            diffuse_function \name
                diffuse_return_handle
            diffuse_end \name
        .endr
    .endm

    // Functions that nobody calls.
    .macro diffuse_traps names:vararg
        .irp name, \names
            diffuse_function \name
                diffuse_trap
            diffuse_end \name
        .endr
    .endm

    // What the driver's functions do until it is open: CUDA_ERROR_SHARED_OBJECT_SYMBOL_NOT_FOUND.
    .pushsection .text.diffuse, "ax", @progbits
    .Ldiffuse_missing:
        diffuse_return 302
    .popsection
    .pushsection .data.diffuse, "aw", @progbits
    .balign 8
    .globl diffuse_slots
    .hidden diffuse_slots
    diffuse_slots:
    .popsection
    .pushsection .rodata.diffuse, "a", @progbits
    .Ldiffuse_text:
        .asciz "unknown"
    .globl diffuse_names
    .hidden diffuse_names
    diffuse_names:
    .popsection
    "#,
    include_str!("libraries.s"),
    r#"
    // An empty name ends them.
    .pushsection .rodata.diffuse, "a", @progbits
        .byte 0
    .popsection
    "#
);

/// Where a function is: one entry a name, in the names' order.
type Slot = AtomicPtr<c_void>;

// The first of each. Neither is read but through `functions`.
unsafe extern "C" {
    static diffuse_slots: Slot;
    static diffuse_names: c_char;
}

/// rustc names what is `used` to the linker first of all, and so the jumps come into every program that this crate is linked into,
/// tests and benches too, before cudarc asks for what they stand for.
#[used]
static JUMPS: Address = Address(&raw const diffuse_slots);

struct Address(#[allow(dead_code)] *const Slot);

// SAFETY: nobody looks at it.
unsafe impl Sync for Address {}

/// Each slot with the name of its function.
fn functions() -> impl Iterator<Item = (&'static Slot, &'static CStr)> {
    let (mut slot, mut name) = (&raw const diffuse_slots, &raw const diffuse_names);
    std::iter::from_fn(move || {
        // SAFETY: the names end with an empty one, at which this stops for good, and every other has its slot; both lie in the
        // program, for ever, and the slots are written as atomics alone.
        let function = unsafe { (&*slot, CStr::from_ptr(name)) };
        let length = function.1.count_bytes();
        if length == 0 {
            return None;
        }
        // SAFETY: behind this one is a slot or the end of the slots.
        slot = unsafe { slot.add(1) };
        // SAFETY: behind its zero is a name or the empty one.
        name = unsafe { name.add(length + 1) };
        Some(function)
    })
}

/// Opens the driver, once, for the rest of the run; from then on its functions can be called. An error is the system's sentence about
/// its file.
pub fn open_driver() -> Result<(), String> {
    static OPENED: OnceLock<Result<(), String>> = OnceLock::new();
    let opened = OPENED.get_or_init(|| {
        let handle = open(c"libcuda.so.1")?;
        let (mut found, mut all) = (0, 0);
        for (slot, name) in functions() {
            all += 1;
            // SAFETY: the handle is of an open library, which is never closed, and the name ends with a zero.
            let function = unsafe { libc::dlsym(handle, name.as_ptr()) };
            if !function.is_null() {
                slot.store(function, Ordering::Release);
                found += 1;
            }
        }
        tracing::debug!("the NVIDIA driver has {found} of {all} functions");
        Ok(())
    });
    opened.clone()
}

/// A library as the system's loader finds it.
fn open(file: &CStr) -> Result<*mut c_void, String> {
    // SAFETY: the name ends with a zero. What runs when the driver is opened is what would have run before `main`.
    let handle = unsafe { libc::dlopen(file.as_ptr(), libc::RTLD_LAZY | libc::RTLD_LOCAL) };
    if !handle.is_null() {
        return Ok(handle);
    }
    // SAFETY: it takes nothing and returns null or a text that is this thread's until its next call.
    let reason = unsafe { libc::dlerror() };
    if reason.is_null() {
        return Err(format!("{file:?} cannot be opened"));
    }
    // SAFETY: it is not null, so it is that text.
    Err(unsafe { CStr::from_ptr(reason) }
        .to_string_lossy()
        .into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::c_int;

    // No test opens a driver.
    unsafe extern "C" {
        safe fn cuDriverGetVersion(version: &mut c_int) -> c_int;
        safe fn cublasCreate_v2(handle: &mut usize) -> c_int;
        safe fn cublasSetStream_v2(handle: usize, stream: usize) -> c_int;
        safe fn cublasGetVersion_v2(handle: usize, version: &mut c_int) -> c_int;
        safe fn cublasGetStatusName(status: c_int) -> *const c_char;
    }

    #[test]
    fn functions_of_a_driver_that_is_not_open_return_an_error() {
        const CUDA_ERROR_SHARED_OBJECT_SYMBOL_NOT_FOUND: c_int = 302;
        let mut version = 1;
        assert_eq!(
            cuDriverGetVersion(&mut version),
            CUDA_ERROR_SHARED_OBJECT_SYMBOL_NOT_FOUND
        );
        assert_eq!(version, 1);
    }

    #[test]
    fn a_handle_of_cublas_is_given_out_and_does_nothing() {
        const CUBLAS_STATUS_NOT_SUPPORTED: c_int = 15;
        let (mut handle, mut version) = (0, 1);
        assert_eq!((cublasCreate_v2(&mut handle), handle), (0, 1));
        assert_eq!(cublasSetStream_v2(handle, 2), 0);
        assert_eq!(
            cublasGetVersion_v2(handle, &mut version),
            CUBLAS_STATUS_NOT_SUPPORTED
        );
        // SAFETY: it is a text of the program's.
        let text = unsafe { CStr::from_ptr(cublasGetStatusName(15)) };
        assert_eq!(text, c"unknown");
    }

    #[test]
    fn every_function_of_the_driver_has_its_slot() {
        let lines = include_str!("libraries.s").lines();
        let listed: Vec<_> = lines
            .filter_map(|line| line.strip_prefix("diffuse_jumps "))
            .flat_map(|line| line.split(", "))
            .collect();
        let found = functions().map(|(_, name)| name.to_str().expect("it is ASCII"));
        assert_eq!(found.collect::<Vec<_>>(), listed);
        for ((slot, name), at) in functions().zip(0..) {
            let expected = (&raw const diffuse_slots).wrapping_add(at);
            assert!(
                std::ptr::eq(slot, expected) && !slot.load(Ordering::Acquire).is_null(),
                "{name:?}"
            );
        }
    }

    #[test]
    fn a_library_that_is_not_there_is_named() {
        let missing = open(c"libdiffuse-none.so.1").unwrap_err();
        assert!(
            missing.starts_with("libdiffuse-none.so.1: cannot open"),
            "{missing}"
        );
    }
}
