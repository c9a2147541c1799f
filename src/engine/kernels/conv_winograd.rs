//! 3x3 convolutions with stride 1 by Winograd's F(4x4, 3x3) (Lavin & Gray 2016): a quarter of the multiplications.
//!
//! Y = A^T [ (G g G^T) . (B^T d B) ] A for each 4x4 tile of the result, its 6x6 pixels d of the input and each pair of
//! channels; the 36 elementwise products, summed over input channels, are 36 matrix products. The points are
//! 0, +-a, +-1/a and infinity with a = 1/sqrt 2: smaller constants than the usual 0, +-1, +-2, so fewer digits are lost.
//!
//! Nothing is kept in Winograd's domain, where weights are four times as large: for a group of tiles
//! 1. the input is transformed, `[36][tile][c]`, shared by all threads, sized for the last-level cache;
//! 2. a task takes one panel of result channels. It transforms the panel's weights a block of channels at a time in its
//!    second-level cache, multiplies, and writes the finished pixels of its channels.
//!
//! Transforming the weights costs about as much as reading them four times as large would, and so small maps,
//! whose weights are met once in a call, gain too.
use super::conv::{PackedConv2d, Parts};
use super::epilogue::Finish;
use super::gemm::tile;
use super::scratch::{Scratch, Shared};
use super::simd::{Simd, kernel};
use rayon::prelude::*;

/// Numbers of a group's transformed input: 16 MB.
const INPUT: usize = 4 << 20;
/// Most tiles of a group: the products of a panel, 36 x tiles x 16 numbers, share the second-level cache with the weights.
const TILES: usize = 96;
/// Input channels whose weights are transformed at a time.
const CHANNELS: usize = 128;

const A: f32 = std::f32::consts::FRAC_1_SQRT_2;
const B: f32 = std::f32::consts::SQRT_2;
const A2: f32 = 0.5;
const B2: f32 = 2.0;

/// Everything of one call that tiles share.
struct Plan {
    h: usize,
    w: usize,
    oh: usize,
    ow: usize,
    /// Tiles of an image, down and across.
    tiles: (usize, usize),
    top: usize,
    left: usize,
    /// First tile of the group and their number.
    first: usize,
    count: usize,
    channels: usize,
    /// From one of the 36 input matrices to the next.
    step: usize,
}

impl Plan {
    /// Image, and the tile's row and column in it.
    fn place(&self, tile: usize) -> (usize, usize, usize) {
        let per_image = self.tiles.0 * self.tiles.1;
        (
            tile / per_image,
            tile % per_image / self.tiles.1,
            tile % self.tiles.1,
        )
    }
}

impl PackedConv2d {
    pub(super) fn winograd(
        &self,
        parts: &Parts<'_>,
        (b, h, w): (usize, usize, usize),
        finish: Finish,
        y: &mut [f32],
    ) {
        let (oh, ow) = self.output_size(h, w).expect("checked by the caller");
        let (isa, panels, c) = (self.panels.isa, &self.panels, self.shape.in_channels);
        let tiles = (oh.div_ceil(4), ow.div_ceil(4));
        let all = b * tiles.0 * tiles.1;
        let group = (INPUT / (36 * c)).clamp(48, TILES) / 12 * 12;
        let group = group.min(all);
        // the padding keeps the 36 matrices off each other's cache sets
        let step = (group * c).div_ceil(1024) * 1024 + 16;
        let mut input = Scratch::take(36 * step);
        let y = Shared::new(y);
        let mut plan = Plan {
            h,
            w,
            oh,
            ow,
            tiles,
            top: self.shape.padding[0],
            left: self.shape.padding[2],
            first: 0,
            count: 0,
            channels: c,
            step,
        };
        for first in (0..all).step_by(group) {
            plan.first = first;
            plan.count = group.min(all - first);
            let plan = &plan;
            let v = Shared::new(&mut input);
            (0..plan.count)
                .into_par_iter()
                .with_min_len(2)
                .for_each(|index| {
                    let mut offset = 0;
                    for (x, channels) in parts.x.iter().zip(parts.channels).filter(|(_, c)| *c > 0)
                    {
                        let pixels = self.pixels(plan, plan.first + index, x, channels);
                        // SAFETY: each pixel is of `channels` numbers; this task alone writes this tile's rows of the 36 matrices.
                        unsafe {
                            let to = v.pointer().add(index * c + offset);
                            transform_input(isa, &pixels, channels, plan.step, to)
                        };
                        offset += channels;
                    }
                });
            (0..panels.count())
                .into_par_iter()
                .with_max_len(1)
                .for_each(|panel| {
                    let width = panels.width;
                    let weights_step = CHANNELS.min(c) * width + 16;
                    let sums_step = plan.count * width + 16;
                    let mut scratch = Scratch::take(36 * (weights_step + sums_step));
                    let (weights, sums) = scratch.split_at_mut(36 * weights_step);
                    let mut buffer = Scratch::take(panels.buffer_len(9 * CHANNELS.min(c)));
                    for from in (0..c).step_by(CHANNELS) {
                        let len = CHANNELS.min(c - from);
                        let mut taps = [std::ptr::null(); 9];
                        for (tap, at) in taps.iter_mut().enumerate() {
                            let room = if buffer.is_empty() {
                                0
                            } else {
                                tap * len * width
                            };
                            *at = panels.rows(panel, tap * c + from, len, &mut buffer[room..]);
                        }
                        // SAFETY: the taps hold len rows each; weights and sums have the lengths above; the input was written
                        // by the tasks before.
                        unsafe {
                            transform_weights(
                                isa,
                                &taps,
                                len * width,
                                weights_step,
                                weights.as_mut_ptr(),
                            );
                            let v = v.pointer().cast_const().add(from);
                            multiply(
                                isa,
                                plan,
                                v,
                                len,
                                weights.as_ptr(),
                                weights_step,
                                sums.as_mut_ptr(),
                                sums_step,
                                from == 0,
                            );
                        }
                    }
                    // SAFETY: this task alone writes these channels of y's pixels.
                    unsafe {
                        write_tiles(
                            isa,
                            plan,
                            sums.as_ptr(),
                            sums_step,
                            panel * width,
                            panels.n,
                            &finish,
                            y.pointer(),
                        )
                    };
                });
        }
    }

    /// Where a tile's 6x6 pixels lie; those beside the map are zeros.
    fn pixels(&self, plan: &Plan, tile: usize, x: &[f32], c: usize) -> [*const f32; 36] {
        let (image, ty, tx) = plan.place(tile);
        let mut pixels = [self.zeros.as_ptr(); 36];
        for (i, pixel) in pixels.iter_mut().enumerate() {
            // above or left of the map wraps around to a large number
            let iy = (4 * ty + i / 6).wrapping_sub(plan.top);
            let ix = (4 * tx + i % 6).wrapping_sub(plan.left);
            if iy < plan.h && ix < plan.w {
                *pixel = x[((image * plan.h + iy) * plan.w + ix) * c..][..c].as_ptr();
            }
        }
        pixels
    }
}

/// B^T d
#[inline(always)]
unsafe fn input_line<S: Simd>(d: [S::V; 6]) -> [S::V; 6] {
    let (minus_a2, minus_b2) = (S::splat(-A2), S::splat(-B2));
    let p = S::fma(d[2], minus_b2, d[4]);
    let q = S::mul(S::fma(d[1], minus_b2, d[3]), S::splat(A));
    let r = S::fma(d[2], minus_a2, d[4]);
    let s = S::mul(S::fma(d[1], minus_a2, d[3]), S::splat(B));
    // a b = 1, so the outer coefficients are 1 and the middle one a^2 + b^2
    let middle = S::splat(-(A2 + B2));
    [
        S::fma(d[2], middle, S::add(d[0], d[4])),
        S::add(p, q),
        S::sub(p, q),
        S::add(r, s),
        S::sub(r, s),
        S::fma(d[3], middle, S::add(d[1], d[5])),
    ]
}

/// A^T m
#[inline(always)]
unsafe fn output_line<S: Simd>(m: [S::V; 6]) -> [S::V; 4] {
    let (a_sum, a_difference) = (S::add(m[1], m[2]), S::sub(m[1], m[2]));
    let (b_sum, b_difference) = (S::add(m[3], m[4]), S::sub(m[3], m[4]));
    [
        S::add(m[0], S::add(a_sum, b_sum)),
        S::fma(a_difference, S::splat(A), S::mul(b_difference, S::splat(B))),
        S::fma(a_sum, S::splat(A2), S::mul(b_sum, S::splat(B2))),
        S::add(
            m[5],
            S::fma(
                a_difference,
                S::splat(A * A2),
                S::mul(b_difference, S::splat(B * B2)),
            ),
        ),
    ]
}

/// G g
#[inline(always)]
unsafe fn weight_line<S: Simd>(g: [S::V; 3]) -> [S::V; 6] {
    // 1 / (2 a^2 (a^2 - b^2)) (1, +-a, a^2) and 1 / (2 b^2 (b^2 - a^2)) (1, +-b, b^2)
    let (fa, fb) = (1.0 / (2.0 * A2 * (A2 - B2)), 1.0 / (2.0 * B2 * (B2 - A2)));
    let even_a = S::fma(g[2], S::splat(fa * A2), S::mul(g[0], S::splat(fa)));
    let odd_a = S::mul(g[1], S::splat(fa * A));
    let even_b = S::fma(g[2], S::splat(fb * B2), S::mul(g[0], S::splat(fb)));
    let odd_b = S::mul(g[1], S::splat(fb * B));
    [
        g[0],
        S::add(even_a, odd_a),
        S::sub(even_a, odd_a),
        S::add(even_b, odd_b),
        S::sub(even_b, odd_b),
        g[2],
    ]
}

kernel! {
    fn transform_input[S](pixels: &[*const f32; 36], channels: usize, step: usize, to: *mut f32) {
        let mut c = 0;
        while c < channels {
            let left = channels - c;
            let mut columns = [[S::splat(0.0); 6]; 6];
            for x in 0..6 {
                let mut d = [S::splat(0.0); 6];
                for y in 0..6 {
                    d[y] = S::load_up_to(pixels[y * 6 + x].add(c), left);
                }
                columns[x] = input_line::<S>(d);
            }
            for y in 0..6 {
                let mut d = [S::splat(0.0); 6];
                for x in 0..6 {
                    d[x] = columns[x][y];
                }
                let line = input_line::<S>(d);
                for x in 0..6 {
                    S::store_up_to(to.add((y * 6 + x) * step + c), line[x], left);
                }
            }
            c += S::LANES;
        }
    }
}

kernel! {
    fn transform_weights[S](taps: &[*const f32; 9], len: usize, step: usize, to: *mut f32) {
        for i in (0..len).step_by(S::LANES) {
            let mut columns = [[S::splat(0.0); 6]; 3];
            for x in 0..3 {
                columns[x] = weight_line::<S>([
                    S::load(taps[x].add(i)),
                    S::load(taps[3 + x].add(i)),
                    S::load(taps[6 + x].add(i)),
                ]);
            }
            for y in 0..6 {
                let line = weight_line::<S>([columns[0][y], columns[1][y], columns[2][y]]);
                for x in 0..6 {
                    S::store(to.add((y * 6 + x) * step + i), line[x]);
                }
            }
        }
    }
}

kernel! {
    /// The 36 products of a group's tiles with a block of `len` channels of a panel.
    #[allow(clippy::too_many_arguments)] // three stacks of matrices and their strides
    fn multiply[S](
        plan: &Plan,
        v: *const f32,
        len: usize,
        weights: *const f32,
        weights_step: usize,
        sums: *mut f32,
        sums_step: usize,
        begins: bool,
    ) {
        for xi in 0..36 {
            let (v, w, to) = (v.add(xi * plan.step), weights.add(xi * weights_step), sums.add(xi * sums_step));
            let mut i = 0;
            while i < plan.count {
                let left = plan.count - i;
                let (v, to) = (v.add(i * plan.channels), to.add(i * 2 * S::LANES));
                if S::TILE_ROWS == 8 && left >= 8 {
                    product::<S, 8>(v, plan.channels, len, w, to, begins);
                    i += 8;
                } else if left >= 6 {
                    product::<S, 6>(v, plan.channels, len, w, to, begins);
                    i += 6;
                } else if left >= 4 {
                    product::<S, 4>(v, plan.channels, len, w, to, begins);
                    i += 4;
                } else if left >= 2 {
                    product::<S, 2>(v, plan.channels, len, w, to, begins);
                    i += 2;
                } else {
                    product::<S, 1>(v, plan.channels, len, w, to, begins);
                    i += 1;
                }
            }
        }
    }
}

#[inline(always)]
unsafe fn product<S: Simd, const R: usize>(
    v: *const f32,
    stride: usize,
    len: usize,
    w: *const f32,
    to: *mut f32,
    begins: bool,
) {
    let mut rows = [v; R];
    for r in 0..R {
        rows[r] = v.add(r * stride);
    }
    let mut acc = [[S::splat(0.0); 2]; R];
    tile::<S, R, 2>(rows, len, w, &mut acc);
    for r in 0..R {
        for j in 0..2 {
            let at = to.add((r * 2 + j) * S::LANES);
            let sum = if begins {
                acc[r][j]
            } else {
                S::add(S::load(at), acc[r][j])
            };
            S::store(at, sum);
        }
    }
}

kernel! {
    /// A^T m A of every tile of the group for a panel's channels, finished and written.
    #[allow(clippy::too_many_arguments)] // as above
    fn write_tiles[S](
        plan: &Plan,
        sums: *const f32,
        sums_step: usize,
        column: usize,
        n: usize,
        finish: &Finish,
        y: *mut f32,
    ) {
        for index in 0..plan.count {
            let (image, ty, tx) = plan.place(plan.first + index);
            for j in 0..2 {
                let column = column + j * S::LANES;
                if column >= n {
                    break;
                }
                let m = sums.add((index * 2 + j) * S::LANES);
                let mut columns = [[S::splat(0.0); 4]; 6];
                for x in 0..6 {
                    let mut line = [S::splat(0.0); 6];
                    for y in 0..6 {
                        line[y] = S::load(m.add((y * 6 + x) * sums_step));
                    }
                    columns[x] = output_line::<S>(line);
                }
                for dy in 0..4 {
                    let oy = 4 * ty + dy;
                    if oy >= plan.oh {
                        break;
                    }
                    let mut line = [S::splat(0.0); 6];
                    for x in 0..6 {
                        line[x] = columns[x][dy];
                    }
                    let line = output_line::<S>(line);
                    for dx in 0..4 {
                        let ox = 4 * tx + dx;
                        if ox < plan.ow {
                            let row = (image * plan.oh + oy) * plan.ow + ox;
                            let v = finish.apply::<S>(line[dx], row, column, n - column);
                            S::store_up_to(y.add(row * n + column), v, n - column);
                        }
                    }
                }
            }
        }
    }
}
