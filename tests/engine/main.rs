//! The engine against the diffusers library (fixtures) and against laws.
mod checkpoint;
mod parity {
    mod models;
    mod noise;
    mod support;
}
