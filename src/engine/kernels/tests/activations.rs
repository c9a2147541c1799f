//! Functions of one number, and the powers of two behind attention's weights, against f64 on every instruction set.
use super::*;
use crate::engine::kernels::activation::paths;
use crate::engine::kernels::simd::{exp2, kernel};

#[test]
fn activations_are_exact_to_a_few_units_in_the_last_place() {
    let x: Vec<f32> = (-3000..=3001).map(|i| i as f32 * 0.0031).collect();
    type Case = (fn(Isa, &mut [f32]), fn(f64) -> f64);
    let cases: [Case; 4] = [
        (paths::silu, |x| x / (1.0 + (-x).exp())),
        (paths::gelu_erf, |x| x * 0.5 * (1.0 + erf(x / 2f64.sqrt()))),
        (paths::gelu_tanh, |x| {
            let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
            0.5 * x * (1.0 + u.tanh())
        }),
        (paths::quick_gelu, |x| x / (1.0 + (-1.702 * x).exp())),
    ];
    for &isa in Isa::available() {
        for (index, (fast, definition)) in cases.iter().enumerate() {
            let mut y = x.clone();
            fast(isa, &mut y);
            for (x, y) in x.iter().zip(&y) {
                let error = (f64::from(*y) - definition(f64::from(*x))).abs();
                assert!(
                    error <= 3e-7 * f64::from(x.abs().max(0.1)),
                    "{isa:?} {index} at {x}: {error:e}"
                );
            }
        }
    }
}

kernel! {
    /// x = 2^x.
    ///
    /// # Safety
    /// x is valid for `len` numbers, whole vectors of every instruction set.
    fn powers_of_two[S](x: *mut f32, len: usize) {
        for i in (0..len).step_by(S::LANES) {
            S::store(x.add(i), exp2::<S>(S::load(x.add(i))));
        }
    }
}

#[test]
fn powers_of_two_are_exact_to_two_units_in_the_last_place() {
    let x: Vec<f32> = (-16000..16000)
        .map(|i| (i as f32 * 0.0079).clamp(-140.0, 126.9))
        .chain((-126..=126).map(|n| n as f32))
        .chain([-1e30, f32::NEG_INFINITY, -1e-30])
        .collect();
    assert_eq!(x.len() % 16, 0, "whole vectors");
    for &isa in Isa::available() {
        let mut y = x.clone();
        // SAFETY: y is that long, and that is whole vectors.
        unsafe { powers_of_two(isa, y.as_mut_ptr(), y.len()) };
        for (x, y) in x.iter().zip(&y) {
            let expected = f64::from(x.max(-126.0)).exp2();
            let error = (f64::from(*y) / expected - 1.0).abs();
            assert!(
                error <= 2.0 * f64::from(f32::EPSILON),
                "{isa:?} at {x}: {error:e}"
            );
        }
    }
}

#[test]
fn activations_of_extreme_numbers_are_their_limits() {
    for &isa in Isa::available() {
        let mut y = [-1e4f32, -100.0, 0.0, 100.0, 1e4];
        paths::silu(isa, &mut y);
        assert!(y[0].abs() < 1e-30 && y[1].abs() < 1e-30, "{isa:?} {y:?}");
        assert_eq!(y[2..], [0.0, 100.0, 1e4], "{isa:?}");
        let mut y = [-1e4f32, -100.0, 0.0, 100.0, 1e4];
        paths::gelu_erf(isa, &mut y);
        assert_eq!(y.map(f32::abs), [0.0, 0.0, 0.0, 100.0, 1e4], "{isa:?}");
    }
}
