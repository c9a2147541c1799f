//! The engine: models and schedulers from a checkpoint, the loop, and the pictures.
pub mod denoise;
pub mod kernels;
pub mod models;
pub mod nn;
pub mod noise;
pub mod runtime;
pub mod schedulers;
