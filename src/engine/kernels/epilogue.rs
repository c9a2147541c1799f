//! What is done to a product or convolution on its way to memory, in this order:
//! y = silu?((product + bias + shift + residual) * scale).
use super::activation::silu_v;
use super::simd::Simd;

/// Work folded into the write of a result (m, n).
#[derive(Clone, Copy)]
pub struct Epilogue<'a> {
    /// (images, n): added to every row of its image, as the timestep's shift is. The m rows are divided evenly among the images.
    pub shift: Option<&'a [f32]>,
    /// (m, n), added.
    pub residual: Option<&'a [f32]>,
    /// Multiplies the sum: 1 / output_scale_factor.
    pub scale: f32,
    pub activation: Option<Activation>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    Silu,
}

impl Default for Epilogue<'_> {
    fn default() -> Self {
        Epilogue {
            shift: None,
            residual: None,
            scale: 1.0,
            activation: None,
        }
    }
}

impl<'a> Epilogue<'a> {
    pub fn residual(residual: &'a [f32]) -> Self {
        Epilogue {
            residual: Some(residual),
            ..Epilogue::default()
        }
    }
    pub fn shift(shift: &'a [f32]) -> Self {
        Epilogue {
            shift: Some(shift),
            ..Epilogue::default()
        }
    }
    pub fn scaled(self, scale: f32) -> Self {
        Epilogue { scale, ..self }
    }
    pub fn silu(self) -> Self {
        Epilogue {
            activation: Some(Activation::Silu),
            ..self
        }
    }

    /// # Panics
    /// If a slice has not the length the result asks for.
    pub(super) fn check(&self, m: usize, n: usize) {
        if let Some(residual) = self.residual {
            assert_eq!(residual.len(), m * n, "residual of {m} x {n}");
        }
        if let Some(shift) = self.shift {
            let images = shift.len() / n.max(1);
            assert!(
                images > 0 && images * n == shift.len() && m.is_multiple_of(images),
                "shift for {m} x {n}: {}",
                shift.len()
            );
        }
    }
}

/// The epilogue in the form the inner loops use.
#[derive(Clone, Copy)]
pub(super) struct Finish {
    n: usize,
    rows_per_image: usize,
    bias: *const f32,
    shift: *const f32,
    residual: *const f32,
    scale: f32,
    silu: bool,
}

// SAFETY: the pointers come from shared slices that outlive the call they are used in, and are only read.
unsafe impl Send for Finish {}
// SAFETY: as above.
unsafe impl Sync for Finish {}

impl Finish {
    pub fn new(epilogue: &Epilogue<'_>, bias: Option<&[f32]>, m: usize, n: usize) -> Self {
        epilogue.check(m, n);
        let images = epilogue.shift.map_or(1, |shift| shift.len() / n.max(1));
        let pointer = |slice: Option<&[f32]>| slice.map_or(std::ptr::null(), <[f32]>::as_ptr);
        Finish {
            n,
            rows_per_image: (m / images).max(1),
            bias: pointer(bias),
            shift: pointer(epilogue.shift),
            residual: pointer(epilogue.residual),
            scale: epilogue.scale,
            silu: epilogue.activation == Some(Activation::Silu),
        }
    }

    /// The value to write at (row, column ..), of which `len` columns exist.
    ///
    /// # Safety
    /// row < m, column + min(len, LANES) <= n.
    #[inline(always)]
    pub unsafe fn apply<S: Simd>(
        &self,
        mut v: S::V,
        row: usize,
        column: usize,
        len: usize,
    ) -> S::V {
        if !self.bias.is_null() {
            v = S::add(v, S::load_up_to(self.bias.add(column), len));
        }
        if !self.shift.is_null() {
            let image = row / self.rows_per_image;
            v = S::add(
                v,
                S::load_up_to(self.shift.add(image * self.n + column), len),
            );
        }
        if !self.residual.is_null() {
            v = S::add(
                v,
                S::load_up_to(self.residual.add(row * self.n + column), len),
            );
        }
        if self.scale != 1.0 {
            v = S::mul(v, S::splat(self.scale));
        }
        if self.silu {
            v = silu_v::<S>(v);
        }
        v
    }
}
