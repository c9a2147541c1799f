//! Normal numbers from a seed, equal to torch's CPU generator: `torch.randn(n, generator=torch.Generator().manual_seed(s))`.
//!
//! The source is MT19937 (Matsumoto & Nishimura 1998), seeded with the seed modulo 2^32 as torch does. Two ways lead from it
//! to normal numbers, both Box-Muller (`ATen/native/cpu/DistributionTemplates.h`, `ATen/core/DistributionsHelper.h`):
//!
//! - 16 values or more: 24-bit uniforms, one 32-bit draw each, in blocks of 16. Slots 0-7 of a block give the radius
//!   `r = sqrt(-2 ln(1 - u))`, slots 8-15 the angle `2 pi u`; `r cos` goes to the first half and `r sin` to the second. When the count
//!   is not a multiple of 16 the last 16 values are drawn afresh.
//! - fewer than 16: 53-bit uniforms, two draws each; the sine's value waits in the generator for the next call.
//!
//! torch's vectorised logarithm and sine are approximations, so the two agree to about 1e-6 and not to the bit.
//! Numbers are drawn on the host in f32 and moved, so every device and every dtype starts from the same picture.
use candle_core::{DType, Device, Result, Shape, Tensor};
use rand_mt::Mt;
use std::f64::consts::TAU;

/// One stream of normal numbers per picture: picture `k` of `--seed s` is the first picture of `--seed s+k`.
pub struct Noise {
    streams: Vec<Stream>,
}

impl Noise {
    /// Streams for `images` pictures, seeded `first_seed`, `first_seed + 1`, ...; seeds wrap at 2^64.
    pub fn new(first_seed: u64, images: usize) -> Self {
        Self::of((0..images as u64).map(|k| first_seed.wrapping_add(k)))
    }

    /// One stream for each seed, in order.
    pub fn of(seeds: impl IntoIterator<Item = u64>) -> Self {
        let streams = seeds.into_iter().map(Stream::new).collect();
        Self { streams }
    }

    /// The next standard normal numbers of every stream: `(images, c, h, w)` in `dtype` on `device`.
    pub fn normal(
        &mut self,
        (c, h, w): (usize, usize, usize),
        dtype: DType,
        device: &Device,
    ) -> Result<Tensor> {
        let images = self.streams.len();
        let mut values = vec![0f32; images * c * h * w];
        for (stream, out) in self
            .streams
            .iter_mut()
            .zip(values.chunks_exact_mut(c * h * w))
        {
            stream.fill(out);
        }
        Tensor::from_vec(values, Shape::from((images, c, h, w)), &Device::Cpu)?
            .to_dtype(dtype)?
            .to_device(device)
    }

    /// Fresh noise of the shape, dtype and device of `x`, a `(images, c, h, w)` tensor.
    pub fn normal_like(&mut self, x: &Tensor) -> Result<Tensor> {
        let (_, c, h, w) = x.dims4()?;
        self.normal((c, h, w), x.dtype(), x.device())
    }
}

struct Stream {
    engine: Mt,
    waiting: Option<f64>,
}

impl Stream {
    fn new(seed: u64) -> Self {
        Self {
            engine: Mt::new(seed as u32),
            waiting: None,
        }
    }

    fn fill(&mut self, out: &mut [f32]) {
        let n = out.len();
        if n < 16 {
            out.iter_mut().for_each(|v| *v = self.scalar() as f32);
            return;
        }
        out.iter_mut().for_each(|v| *v = self.uniform24());
        out.chunks_exact_mut(16).for_each(box_muller_16);
        if !n.is_multiple_of(16) {
            let tail = &mut out[n - 16..];
            tail.iter_mut().for_each(|v| *v = self.uniform24());
            box_muller_16(tail);
        }
    }

    fn uniform24(&mut self) -> f32 {
        (self.engine.next_u32() & 0xFF_FFFF) as f32 / (1 << 24) as f32
    }

    fn uniform53(&mut self) -> f64 {
        let high = self.engine.next_u32() as u64;
        let low = self.engine.next_u32() as u64;
        (((high << 32) | low) & ((1 << 53) - 1)) as f64 / (1u64 << 53) as f64
    }

    fn scalar(&mut self) -> f64 {
        if let Some(value) = self.waiting.take() {
            return value;
        }
        let (u1, u2) = (self.uniform53(), self.uniform53());
        let radius = (-2.0 * (-u2).ln_1p()).sqrt();
        self.waiting = Some(radius * (TAU * u1).sin());
        radius * (TAU * u1).cos()
    }
}

fn box_muller_16(block: &mut [f32]) {
    for j in 0..8 {
        let radius = (-2.0 * (1.0 - block[j]).ln()).sqrt();
        let theta = std::f32::consts::TAU * block[j + 8];
        block[j] = radius * theta.cos();
        block[j + 8] = radius * theta.sin();
    }
}
