//! Cargo's build script, no module of the program: compiles the kernels beside it for builds with the feature `cuda`. Any other build has
//! nothing to do here.
use std::collections::BTreeSet;
use std::env;
use std::path::Path;
use std::process::Command;

/// PTX for Ampere is compiled by the driver for any card from then on, once a machine. Hopper's products of groups of warps are no part of
/// it and have machine code of their own.
const ALWAYS: [&str; 2] = [
    "-gencode=arch=compute_80,code=compute_80",
    "-gencode=arch=compute_90a,code=sm_90a",
];

/// Of this machine's cards, a line each; nothing where there is none.
fn capabilities() -> String {
    let asked = Command::new("nvidia-smi")
        .args(["--query-gpu=compute_cap", "--format=csv,noheader"])
        .output();
    match asked {
        Ok(answer) if answer.status.success() => String::from_utf8_lossy(&answer.stdout).into(),
        _ => String::new(),
    }
}

fn main() {
    println!("cargo::rerun-if-changed=src/engine/cuda/build.rs");
    println!("cargo::rerun-if-changed=src/engine/cuda/kernels");
    for name in ["NVCC", "CUDA_COMPUTE_CAP"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    let nvcc = env::var("NVCC").unwrap_or_else(|_| "nvcc".into());
    let out = Path::new(&env::var_os("OUT_DIR").expect("cargo sets it")).join("kernels.fatbin");
    let mut command = Command::new(&nvcc);
    command.args(["-std=c++17", "-O3", "-fatbin"]).args(ALWAYS);
    // The card that candle's kernels are compiled for too: nothing is left to its driver.
    let caps = env::var("CUDA_COMPUTE_CAP").unwrap_or_else(|_| capabilities());
    let caps: BTreeSet<_> = caps
        .lines()
        .map(|cap| cap.trim().trim_end_matches('a').replace('.', ""))
        .collect();
    for cap in caps.iter().filter(|cap| *cap != "90" && !cap.is_empty()) {
        command.arg(format!("-gencode=arch=compute_{cap},code=sm_{cap}"));
    }
    command
        .arg("src/engine/cuda/kernels/all.cu")
        .arg("-o")
        .arg(&out);
    match command.status() {
        Ok(status) if status.success() => {}
        Ok(status) => panic!("{nvcc} could not compile src/engine/cuda/kernels/all.cu: {status}"),
        Err(e) => panic!(
            "{nvcc}: {e}; the feature cuda needs the CUDA toolkit: put nvcc on the path or name it in NVCC"
        ),
    }
}
