//! Linear layers: y (m, n) = x (m, k) W^T + bias, and the gated pair of the transformer's feed-forward.
use super::activation::geglu_rows;
use super::epilogue::{Epilogue, Finish};
use super::gemm::{M_BLOCK, Product};
use super::length;
use super::packed::{Panels, Weights};
use super::scratch::Scratch;
use super::simd::Isa;

/// A linear layer with its weights packed.
#[derive(Clone)]
pub struct PackedLinear {
    panels: Panels,
    bias: Option<Vec<f32>>,
}

impl PackedLinear {
    /// `weight` is (n, k), row-major, as torch keeps it.
    pub fn pack(weight: Weights<'_>, n: usize, k: usize, bias: Option<&[f32]>) -> Self {
        Self::pack_for(Isa::best(), weight, n, k, bias)
    }

    pub(super) fn pack_for(
        isa: Isa,
        weight: Weights<'_>,
        n: usize,
        k: usize,
        bias: Option<&[f32]>,
    ) -> Self {
        assert!(bias.is_none_or(|b| b.len() == n), "bias of {n}");
        PackedLinear {
            panels: Panels::pack(isa, weight, n, k, 1),
            bias: bias.map(<[f32]>::to_vec),
        }
    }

    pub fn in_features(&self) -> usize {
        self.panels.k
    }
    pub fn out_features(&self) -> usize {
        self.panels.n
    }

    /// x (m, k) to y (m, n).
    pub fn run(&self, x: &[f32], m: usize, epilogue: Epilogue<'_>, y: &mut [f32]) {
        let k = self.panels.k;
        assert_eq!(x.len(), length(&[m, k]), "input of {m} x {k}");
        let finish = Finish::new(&epilogue, self.bias.as_deref(), m, self.panels.n);
        let product = Product {
            panels: &self.panels,
            segments: &[k],
            m,
            finish,
        };
        // SAFETY: x was checked to be m rows of k numbers, the only segment, and finish was made for m and n.
        unsafe { product.run(|row, _| x[row * k..].as_ptr(), y) };
    }

    /// The feed-forward's gate: with (a, g) the halves of this layer's result (m, n), y (m, n / 2) = a * gelu(g).
    pub fn run_geglu(&self, x: &[f32], m: usize, y: &mut [f32]) {
        let (n, k) = (self.panels.n, self.panels.k);
        assert!(n % 2 == 0 && n > 0, "{n} columns in two halves");
        assert_eq!(x.len(), length(&[m, k]), "input of {m} x {k}");
        assert_eq!(y.len(), length(&[m, n / 2]), "result of {m} x {}", n / 2);
        // As many rows as leave both halves in the last-level cache until they are joined: 8 MB.
        let rows = ((2 << 20) / n).next_multiple_of(M_BLOCK).min(m).max(1);
        let mut both = Scratch::take(rows * n);
        for first in (0..m).step_by(rows) {
            let rows = rows.min(m - first);
            let both = &mut both[..rows * n];
            self.run(&x[first * k..][..rows * k], rows, Epilogue::default(), both);
            geglu_rows(
                self.panels.isa,
                both,
                n / 2,
                &mut y[first * n / 2..][..rows * n / 2],
            );
        }
    }
}

/// The definition.
pub fn linear_naive(weight: &[f32], bias: Option<&[f32]>, x: &[f32], k: usize, y: &mut [f32]) {
    let n = weight.len() / k;
    for (row, out) in x.chunks(k).zip(y.chunks_mut(n)) {
        for (j, value) in out.iter_mut().enumerate() {
            let sum: f64 = (0..k)
                .map(|p| f64::from(row[p]) * f64::from(weight[j * k + p]))
                .sum();
            *value = (sum + bias.map_or(0.0, |b| f64::from(b[j]))) as f32;
        }
    }
}
