//! NEON, which every 64-bit ARM processor has.
use super::Simd;
use std::arch::aarch64::*;
use std::arch::asm;

#[derive(Clone, Copy)]
pub struct Neon;

impl Simd for Neon {
    type V = float32x4_t;
    const LANES: usize = 4;
    const TILE_ROWS: usize = 12;
    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::V {
        vdupq_n_f32(x)
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self::V {
        vld1q_f32(p)
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: Self::V) {
        vst1q_f32(p, v)
    }
    #[inline(always)]
    unsafe fn load_partial(p: *const f32, len: usize) -> Self::V {
        let mut lanes = [0f32; 4];
        p.copy_to_nonoverlapping(lanes.as_mut_ptr(), len);
        vld1q_f32(lanes.as_ptr())
    }
    #[inline(always)]
    unsafe fn store_partial(p: *mut f32, v: Self::V, len: usize) {
        let mut lanes = [0f32; 4];
        vst1q_f32(lanes.as_mut_ptr(), v);
        p.copy_from_nonoverlapping(lanes.as_ptr(), len);
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> Self::V {
        let narrow = vld1_u16(p);
        let wide: float32x4_t;
        // The intrinsic is of newer compilers.
        asm!("fcvtl {0:v}.4s, {1:v}.4h", out(vreg) wide, in(vreg) narrow, options(pure, nomem, nostack));
        wide
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> Self::V {
        vreinterpretq_f32_u32(vshll_n_u16::<16>(vld1_u16(p)))
    }
    #[inline(always)]
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
        vaddq_f32(a, b)
    }
    #[inline(always)]
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V {
        vsubq_f32(a, b)
    }
    #[inline(always)]
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V {
        vmulq_f32(a, b)
    }
    #[inline(always)]
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V {
        vdivq_f32(a, b)
    }
    #[inline(always)]
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        vfmaq_f32(c, a, b)
    }
    // What is no number goes the way that it goes on the other sets: the processor's own max and min hand it on.
    #[inline(always)]
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V {
        Self::if_less(b, a, a, b)
    }
    #[inline(always)]
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V {
        Self::if_less(a, b, a, b)
    }
    #[inline(always)]
    unsafe fn scale_by_power(x: Self::V, n: Self::V) -> Self::V {
        let shift = vshlq_n_s32::<23>(vcvtq_s32_f32(n));
        vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(x), shift))
    }
    #[inline(always)]
    unsafe fn split(x: Self::V) -> (Self::V, Self::V) {
        let n = vrndmq_f32(x);
        (n, vsubq_f32(x, n))
    }
    #[inline(always)]
    unsafe fn round(x: Self::V) -> Self::V {
        vrndnq_f32(x)
    }
    #[inline(always)]
    unsafe fn if_less(a: Self::V, b: Self::V, then: Self::V, otherwise: Self::V) -> Self::V {
        vbslq_f32(vcltq_f32(a, b), then, otherwise)
    }
    #[inline(always)]
    unsafe fn reduce_add(v: Self::V) -> f32 {
        vaddvq_f32(v)
    }
}
