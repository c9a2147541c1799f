//! softmax(Q K^T * scale) V without the matrix of scores.
//!
//! Tokens as the linear layers leave them: q (b, lq, heads * d), k and v (b, lk, heads * d), y like q; a head's numbers are
//! d neighbours in each token and nothing is transposed. Keys and values are packed once into panels; then
//! each task takes a block of queries of one head through the keys, a block at a time, keeping for every query the
//! largest score so far, the sum of the exponentials and the weighted values (Milakov & Gimelshein 2018; Dao 2022).
//! The blocks of keys are the same whatever the threads and the batch, and so are the sums.
use super::gemm::tile;
use super::scratch::{Scratch, Shared};
use super::simd::{Isa, Simd, exp_below, kernel};
use rayon::prelude::*;

/// Queries of a task: a multiple of every instruction set's tile rows.
const QUERIES: usize = 48;
/// Keys of a block: 48 x 256 scores are 48 kB.
const KEYS: usize = 256;

#[derive(Clone, Copy, Debug)]
pub struct AttentionShape {
    pub b: usize,
    pub heads: usize,
    pub lq: usize,
    pub lk: usize,
    /// Numbers of a head.
    pub d: usize,
    /// Query i sees keys up to i + lk - lq only.
    pub causal: bool,
}

/// y (b, lq, heads * d) = softmax(q k^T * scale) v
pub fn attention(
    q: &[f32],
    k: &[f32],
    v: &[f32],
    shape: AttentionShape,
    scale: f32,
    y: &mut [f32],
) {
    attention_for(Isa::best(), q, k, v, shape, scale, y);
}

pub(super) fn attention_for(
    isa: Isa,
    q: &[f32],
    k: &[f32],
    v: &[f32],
    shape: AttentionShape,
    scale: f32,
    y: &mut [f32],
) {
    let AttentionShape {
        b,
        heads,
        lq,
        lk,
        d,
        ..
    } = shape;
    assert_eq!(q.len(), b * lq * heads * d, "queries of {shape:?}");
    assert_eq!(k.len(), b * lk * heads * d, "keys of {shape:?}");
    assert_eq!(v.len(), k.len(), "values like keys");
    assert_eq!(y.len(), q.len(), "result like queries");
    assert!(lk > 0 || y.is_empty(), "attention needs a key");
    if y.is_empty() {
        return;
    }
    let width = 2 * isa.lanes();
    let value_width = value_vectors(isa.lanes(), d) * isa.lanes();
    let padded = d.next_multiple_of(value_width);
    let k_len = lk.next_multiple_of(width) * d;
    let v_len = padded * lk;
    let mut packed = Scratch::take(b * heads * (k_len + v_len));
    packed
        .par_chunks_mut(k_len + v_len)
        .enumerate()
        .for_each(|(head, to)| {
            let from = head / heads * lk * heads * d + head % heads * d;
            let (keys, values) = to.split_at_mut(k_len);
            pack_keys(&k[from..], heads * d, lk, d, width, keys);
            pack_values(&v[from..], heads * d, lk, d, value_width, values);
        });
    let blocks = lq.div_ceil(QUERIES);
    let out = Shared::new(y);
    (0..b * heads * blocks)
        .into_par_iter()
        .with_max_len(1)
        .for_each(|task| {
            let (head, block) = (task / blocks, task % blocks);
            let first = block * QUERIES;
            let from = (head / heads * lq + first) * heads * d + head % heads * d;
            let mut scratch = Scratch::take(QUERIES * (d + KEYS + padded + 2));
            let packed = &packed[head * (k_len + v_len)..][..k_len + v_len];
            let job = Job {
                shape,
                scale,
                first,
                rows: QUERIES.min(lq - first),
            };
            // SAFETY: q[from..] holds the block's rows at a stride of heads * d, y alike, and this task alone writes those
            // rows of this head; packed and scratch have the lengths computed above.
            unsafe {
                let keys = packed.as_ptr();
                let y = out.pointer().add(from);
                queries(
                    isa,
                    &job,
                    q[from..].as_ptr(),
                    keys,
                    keys.add(k_len),
                    scratch.as_mut_ptr(),
                    y,
                )
            };
        });
}

/// Vectors of a panel of values: such that a head of 40, 80 or 24 numbers leaves no lanes idle.
fn value_vectors(lanes: usize, d: usize) -> usize {
    let vectors = d.div_ceil(lanes);
    [2, 5, 3]
        .into_iter()
        .find(|c| vectors.is_multiple_of(*c))
        .unwrap_or(2)
}

/// `[key / width][d][width]`, zeros after the last key.
fn pack_keys(k: &[f32], stride: usize, lk: usize, d: usize, width: usize, to: &mut [f32]) {
    for (panel, to) in to.chunks_mut(d * width).enumerate() {
        let keys = width.min(lk - panel * width);
        if keys < width {
            to.fill(0.0);
        }
        for j in 0..keys {
            let key = &k[(panel * width + j) * stride..][..d];
            for (i, x) in key.iter().enumerate() {
                to[i * width + j] = *x;
            }
        }
    }
}

/// `[d / width][key][width]`, zeros after the last number of a head.
fn pack_values(v: &[f32], stride: usize, lk: usize, d: usize, width: usize, to: &mut [f32]) {
    for (panel, to) in to.chunks_mut(lk * width).enumerate() {
        let len = width.min(d - panel * width);
        for (key, to) in to.chunks_mut(width).enumerate() {
            to[..len].copy_from_slice(&v[key * stride + panel * width..][..len]);
            to[len..].fill(0.0);
        }
    }
}

struct Job {
    shape: AttentionShape,
    scale: f32,
    /// The block's first query and the number of its queries.
    first: usize,
    rows: usize,
}

kernel! {
    fn queries[S](job: &Job, q: *const f32, keys: *const f32, values: *const f32, scratch: *mut f32, y: *mut f32) {
        let AttentionShape { heads, lq, lk, d, causal, .. } = job.shape;
        let width = 2 * S::LANES;
        let value_width = value_vectors(S::LANES, d) * S::LANES;
        let padded = d.next_multiple_of(value_width);
        let scaled = scratch;
        let scores = scaled.add(QUERIES * d);
        let sums = scores.add(QUERIES * KEYS);
        let largest = sums.add(QUERIES * padded);
        let total = largest.add(QUERIES);
        for i in 0..QUERIES {
            // rows beyond the last query repeat it; they are computed and not written
            let row = q.add(i.min(job.rows - 1) * heads * d);
            for p in 0..d {
                *scaled.add(i * d + p) = *row.add(p) * job.scale;
            }
            *largest.add(i) = f32::NEG_INFINITY;
            *total.add(i) = 0.0;
        }
        for i in 0..QUERIES * padded {
            *sums.add(i) = 0.0;
        }
        // the last key that the last query of the block sees
        let seen = if causal { (job.first + job.rows + lk).saturating_sub(lq).min(lk) } else { lk };
        let mut key = 0;
        while key < seen {
            let len = KEYS.min(lk - key);
            let panels = len.div_ceil(width);
            score_products::<S>(job.rows, scaled, d, keys.add(key * d), panels, scores);
            for i in 0..job.rows {
                let visible = if causal {
                    (job.first + i + 1 + lk).saturating_sub(lq + key).min(len)
                } else {
                    len
                };
                let (row, sums) = (scores.add(i * KEYS), sums.add(i * padded));
                soften::<S>(row, len, visible, largest.add(i), total.add(i), sums, padded);
            }
            // the tile's rows make up for its vectors, so that the sums fill the registers in every form
            let values = values.add(key * value_width);
            let (a, panels, stride) = (scores.cast_const(), padded / value_width, lk * value_width);
            let into = Into { to: sums, stride: padded, add: true };
            match value_width / S::LANES {
                5 => products::<S, 2, 5>(job.rows, a, KEYS, len, values, panels, stride, into),
                3 => products::<S, 4, 3>(job.rows, a, KEYS, len, values, panels, stride, into),
                _ if S::TILE_ROWS == 12 => products::<S, 12, 2>(job.rows, a, KEYS, len, values, panels, stride, into),
                _ => products::<S, 6, 2>(job.rows, a, KEYS, len, values, panels, stride, into),
            }
            key += KEYS;
        }
        for i in 0..job.rows {
            let inverse = S::splat(1.0 / *total.add(i));
            let row = y.add(i * heads * d);
            let mut p = 0;
            while p < d {
                S::store_up_to(row.add(p), S::mul(S::load(sums.add(i * padded + p)), inverse), d - p);
                p += S::LANES;
            }
        }
    }
}

/// Turns a row of scores into weights exp(score - largest), keys from `visible` on into 0, and brings what
/// was summed before to the new largest score.
#[inline(always)]
unsafe fn soften<S: Simd>(
    row: *mut f32,
    len: usize,
    visible: usize,
    largest: *mut f32,
    total: *mut f32,
    sums: *mut f32,
    padded: usize,
) {
    // whole vectors; the scores of hidden keys, and of those that fill up the last panel, become nothing
    let end = visible.next_multiple_of(S::LANES);
    for j in visible..end {
        *row.add(j) = f32::NEG_INFINITY;
    }
    for j in end..len {
        *row.add(j) = 0.0;
    }
    if visible == 0 {
        return;
    }
    let mut top = [S::splat(f32::NEG_INFINITY); 2];
    let mut j = 0;
    while j + 2 * S::LANES <= end {
        top[0] = S::max(top[0], S::load(row.add(j)));
        top[1] = S::max(top[1], S::load(row.add(j + S::LANES)));
        j += 2 * S::LANES;
    }
    if j < end {
        top[0] = S::max(top[0], S::load(row.add(j)));
    }
    let before = *largest;
    let now = before.max(S::reduce_max(S::max(top[0], top[1])));
    let center = S::splat(now);
    let mut sum = [S::splat(0.0); 2];
    j = 0;
    while j + 2 * S::LANES <= end {
        for half in 0..2 {
            let at = row.add(j + half * S::LANES);
            // a hidden key's e^-87 vanishes beside the largest's 1
            let p = exp_below::<S>(S::sub(S::load(at), center));
            S::store(at, p);
            sum[half] = S::add(sum[half], p);
        }
        j += 2 * S::LANES;
    }
    if j < end {
        let p = exp_below::<S>(S::sub(S::load(row.add(j)), center));
        S::store(row.add(j), p);
        sum[0] = S::add(sum[0], p);
    }
    if now > before {
        let factor = (before - now).exp();
        *largest = now;
        *total *= factor;
        let factor = S::splat(factor);
        let mut p = 0;
        while p < padded {
            S::store(sums.add(p), S::mul(S::load(sums.add(p)), factor));
            p += S::LANES;
        }
    }
    *total += S::reduce_add(S::add(sum[0], sum[1]));
}

/// Where products go: a matrix's place and stride, and whether they are added to what is there.
#[derive(Clone, Copy)]
struct Into {
    to: *mut f32,
    stride: usize,
    add: bool,
}

/// scores (rows, KEYS) = scaled queries (rows, d) times panels of keys.
#[inline(always)]
unsafe fn score_products<S: Simd>(
    rows: usize,
    q: *const f32,
    d: usize,
    keys: *const f32,
    panels: usize,
    scores: *mut f32,
) {
    let into = Into {
        to: scores,
        stride: KEYS,
        add: false,
    };
    let stride = d * 2 * S::LANES;
    if S::TILE_ROWS == 12 {
        products::<S, 12, 2>(rows, q, d, d, keys, panels, stride, into);
    } else {
        products::<S, 6, 2>(rows, q, d, d, keys, panels, stride, into);
    }
}

/// a (rows, k) times packed panels of C vectors, R rows at a time; the buffers have QUERIES rows, a multiple of R.
#[inline(always)]
#[allow(clippy::too_many_arguments)] // two matrices and their strides
unsafe fn products<S: Simd, const R: usize, const C: usize>(
    rows: usize,
    a: *const f32,
    stride: usize,
    k: usize,
    w: *const f32,
    panels: usize,
    panel_stride: usize,
    into: Into,
) {
    for panel in 0..panels {
        let w = w.add(panel * panel_stride);
        for i in (0..rows).step_by(R) {
            let to = into.to.add(i * into.stride + panel * C * S::LANES);
            let a = a.add(i * stride);
            let mut tile_rows = [a; R];
            for r in 0..R {
                tile_rows[r] = a.add(r * stride);
            }
            let mut acc = [[S::splat(0.0); C]; R];
            tile::<S, R, C>(tile_rows, k, w, &mut acc);
            for r in 0..R {
                for j in 0..C {
                    let at = to.add(r * into.stride + j * S::LANES);
                    let v = if into.add {
                        S::add(acc[r][j], S::load(at))
                    } else {
                        acc[r][j]
                    };
                    S::store(at, v);
                }
            }
        }
    }
}

/// The definition.
pub fn attention_naive(
    q: &[f32],
    k: &[f32],
    v: &[f32],
    shape: AttentionShape,
    scale: f32,
    y: &mut [f32],
) {
    let AttentionShape {
        b,
        heads,
        lq,
        lk,
        d,
        causal,
    } = shape;
    let width = heads * d;
    for (image, head, i) in
        (0..b).flat_map(|n| (0..heads).flat_map(move |h| (0..lq).map(move |i| (n, h, i))))
    {
        let at = |x: &[f32], len: usize, token: usize, p: usize| {
            f64::from(x[(image * len + token) * width + head * d + p])
        };
        let keys = if causal {
            (i + 1 + lk).saturating_sub(lq).min(lk)
        } else {
            lk
        };
        let scores: Vec<f64> = (0..keys)
            .map(|j| {
                (0..d)
                    .map(|p| at(q, lq, i, p) * at(k, lk, j, p))
                    .sum::<f64>()
                    * f64::from(scale)
            })
            .collect();
        let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = scores.iter().map(|s| (s - top).exp()).collect();
        let total: f64 = weights.iter().sum();
        for p in 0..d {
            let sum: f64 = weights
                .iter()
                .enumerate()
                .map(|(j, w)| w * at(v, lk, j, p))
                .sum();
            y[(image * lq + i) * width + head * d + p] = (sum / total) as f32;
        }
    }
}
