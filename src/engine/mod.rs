//! The engine: models and schedulers from a checkpoint, the loop, and the pictures.
pub mod checkpoint;
pub mod denoise;
pub mod noise;
pub mod pipelines;
pub mod runtime;
pub mod schedulers;
