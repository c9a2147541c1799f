//! The engine: models and schedulers from a checkpoint, the loop, and the pictures.
pub mod checkpoint;
pub mod denoise;
pub mod models;
pub mod noise;
pub mod runtime;
pub mod schedulers;
