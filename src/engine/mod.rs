//! The engine: models and schedulers from a checkpoint, the loop, and the pictures.
pub mod allocator;
pub mod checkpoint;
pub mod denoise;
pub mod kernels;
pub mod memory;
pub mod models;
pub mod nn;
pub mod noise;
pub mod output;
pub mod pipelines;
pub mod progress;
pub mod runtime;
pub mod schedulers;
