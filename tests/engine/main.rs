//! The engine against the diffusers library (fixtures) and against laws.
mod parity {
    mod models;
    mod noise;
    mod support;
}
