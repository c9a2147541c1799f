//! The engine against diffusers' own numbers, and the laws it must keep.
mod parity {
    mod schedulers;
}
mod schedule_laws;
