//! A program built with CUDA where the driver or a fitting card is missing. The driver is a stand-in of a few lines of C, put before the
//! machine's own, so that these say the same on every machine.
use crate::support::{Folder, Run, asset};
use std::process::Command;

/// Answers as the variables DRIVER_INIT, DRIVER_VERSION, DRIVER_CARDS and DRIVER_CARD (the capability times ten) say.
/// A context cannot be had, for want of memory.
const DRIVER: &str = r#"
#include <stdlib.h>
#include <string.h>
static int said(const char *name, int otherwise) { return getenv(name) ? atoi(getenv(name)) : otherwise; }
int cuInit(unsigned flags) { return said("DRIVER_INIT", 0); }
int cuDriverGetVersion(int *version) { *version = said("DRIVER_VERSION", 99000); return 0; }
int cuDeviceGetCount(int *count) { *count = said("DRIVER_CARDS", 1); return 0; }
int cuDeviceGet(int *device, int index) { *device = index; return 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    int card = said("DRIVER_CARD", 10);
    *value = attribute == 75 ? card / 10 : attribute == 76 ? card % 10 : 0;
    return 0;
}
int cuDeviceGetName(char *name, int length, int device) { strncpy(name, "Stand-in", length); return 0; }
int cuGetErrorName(int error, const char **name) { *name = error == 999 ? "CUDA_ERROR_UNKNOWN" : 0; return *name ? 0 : 1; }
int cuGetErrorString(int error, const char **text) { *text = "for want of memory"; return 0; }
int cuDevicePrimaryCtxRetain(void **context, int device) { return 2; }
"#;

/// The functions that make a context the thread's.
const BINDS: &str = "
int cuCtxGetCurrent(void **context) { *context = 0; return 0; }
int cuCtxSetCurrent(void *context) { return 0; }
";

/// A folder that the loader searches first.
struct Machine(Folder);

impl Machine {
    /// No driver: what stands in its place is no library.
    fn bare() -> Self {
        let folder = Folder::new();
        std::fs::create_dir_all(folder.file("lib64")).expect("the folder is writable");
        folder.write("lib64/libcuda.so.1", "");
        Self(folder)
    }

    fn with_driver() -> Self {
        let machine = Self::bare();
        machine.compile("libcuda.so.1", DRIVER);
        machine
    }

    fn compile(&self, name: &str, source: &str) {
        self.0.write("source.c", source);
        let made = Command::new("cc")
            .args(["-shared", "-fPIC", "source.c", "-o"])
            .arg(format!("lib64/{name}"))
            .current_dir(self.0.path())
            .status();
        assert!(
            made.expect("there is a C compiler: it linked the program")
                .success()
        );
    }

    fn run(&self, args: &[&str], variables: &[(&str, &str)]) -> Run {
        let mut command = self.0.command(args);
        command
            .env("LD_LIBRARY_PATH", self.0.file("lib64"))
            .env_remove("CUDA_VISIBLE_DEVICES")
            .envs(variables.iter().copied());
        command.output().expect("the program starts").into()
    }

    /// The reason why `device` cannot be used, which is one line.
    #[track_caller]
    fn refuses(&self, device: &str, variables: &[(&str, &str)]) -> String {
        let run = self.run(&["ddpm", "--device", device], variables);
        assert_eq!((run.code, run.stdout.as_str()), (Some(1), ""), "{run:?}");
        assert_eq!(run.stderr.lines().count(), 1, "{}", run.stderr);
        let number = device.strip_prefix("cuda:").unwrap_or("0");
        let reason = run
            .stderr
            .strip_prefix(&format!("diffuse: device cuda:{number}: "));
        let reason = reason.unwrap_or_else(|| panic!("{}", run.stderr));
        assert!(reason.contains("--device c"), "a way out: {reason}");
        reason.trim_end().to_owned()
    }
}

#[test]
fn no_library_of_cuda_is_needed_to_start() {
    // With this variable the loader lists what it would load, as ldd does, and runs nothing.
    let folder = Folder::new();
    let mut command = folder.command(["--version"]);
    let output = command.env("LD_TRACE_LOADED_OBJECTS", "1").output();
    let run: Run = output.expect("the loader starts").into();
    assert!(run.stdout.contains("libc.so"), "{run:?}");
    for library in ["libcu", "libnv", "libstdc++"] {
        assert!(
            !run.stdout.contains(library),
            "a function is missing from src/engine/cuda/libraries.s: for the linker's reason, see nm -D --undefined-only\n{}",
            run.stdout
        );
    }
}

#[test]
fn without_a_driver_a_card_is_refused_and_auto_draws_on_the_cpu() {
    let machine = Machine::bare();
    let reason = machine.refuses("cuda", &[]);
    assert!(
        reason.starts_with("there is no NVIDIA driver ("),
        "{reason}"
    );
    assert!(reason.contains("libcuda.so.1"), "{reason}");

    let model = asset("tiny-ddpm");
    let args = [
        "ddpm", "--model", &model, "--steps", "1", "--device", "auto", "-v", "-o", "a.png",
    ];
    let run = machine.run(&args, &[]);
    assert_eq!(run.code, Some(0), "{run:?}");
    assert!(
        run.stderr
            .contains("auto: the CPU, since device cuda:0: there is no"),
        "{}",
        run.stderr
    );
    let versions = machine.run(&["-Vv"], &[]);
    assert!(
        versions.stdout.contains("there is no NVIDIA driver"),
        "{versions:?}"
    );
}

#[test]
fn a_driver_that_does_not_start_is_named_with_its_error() {
    let machine = Machine::with_driver();
    for (error, part) in [
        ("34", "the toolkit's stub"),
        ("100", "finds no card; "),
        ("803", "restart the machine"),
        ("999", "CUDA_ERROR_UNKNOWN; see what nvidia-smi says"),
        ("7777", "error 7777"),
    ] {
        let reason = machine.refuses("cuda", &[("DRIVER_INIT", error)]);
        assert!(reason.contains(part), "{reason}");
    }
    let hidden = machine.refuses(
        "cuda",
        &[("DRIVER_INIT", "100"), ("CUDA_VISIBLE_DEVICES", "")],
    );
    assert!(hidden.contains("CUDA_VISIBLE_DEVICES is ''"), "{hidden}");
}

#[test]
fn a_card_that_is_not_there_is_refused_with_those_that_are() {
    let machine = Machine::with_driver();
    let reason = machine.refuses("cuda:1", &[]);
    assert!(reason.contains("one card; use --device cuda:0"), "{reason}");
    let reason = machine.refuses("cuda:8", &[("DRIVER_CARDS", "8")]);
    assert!(
        reason.contains("8 cards; use --device cuda:0 to cuda:7"),
        "{reason}"
    );
    let reason = machine.refuses("cuda:4294967296", &[("DRIVER_CARDS", "0")]);
    assert!(reason.contains("finds no card"), "{reason}");
}

#[test]
fn what_is_missing_is_named_up_to_the_context() {
    let machine = Machine::with_driver();
    let reason = machine.refuses("cuda", &[]);
    assert!(
        reason.contains("compute capability 1.0, the kernels need 8.0"),
        "{reason}"
    );
    // The first that this build is for; each before it is told what to build.
    let mut cards = ["80", "86", "89", "90", "100", "120"].into_iter();
    let fits = cards.find(|&card| {
        let reason = machine.refuses("cuda", &[("DRIVER_CARD", card)]);
        let refused = reason.contains(" this build is for ");
        assert_eq!(
            refused,
            reason.contains(&format!("build with CUDA_COMPUTE_CAP={card}, ")),
            "{reason}"
        );
        !refused
    });
    let fitting = ("DRIVER_CARD", fits.expect("it is for one of these"));

    let reason = machine.refuses("cuda", &[fitting, ("DRIVER_VERSION", "10020")]);
    assert!(
        reason.starts_with("the NVIDIA driver is for CUDA 10.2, this build needs "),
        "{reason}"
    );

    let reason = machine.refuses("cuda", &[fitting]);
    assert!(
        reason.starts_with("cannot be used; use --device cpu"),
        "{reason}"
    );
    assert!(reason.contains("CUDA_ERROR_OUT_OF_MEMORY"), "{reason}");

    // And a driver that gives a context and can do nothing with it.
    let gives = DRIVER.replace(
        "int device) { return 2; }",
        "int device) { *context = &context; return 0; }",
    );
    machine.compile("libcuda.so.1", &gives);
    let reason = machine.refuses("cuda", &[fitting]);
    assert!(
        reason.contains("CUDA_ERROR_SHARED_OBJECT_SYMBOL_NOT_FOUND"),
        "{reason}"
    );
    // Or makes it the thread's, and that is all: what the driver lacks is the error, and no library beside it.
    machine.compile("libcuda.so.1", &format!("{gives}{BINDS}"));
    let reason = machine.refuses("cuda", &[fitting]);
    assert!(
        reason.starts_with("cannot compute; use --device cpu"),
        "{reason}"
    );
    assert!(
        reason.contains("CUDA_ERROR_SHARED_OBJECT_SYMBOL_NOT_FOUND"),
        "{reason}"
    );
}
