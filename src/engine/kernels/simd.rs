//! The few vector operations the kernels use, on every instruction set they know, and the choice among them at run time.
//!
//! A kernel is written once, over [`Simd`], inside the [`kernel!`] macro: the macro compiles its body once per
//! instruction set and picks by [`Isa`]. Everything on the way from there to the intrinsics is `#[inline(always)]`,
//! because only code inlined into a function with the right `target_feature` may become those instructions.
//!
//! | `Isa` | lanes | tile rows | tried on |
//! |---|---|---|---|
//! | `Zen4`: the same, products by `traded` | 16 | 12 | Zen 4 |
//! | `Avx512` (F and DQ) | 16 | 12 | Zen 4 |
//! | `Avx2` (with FMA, F16C) | 8 | 6 | Zen 3 |
//! | `Neon` | 4 | 12 | an emulator (QEMU), never timed |
//! | `Portable` | 4 | 6 | Zen 3 |
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;

#[cfg(target_arch = "x86_64")]
pub use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub use avx512::Avx512;
#[cfg(target_arch = "aarch64")]
pub use neon::Neon;
pub use portable::Portable;
use std::sync::OnceLock;

/// An instruction set the kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Set {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// AVX-512 on a processor that adds beside its multiplications: AMD's, from Zen 4 on.
    #[cfg(target_arch = "x86_64")]
    Zen4,
    #[cfg(target_arch = "aarch64")]
    Neon,
}

/// An instruction set that this processor has. Only [`Isa::available`] makes one, of what it detected, so an `Isa` in hand is
/// the proof that its instructions may run.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Isa(Set);

impl std::fmt::Debug for Isa {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl Isa {
    /// Every instruction set of this machine, the fastest first. `Portable` is always the last.
    pub fn available() -> &'static [Isa] {
        static FOUND: OnceLock<Vec<Isa>> = OnceLock::new();
        FOUND.get_or_init(|| {
            let mut found = Vec::new();
            #[cfg(target_arch = "x86_64")]
            {
                let avx2 = is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("f16c");
                if avx2
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512dq")
                {
                    if is_amd() {
                        found.push(Isa(Set::Zen4));
                    }
                    found.push(Isa(Set::Avx512));
                }
                if avx2 {
                    found.push(Isa(Set::Avx2));
                }
            }
            #[cfg(target_arch = "aarch64")]
            found.push(Isa(Set::Neon));
            found.push(Isa(Set::Portable));
            found
        })
    }

    /// The fastest of this machine.
    pub fn best() -> Isa {
        Isa::available()[0]
    }

    pub fn set(self) -> Set {
        self.0
    }

    /// Whether products are fastest with additions in place of some multiplications (`traded`).
    pub fn trades(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        return self.0 == Set::Zen4;
        #[cfg(not(target_arch = "x86_64"))]
        false
    }

    pub fn lanes(self) -> usize {
        match self.0 {
            Set::Portable => Portable::LANES,
            #[cfg(target_arch = "x86_64")]
            Set::Avx2 => Avx2::LANES,
            #[cfg(target_arch = "x86_64")]
            Set::Avx512 | Set::Zen4 => Avx512::LANES,
            #[cfg(target_arch = "aarch64")]
            Set::Neon => Neon::LANES,
        }
    }
}

#[cfg(target_arch = "x86_64")]
fn is_amd() -> bool {
    #[allow(unused_unsafe)] // safe in newer compilers
    // SAFETY: every x86-64 has the instruction.
    let vendor = unsafe { std::arch::x86_64::__cpuid(0) };
    [vendor.ebx, vendor.edx, vendor.ecx]
        .map(u32::to_le_bytes)
        .as_flattened()
        == b"AuthenticAMD"
}

/// A vector of f32.
///
/// # Safety
/// The methods of an instruction set may be called only where the processor has it, which is so inside [`kernel!`]; pointers
/// must be valid for `LANES` numbers (in the `_partial` forms `len`, which is at most that; in the `_up_to` forms the smaller of
/// both). No alignment is asked.
#[allow(clippy::missing_safety_doc)] // the lines above are every method's
pub trait Simd: Copy {
    type V: Copy;
    const LANES: usize;
    /// Rows of the product's tile: rows * 2 accumulators, 2 vectors of weights and a broadcast fill the registers.
    const TILE_ROWS: usize;
    unsafe fn splat(x: f32) -> Self::V;
    unsafe fn load(p: *const f32) -> Self::V;
    unsafe fn store(p: *mut f32, v: Self::V);
    /// The first `len` numbers, the rest zero.
    unsafe fn load_partial(p: *const f32, len: usize) -> Self::V;
    unsafe fn store_partial(p: *mut f32, v: Self::V, len: usize);
    unsafe fn load_f16(p: *const u16) -> Self::V;
    unsafe fn load_bf16(p: *const u16) -> Self::V;
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V;
    /// a * b + c
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V;
    /// x * 2^n for whole n, where the result is a normal number.
    unsafe fn scale_by_power(x: Self::V, n: Self::V) -> Self::V;
    /// (n, r) with r = x - floor(x), and n that [`Simd::scale_by_power`] takes for floor(x).
    unsafe fn split(x: Self::V) -> (Self::V, Self::V);
    unsafe fn round(x: Self::V) -> Self::V;
    /// Lane by lane `then` where a < b, else `otherwise`.
    unsafe fn if_less(a: Self::V, b: Self::V, then: Self::V, otherwise: Self::V) -> Self::V;

    #[inline(always)]
    unsafe fn reduce_add(v: Self::V) -> f32 {
        let mut buffer = [0f32; 16];
        Self::store(buffer.as_mut_ptr(), v);
        buffer[..Self::LANES].iter().sum()
    }
    /// All lanes, or the first `len` of them.
    #[inline(always)]
    unsafe fn load_up_to(p: *const f32, len: usize) -> Self::V {
        if len >= Self::LANES {
            Self::load(p)
        } else {
            Self::load_partial(p, len)
        }
    }
    #[inline(always)]
    unsafe fn store_up_to(p: *mut f32, v: Self::V, len: usize) {
        if len >= Self::LANES {
            Self::store(p, v)
        } else {
            Self::store_partial(p, v, len)
        }
    }
}

/// Compiles a function over [`Simd`] once per instruction set; the first argument of the result chooses.
///
/// `kernel! { pub fn name[S](x: *const f32) { .. S::load(x) .. } }` gives `pub unsafe fn name(isa: Isa, x: *const f32)`. What its
/// pointers must be valid for stands in each kernel's doc; that the processor has the instructions is what the `Isa` says.
macro_rules! kernel {
    ($(#[$meta:meta])* $vis:vis fn $name:ident[$s:ident]($($arg:ident: $ty:ty),* $(,)?) $body:block) => {
        $(#[$meta])*
        $vis unsafe fn $name(isa: $crate::engine::kernels::simd::Isa, $($arg: $ty),*) {
            use $crate::engine::kernels::simd::{Set, Simd};
            /// # Safety
            /// As for the kernel, and the processor has S.
            #[inline(always)]
            unsafe fn body<$s: Simd>($($arg: $ty),*) $body
            /// # Safety
            /// As for the kernel, and the processor has these.
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512dq,avx2,fma,f16c")]
            unsafe fn avx512($($arg: $ty),*) {
                body::<$crate::engine::kernels::simd::Avx512>($($arg),*)
            }
            /// # Safety
            /// As for the kernel, and the processor has these.
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c")]
            unsafe fn avx2($($arg: $ty),*) {
                body::<$crate::engine::kernels::simd::Avx2>($($arg),*)
            }
            match isa.set() {
                #[cfg(target_arch = "x86_64")]
                Set::Avx512 | Set::Zen4 => avx512($($arg),*),
                #[cfg(target_arch = "x86_64")]
                Set::Avx2 => avx2($($arg),*),
                #[cfg(target_arch = "aarch64")]
                Set::Neon => body::<$crate::engine::kernels::simd::Neon>($($arg),*),
                Set::Portable => body::<$crate::engine::kernels::simd::Portable>($($arg),*),
            }
        }
    };
}
pub(crate) use kernel;

/// Asks for the cache lines of a row that is read soon: rows that lie far apart are not foreseen by the processor. An address that is not
/// valid does nothing.
#[inline(always)]
pub fn prefetch(row: *const f32, len: usize) {
    #[cfg(target_arch = "x86_64")]
    for i in (0..len).step_by(16) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: every x86-64 has it, and it never fails.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(row.wrapping_add(i).cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (row, len);
}

/// e^x within about one unit in the last place; x is clamped to [-87, 88] (results stay normal numbers).
///
/// x = n ln 2 + r, |r| <= ln 2 / 2; e^r by a polynomial of degree 7 (coefficients of Cephes' expf).
///
/// # Safety
/// As for [`Simd`].
#[inline(always)]
pub unsafe fn exp<S: Simd>(x: S::V) -> S::V {
    let x = S::max(S::min(x, S::splat(88.0)), S::splat(-87.0));
    let n = S::round(S::mul(x, S::splat(std::f32::consts::LOG2_E)));
    // ln 2 in two parts, the first with few bits so that n times it is exact
    let r = S::fma(n, S::splat(-355.0 / 512.0), x);
    let r = S::fma(n, S::splat(2.121_944_4e-4), r);
    let mut p = S::splat(1.987_569_1e-4);
    for c in [
        1.398_199_9e-3,
        8.333_452e-3,
        4.166_579_6e-2,
        1.666_666_5e-1,
        0.5,
    ] {
        p = S::fma(p, r, S::splat(c));
    }
    let y = S::add(S::fma(S::mul(r, r), p, r), S::splat(1.0));
    S::scale_by_power(y, n)
}

/// 2^x within about two units in the last place, for x up to 127; x below -126 counts as -126 (results stay normal numbers).
///
/// x = n + r, 0 <= r <= 1; 2^r by the polynomial of degree 5 whose largest relative error on [0, 1], 7.5e-8, is the least
/// (coefficients by Lawson's iteration, 1961).
///
/// # Safety
/// As for [`Simd`].
#[inline(always)]
pub unsafe fn exp2<S: Simd>(x: S::V) -> S::V {
    let (n, r) = S::split(S::max(x, S::splat(-126.0)));
    let mut p = S::splat(1.877_576_7e-3);
    for c in [
        8.989_34e-3,
        5.582_631_8e-2,
        2.401_536_1e-1,
        6.931_531e-1,
        0.999_999_94,
    ] {
        p = S::fma(p, r, S::splat(c));
    }
    S::scale_by_power(p, n)
}
