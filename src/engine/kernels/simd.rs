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
//! | `Portable` | 4 | 6 | Zen 3; on aarch64 the compiler turns it into NEON (untried) |
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

/// Four lanes in plain code. Without a fused instruction `mul_add` would call the C library, so it multiplies and adds.
#[derive(Clone, Copy)]
pub struct Portable;

#[inline(always)]
fn lanes4(f: impl Fn(usize) -> f32) -> [f32; 4] {
    [f(0), f(1), f(2), f(3)]
}

impl Simd for Portable {
    type V = [f32; 4];
    const LANES: usize = 4;
    const TILE_ROWS: usize = 6;
    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::V {
        [x; 4]
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self::V {
        p.cast::<[f32; 4]>().read_unaligned()
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: Self::V) {
        p.cast::<[f32; 4]>().write_unaligned(v)
    }
    #[inline(always)]
    unsafe fn load_partial(p: *const f32, len: usize) -> Self::V {
        lanes4(|i| if i < len { *p.add(i) } else { 0.0 })
    }
    #[inline(always)]
    unsafe fn store_partial(p: *mut f32, v: Self::V, len: usize) {
        for (i, x) in v.iter().enumerate().take(len) {
            *p.add(i) = *x;
        }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> Self::V {
        lanes4(|i| half::f16::from_bits(*p.add(i)).to_f32())
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> Self::V {
        lanes4(|i| f32::from_bits(u32::from(*p.add(i)) << 16))
    }
    #[inline(always)]
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
        lanes4(|i| a[i] + b[i])
    }
    #[inline(always)]
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V {
        lanes4(|i| a[i] - b[i])
    }
    #[inline(always)]
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V {
        lanes4(|i| a[i] * b[i])
    }
    #[inline(always)]
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V {
        lanes4(|i| a[i] / b[i])
    }
    #[inline(always)]
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        if cfg!(any(target_arch = "aarch64", target_feature = "fma")) {
            lanes4(|i| a[i].mul_add(b[i], c[i]))
        } else {
            lanes4(|i| a[i] * b[i] + c[i])
        }
    }
    #[inline(always)]
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V {
        lanes4(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V {
        lanes4(|i| if a[i] < b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    unsafe fn scale_by_power(x: Self::V, n: Self::V) -> Self::V {
        lanes4(|i| f32::from_bits(x[i].to_bits().wrapping_add(((n[i] as i32) << 23) as u32)))
    }
    #[inline(always)]
    unsafe fn split(x: Self::V) -> (Self::V, Self::V) {
        // whole numbers may come out as n - 1 and 1
        let n = Self::round(Self::sub(x, Self::splat(0.5)));
        (n, Self::sub(x, n))
    }
    #[inline(always)]
    unsafe fn round(x: Self::V) -> Self::V {
        // 1.5 * 2^23: adding it leaves no bits for the fraction, and SSE2 has no rounding instruction.
        const SHIFT: f32 = 12582912.0;
        lanes4(|i| (x[i] + SHIFT) - SHIFT)
    }
    #[inline(always)]
    unsafe fn if_less(a: Self::V, b: Self::V, then: Self::V, otherwise: Self::V) -> Self::V {
        lanes4(|i| if a[i] < b[i] { then[i] } else { otherwise[i] })
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::Simd;
    use std::arch::x86_64::*;

    #[derive(Clone, Copy)]
    pub struct Avx2;

    /// `len` leading ones: a window into this table.
    static MASKS: [i32; 16] = [-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0];

    /// # Safety
    /// len <= 8, and the processor has AVX2.
    #[inline(always)]
    unsafe fn mask(len: usize) -> __m256i {
        _mm256_loadu_si256(MASKS.as_ptr().add(8 - len).cast())
    }

    impl Simd for Avx2 {
        type V = __m256;
        const LANES: usize = 8;
        const TILE_ROWS: usize = 6;
        #[inline(always)]
        unsafe fn splat(x: f32) -> Self::V {
            _mm256_set1_ps(x)
        }
        #[inline(always)]
        unsafe fn load(p: *const f32) -> Self::V {
            _mm256_loadu_ps(p)
        }
        #[inline(always)]
        unsafe fn store(p: *mut f32, v: Self::V) {
            _mm256_storeu_ps(p, v)
        }
        #[inline(always)]
        unsafe fn load_partial(p: *const f32, len: usize) -> Self::V {
            _mm256_maskload_ps(p, mask(len))
        }
        #[inline(always)]
        unsafe fn store_partial(p: *mut f32, v: Self::V, len: usize) {
            _mm256_maskstore_ps(p, mask(len), v)
        }
        #[inline(always)]
        unsafe fn load_f16(p: *const u16) -> Self::V {
            _mm256_cvtph_ps(_mm_loadu_si128(p.cast()))
        }
        #[inline(always)]
        unsafe fn load_bf16(p: *const u16) -> Self::V {
            let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
        }
        #[inline(always)]
        unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
            _mm256_add_ps(a, b)
        }
        #[inline(always)]
        unsafe fn sub(a: Self::V, b: Self::V) -> Self::V {
            _mm256_sub_ps(a, b)
        }
        #[inline(always)]
        unsafe fn mul(a: Self::V, b: Self::V) -> Self::V {
            _mm256_mul_ps(a, b)
        }
        #[inline(always)]
        unsafe fn div(a: Self::V, b: Self::V) -> Self::V {
            _mm256_div_ps(a, b)
        }
        #[inline(always)]
        unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
            _mm256_fmadd_ps(a, b, c)
        }
        #[inline(always)]
        unsafe fn max(a: Self::V, b: Self::V) -> Self::V {
            _mm256_max_ps(a, b)
        }
        #[inline(always)]
        unsafe fn min(a: Self::V, b: Self::V) -> Self::V {
            _mm256_min_ps(a, b)
        }
        #[inline(always)]
        unsafe fn scale_by_power(x: Self::V, n: Self::V) -> Self::V {
            let shift = _mm256_slli_epi32::<23>(_mm256_cvtps_epi32(n));
            _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(x), shift))
        }
        #[inline(always)]
        unsafe fn split(x: Self::V) -> (Self::V, Self::V) {
            let n = _mm256_floor_ps(x);
            (n, _mm256_sub_ps(x, n))
        }
        #[inline(always)]
        unsafe fn round(x: Self::V) -> Self::V {
            _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x)
        }
        #[inline(always)]
        unsafe fn if_less(a: Self::V, b: Self::V, then: Self::V, otherwise: Self::V) -> Self::V {
            _mm256_blendv_ps(otherwise, then, _mm256_cmp_ps::<_CMP_LT_OQ>(a, b))
        }
        #[inline(always)]
        unsafe fn reduce_add(v: Self::V) -> f32 {
            let q = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let d = _mm_add_ps(q, _mm_movehl_ps(q, q));
            _mm_cvtss_f32(_mm_add_ss(d, _mm_shuffle_ps::<1>(d, d)))
        }
    }

    #[derive(Clone, Copy)]
    pub struct Avx512;

    impl Simd for Avx512 {
        type V = __m512;
        const LANES: usize = 16;
        const TILE_ROWS: usize = 12;
        #[inline(always)]
        unsafe fn splat(x: f32) -> Self::V {
            _mm512_set1_ps(x)
        }
        #[inline(always)]
        unsafe fn load(p: *const f32) -> Self::V {
            _mm512_loadu_ps(p)
        }
        #[inline(always)]
        unsafe fn store(p: *mut f32, v: Self::V) {
            _mm512_storeu_ps(p, v)
        }
        #[inline(always)]
        unsafe fn load_partial(p: *const f32, len: usize) -> Self::V {
            _mm512_maskz_loadu_ps(((1u32 << len) - 1) as u16, p)
        }
        #[inline(always)]
        unsafe fn store_partial(p: *mut f32, v: Self::V, len: usize) {
            _mm512_mask_storeu_ps(p, ((1u32 << len) - 1) as u16, v)
        }
        #[inline(always)]
        unsafe fn load_f16(p: *const u16) -> Self::V {
            _mm512_cvtph_ps(_mm256_loadu_si256(p.cast()))
        }
        #[inline(always)]
        unsafe fn load_bf16(p: *const u16) -> Self::V {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        }
        #[inline(always)]
        unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
            _mm512_add_ps(a, b)
        }
        #[inline(always)]
        unsafe fn sub(a: Self::V, b: Self::V) -> Self::V {
            _mm512_sub_ps(a, b)
        }
        #[inline(always)]
        unsafe fn mul(a: Self::V, b: Self::V) -> Self::V {
            _mm512_mul_ps(a, b)
        }
        #[inline(always)]
        unsafe fn div(a: Self::V, b: Self::V) -> Self::V {
            _mm512_div_ps(a, b)
        }
        #[inline(always)]
        unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
            _mm512_fmadd_ps(a, b, c)
        }
        #[inline(always)]
        unsafe fn max(a: Self::V, b: Self::V) -> Self::V {
            _mm512_max_ps(a, b)
        }
        #[inline(always)]
        unsafe fn min(a: Self::V, b: Self::V) -> Self::V {
            _mm512_min_ps(a, b)
        }
        #[inline(always)]
        unsafe fn scale_by_power(x: Self::V, n: Self::V) -> Self::V {
            _mm512_scalef_ps(x, n)
        }
        #[inline(always)]
        unsafe fn split(x: Self::V) -> (Self::V, Self::V) {
            // the scaling takes the floor of its power by itself
            const DOWN: i32 = _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC;
            (x, _mm512_reduce_ps::<DOWN>(x))
        }
        #[inline(always)]
        unsafe fn round(x: Self::V) -> Self::V {
            _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x)
        }
        #[inline(always)]
        unsafe fn if_less(a: Self::V, b: Self::V, then: Self::V, otherwise: Self::V) -> Self::V {
            _mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b), otherwise, then)
        }
        #[inline(always)]
        unsafe fn reduce_add(v: Self::V) -> f32 {
            _mm512_reduce_add_ps(v)
        }
    }
}
#[cfg(target_arch = "x86_64")]
pub use x86::{Avx2, Avx512};

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
