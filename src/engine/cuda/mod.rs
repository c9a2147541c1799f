//! The layers on an NVIDIA card: kernels of our own, in CUDA C++, for maps with their channels last.
//!
//! - [`product`]: convolutions and linear layers, with everything that follows the sum in the same kernel; [`weight`]: how their weights lie
//! - [`attention`]: softmax(Q K^T) V without the scores in memory
//! - [`norm`]: group norm with SiLU, layer norm
//! - [`activation`]: the other functions of every element
//! - `card`: the one file that talks to the driver: it loads the kernels and starts them on tensors. Tests have a card that is none,
//!   `emulated_card`, which runs the kernels' own source on a processor
//! - [`graph`]: a call of a network, recorded once and then started as a whole
//! - `open`: whether a card can be used, and what is missing; `libraries`: the driver's, opened when a card is asked for and not before,
//!   and none of NVIDIA's others
//! - `kernels/`: their source, which `build.rs` compiles
//!
//! Each layer is planned as plain numbers, [`Work`], from the sizes and the dtype alone: which kernels, on how many blocks. Only `card`,
//! `open` and `libraries` need the feature `cuda`. 16-bit numbers are multiplied by the tensor cores and summed in f32; f32 is plain arithmetic without TF32.
// Without the feature, plans are checked by the compiler and read by nobody.
#![cfg_attr(not(any(feature = "cuda", test)), allow(dead_code))]

pub mod activation;
pub mod attention;
#[cfg(all(feature = "cuda", not(test)))]
mod card;
#[cfg(test)]
#[path = "emulated_card.rs"]
mod card;
#[cfg(not(any(feature = "cuda", test)))]
#[path = "no_card.rs"]
mod card;
#[cfg(test)]
mod emulated;
pub mod graph;
#[cfg(all(
    feature = "cuda",
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64")
))]
mod libraries;
#[cfg(any(not(feature = "cuda"), test))]
mod no_recording;
pub mod norm;
#[cfg(feature = "cuda")]
pub mod open;
pub mod product;
pub mod weight;

use candle_core::{DType, Result, Tensor};
pub use card::{free, serves};

/// What a plan depends on beside the sizes.
#[derive(Clone, Copy, Debug)]
pub struct Card {
    /// Streaming multiprocessors, each of which runs blocks on its own.
    pub multiprocessors: u32,
    /// That a block may have.
    pub shared_bytes: u32,
    /// Whether its tensor cores take products of groups of warps (Hopper).
    pub groups: bool,
}

/// What one layer asks of the card: kernels, one after another.
pub struct Work<A> {
    /// How many f32 they need beside the result.
    pub scratch: usize,
    pub launches: Vec<Launch<A>>,
}

/// The start of a kernel. Its blocks are counted along three axes, its threads along one.
pub struct Launch<A> {
    pub kernel: String,
    pub grid: [u32; 3],
    pub threads: u32,
    pub shared_bytes: u32,
    pub args: A,
}

/// The structure that a kernel takes, which its source has under the same name.
///
/// # Safety
/// Its layout is that of the source: `repr(C)`, the same fields in the same order, addresses as `u64`.
pub unsafe trait Args: Copy {
    /// Fills in where everything lies: the tensors that the layer reads, in its own order with 0 for those that are not there, its
    /// result, and the scratch.
    fn place(&mut self, inputs: &[u64], result: u64, scratch: u64);
}

/// The dtype as the kernels' names have it.
fn name(dtype: DType) -> Result<&'static str> {
    match dtype {
        DType::F32 => Ok("f32"),
        DType::F16 => Ok("f16"),
        DType::BF16 => Ok("bf16"),
        other => candle_core::bail!("the card has no kernels for {other:?}"),
    }
}

/// Whether the first number of a contiguous tensor lies where 16 bytes may be read at once, if every row does that has `channels`.
fn aligned(x: &Tensor, channels: usize) -> bool {
    let size = x.dtype().size_in_bytes();
    (x.layout().start_offset() * size).is_multiple_of(16) && (channels * size).is_multiple_of(16)
}

/// Refuses a tensor of another shape than a kernel would read: the card does not look.
fn check(what: &str, x: &Tensor, shape: &[usize]) -> Result<()> {
    match x.dims() == shape {
        true => Ok(()),
        false => candle_core::bail!("{what}: expected {shape:?}, found {:?}", x.dims()),
    }
}

/// A size as the kernels count.
fn int(size: usize) -> Result<i32> {
    match i32::try_from(size) {
        Ok(size) => Ok(size),
        Err(_) => candle_core::bail!("{size} is more than a kernel can count"),
    }
}

/// A number of blocks.
fn blocks(size: usize, each: usize) -> Result<u32> {
    Ok(int(size.div_ceil(each))? as u32)
}
