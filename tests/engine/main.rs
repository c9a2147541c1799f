//! The engine against the diffusers library (fixtures) and against laws. One binary, so that candle is linked once.
mod checkpoint;
mod fuzz;
mod original;
mod schedule_laws;
mod parity {
    mod counts;
    mod models;
    mod noise;
    mod schedulers;
    mod support;
}
