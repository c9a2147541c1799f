//! NVIDIA's libraries, opened when a card is asked for and not before, so that one program serves machines with and without them.
//!
//! candle asks cudarc to link the driver, cuBLAS and cuRAND. A program so linked names them as libraries that it cannot start without,
//! and where there is no driver the system's loader ends it before `main`. cudarc's own way around this, `dynamic-loading`, cannot be
//! had: candle's manifest excludes it. So the program brings every function of those libraries itself, and the linker, which leaves
//! out libraries that nothing is missing from, does not name them:
//!
//! ```text
//! cudarc ──calls──> cuInit: jump to *slot ──> before `open`: return CUDA_ERROR_SHARED_OBJECT_SYMBOL_NOT_FOUND
//!                                         └─> after it: libcuda.so.1's cuInit, found by dlsym
//! ```
//!
//! - A jump keeps every argument where it is, so no signature is repeated here.
//! - A function that the library on this machine lacks goes on returning its library's error.
//! - The names are in libraries.s. A function that is not among them is linked as ever: the program works, but needs the library
//!   to start. A test sees that (`tests/cli/cuda.rs`).
//! - The symbols are weak, so that a definition linked elsewhere goes first, and hidden, so that NVIDIA's libraries find each other's
//!   functions and not these.
//! - candle-kernels also links 33 MB of kernels for GGUF weights, which register themselves with libcudart before `main`. No network
//!   here uses them. Their names are defined too, as a trap, and the archive stays out.
use std::arch::global_asm;
use std::ffi::{CStr, CString, c_char, c_void};
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicPtr, Ordering};

/// How the processor jumps to where a slot points, how it returns a number and the address of a text, how it stops.
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
        .macro diffuse_return_text text
            leaq \text(%rip), %rax
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
        .macro diffuse_return_text text
            adrp x0, \text
            add x0, x0, :lo12:\text
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
    // The function \name, defined as what follows.
    .macro diffuse_function section, name
        .pushsection .text.diffuse.\section, "ax", @progbits
        .balign 8
        .weak \name
        .hidden \name
        .type \name, @function
        \name:
    .endm

    // What a library's functions do until it is open, and the starts of its slots and of their names.
    .macro diffuse_library library, error
        .pushsection .text.diffuse.\library, "ax", @progbits
        .Lmissing_\library:
            diffuse_return \error
        .Lmissing_text_\library:
            diffuse_return_text .Ltext_\library
        .popsection
        .pushsection .data.diffuse.\library, "aw", @progbits
        .balign 8
        .globl diffuse_slots_\library
        .hidden diffuse_slots_\library
        diffuse_slots_\library:
        .popsection
        .pushsection .rodata.diffuse.\library, "a", @progbits
        .Ltext_\library:
            .asciz "unknown"
        .globl diffuse_names_\library
        .hidden diffuse_names_\library
        diffuse_names_\library:
        .popsection
    .endm

    .macro diffuse_slots library, missing, names:vararg
        .irp name, \names
            diffuse_function \library, \name
                diffuse_jump .Lslot_\name
            .size \name, . - \name
            .popsection
            .pushsection .data.diffuse.\library, "aw", @progbits
            .Lslot_\name:
                .quad \missing
            .popsection
            .pushsection .rodata.diffuse.\library, "a", @progbits
                .asciz "\name"
            .popsection
        .endr
    .endm

    // Functions that return a status.
    .macro diffuse_jumps library, names:vararg
        diffuse_slots \library, .Lmissing_\library, \names
    .endm

    // Functions that return a text.
    .macro diffuse_texts library, names:vararg
        diffuse_slots \library, .Lmissing_text_\library, \names
    .endm

    // An empty name ends a library's.
    .macro diffuse_end library
        .pushsection .rodata.diffuse.\library, "a", @progbits
            .byte 0
        .popsection
    .endm

    // Functions that nobody calls.
    .macro diffuse_unused names:vararg
        .irp name, \names
            diffuse_function unused, \name
                diffuse_trap
            .size \name, . - \name
            .popsection
        .endr
    .endm
    "#,
    include_str!("libraries.s")
);

/// Where a function is: one entry a name, in the names' order.
type Slot = AtomicPtr<c_void>;

// The first of each. None is read but through `Library::table`.
unsafe extern "C" {
    static diffuse_slots_driver: Slot;
    static diffuse_names_driver: c_char;
    static diffuse_slots_cublaslt: Slot;
    static diffuse_names_cublaslt: c_char;
    static diffuse_slots_cublas: Slot;
    static diffuse_names_cublas: c_char;
    static diffuse_slots_curand: Slot;
    static diffuse_names_curand: c_char;
    static diffuse_slots_nvrtc: Slot;
    static diffuse_names_nvrtc: c_char;
}

/// rustc names what is `used` to the linker first of all, and so the jumps come into every program that this crate is linked into,
/// tests and benches too, before cudarc asks for what they stand for.
#[used]
static JUMPS: Address = Address(&raw const diffuse_slots_driver);

struct Address(#[allow(dead_code)] *const Slot);

// SAFETY: nobody looks at it.
unsafe impl Sync for Address {}

/// A library whose functions libraries.s lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Library {
    Driver,
    CublasLt,
    Cublas,
    Curand,
    /// The compiler of kernels at run time, which candle uses for kernels that are given as text alone: whoever has such opens it first.
    #[allow(dead_code)]
    Nvrtc,
}

impl Library {
    /// Those that candle uses as soon as it has a device. cuBLAS asks for cuBLASLt, which may lie in a folder that the loader does
    /// not know, so that one comes first.
    pub const NEEDED: &[Self] = &[Self::CublasLt, Self::Cublas, Self::Curand];

    /// What NVIDIA calls it.
    pub fn title(self) -> &'static str {
        match self {
            Self::Driver => "the NVIDIA driver",
            Self::CublasLt => "cuBLASLt",
            Self::Cublas => "cuBLAS",
            Self::Curand => "cuRAND",
            Self::Nvrtc => "NVRTC",
        }
    }

    /// Its file in CUDA `major`: the name that a linker would have written into the program.
    pub fn file(self, major: u32) -> String {
        match self {
            Self::Driver => "libcuda.so.1".to_owned(),
            Self::CublasLt => format!("libcublasLt.so.{major}"),
            Self::Cublas => format!("libcublas.so.{major}"),
            Self::Curand => "libcurand.so.10".to_owned(),
            // 11.3 to 11.8 are one to their users.
            Self::Nvrtc if major == 11 => "libnvrtc.so.11.2".to_owned(),
            Self::Nvrtc => format!("libnvrtc.so.{major}"),
        }
    }

    /// Its first slot and its names, each ended by a zero and all of them by an empty one.
    fn table(self) -> (*const Slot, *const c_char) {
        match self {
            Self::Driver => (
                &raw const diffuse_slots_driver,
                &raw const diffuse_names_driver,
            ),
            Self::CublasLt => (
                &raw const diffuse_slots_cublaslt,
                &raw const diffuse_names_cublaslt,
            ),
            Self::Cublas => (
                &raw const diffuse_slots_cublas,
                &raw const diffuse_names_cublas,
            ),
            Self::Curand => (
                &raw const diffuse_slots_curand,
                &raw const diffuse_names_curand,
            ),
            Self::Nvrtc => (
                &raw const diffuse_slots_nvrtc,
                &raw const diffuse_names_nvrtc,
            ),
        }
    }

    /// Each slot with the name of its function.
    fn functions(self) -> impl Iterator<Item = (&'static Slot, &'static CStr)> {
        let (mut slot, mut name) = self.table();
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

    /// Opens the library of CUDA `major`, once, for the rest of the run; from then on its functions can be called.
    /// An error is the system's sentence about the file.
    pub fn open(self, major: u32) -> Result<(), String> {
        static OPENED: [OnceLock<Result<(), String>>; 5] = [const { OnceLock::new() }; 5];
        let opened = OPENED[self as usize].get_or_init(|| {
            let file = self.file(major);
            let handle = open_file(&file, &self.folders())?;
            let (mut found, mut all) = (0, 0);
            for (slot, name) in self.functions() {
                all += 1;
                // SAFETY: the handle is of an open library, which is never closed, and the name ends with a zero.
                let function = unsafe { libc::dlsym(handle, name.as_ptr()) };
                if !function.is_null() {
                    slot.store(function, Ordering::Release);
                    found += 1;
                }
            }
            tracing::debug!("{file}: {found} of {all} functions");
            Ok(())
        });
        opened.clone()
    }

    /// Where a toolkit lies that the loader was not told of.
    fn folders(self) -> Vec<PathBuf> {
        if self == Self::Driver {
            return Vec::new();
        }
        let named = ["CUDA_HOME", "CUDA_PATH"].map(std::env::var_os);
        let named = named
            .into_iter()
            .flatten()
            .filter(|folder| !folder.is_empty());
        let usual = ["/usr/local/cuda", "/opt/cuda"].map(Into::into);
        let roots = named.chain(usual).map(PathBuf::from);
        roots
            .flat_map(|root| ["lib64", "lib"].map(|folder| root.join(folder)))
            .collect()
    }
}

/// `file` as the system's loader finds it, or else from the first of `folders` that has it.
fn open_file(file: &str, folders: &[PathBuf]) -> Result<*mut c_void, String> {
    open_path(file.as_bytes()).or_else(|reason| {
        let mut paths = folders
            .iter()
            .map(|folder| folder.join(file))
            .filter(|path| path.is_file());
        match paths.next() {
            Some(path) => open_path(path.as_os_str().as_encoded_bytes()),
            None => Err(reason),
        }
    })
}

fn open_path(path: &[u8]) -> Result<*mut c_void, String> {
    let path = CString::new(path).map_err(|err| err.to_string())?;
    // SAFETY: the path ends with a zero. What runs when these libraries are opened is what would have run before `main`.
    let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_LAZY | libc::RTLD_LOCAL) };
    if !handle.is_null() {
        return Ok(handle);
    }
    // SAFETY: it takes nothing and returns null or a text that is this thread's until its next call.
    let reason = unsafe { libc::dlerror() };
    if reason.is_null() {
        return Err(format!("{path:?} cannot be opened"));
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

    // No test opens NVRTC.
    unsafe extern "C" {
        safe fn nvrtcVersion(major: &mut c_int, minor: &mut c_int) -> c_int;
        safe fn nvrtcGetErrorString(error: c_int) -> *const c_char;
    }

    #[test]
    fn functions_of_a_library_that_is_not_open_return_its_error() {
        const NVRTC_ERROR_INTERNAL_ERROR: c_int = 11;
        let (mut major, mut minor) = (1, 2);
        assert_eq!(
            nvrtcVersion(&mut major, &mut minor),
            NVRTC_ERROR_INTERNAL_ERROR
        );
        assert_eq!((major, minor), (1, 2));
        // SAFETY: it is a text of the program's.
        let text = unsafe { CStr::from_ptr(nvrtcGetErrorString(11)) };
        assert_eq!(text, c"unknown");
    }

    #[test]
    fn every_name_of_the_list_has_its_slot() {
        let list = include_str!("libraries.s");
        for (library, key) in [
            (Library::Driver, "driver"),
            (Library::CublasLt, "cublaslt"),
            (Library::Cublas, "cublas"),
            (Library::Curand, "curand"),
            (Library::Nvrtc, "nvrtc"),
        ] {
            let lines = list.lines().filter_map(|line| {
                let line = line
                    .strip_prefix("diffuse_jumps ")
                    .or(line.strip_prefix("diffuse_texts "))?;
                line.strip_prefix(key)?.strip_prefix(", ")
            });
            let listed: Vec<_> = lines.flat_map(|line| line.split(", ")).collect();
            let found = library
                .functions()
                .map(|(_, name)| name.to_str().expect("it is ASCII"));
            assert_eq!(found.collect::<Vec<_>>(), listed, "{key}");
            let (mut slots, _) = library.table();
            for (slot, name) in library.functions() {
                assert!(
                    std::ptr::eq(slot, slots) && !slot.load(Ordering::Acquire).is_null(),
                    "{name:?}"
                );
                slots = slots.wrapping_add(1);
            }
        }
    }

    #[test]
    fn a_file_is_found_in_a_folder_that_the_loader_does_not_know() {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let missing = open_file("libdiffuse-none.so.1", &[folder.path().into()]).unwrap_err();
        assert!(
            missing.starts_with("libdiffuse-none.so.1: cannot open"),
            "{missing}"
        );
        std::fs::write(folder.path().join("libdiffuse-none.so.1"), "").expect("it can be written");
        let broken = open_file("libdiffuse-none.so.1", &[folder.path().into()]).unwrap_err();
        assert!(
            broken.contains(&*folder.path().to_string_lossy()),
            "{broken}"
        );
    }
}
