//! A model folder from a stranger, and a run that must end at once, in one line and in little memory.
use crate::support::{Folder, Run, asset};
use std::time::{Duration, Instant};

/// A copy of a checkpoint of the assets, as `model` in a folder.
pub fn model(name: &str) -> Folder {
    let folder = Folder::new();
    for (file, bytes) in crate::hub::server::files_of(std::path::Path::new(&asset(name))) {
        write(&folder, &file, bytes);
    }
    folder
}

pub const UNET: &str = "unet/diffusion_pytorch_model.safetensors";

/// Replaces a file of the model.
pub fn write(folder: &Folder, file: &str, bytes: impl AsRef<[u8]>) {
    let path = folder.file("model").join(file);
    std::fs::create_dir_all(path.parent().expect("it is in a folder")).expect("it is writable");
    std::fs::write(path, bytes).expect("it is writable");
}

/// The run of one step of the model, in the room that it has.
pub fn run(folder: &Folder, args: &[&str]) -> Run {
    #[cfg(target_os = "linux")]
    {
        /// Kilobytes of address space: program, threads' stacks and all that a file makes it take.
        const ROOM: usize = 200_000;
        let mut command = folder.command_after(&format!("ulimit -v {ROOM}"), args);
        // Each thread would set room of its own aside.
        command.env("MALLOC_ARENA_MAX", "1");
        command.output().expect("sh is there").into()
    }
    #[cfg(not(target_os = "linux"))]
    folder.run(args)
}

pub const DDPM: [&str; 9] = [
    "ddpm",
    "--model",
    "model",
    "--steps",
    "1",
    "--threads",
    "1",
    "-o",
    "a.png",
];
pub const TXT2IMG: [&str; 10] = [
    "txt2img",
    "a cat",
    "--model",
    "model",
    "--steps",
    "1",
    "--threads",
    "1",
    "-o",
    "a.png",
];

/// The model is refused: one line, no panic, without reading on for ever, and nothing is left behind.
#[track_caller]
pub fn refused(folder: &Folder, args: &[&str]) -> String {
    let before = folder.names();
    let start = Instant::now();
    let run = run(folder, args);
    let taken = start.elapsed();
    assert_eq!((run.code, run.stdout.as_str()), (Some(1), ""), "{run:?}");
    let lines: Vec<&str> = run
        .stderr
        .lines()
        .filter(|line| line.starts_with("diffuse: "))
        .collect();
    assert_eq!(lines.len(), 1, "{}", run.stderr);
    assert!(!run.stderr.contains("panicked"), "{}", run.stderr);
    assert!(lines[0].len() < 1000, "{}", run.stderr);
    assert_eq!(folder.names(), before, "something was left behind");
    // A second where nothing else runs; tests run beside each other, and only what never ends must fail.
    assert!(taken < Duration::from_secs(60), "{taken:?}: {}", run.stderr);
    lines[0].to_owned()
}
