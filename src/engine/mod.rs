//! The engine: models and schedulers from a checkpoint, the loop, and the pictures.
#[cfg(all(target_os = "linux", not(feature = "system-allocator")))]
mod allocator;
pub mod animate;
mod bar_screen;
pub mod beside;
pub mod checkpoint;
pub mod cost;
mod cuda;
pub mod denoise;
pub mod kernels;
pub mod memory;
pub mod models;
pub mod nn;
pub mod noise;
pub mod output;
pub mod pipelines;
pub mod png;
pub mod preview;
pub mod progress;
pub mod provenance;
pub mod runtime;
pub mod schedulers;
pub mod sheet;
