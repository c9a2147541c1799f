//! What is done to a product or convolution on its way to memory, in this order:
//! y = (product + bias + shift + residual) * scale.
use super::length;
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
}

impl Default for Epilogue<'_> {
    fn default() -> Self {
        Epilogue {
            shift: None,
            residual: None,
            scale: 1.0,
        }
    }
}

impl Epilogue<'_> {
    /// # Panics
    /// If a slice has not the length the result asks for.
    pub(super) fn check(&self, m: usize, n: usize) {
        if let Some(residual) = self.residual {
            assert_eq!(residual.len(), length(&[m, n]), "residual of {m} x {n}");
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

/// The epilogue and the layer's bias, checked against a result (m, n), in the form the inner loops use.
#[derive(Clone, Copy)]
pub(super) struct Finish<'a> {
    n: usize,
    rows_per_image: usize,
    /// (n)
    bias: Option<&'a [f32]>,
    /// (m / rows_per_image, n)
    shift: Option<&'a [f32]>,
    /// (m, n)
    residual: Option<&'a [f32]>,
    scale: f32,
}

impl<'a> Finish<'a> {
    /// # Panics
    /// If a slice has not the length the result asks for.
    pub fn new(epilogue: &Epilogue<'a>, bias: Option<&'a [f32]>, m: usize, n: usize) -> Self {
        epilogue.check(m, n);
        assert!(bias.is_none_or(|bias| bias.len() == n), "bias of {n}");
        let images = epilogue.shift.map_or(1, |shift| shift.len() / n.max(1));
        Finish {
            n,
            rows_per_image: (m / images).max(1),
            bias,
            shift: epilogue.shift,
            residual: epilogue.residual,
            scale: epilogue.scale,
        }
    }

    /// The value to write at (row, column ..), of which `len` columns exist.
    ///
    /// # Safety
    /// row < m, column + min(len, LANES) <= n; and as for [`Simd`].
    #[inline(always)]
    pub unsafe fn apply<S: Simd>(
        &self,
        mut v: S::V,
        row: usize,
        column: usize,
        len: usize,
    ) -> S::V {
        if let Some(bias) = self.bias {
            v = S::add(v, S::load_up_to(bias.as_ptr().add(column), len));
        }
        if let Some(shift) = self.shift {
            let at = row / self.rows_per_image * self.n + column;
            v = S::add(v, S::load_up_to(shift.as_ptr().add(at), len));
        }
        if let Some(residual) = self.residual {
            let at = row * self.n + column;
            v = S::add(v, S::load_up_to(residual.as_ptr().add(at), len));
        }
        if self.scale != 1.0 {
            v = S::mul(v, S::splat(self.scale));
        }
        v
    }
}
