//! The engine against the diffusers library (fixtures) and against laws. One binary, so that candle is linked once.
mod checkpoint {
    mod files;
    mod parts;
    pub mod support;
    mod tokenizer;
    mod torch;
    mod weights;
}
/// Inputs from anyone, drawn at random: what is read from them is right or an error, and never a panic. A few of each in every run of the tests;
/// `FUZZ_CASES=100000 cargo test --test engine fuzz -- --nocapture` tries more and tells how far they got.
mod fuzz {
    mod configs;
    mod harness;
    mod pickles;
    mod pictures;
    mod safetensors;
    mod tokenizers;
}
mod card;
mod devices;
mod original;
mod schedule_laws;
mod parity {
    mod counts;
    pub mod models;
    mod networks;
    mod noise;
    mod schedulers;
    pub mod support;
}
