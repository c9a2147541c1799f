//! The CPU's arithmetic on plain slices of f32: no tensors, no weights' names, no models.
//!
//! Maps are channels last, (b, h, w, c), and contiguous; tokens are (b, length, features). Results do not depend on the
//! number of threads, which is that of rayon's current pool, nor on what else is in the batch.
//!
//! - [`conv`]: convolutions; `conv_winograd` for 3x3 with stride 1, by the transforms in `winograd`
//! - [`linear`]: linear layers and the gated feed-forward
//! - [`attention`]: softmax(Q K^T) V, tiled
//! - [`norm`]: group norm with SiLU, layer norm
//! - [`activation`]
//! - below them: `gemm` (the product), `traded` (its tile where additions cost nothing), `packed` (weights), `input` (what need not be one
//!   map), `epilogue` (what is folded into the writes), `simd`, `scratch`
//!
//! Every layer has its definition beside it (`.._naive`), and `tests` compares them, and activations with theirs, on awkward sizes
//! for every instruction set of the machine. Lengths that do not fit are a programmer's mistake and panic.
//!
//! All `unsafe` here rests on two facts: an [`simd::Isa`] is made only of what was detected, and slices were checked against the
//! shape at the entrance, in release builds too. The inner functions are unsafe as a whole, with their contract in their
//! doc, so blocks inside them would say nothing more.
#![allow(unsafe_op_in_unsafe_fn)]
// Index loops over fixed small arrays unroll into registers; iterator chains over several of them at once read worse.
#![allow(clippy::needless_range_loop)]

pub mod activation;
pub mod attention;
mod ceiling;
pub mod conv;
mod conv_winograd;
mod epilogue;
mod gemm;
mod input;
pub mod linear;
pub mod norm;
mod packed;
mod scratch;
mod simd;
#[cfg(test)]
mod tests;
mod traded;
mod winograd;

pub use activation::{geglu, gelu_erf, gelu_tanh, quick_gelu, silu};
pub use attention::{AttentionShape, attention};
pub use ceiling::multiply_adds;
pub use conv::{ConvShape, PackedConv2d};
pub use epilogue::Epilogue;
pub use input::{Parts, nearest};
pub use linear::PackedLinear;
pub use norm::{GroupNormShape, group_norm, layer_norm};
pub use packed::Weights;
pub use scratch::unwritten;

/// The length that a slice of these sizes has.
///
/// # Panics
/// If no number says it. Wrapped around, it might be the length of a slice far shorter than the loops that run over it.
fn length(sizes: &[usize]) -> usize {
    let product = sizes
        .iter()
        .try_fold(1usize, |n, &size| n.checked_mul(size));
    product.unwrap_or_else(|| panic!("no slice is as long as {sizes:?}"))
}

/// The instruction set that the kernels use here, as in "Avx2".
pub fn instruction_set() -> String {
    format!("{:?}", simd::Isa::best())
}
