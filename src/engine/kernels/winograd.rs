//! The transforms of Winograd's F(4x4, 3x3) (Lavin & Gray 2016): Y = A^T [ (G g G^T) . (B^T d B) ] A.
//!
//! The points are 0, +-a, +-1/a and infinity with a = 1/sqrt 2: smaller constants than the usual 0, +-1, +-2, so fewer digits are lost.
use super::conv::ConvShape;
use super::packed::Weights;
use super::simd::{Isa, Portable, Simd, kernel};
use super::traded::STEP;

const A: f32 = std::f32::consts::FRAC_1_SQRT_2;
const B: f32 = std::f32::consts::SQRT_2;
const A2: f32 = 0.5;
const B2: f32 = 2.0;

/// B^T d
///
/// # Safety
/// As for [`Simd`].
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
///
/// # Safety
/// As for [`Simd`].
#[inline(always)]
pub(super) unsafe fn output_line<S: Simd>(m: [S::V; 6]) -> [S::V; 4] {
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
///
/// # Safety
/// As for [`Simd`].
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
    /// B^T d B of one tile, to the 36 matrices `step` apart.
    ///
    /// # Safety
    /// Every pixel is valid for `channels` numbers, and so is `to` at each of the 36 steps.
    pub(super) fn transform_input[S](pixels: &[*const f32; 36], channels: usize, step: usize, to: *mut f32) {
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
    /// G g G^T of some rows of a panel, to the 36 matrices `step` apart.
    ///
    /// # Safety
    /// Every tap is valid for `len` numbers, a multiple of the lanes, and so is `to` at each of the 36 steps.
    pub(super) fn transform_weights[S](taps: &[*const f32; 9], len: usize, step: usize, to: *mut f32) {
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

/// How large the weights are about in each of the 36 places: the root of the mean square of some 256 kernels. None where products are not
/// traded.
pub(super) fn transformed_sizes(
    isa: Isa,
    shape: &ConvShape,
    weights: Weights<'_>,
) -> Option<Box<[f32; 36]>> {
    if !isa.trades()
        || shape.kernel != (3, 3)
        || shape.stride != 1
        || !shape.in_channels.is_multiple_of(STEP)
    {
        return None;
    }
    let kernels = weights.len() / 9;
    let mut squares = [0f32; 36];
    // an odd step meets every column and channel
    for kernel in (0..kernels).step_by(kernels.div_ceil(256) | 1) {
        let g = |i: usize| [weights.get(9 * kernel + i); Portable::LANES];
        // SAFETY: the portable set is everywhere, and of no pointer is any use made.
        unsafe {
            let columns = [0, 1, 2].map(|x| weight_line::<Portable>([g(x), g(3 + x), g(6 + x)]));
            for y in 0..6 {
                let line = weight_line::<Portable>([columns[0][y], columns[1][y], columns[2][y]]);
                for x in 0..6 {
                    squares[6 * y + x] += line[x][0].powi(2);
                }
            }
        }
    }
    Some(Box::new(squares.map(f32::sqrt)))
}
