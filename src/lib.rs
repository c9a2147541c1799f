//! `diffuse`: pictures from diffusion models in the diffusers layout.
//!
//! One direction, from the command line to a PNG:
//!
//! ```text
//! argv ─cli─> Checkpoint ─config─> plan (checked, no weights yet) ─load─> pipeline ─denoise─> RgbImage ─output─> file.png
//! ```
//!
//! - [`cli`]: the flags of each command and its run. It may use the engine; the engine never uses it.
//! - [`engine`]: inside it each module may use only those below it:
//!   - `pipelines`: the two systems, `ddpm` and `txt2img`
//!   - `denoise`: the loop, once for both
//!   - `schedulers`: one sampler a file, host arithmetic in f64
//!   - `models`: the networks, which read like the papers
//!   - `nn`: layers; the place where a device's kernel is chosen
//!   - `kernels`: the CPU's arithmetic on plain slices
//!   - `checkpoint`: folders, the hub, weight files
//!   - `output`, `noise`, `runtime`
//!   - `allocator`: large blocks used again
pub mod cli;
pub mod engine;

#[global_allocator]
static ALLOCATOR: engine::allocator::KeepLarge = engine::allocator::KeepLarge;
