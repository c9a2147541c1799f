//! `diffuse`: pictures from diffusion models in the diffusers layout.
//!
//! One direction, from the command line to a PNG:
//!
//! ```text
//! argv ─cli─> rows ─┐
//! Checkpoint ─read─> System ─plan─> Plan (checked, no weights yet) ─load─> Pipeline ─draw─> RgbImage ─png─> file.png
//! ```
//!
//! - [`cli`]: the flags of each command and its run. It may use the engine; the engine never uses it.
//! - [`engine`]: inside it each module may use only those below it:
//!   - `provenance`: what a picture says of its making
//!   - `pipelines`: the two systems, `ddpm` and `txt2img`
//!   - `cost`: what a plan costs; `preview`: latents made visible
//!   - `denoise`: the loop, once for both
//!   - `schedulers`: one sampler a file, host arithmetic in f64
//!   - `models`: the networks, which read like the papers
//!   - `nn`: layers; the place where a device's kernel is chosen
//!   - `cuda`: the layers on an NVIDIA card
//!   - `kernels`: the CPU's arithmetic on plain slices
//!   - `checkpoint`: folders, the hub, weight files
//!   - `png`, `animate`, `sheet`: files and pictures made of pictures
//!   - `output`, `noise`, `progress`, `memory`, `runtime`
//!   - `allocator`: large blocks used again
pub mod cli;
pub mod engine;

// The tests that a card runs are the library's too, and call it by its name.
#[cfg(test)]
extern crate self as diffuse;
