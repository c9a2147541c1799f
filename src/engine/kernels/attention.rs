//! softmax(Q K^T * scale) V without the matrix of scores.
//!
//! Tokens as the linear layers leave them: q (b, lq, heads * d), k and v (b, lk, heads * d), y like q. A vector's lanes are
//! queries: scores are computed as K Q^T, (keys, queries), and the result as V^T P, (d, queries), so that a head of 40
//! numbers leaves no lane idle and the softmax runs down the columns. A task takes some queries of one head through
//! the keys, a block at a time, keeping for every query the largest score so far, the sum of the exponentials and the
//! weighted values (Milakov & Gimelshein 2018; Dao 2022). The blocks of keys are the same whatever the threads and the
//! batch, and so are the sums.
//!
//! Where additions are to be had beside multiplications, both products are `traded`. A query's own terms are the same for all keys, and the
//! softmax takes them off with the largest score; a key's and a value's are found once; those of the weights with their sum.
//!
//! Measured (Zen 4, AVX-512, 2 threads) against lanes over keys and over the head's numbers: 229 for 260 ms at 2 x 8 heads of
//! 4096 x 4096 x 40, but 4.2 for 3.8 ms at 256 x 256 x 160. Traded: 176 for 220 ms, 5.3 for 6.6 (4096 x 77 x 40), 3.3 for 4.1 (256 x 256 x 160).
use super::gemm::{MOST_ROWS, tile};
use super::length;
use super::scratch::{Scratch, Shared};
use super::simd::{Isa, Simd, exp2, kernel, prefetch};
use super::traded::{Columns, STEP, Tile, add_own_terms, own_terms, power_of_two};
use rayon::prelude::*;

/// Panels of queries, two vectors wide, that a task takes through the keys together.
const PANELS: usize = 3;
/// Keys of a block: their scores with a panel, 15 kB with vectors of 8 numbers and 30 kB with 16, fit the first-level cache, and they are tiles
/// of 12 and of 6.
const KEYS: usize = 240;
/// Numbers of a cache line; divides KEYS, as STEP does.
const LINE: usize = 16;
/// Rows that a row is asked for ahead.
const AHEAD: usize = 12;

#[derive(Clone, Copy, Debug)]
pub struct AttentionShape {
    pub b: usize,
    pub heads: usize,
    pub lq: usize,
    pub lk: usize,
    /// Numbers of a head.
    pub d: usize,
    /// Query i sees keys up to i + lk - lq only; there are at least as many keys as queries, so that each sees one.
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
        causal,
    } = shape;
    assert_eq!(q.len(), length(&[b, lq, heads, d]), "queries of {shape:?}");
    assert_eq!(k.len(), length(&[b, lk, heads, d]), "keys of {shape:?}");
    assert_eq!(v.len(), k.len(), "values like keys");
    assert_eq!(y.len(), q.len(), "result like queries");
    assert!(lk > 0 || y.is_empty(), "attention needs a key");
    assert!(!causal || lk >= lq, "a query without a key: {shape:?}");
    if y.is_empty() {
        return;
    }
    let width = 2 * isa.lanes();
    let head = Head::new(lk, d);
    let mut packed = Scratch::take(length(&[b, heads, head.len]));
    packed
        .par_chunks_mut(head.len)
        .enumerate()
        .for_each(|(index, to)| {
            let from = |length: usize| index / heads * length * heads * d + index % heads * d;
            let (q, k, v) = (&q[from(lq)..], &k[from(lk)..], &v[from(lk)..]);
            head.pack(isa, q, k, v, shape, scale, to);
        });
    let queries_of_task = PANELS * width;
    let tasks = lq.div_ceil(queries_of_task);
    let out = Shared::new(y);
    (0..b * heads * tasks)
        .into_par_iter()
        .with_max_len(1)
        .for_each(|task| {
            let (index, first) = (task / tasks, task % tasks * queries_of_task);
            let from = (index / heads * lq + first) * heads * d + index % heads * d;
            let mut scratch =
                Scratch::take(width * (PANELS * (head.row + d + MOST_ROWS + 2) + KEYS + MOST_ROWS));
            let packed = &packed[index * head.len..][..head.len];
            let job = Job {
                shape,
                head: &head,
                trades: isa.trades(),
                first,
                rows: queries_of_task.min(lq - first),
            };
            // SAFETY: q and y were checked above: from `from` on they hold the task's rows, heads * d apart, and this task alone has
            // those rows of this head. packed and scratch are of the lengths that `queries` asks for.
            unsafe {
                let y = out.pointer().add(from);
                let (packed, scratch) = (packed.as_ptr(), scratch.as_mut_ptr());
                queries(isa, &job, q[from..].as_ptr(), packed, scratch, y)
            };
        });
}

/// How a head's keys and values are laid out for the tiles.
struct Head {
    /// Numbers of a key: a head's, filled up with zeros to whole steps.
    row: usize,
    /// Where a block's values begin, `[block][d][KEYS]`, after the keys, `[lk][row]`.
    values: usize,
    /// Where minus the own terms of the keys and of each block's values begin.
    keys_own: usize,
    values_own: usize,
    /// Where the factor of the queries is, and that of the result.
    factors: usize,
    len: usize,
}

impl Head {
    fn new(lk: usize, d: usize) -> Self {
        let (row, blocks) = (d.next_multiple_of(STEP), lk.div_ceil(KEYS));
        let values = lk * row;
        let keys_own = values + blocks * KEYS * d;
        // the last tile may read the terms of rows that are not there
        let values_own = keys_own + 2 * (lk + MOST_ROWS);
        let factors = values_own + 2 * (blocks * d + MOST_ROWS);
        let len = factors + 2;
        Head {
            row,
            values,
            keys_own,
            values_own,
            factors,
            len,
        }
    }

    /// Of one head's queries, keys and values, which lie heads * d apart.
    #[allow(clippy::too_many_arguments)] // those of attention
    fn pack(
        &self,
        isa: Isa,
        q: &[f32],
        k: &[f32],
        v: &[f32],
        shape: AttentionShape,
        scale: f32,
        to: &mut [f32],
    ) {
        let AttentionShape {
            heads, lq, lk, d, ..
        } = shape;
        let stride = heads * d;
        let size = |x: &[f32], length: usize| {
            // some 64 rows tell
            let rows = (0..length).step_by(length.div_ceil(64));
            let sum: f32 = rows
                .clone()
                .flat_map(|i| &x[i * stride..][..d])
                .map(|x| x * x)
                .sum();
            (sum / (rows.len() * d) as f32).sqrt()
        };
        // powers of two: log2 e goes into the scale
        let scale = scale * std::f32::consts::LOG2_E;
        // Keys are made as large as the queries, which get the rest of the factor, and values a quarter on the average,
        // where the weights they meet are 1 at most.
        let of_keys = power_of_two((size(q, lq) * scale.abs() / size(k, lk)).sqrt());
        let of_values = power_of_two(0.25 / size(v, lk));
        to[self.factors] = scale / of_keys;
        to[self.factors + 1] = 1.0 / of_values;
        for key in 0..lk {
            prefetch(k.as_ptr().wrapping_add((key + AHEAD) * stride), d);
            let row = &mut to[key * self.row..][..self.row];
            let (there, filling) = row.split_at_mut(d);
            for (to, from) in there.iter_mut().zip(&k[key * stride..]) {
                *to = from * of_keys;
            }
            filling.fill(0.0);
        }
        // a cache line of each number's row at a time
        for first in (0..lk).step_by(LINE) {
            let to = &mut to[self.values + first / KEYS * KEYS * d + first % KEYS..];
            let there = LINE.min(lk - first);
            for j in 0..LINE {
                prefetch(v.as_ptr().wrapping_add((first + LINE + j) * stride), d);
            }
            for i in 0..d {
                for j in 0..there {
                    to[i * KEYS + j] = v[(first + j) * stride + i] * of_values;
                }
                // what fills up the last step
                to[i * KEYS + there..][..there.next_multiple_of(STEP) - there].fill(0.0);
            }
        }
        if isa.trades() {
            let mut take_down = |from: usize, len: usize, at: usize| {
                let mut own = [0.0; 2];
                // SAFETY: the slice is as long as said.
                unsafe { own_terms(isa, to[from..][..len].as_ptr(), len, &mut own) };
                to[at..][..2].copy_from_slice(&own.map(|own| -own));
            };
            for key in 0..lk {
                take_down(key * self.row, self.row, self.keys_own + 2 * key);
            }
            for block in 0..lk.div_ceil(KEYS) {
                let len = KEYS.min(lk - block * KEYS).next_multiple_of(STEP);
                for i in block * d..(block + 1) * d {
                    take_down(self.values + i * KEYS, len, self.values_own + 2 * i);
                }
            }
        }
    }
}

struct Job<'a> {
    shape: AttentionShape,
    head: &'a Head,
    /// Whether tiles are `traded`.
    trades: bool,
    /// The task's first query and the number of its queries.
    first: usize,
    rows: usize,
}

kernel! {
    /// A task: its queries through all the keys of their head.
    ///
    /// # Safety
    /// q and y are valid for `job.rows`, at least one, of d numbers, heads * d apart, and nobody else uses those of y; `packed` is what
    /// `job.head` has packed, `scratch` is valid for width * (PANELS * (row + d + MOST_ROWS + 2) + KEYS + MOST_ROWS), where
    /// rows <= PANELS * width; `job.trades` only on such a processor.
    fn queries[S](job: &Job, q: *const f32, packed: *const f32, scratch: *mut f32, y: *mut f32) {
        let AttentionShape { heads, lq, lk, d, causal, .. } = job.shape;
        let head = job.head;
        let width = 2 * S::LANES;
        let panels = job.rows.div_ceil(width);
        // for each panel [row][width]: the queries; and [d][width], the sums, with room for a tile that runs past them, as the scores have
        let (scaled, stride) = (scratch, (d + MOST_ROWS) * width);
        let sums = scaled.add(PANELS * head.row * width);
        let scores = sums.add(PANELS * stride);
        let largest = scores.add((KEYS + MOST_ROWS) * width);
        let totals = largest.add(PANELS * width);
        let scale = *packed.add(head.factors);
        for panel in 0..panels {
            for lane in 0..width {
                // lanes beyond the last query repeat it; they are computed and not written
                let row = q.add((panel * width + lane).min(job.rows - 1) * heads * d);
                prefetch(row.wrapping_add(AHEAD * heads * d), d);
                let to = scaled.add(panel * head.row * width + lane);
                for p in 0..d {
                    *to.add(p * width) = *row.add(p) * scale;
                }
                for p in d..head.row {
                    *to.add(p * width) = 0.0;
                }
            }
        }
        for i in 0..panels * width {
            // finite, so that a block of hidden scores gives no infinity minus infinity
            *largest.add(i) = -1e30;
            *totals.add(i) = 0.0;
        }
        for i in 0..panels * stride {
            *sums.add(i) = 0.0;
        }
        // the last key that the last query of the task sees
        let seen = if causal { (job.first + job.rows + lk).saturating_sub(lq).min(lk) } else { lk };
        for key in (0..seen).step_by(KEYS) {
            let len = KEYS.min(seen - key);
            let steps = len.next_multiple_of(STEP);
            let (keys, values) = (packed.add(key * head.row), packed.add(head.values + key * d));
            for panel in 0..panels {
                let (scaled, sums) = (scaled.add(panel * head.row * width), sums.add(panel * stride));
                let mut top = if job.trades {
                    // a query's own terms stay in its scores: the softmax takes them off with the largest
                    let columns = Columns::new::<S>([S::splat(0.0); 2]);
                    let own = packed.add(head.keys_own + 2 * key).cast();
                    let tile = Tile { a: keys, stride: head.row, len: head.row, w: scaled, own, columns: &columns, to: scores };
                    tile.all(len, false);
                    largest_of::<S>(scores, len)
                } else {
                    products::<S>(keys, head.row, len, head.row, scaled, scores, None)
                };
                if causal {
                    for i in 0..width {
                        // key <= query + lk - lq
                        let query = job.first + panel * width + i;
                        for j in (query + lk + 1).saturating_sub(lq + key)..len {
                            *scores.add(j * width + i) = f32::NEG_INFINITY;
                        }
                    }
                    top = largest_of::<S>(scores, len);
                }
                for i in len * width..steps * width {
                    *scores.add(i) = f32::NEG_INFINITY;
                }
                let (factors, own) = soften::<S>(scores, steps, top, largest.add(panel * width), totals.add(panel * width), job.trades);
                if job.trades {
                    let mut columns = Columns::new::<S>(own);
                    columns.factors.set::<S>(factors);
                    let own = packed.add(head.values_own + 2 * (key / KEYS * d)).cast();
                    let tile = Tile { a: values, stride: KEYS, len: steps, w: scores, own, columns: &columns, to: sums };
                    tile.all(d, true);
                } else {
                    products::<S>(values, KEYS, d, len, scores, sums, Some(factors));
                }
            }
        }
        let scale = *packed.add(head.factors + 1);
        for i in 0..job.rows {
            let inverse = scale / *totals.add(i);
            let row = y.add(i * heads * d);
            let from = sums.add(i / width * stride + i % width);
            for p in 0..d {
                *row.add(p) = *from.add(p * width) * inverse;
            }
        }
    }
}

/// Of each column of scores (len, width) the largest.
///
/// # Safety
/// `scores` is valid for len * width numbers; and as for [`Simd`].
#[inline(always)]
unsafe fn largest_of<S: Simd>(scores: *const f32, len: usize) -> [S::V; 2] {
    let mut top = [S::splat(f32::NEG_INFINITY); 2];
    for j in 0..len {
        for half in 0..2 {
            let score = S::load(scores.add((j * 2 + half) * S::LANES));
            top[half] = S::max(top[half], score);
        }
    }
    top
}

/// Turns scores (len, width), whole steps, of which `top` are the largest, into weights 2^(score - largest). Gives the factors that bring what
/// was summed before to the new largest, and the weights' own terms if they are wanted.
///
/// # Safety
/// `scores` is valid for len * width numbers, `largest` and `totals` for width; and as for [`Simd`].
#[inline(always)]
unsafe fn soften<S: Simd>(
    scores: *mut f32,
    len: usize,
    top: [S::V; 2],
    largest: *mut f32,
    totals: *mut f32,
    trades: bool,
) -> ([S::V; 2], [S::V; 2]) {
    let (mut factors, mut own) = ([S::splat(0.0); 2], [S::splat(0.0); 2]);
    for half in 0..2 {
        let (column, lanes) = (scores.add(half * S::LANES), half * S::LANES);
        let at = |j: usize| column.add(j * 2 * S::LANES);
        let before = S::load(largest.add(lanes));
        let now = S::max(before, top[half]);
        factors[half] = exp2::<S>(S::sub(before, now));
        // two chains hide the latency
        let mut sum = [
            S::mul(S::load(totals.add(lanes)), factors[half]),
            S::splat(0.0),
        ];
        // a hidden score's 2^-126 vanishes beside the largest's 1
        for j in (0..len).step_by(STEP) {
            let mut p = [S::splat(0.0); STEP];
            for i in 0..STEP {
                p[i] = exp2::<S>(S::sub(S::load(at(j + i)), now));
                S::store(at(j + i), p[i]);
                sum[i % 2] = S::add(sum[i % 2], p[i]);
            }
            if trades {
                own[half] = add_own_terms::<S>(half, p, own[half]);
            }
        }
        S::store(largest.add(lanes), now);
        S::store(totals.add(lanes), S::add(sum[0], sum[1]));
    }
    (factors, own)
}

/// a (count, len), rows `stride` apart, times a panel w (len, two vectors), to `to` (count, two vectors): instead of what is there, or added to
/// it times the factors. Gives the largest of the products in each column.
///
/// # Safety
/// `a` is valid for `count` rows of `len` numbers `stride` apart, `w` for len * width, `to` for count + MOST_ROWS rows of width; and
/// as for [`Simd`].
#[inline(always)]
unsafe fn products<S: Simd>(
    a: *const f32,
    stride: usize,
    count: usize,
    len: usize,
    w: *const f32,
    to: *mut f32,
    factors: Option<[S::V; 2]>,
) -> [S::V; 2] {
    let (mut i, mut top) = (0, [S::splat(f32::NEG_INFINITY); 2]);
    while i < count {
        let left = count - i;
        let (a, to) = (a.add(i * stride), to.add(i * 2 * S::LANES));
        let tops;
        if S::TILE_ROWS == 12 && left >= 9 {
            tops = product::<S, 12>(a, stride, left, len, w, to, factors);
            i += 12;
        } else if left >= 5 {
            tops = product::<S, 6>(a, stride, left, len, w, to, factors);
            i += 6;
        } else if left >= 3 {
            tops = product::<S, 4>(a, stride, left, len, w, to, factors);
            i += 4;
        } else {
            tops = product::<S, 2>(a, stride, left, len, w, to, factors);
            i += 2;
        }
        top = [S::max(top[0], tops[0]), S::max(top[1], tops[1])];
    }
    top
}

/// R rows of [`products`], of which `left` are there; the others repeat the last and land in the room behind.
///
/// # Safety
/// As for [`products`]; left > 0.
#[inline(always)]
unsafe fn product<S: Simd, const R: usize>(
    a: *const f32,
    stride: usize,
    left: usize,
    len: usize,
    w: *const f32,
    to: *mut f32,
    factors: Option<[S::V; 2]>,
) -> [S::V; 2] {
    let mut rows = [a; R];
    for r in 0..R {
        rows[r] = a.add(r.min(left - 1) * stride);
    }
    let mut acc = [[S::splat(0.0); 2]; R];
    tile::<S, R, 2>(rows, len, w, &mut acc);
    let mut top = acc[0];
    for r in 0..R {
        for j in 0..2 {
            top[j] = S::max(top[j], acc[r][j]);
            let at = to.add((r * 2 + j) * S::LANES);
            let v = match factors {
                Some(factors) => S::fma(S::load(at), factors[j], acc[r][j]),
                None => acc[r][j],
            };
            S::store(at, v);
        }
    }
    top
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
