//! Latents made visible without the decoder's price: `rgb = A latent + b` for each latent pixel.
//!
//! The numbers are the checkpoint's own: a small field of random flat squares is decoded once, and `A` and `b` are the least
//! squares fit of the decoder's colours to the latents. On the published VAEs, which code colour almost linearly, this
//! shows composition and colour at an eighth of the resolution.
use anyhow::{Result, ensure};
use candle_core::{DType, Device, Tensor};

/// The side of the field in latents, and of its flat squares.
pub const FIELD: usize = 16;
const SQUARE: usize = 4;

/// `rgb = A latent + b`
#[derive(Clone, Debug)]
pub struct Projection {
    /// One row for each latent channel, then the row of `b`.
    rows: Vec<[f64; 3]>,
}

/// The latents to decode for a fit: `(1, channels, FIELD, FIELD)` of squares with normal values, drawn by `normal`.
pub fn field(channels: usize, normal: &Tensor) -> Result<Tensor> {
    let coarse = FIELD / SQUARE;
    let normal = normal.reshape((1, channels, coarse, coarse))?;
    Ok(normal.upsample_nearest2d(FIELD, FIELD)?)
}

/// The shape of what [`field`] is drawn from.
pub fn field_seed(channels: usize) -> (usize, usize, usize) {
    (channels, FIELD / SQUARE, FIELD / SQUARE)
}

impl Projection {
    /// The fit to a decoded field: `latents` is `(1, c, FIELD, FIELD)` and `decoded` `(1, 3 or 1, k FIELD, k FIELD)`.
    pub fn fit(latents: &Tensor, decoded: &Tensor) -> Result<Self> {
        let (_, channels, side, _) = latents.dims4()?;
        let (_, colours, height, _) = decoded.dims4()?;
        let scale = height / side;
        let decoded = decoded.to_device(&Device::Cpu)?.to_dtype(DType::F32)?;
        let mean = decoded.avg_pool2d(scale)?.reshape((colours, side * side))?;
        let (mean, latents) = (mean.to_vec2::<f32>()?, planes(latents)?);
        // Sums over the middles of the squares, where a colour has no neighbour of another.
        let n = channels + 1;
        let (mut square, mut right) = (vec![vec![0f64; n]; n], vec![[0f64; 3]; n]);
        let middle = |i: usize| matches!(i % SQUARE, 1 | 2);
        for pixel in (0..side * side).filter(|p| middle(p % side) && middle(p / side)) {
            let value = |c: usize| latents.get(c).map_or(1.0, |plane| f64::from(plane[pixel]));
            for i in 0..n {
                for (j, cell) in square[i].iter_mut().enumerate() {
                    *cell += value(i) * value(j);
                }
                for (c, cell) in right[i].iter_mut().enumerate() {
                    *cell += value(i) * f64::from(mean[c % colours][pixel]);
                }
            }
        }
        // More channels than squares leave directions unseen; a small ridge keeps those at zero.
        (0..n).for_each(|i| square[i][i] += 1e-3);
        let rows = solve(square, right);
        ensure!(
            rows.iter().flatten().all(|v| v.is_finite()),
            "the preview's projection is not finite"
        );
        Ok(Self { rows })
    }

    /// `(1, c, h, w)` to colours `(3, h, w)` in about `[-1, 1]`, on the CPU.
    pub fn apply(&self, latents: &Tensor) -> Result<Tensor> {
        let (_, _, h, w) = latents.dims4()?;
        let planes = planes(latents)?;
        let mut out = Vec::with_capacity(3 * h * w);
        let (weights, bias) = self.rows.split_at(self.rows.len() - 1);
        for colour in 0..3 {
            out.extend((0..h * w).map(|pixel| {
                let sum = weights
                    .iter()
                    .zip(&planes)
                    .map(|(row, plane)| row[colour] * f64::from(plane[pixel]));
                (bias[0][colour] + sum.sum::<f64>()) as f32
            }));
        }
        Ok(Tensor::from_vec(out, (3, h, w), &Device::Cpu)?)
    }
}

fn planes(x: &Tensor) -> Result<Vec<Vec<f32>>> {
    let (_, c, h, w) = x.dims4()?;
    let x = x.to_device(&Device::Cpu)?.to_dtype(DType::F32)?;
    Ok(x.reshape((c, h * w))?.to_vec2::<f32>()?)
}

/// The solution of `a x = b` for a symmetric positive `a`, by Gauss's elimination.
fn solve(mut a: Vec<Vec<f64>>, mut b: Vec<[f64; 3]>) -> Vec<[f64; 3]> {
    let n = b.len();
    for i in 0..n {
        let (pivot, value) = (a[i].clone(), b[i]);
        for j in (0..n).filter(|&j| j != i) {
            let factor = a[j][i] / pivot[i];
            a[j].iter_mut()
                .zip(&pivot)
                .for_each(|(x, p)| *x -= factor * p);
            b[j].iter_mut()
                .zip(value)
                .for_each(|(x, p)| *x -= factor * p);
        }
    }
    (0..n).map(|i| b[i].map(|v| v / a[i][i])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::noise::Noise;

    #[test]
    fn a_linear_decoder_is_found_again() -> Result<()> {
        let (c, h, w) = field_seed(4);
        let normal = Noise::new(0, 1).normal((c, h, w), DType::F32, &Device::Cpu)?;
        let latents = field(4, &normal)?;
        // rgb_k = 0.3 latent_k - 0.1 latent_3 + 0.2 (k + 1)
        let decode = |x: &Tensor| -> Result<Tensor> {
            let last = (x.narrow(1, 3, 1)? * 0.1)?;
            let colours = (0..3).map(|k| {
                let plane = ((x.narrow(1, k, 1)? * 0.3)? - &last)?;
                Ok((plane + 0.2 * (k + 1) as f64)?)
            });
            Ok(Tensor::cat(&colours.collect::<Result<Vec<_>>>()?, 1)?)
        };
        let decoded = decode(&latents)?.upsample_nearest2d(8 * FIELD, 8 * FIELD)?;
        let projection = Projection::fit(&latents, &decoded)?;
        let x = Noise::new(1, 1).normal((4, 5, 3), DType::F32, &Device::Cpu)?;
        let (ours, wanted) = (projection.apply(&x)?, decode(&x)?.get(0)?);
        let off = (ours - wanted)?.abs()?.max_all()?.to_scalar::<f32>()?;
        assert!(off < 1e-3, "{off}");
        Ok(())
    }
}
