//! What the processor's multipliers do at most: the figure that benchmarks hold the kernels against.
use super::simd::{Isa, kernel};

/// `rounds` times 16 vectors of multiply-adds that wait for nothing but themselves, in registers alone.
/// Gives the floating-point operations done.
pub fn multiply_adds(rounds: usize) -> usize {
    let isa = Isa::best();
    let mut out = [0f32; 16];
    // SAFETY: out holds a vector of every instruction set.
    unsafe { chains(isa, rounds, out.as_mut_ptr()) };
    std::hint::black_box(out);
    rounds * 16 * isa.lanes() * 2
}

kernel! {
    /// # Safety
    /// `out` is valid for a vector.
    fn chains[S](rounds: usize, out: *mut f32) {
        let mut sums = [S::splat(1.0); 16];
        let (a, b) = (S::splat(std::hint::black_box(0.5)), S::splat(std::hint::black_box(0.25)));
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = S::fma(*sum, a, b);
            }
        }
        let mut total = sums[0];
        for sum in &sums[1..] {
            total = S::add(total, *sum);
        }
        S::store(out, total);
    }
}
