//! The engine: models and schedulers from a checkpoint, the loop, and the pictures.
pub mod checkpoint;
pub mod denoise;
pub mod noise;
pub mod output;
pub mod pipelines;
pub mod progress;
pub mod runtime;
pub mod schedulers;
