//! Vectors in plain code, for every processor.
use super::Simd;

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
