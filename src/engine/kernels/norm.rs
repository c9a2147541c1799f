//! Group norm (with SiLU folded in) and layer norm: y = (x - mean) / sqrt(variance + eps) * gamma + beta.
//!
//! Channels last, so a group's numbers are short runs in every pixel. Sums are kept for each channel, which is the
//! vectors' own order, and joined into groups at the end. Every channel is summed relative to its first pixel: with that
//! shift a large mean costs no digits. Blocks of 64 pixels are summed in f32 and joined in f64, in the same order
//! whatever the number of threads.
use super::activation::silu_v;
use super::input::Parts;
use super::length;
use super::scratch::{Scratch, Shared};
use super::simd::{Isa, Simd, kernel};
use rayon::prelude::*;

/// Pixels summed in f32 before f64 takes over.
const BLOCK: usize = 64;
/// Pixels of a task.
const TASK: usize = 512;

/// x and y are (b, pixels, channels).
#[derive(Clone, Copy, Debug)]
pub struct GroupNormShape {
    pub b: usize,
    /// h * w
    pub pixels: usize,
    pub channels: usize,
    pub groups: usize,
}

/// Group norm; `silu` applies it to the result. x may be two maps joined on channels; y is one.
pub fn group_norm(
    x: Parts<'_>,
    shape: GroupNormShape,
    (gamma, beta): (&[f32], &[f32]),
    eps: f32,
    silu: bool,
    y: &mut [f32],
) {
    group_norm_for(Isa::best(), x, shape, (gamma, beta), eps, silu, y);
}

pub(super) fn group_norm_for(
    isa: Isa,
    x: Parts<'_>,
    shape: GroupNormShape,
    (gamma, beta): (&[f32], &[f32]),
    eps: f32,
    silu: bool,
    y: &mut [f32],
) {
    let GroupNormShape {
        b,
        pixels,
        channels: c,
        groups,
    } = shape;
    assert_eq!(x.channels(), c, "input of {b} x {pixels} x {c}");
    x.check(length(&[b, pixels]));
    assert_eq!(
        y.len(),
        length(&[b, pixels, c]),
        "result of {b} x {pixels} x {c}"
    );
    assert!(
        groups > 0 && c % groups == 0,
        "{c} channels in {groups} groups"
    );
    assert!(
        gamma.len() == c && beta.len() == c,
        "weights of {c} channels"
    );
    if y.is_empty() {
        return;
    }
    // an image of a part, and where its channels begin in the joined map
    let part = |i: usize, image: usize| {
        let channels = x.channels[i];
        let values = &x.x[i][image * pixels * channels..][..pixels * channels];
        (values, channels, i * x.channels[0])
    };
    let tasks = pixels.div_ceil(TASK);
    // for each task: the sums of its channels, then of their squares
    let partial: Vec<Vec<f64>> = (0..b * tasks)
        .into_par_iter()
        .map(|task| {
            let first = task % tasks * TASK;
            let mut sums = vec![0f64; 2 * c];
            let mut block = Scratch::take(2 * c);
            for (i, from) in (0..x.count()).flat_map(|i| {
                (first..pixels.min(first + TASK))
                    .step_by(BLOCK)
                    .map(move |p| (i, p))
            }) {
                let (values, channels, at) = part(i, task / tasks);
                let rows = BLOCK.min(pixels - from);
                // SAFETY: from < pixels, so rows pixels of so many channels lie in the part from there on, and one at its start; block
                // holds 2 c numbers, and c is no less than the part's channels.
                unsafe {
                    channel_sums(
                        isa,
                        values[from * channels..].as_ptr(),
                        rows,
                        channels,
                        values.as_ptr(),
                        block.as_mut_ptr(),
                    )
                };
                for j in 0..channels {
                    sums[at + j] += f64::from(block[j]);
                    sums[c + at + j] += f64::from(block[channels + j]);
                }
            }
            sums
        })
        .collect();
    // y = x * scale + offset for each image and channel
    let mut factors = vec![0f32; b * 2 * c];
    for (image, factors) in factors.chunks_mut(2 * c).enumerate() {
        let mut sums = vec![0f64; 2 * c];
        for part in &partial[image * tasks..(image + 1) * tasks] {
            sums.iter_mut()
                .zip(part)
                .for_each(|(sum, part)| *sum += part);
        }
        let shift: Vec<f32> = (0..x.count())
            .flat_map(|i| {
                let (values, channels, _) = part(i, image);
                values[..channels].to_vec()
            })
            .collect();
        let (scale, offset) = factors.split_at_mut(c);
        let size = c / groups;
        for group in 0..groups {
            let channels = group * size..(group + 1) * size;
            let n = pixels as f64;
            let channel_mean = |i: usize| f64::from(shift[i]) + sums[i] / n;
            let mean = channels.clone().map(channel_mean).sum::<f64>() / size as f64;
            // the squares about each channel's own mean, and the means about the group's
            let squares: f64 = channels
                .clone()
                .map(|i| sums[c + i] - sums[i] * sums[i] / n + n * (channel_mean(i) - mean).powi(2))
                .sum();
            let inverse = 1.0 / (squares.max(0.0) / (n * size as f64) + f64::from(eps)).sqrt();
            for i in channels {
                scale[i] = (f64::from(gamma[i]) * inverse) as f32;
                offset[i] = (f64::from(beta[i]) - mean * f64::from(gamma[i]) * inverse) as f32;
            }
        }
    }
    let out = Shared::new(y);
    (0..b * tasks).into_par_iter().for_each(|task| {
        let (image, first) = (task / tasks, task % tasks * TASK);
        let rows = TASK.min(pixels - first);
        let factors = &factors[image * 2 * c..][..2 * c];
        for i in 0..x.count() {
            let (values, channels, at) = part(i, image);
            let values = &values[first * channels..][..rows * channels];
            // SAFETY: values is a checked slice of rows * channels. y was checked to be (b, pixels, c): these rows of it, whose
            // channels from `at` on are the part's, are there, and this task's alone. factors is (2, c), so that the
            // channels from `at` on and those c further are there.
            unsafe {
                let y = out.pointer().add((image * pixels + first) * c + at);
                let scale = factors[at..].as_ptr();
                apply(isa, values.as_ptr(), rows, channels, scale, silu, y, c)
            };
        }
    });
}

kernel! {
    /// For each channel the sum of (x - shift) and of its square over the rows.
    ///
    /// # Safety
    /// x is valid for rows * c numbers, `shift` for c, `sums` for 2 c.
    fn channel_sums[S](x: *const f32, rows: usize, c: usize, shift: *const f32, sums: *mut f32) {
        let mut i = 0;
        while i < c {
            let left = c - i;
            // two vectors side by side hide the latency of the additions
            if left >= 2 * S::LANES {
                sum_columns::<S, 2>(x.add(i), rows, c, shift.add(i), sums.add(i), 2 * S::LANES);
                i += 2 * S::LANES;
            } else {
                sum_columns::<S, 1>(x.add(i), rows, c, shift.add(i), sums.add(i), left);
                i += S::LANES;
            }
        }
    }
}

/// `len` columns of [`channel_sums`], in C vectors.
///
/// # Safety
/// x is valid for `len` numbers of each row, c apart, `shift` for len, `sums` for len and as many c further; all vectors but the last are
/// full; and as for [`Simd`].
#[inline(always)]
unsafe fn sum_columns<S: Simd, const C: usize>(
    x: *const f32,
    rows: usize,
    c: usize,
    shift: *const f32,
    sums: *mut f32,
    len: usize,
) {
    let mut shifts = [S::splat(0.0); C];
    let mut sum = [S::splat(0.0); C];
    let mut square = [S::splat(0.0); C];
    for j in 0..C {
        shifts[j] = S::load_up_to(shift.add(j * S::LANES), len - j * S::LANES);
    }
    for row in 0..rows {
        for j in 0..C {
            let at = j * S::LANES;
            let d = S::sub(S::load_up_to(x.add(row * c + at), len - at), shifts[j]);
            sum[j] = S::add(sum[j], d);
            square[j] = S::fma(d, d, square[j]);
        }
    }
    for j in 0..C {
        let at = j * S::LANES;
        S::store_up_to(sums.add(at), sum[j], len - at);
        S::store_up_to(sums.add(c + at), square[j], len - at);
    }
}

kernel! {
    /// x (rows, c) times the first c factors plus those `stride` on, to rows of y `stride` apart.
    ///
    /// # Safety
    /// x is valid for rows * c numbers, `factors` for c and as many `stride` further, y for c of each row; nobody else uses those of y.
    #[allow(clippy::too_many_arguments)] // two matrices and what is done between them
    fn apply[S](
        x: *const f32,
        rows: usize,
        c: usize,
        factors: *const f32,
        silu: bool,
        y: *mut f32,
        stride: usize,
    ) {
        for row in 0..rows {
            let (x, y) = (x.add(row * c), y.add(row * stride));
            let mut i = 0;
            while i < c {
                let left = c - i;
                let scale = S::load_up_to(factors.add(i), left);
                let offset = S::load_up_to(factors.add(stride + i), left);
                let mut v = S::fma(S::load_up_to(x.add(i), left), scale, offset);
                if silu {
                    v = silu_v::<S>(v);
                }
                S::store_up_to(y.add(i), v, left);
                i += S::LANES;
            }
        }
    }
}

/// Layer norm of each row of x (rows, gamma's length).
pub fn layer_norm(x: &[f32], gamma: &[f32], beta: &[f32], eps: f32, y: &mut [f32]) {
    layer_norm_for(Isa::best(), x, gamma, beta, eps, y);
}

pub(super) fn layer_norm_for(
    isa: Isa,
    x: &[f32],
    gamma: &[f32],
    beta: &[f32],
    eps: f32,
    y: &mut [f32],
) {
    let c = gamma.len();
    assert!(
        c > 0 && x.len().is_multiple_of(c) && y.len() == x.len() && beta.len() == c,
        "rows of {c}"
    );
    let rows = (1 << 14) / c + 1;
    y.par_chunks_mut(rows * c)
        .zip(x.par_chunks(rows * c))
        .for_each(|(y, x)| {
            for (y, x) in y.chunks_mut(c).zip(x.chunks(c)) {
                // SAFETY: x.len() and y.len() are the same multiple of c, so each row has c numbers; gamma's length is c, and beta's was
                // checked.
                unsafe {
                    layer_norm_row(
                        isa,
                        x.as_ptr(),
                        c,
                        gamma.as_ptr(),
                        beta.as_ptr(),
                        eps,
                        y.as_mut_ptr(),
                    )
                };
            }
        });
}

kernel! {
    /// # Safety
    /// All four are valid for c numbers.
    fn layer_norm_row[S](x: *const f32, c: usize, gamma: *const f32, beta: *const f32, eps: f32, y: *mut f32) {
        let mean = sum_of::<S, _>(c, |i, left| S::load_up_to(x.add(i), left)) / c as f32;
        let center = S::splat(mean);
        // the row is in the cache: a second pass about the mean is cheap and loses no digits
        let squares = sum_of::<S, _>(c, |i, left| {
            let mut v = S::load_up_to(x.add(i), left);
            v = S::sub(v, center);
            if left < S::LANES {
                // lanes beyond the row hold -mean, not zero
                let mut padded = [0f32; 16];
                S::store(padded.as_mut_ptr(), v);
                padded[left..].fill(0.0);
                v = S::load(padded.as_ptr());
            }
            S::mul(v, v)
        });
        let inverse = S::splat(1.0 / (squares / c as f32 + eps).sqrt());
        let mut i = 0;
        while i < c {
            let left = c - i;
            let v = S::mul(S::sub(S::load_up_to(x.add(i), left), center), inverse);
            let v = S::fma(v, S::load_up_to(gamma.add(i), left), S::load_up_to(beta.add(i), left));
            S::store_up_to(y.add(i), v, left);
            i += S::LANES;
        }
    }
}

/// The sum of `at(i, numbers left)` over a row of c numbers, in four chains.
///
/// # Safety
/// As for [`Simd`]. `at` is called with i < c, and with what is left from there on or, where that is more than a vector, any
/// number that is.
#[inline(always)]
unsafe fn sum_of<S: Simd, F: Fn(usize, usize) -> S::V>(c: usize, at: F) -> f32 {
    let mut chains = [S::splat(0.0); 4];
    let mut i = 0;
    while i + 4 * S::LANES <= c {
        for (j, chain) in chains.iter_mut().enumerate() {
            *chain = S::add(*chain, at(i + j * S::LANES, c));
        }
        i += 4 * S::LANES;
    }
    while i < c {
        chains[0] = S::add(chains[0], at(i, c - i));
        i += S::LANES;
    }
    S::reduce_add(S::add(
        S::add(chains[0], chains[1]),
        S::add(chains[2], chains[3]),
    ))
}

/// The definition of group norm.
pub fn group_norm_naive(
    x: &[f32],
    shape: GroupNormShape,
    (gamma, beta): (&[f32], &[f32]),
    eps: f32,
    silu: bool,
    y: &mut [f32],
) {
    let GroupNormShape {
        b,
        pixels,
        channels: c,
        groups,
    } = shape;
    let size = c / groups;
    for (image, group) in (0..b).flat_map(|i| (0..groups).map(move |g| (i, g))) {
        let at = |p: usize, j: usize| (image * pixels + p) * c + group * size + j;
        let all = || (0..pixels).flat_map(|p| (0..size).map(move |j| (p, j)));
        let n = (pixels * size) as f64;
        let mean = all().map(|(p, j)| f64::from(x[at(p, j)])).sum::<f64>() / n;
        let variance = all()
            .map(|(p, j)| (f64::from(x[at(p, j)]) - mean).powi(2))
            .sum::<f64>()
            / n;
        for (p, j) in all() {
            let channel = group * size + j;
            let v = (f64::from(x[at(p, j)]) - mean) / (variance + f64::from(eps)).sqrt();
            let v = v * f64::from(gamma[channel]) + f64::from(beta[channel]);
            y[at(p, j)] = if silu { v / (1.0 + (-v).exp()) } else { v } as f32;
        }
    }
}
