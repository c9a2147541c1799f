//! Scaled dot-product attention, `softmax(Q K^T / sqrt(d)) V` for each head (Vaswani et al. 2017, equation 1).
use super::{Linear, card_kernels_for, own_kernels_for, values, write_f32};
use crate::engine::cuda::{self, product, weight::Weight};
use crate::engine::kernels::{self, AttentionShape};
use candle_core::{DType, Result, Tensor};

/// A sequence that looks at itself.
pub struct SelfAttention {
    maps: Maps,
    heads: usize,
}

/// From a row to its query, its key and its value.
enum Maps {
    Apart([Linear; 3]),
    /// All three beside each other, `(inputs)` to `(3*heads*d)`, which a card makes at once.
    Joined(Linear),
}

impl SelfAttention {
    /// `maps` are those to queries, keys and values, of one width.
    pub fn new(maps: [Linear; 3], heads: usize) -> Result<Self> {
        let maps = match Linear::joined(&maps)? {
            Some(joined) => Maps::Joined(joined),
            None => Maps::Apart(maps),
        };
        Ok(Self { maps, heads })
    }

    /// `(b, n, inputs)` to `(b, n, heads*d)`; `causal` as for [`attention`].
    pub fn forward(&self, x: &Tensor, causal: bool) -> Result<Tensor> {
        let joined = match &self.maps {
            Maps::Apart([q, k, v]) => {
                let (q, k, v) = (q.forward(x)?, k.forward(x)?, v.forward(x)?);
                return attention(&q, &k, &v, self.heads, causal);
            }
            Maps::Joined(joined) => joined.forward(x)?,
        };
        let width = joined.dim(2)? / 3;
        if width / self.heads <= cuda::attention::WIDEST_HEAD {
            return cuda::attention::joined(&joined, self.heads, causal);
        }
        let part = |i| joined.narrow(2, i * width, width);
        attention(&part(0)?, &part(1)?, &part(2)?, self.heads, causal)
    }
}

/// `q` is `(b, n, heads*d)`, `k` and `v` are `(b, m, heads*d)`; gives `(b, n, heads*d)`.
/// `causal` hides from each row the rows after it.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, heads: usize, causal: bool) -> Result<Tensor> {
    let (b, n, width) = q.dims3()?;
    if own_kernels_for(q) {
        let shape = AttentionShape {
            b,
            heads,
            lq: n,
            lk: k.dim(1)?,
            d: width / heads,
            causal,
        };
        let scale = 1.0 / (shape.d as f32).sqrt();
        let (q, k, v) = (q.contiguous()?, k.contiguous()?, v.contiguous()?);
        let (q, k, v) = (values(&q)?, values(&k)?, values(&v)?);
        let (q, k, v) = (q.f32()?, k.f32()?, v.f32()?);
        // SAFETY: the kernel writes all of y and reads nothing of it before.
        return unsafe {
            write_f32((b, n, width), |y| {
                kernels::attention(q, k, v, shape, scale, y)
            })
        };
    }
    if card_kernels_for(q) && width / heads <= cuda::attention::WIDEST_HEAD {
        let (q, k, v) = (q.contiguous()?, k.contiguous()?, v.contiguous()?);
        return cuda::attention::attention(&q, &k, &v, heads, causal);
    }
    // Scores in f32 at least, whatever the model's dtype: what `upcast_attention` asks for, for every model.
    let inner = match q.dtype() {
        DType::F64 => DType::F64,
        _ => DType::F32,
    };
    let split = |x: &Tensor| -> Result<Tensor> {
        let (b, rows, width) = x.dims3()?;
        x.to_dtype(inner)?
            .reshape((b, rows, heads, width / heads))?
            .transpose(1, 2)?
            .contiguous()
    };
    let scale = 1.0 / ((width / heads) as f64).sqrt();
    let scores = products(&(split(q)? * scale)?, &split(k)?)?;
    let scores = match causal {
        true => scores.broadcast_add(&mask(n, k.dim(1)?, &scores)?)?,
        false => scores,
    };
    let weights = candle_nn::ops::softmax_last_dim(&scores)?;
    products(&weights, &split(v)?.t()?.contiguous()?)?
        .transpose(1, 2)?
        .reshape((b, n, width))?
        .to_dtype(v.dtype())
}

/// `A B^T` of each head: `(b, heads, n, k)` and `(b, heads, m, k)` to `(b, heads, n, m)`.
fn products(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    if !card_kernels_for(a) {
        return a.matmul(&b.t()?);
    }
    let (images, heads, n, _) = a.dims4()?;
    let (a, b) = (a.flatten(0, 1)?, b.flatten(0, 1)?);
    let product = |i| {
        let weight = Weight::of_linear(&b.get(i)?)?;
        product::linear(&a.get(i)?, &weight, product::Extras::default())
    };
    let all: Vec<Tensor> = (0..images * heads).map(product).collect::<Result<_>>()?;
    Tensor::stack(&all, 0)?.reshape((images, heads, n, ()))
}

/// What hides from each of `n` rows the rows after it, of `m`.
fn mask(n: usize, m: usize, scores: &Tensor) -> Result<Tensor> {
    let hidden = |at| match at % m > at / m {
        true => f32::NEG_INFINITY,
        false => 0.0,
    };
    let hidden: Vec<f32> = (0..n * m).map(hidden).collect();
    Tensor::from_vec(hidden, (n, m), scores.device())?.to_dtype(scores.dtype())
}
