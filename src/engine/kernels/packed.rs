//! Weights laid out once, at load, in the order the product's inner loop reads them.
//!
//! A matrix (n, k) becomes panels of `width` columns: `[n / width][k][width]`, the last panel filled up with zeros.
//! 16-bit weights stay 16-bit and are widened panel by panel in the cache.
use super::simd::{Isa, kernel};
use rayon::prelude::*;

/// Weights as the checkpoint has them, row-major.
#[derive(Clone, Copy)]
pub enum Weights<'a> {
    F32(&'a [f32]),
    F16(&'a [half::f16]),
    BF16(&'a [half::bf16]),
}

impl Weights<'_> {
    pub fn len(&self) -> usize {
        match self {
            Weights::F32(w) => w.len(),
            Weights::F16(w) => w.len(),
            Weights::BF16(w) => w.len(),
        }
    }
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[derive(Clone)]
enum Storage {
    F32(Vec<f32>),
    F16(Vec<u16>),
    BF16(Vec<u16>),
}

#[derive(Clone)]
pub(super) struct Panels {
    storage: Storage,
    pub isa: Isa,
    pub n: usize,
    pub k: usize,
    pub width: usize,
}

impl Panels {
    /// `order(s)` is the row of the packed matrix that column `s` of the given one becomes.
    pub fn pack(
        isa: Isa,
        weights: Weights<'_>,
        n: usize,
        k: usize,
        order: impl Fn(usize) -> usize + Sync,
    ) -> Self {
        assert_eq!(weights.len(), n * k, "weights of {n} x {k}");
        let width = 2 * isa.lanes();
        let storage = match weights {
            Weights::F32(w) => Storage::F32(interleave(n, k, width, &order, |i| w[i])),
            Weights::F16(w) => Storage::F16(interleave(n, k, width, &order, |i| w[i].to_bits())),
            Weights::BF16(w) => Storage::BF16(interleave(n, k, width, &order, |i| w[i].to_bits())),
        };
        Panels {
            storage,
            isa,
            n,
            k,
            width,
        }
    }

    pub fn count(&self) -> usize {
        self.n.div_ceil(self.width)
    }

    /// Are 16-bit weights to be widened? Then [`Panels::rows`] needs a buffer.
    pub fn buffer_len(&self, rows: usize) -> usize {
        match self.storage {
            Storage::F32(_) => 0,
            _ => rows * self.width,
        }
    }

    /// Rows `k..k + rows` of a panel as f32: in place, or widened into the buffer.
    pub fn rows(&self, panel: usize, k: usize, rows: usize, buffer: &mut [f32]) -> *const f32 {
        let from = (panel * self.k + k) * self.width;
        let len = rows * self.width;
        match &self.storage {
            Storage::F32(w) => w[from..from + len].as_ptr(),
            Storage::F16(w) => {
                // SAFETY: both slices hold len numbers, len is a multiple of the lanes, and isa was detected.
                unsafe {
                    widen_f16(
                        self.isa,
                        w[from..from + len].as_ptr(),
                        buffer[..len].as_mut_ptr(),
                        len,
                    )
                };
                buffer.as_ptr()
            }
            Storage::BF16(w) => {
                // SAFETY: as above.
                unsafe {
                    widen_bf16(
                        self.isa,
                        w[from..from + len].as_ptr(),
                        buffer[..len].as_mut_ptr(),
                        len,
                    )
                };
                buffer.as_ptr()
            }
        }
    }
}

kernel! {
    fn widen_f16[S](w: *const u16, to: *mut f32, len: usize) {
        for i in (0..len).step_by(S::LANES) {
            S::store(to.add(i), S::load_f16(w.add(i)));
        }
    }
}

kernel! {
    fn widen_bf16[S](w: *const u16, to: *mut f32, len: usize) {
        for i in (0..len).step_by(S::LANES) {
            S::store(to.add(i), S::load_bf16(w.add(i)));
        }
    }
}

/// Numbers of a cache line, at least.
const LINE: usize = 16;

fn interleave<T: Copy + Default + Send + Sync>(
    n: usize,
    k: usize,
    width: usize,
    order: &(impl Fn(usize) -> usize + Sync),
    at: impl Fn(usize) -> T + Sync,
) -> Vec<T> {
    let mut packed = vec![T::default(); n.div_ceil(width) * k * width];
    packed
        .par_chunks_mut((k * width).max(1))
        .enumerate()
        .for_each(|(panel, to)| {
            let columns = width.min(n - panel * width);
            // a cache line of each row at a time: rows a multiple of 4 kB apart push each other out of the cache
            for first in (0..k).step_by(LINE) {
                for j in 0..columns {
                    for s in first..(first + LINE).min(k) {
                        to[order(s) * width + j] = at((panel * width + j) * k + s);
                    }
                }
            }
        });
    packed
}
