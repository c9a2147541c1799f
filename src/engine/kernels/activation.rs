//! Activations, elementwise, and the feed-forward's gate.
//!
//! erf is x + x P(x^2) near zero and 1 - e^-Q(x) beyond (N. Juffa's coefficients; a few units in the last place, and
//! exactly 1 from 4 on, so that GELU of a large number is the number); tanh and the logistic function go through e^x.
use super::simd::{Isa, Simd, exp, kernel};
use rayon::prelude::*;

/// Numbers a task works on: enough to outweigh its start.
const CHUNK: usize = 1 << 14;

/// x / (1 + e^-x)
///
/// # Safety
/// As for [`Simd`].
#[inline(always)]
pub(super) unsafe fn silu_v<S: Simd>(x: S::V) -> S::V {
    S::div(x, S::add(S::splat(1.0), exp::<S>(S::sub(S::splat(0.0), x))))
}

/// # Safety
/// As for [`Simd`].
#[inline(always)]
unsafe fn erf_v<S: Simd>(x: S::V) -> S::V {
    let zero = S::splat(0.0);
    let t = S::min(S::max(x, S::sub(zero, x)), S::splat(4.0));
    let z = S::mul(t, t);
    let mut small = S::splat(-5.967_617e-4);
    for c in [
        4.991_194_2e-3,
        -2.676_813_5e-2,
        1.128_199_3e-1,
        -3.761_253_4e-1,
        1.283_791_7e-1,
    ] {
        small = S::fma(small, z, S::splat(c));
    }
    let small = S::fma(small, t, t);
    let mut large = S::splat(-1.728_534_7e-5);
    for c in [
        3.831_971_3e-4,
        -3.883_964_4e-3,
        2.425_462_2e-2,
        -1.067_778_8e-1,
        -6.348_467e-1,
        -1.287_175_1e-1,
    ] {
        large = S::fma(large, t, S::splat(c));
    }
    let large = S::sub(S::splat(1.0), exp::<S>(S::sub(S::mul(large, t), t)));
    let r = S::if_less(t, S::splat(0.921_875), small, large);
    S::if_less(x, zero, S::sub(zero, r), r)
}

/// x (1 + erf(x / sqrt 2)) / 2
///
/// # Safety
/// As for [`Simd`].
#[inline(always)]
pub(super) unsafe fn gelu_v<S: Simd>(x: S::V) -> S::V {
    let e = erf_v::<S>(S::mul(x, S::splat(std::f32::consts::FRAC_1_SQRT_2)));
    S::mul(S::mul(x, S::splat(0.5)), S::add(S::splat(1.0), e))
}

/// x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2, where (1 + tanh u) / 2 = 1 / (1 + e^-2u)
///
/// # Safety
/// As for [`Simd`].
#[inline(always)]
unsafe fn gelu_tanh_v<S: Simd>(x: S::V) -> S::V {
    let cube = S::mul(S::mul(x, x), x);
    let u = S::mul(
        S::fma(cube, S::splat(0.044_715), x),
        S::splat(-2.0 * 0.797_884_6),
    );
    S::div(x, S::add(S::splat(1.0), exp::<S>(u)))
}

/// x / (1 + e^(-1.702 x)): CLIP's
///
/// # Safety
/// As for [`Simd`].
#[inline(always)]
unsafe fn quick_gelu_v<S: Simd>(x: S::V) -> S::V {
    S::div(
        x,
        S::add(S::splat(1.0), exp::<S>(S::mul(x, S::splat(-1.702)))),
    )
}

macro_rules! elementwise {
    ($(#[$meta:meta])* $name:ident, $inner:ident, $vector:ident) => {
        kernel! {
            /// # Safety
            /// x is valid for `len` numbers.
            fn $inner[S](x: *mut f32, len: usize) {
                let mut i = 0;
                while i + S::LANES <= len {
                    S::store(x.add(i), $vector::<S>(S::load(x.add(i))));
                    i += S::LANES;
                }
                if i < len {
                    S::store_partial(x.add(i), $vector::<S>(S::load_partial(x.add(i), len - i)), len - i);
                }
            }
        }
        $(#[$meta])*
        pub fn $name(x: &mut [f32]) {
            paths::$name(Isa::best(), x);
        }
    };
}

elementwise!(/** In place: x / (1 + e^-x). */ silu, silu_slice, silu_v);
elementwise!(/** In place: GELU with erf. */ gelu_erf, gelu_erf_slice, gelu_v);
elementwise!(/** In place: GELU by tanh. */ gelu_tanh, gelu_tanh_slice, gelu_tanh_v);
elementwise!(/** In place: CLIP's x / (1 + e^(-1.702 x)). */ quick_gelu, quick_gelu_slice, quick_gelu_v);

/// The same with the instruction set given.
pub(super) mod paths {
    use super::*;
    macro_rules! path {
        ($($name:ident $inner:ident),*) => {$(
            pub fn $name(isa: Isa, x: &mut [f32]) {
                x.par_chunks_mut(CHUNK).for_each(|part| {
                    // SAFETY: the pointer and the length are the part's own.
                    unsafe { $inner(isa, part.as_mut_ptr(), part.len()) }
                });
            }
        )*};
    }
    path!(silu silu_slice, gelu_erf gelu_erf_slice, gelu_tanh gelu_tanh_slice, quick_gelu quick_gelu_slice);
}

/// x (m, 2n) holds rows (a, g); y (m, n) = a * gelu(g), GELU with erf.
pub fn geglu(x: &[f32], n: usize, y: &mut [f32]) {
    geglu_rows(Isa::best(), x, n, y);
}

pub(super) fn geglu_rows(isa: Isa, x: &[f32], n: usize, y: &mut [f32]) {
    assert_eq!(x.len(), 2 * y.len(), "gate of twice the result");
    if y.is_empty() {
        return;
    }
    assert!(n > 0 && y.len().is_multiple_of(n), "rows of {n}");
    let rows = (CHUNK / n).max(1);
    y.par_chunks_mut(rows * n)
        .zip(x.par_chunks(rows * 2 * n))
        .for_each(|(y, x)| {
            for (y, x) in y.chunks_mut(n).zip(x.chunks(2 * n)) {
                // SAFETY: y.len() is a multiple of n and x twice as long, so each row of x has 2 n numbers and of y n.
                unsafe { gate(isa, x.as_ptr(), x.as_ptr().add(n), y.as_mut_ptr(), n) }
            }
        });
}

kernel! {
    /// y = a * gelu(g)
    ///
    /// # Safety
    /// All three are valid for `len` numbers.
    pub(super) fn gate[S](a: *const f32, g: *const f32, y: *mut f32, len: usize) {
        let mut i = 0;
        while i < len {
            let left = len - i;
            let v = S::mul(S::load_up_to(a.add(i), left), gelu_v::<S>(S::load_up_to(g.add(i), left)));
            S::store_up_to(y.add(i), v, left);
            i += S::LANES;
        }
    }
}
