//! Weights laid out once, at load, in the order the product's inner loop reads them.
//!
//! A matrix (n, k) becomes panels of `width` columns: `[n / width][k][width]`, the last panel filled up with zeros.
//! 16-bit weights stay 16-bit and are widened panel by panel in the cache.
use super::length;
use super::scratch::unwritten;
use super::simd::{Isa, kernel};
use bytemuck::Pod;
use half::slice::HalfFloatSliceExt;
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

    pub(super) fn get(&self, i: usize) -> f32 {
        match self {
            Weights::F32(w) => w[i],
            Weights::F16(w) => w[i].to_f32(),
            Weights::BF16(w) => w[i].to_f32(),
        }
    }

    /// The root of the mean square of some 4096 weights; 0 where there are none.
    fn size(&self) -> f32 {
        // an odd step meets every column and channel
        let some = (0..self.len()).step_by(self.len().div_ceil(4096) | 1);
        let count = some.len().max(1) as f32;
        (some.map(|i| self.get(i).powi(2)).sum::<f32>() / count).sqrt()
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
    /// About how large a weight is: the root of the mean square.
    pub size: f32,
}

impl Panels {
    /// From (n, channels, taps), as torch keeps a convolution's weights, to k ordered by tap and then by channel. A linear layer's have
    /// one tap.
    pub fn pack(isa: Isa, weights: Weights<'_>, n: usize, k: usize, taps: usize) -> Self {
        assert_eq!(weights.len(), length(&[n, k]), "weights of {n} x {k}");
        let width = 2 * isa.lanes();
        let shape = (n, k / taps, taps);
        let storage = match weights {
            Weights::F32(w) => Storage::F32(interleave(w, shape, width)),
            Weights::F16(w) => Storage::F16(interleave(w.reinterpret_cast(), shape, width)),
            Weights::BF16(w) => Storage::BF16(interleave(w.reinterpret_cast(), shape, width)),
        };
        Panels {
            storage,
            isa,
            n,
            k,
            width,
            size: weights.size(),
        }
    }

    pub fn count(&self) -> usize {
        self.n.div_ceil(self.width)
    }

    /// Numbers of the buffer that [`Panels::rows`] needs for so many rows: none where the weights are f32.
    pub fn buffer_len(&self, rows: usize) -> usize {
        match self.storage {
            Storage::F32(_) => 0,
            _ => rows * self.width,
        }
    }

    /// Rows `k..k + rows` of a panel as f32, `rows * width` numbers: in place, or widened into the buffer.
    pub fn rows<'a>(
        &'a self,
        panel: usize,
        k: usize,
        rows: usize,
        buffer: &'a mut [f32],
    ) -> &'a [f32] {
        let from = (panel * self.k + k) * self.width;
        let len = rows * self.width;
        match &self.storage {
            Storage::F32(w) => &w[from..][..len],
            Storage::F16(w) => {
                let (w, to) = (&w[from..][..len], &mut buffer[..len]);
                // SAFETY: both slices hold len numbers, which are whole panel rows of two vectors each.
                unsafe { widen_f16(self.isa, w.as_ptr(), to.as_mut_ptr(), len) };
                to
            }
            Storage::BF16(w) => {
                let (w, to) = (&w[from..][..len], &mut buffer[..len]);
                // SAFETY: as above.
                unsafe { widen_bf16(self.isa, w.as_ptr(), to.as_mut_ptr(), len) };
                to
            }
        }
    }
}

kernel! {
    /// # Safety
    /// `w` and `to` are valid for `len` numbers, a multiple of the lanes.
    fn widen_f16[S](w: *const u16, to: *mut f32, len: usize) {
        for i in (0..len).step_by(S::LANES) {
            S::store(to.add(i), S::load_f16(w.add(i)));
        }
    }
}

kernel! {
    /// # Safety
    /// As for `widen_f16`.
    fn widen_bf16[S](w: *const u16, to: *mut f32, len: usize) {
        for i in (0..len).step_by(S::LANES) {
            S::store(to.add(i), S::load_bf16(w.add(i)));
        }
    }
}

/// Input channels taken at a time: rows a multiple of 4 kB apart push each other out of the cache, so each is read by
/// whole cache lines.
const CHANNELS: usize = 16;

fn interleave<T: Pod + Send + Sync>(
    weights: &[T],
    (n, channels, taps): (usize, usize, usize),
    width: usize,
) -> Vec<T> {
    let k = channels * taps;
    // SAFETY: each panel is written below, for every tap and channel all its columns; the last one, which may have fewer, is
    // filled with zeros first. Nothing is read.
    let mut packed: Vec<T> = unsafe { unwritten(n.div_ceil(width) * k * width) };
    packed
        .par_chunks_mut((k * width).max(1))
        .enumerate()
        .for_each(|(panel, to)| {
            let columns = width.min(n - panel * width);
            if columns < width {
                to.fill(T::zeroed());
            }
            let weights = &weights[panel * width * k..][..columns * k];
            for first in (0..channels).step_by(CHANNELS) {
                let last = channels.min(first + CHANNELS);
                let block = first * taps..last * taps;
                // four columns at a time: a row of them is one store
                let fours = weights.chunks_exact((4 * k).max(1));
                let rest = fours.remainder();
                for (j, four) in fours.enumerate() {
                    let four = [0, 1, 2, 3].map(|j| &four[j * k..][block.clone()]);
                    for c in first..last {
                        for tap in 0..taps {
                            let row = four.map(|column| column[(c - first) * taps + tap]);
                            to[(tap * channels + c) * width + 4 * j..][..4].copy_from_slice(&row);
                        }
                    }
                }
                for (j, column) in rest.chunks(k.max(1)).enumerate() {
                    for c in first..last {
                        for tap in 0..taps {
                            to[(tap * channels + c) * width + columns / 4 * 4 + j] =
                                column[c * taps + tap];
                        }
                    }
                }
            }
        });
    packed
}
