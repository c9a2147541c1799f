//! The tensor operations that several samplers share: weighted sums, predictions of x0, clipping.
use super::{Settings, schedule::ensure_finite};
use candle_core::{DType, Result, Tensor, bail};

/// `sum_k c_k t_k`. Terms of weight 0 are left out, so an infinite tensor there does no harm.
pub fn combine(terms: &[(f64, &Tensor)]) -> Result<Tensor> {
    let mut sum: Option<Tensor> = None;
    for (c, tensor) in terms.iter().filter(|(c, _)| *c != 0.0) {
        let term = if *c == 1.0 {
            (*tensor).clone()
        } else {
            (*tensor * *c)?
        };
        sum = Some(match sum {
            Some(sum) => (sum + term)?,
            None => term,
        });
    }
    match (sum, terms.first()) {
        (Some(sum), _) => Ok(sum),
        (None, Some((_, tensor))) => tensor.zeros_like(),
        (None, None) => bail!("a sum of no terms"),
    }
}

/// What the network predicts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prediction {
    Epsilon,
    Sample,
    V,
}

impl Prediction {
    pub fn of(settings: &Settings) -> Self {
        match settings.word("prediction_type") {
            "sample" | "original_sample" => Self::Sample,
            "v_prediction" => Self::V,
            _ => Self::Epsilon,
        }
    }

    /// x0 from `x = alpha x0 + sigma eps` and the network's output.
    pub fn x0(self, alpha: f64, sigma: f64, x: &Tensor, output: &Tensor) -> Result<Tensor> {
        match self {
            // Divided last: with alpha = 0 the clipping that follows still finds +-infinity instead of NaN.
            Self::Epsilon => combine(&[(1.0, x), (-sigma, output)])? / alpha,
            Self::Sample => Ok(output.clone()),
            Self::V => combine(&[(alpha, x), (-sigma, output)]),
        }
    }

    /// eps from `x = alpha x0 + sigma eps` and the network's output.
    pub fn eps(self, alpha: f64, sigma: f64, x: &Tensor, output: &Tensor) -> Result<Tensor> {
        match self {
            Self::Epsilon => Ok(output.clone()),
            Self::Sample => combine(&[(1.0, x), (-alpha, output)])? / sigma,
            Self::V => combine(&[(alpha, output), (sigma, x)]),
        }
    }
}

/// What happens to a predicted x0 before it is used.
#[derive(Clone, Copy, Debug)]
pub enum Clip {
    Keep,
    Range(f64),
    /// Saharia et al. 2022 (Imagen), section 2.3: scaled by a quantile of its size.
    Dynamic {
        ratio: f64,
        max: f64,
    },
}

impl Clip {
    pub fn of(settings: &Settings) -> anyhow::Result<Self> {
        if settings.flag("thresholding") {
            let (ratio, max) = (
                settings.number("dynamic_thresholding_ratio"),
                settings.number("sample_max_value"),
            );
            anyhow::ensure!(
                (0.0..=1.0).contains(&ratio),
                "dynamic_thresholding_ratio = {ratio} is not between 0 and 1"
            );
            return Ok(Self::Dynamic { ratio, max });
        }
        let clip = settings.flag("clip_sample");
        Ok(if clip {
            Self::Range(settings.number("clip_sample_range"))
        } else {
            Self::Keep
        })
    }

    /// Refuses an alpha of zero where x0 = (x - sigma eps) / alpha divides by it and nothing brings the result back into a range.
    pub fn ensure_x0(&self, prediction: Prediction, alpha: f64) -> anyhow::Result<()> {
        match (self, prediction) {
            (Self::Keep | Self::Dynamic { .. }, Prediction::Epsilon) => {
                ensure_finite(&[1.0 / alpha])
            }
            _ => Ok(()),
        }
    }

    pub fn apply(self, x0: Tensor) -> Result<Tensor> {
        match self {
            Self::Keep => Ok(x0),
            Self::Range(range) => x0.clamp(-range, range),
            Self::Dynamic { ratio, max } => {
                let images = x0.flatten_from(1)?.to_dtype(DType::F64)?.to_vec2::<f64>()?;
                let scaled = images
                    .into_iter()
                    .flat_map(|image| threshold(image, ratio, max))
                    .collect();
                Tensor::from_vec::<_, f64>(scaled, x0.shape(), &candle_core::Device::Cpu)?
                    .to_dtype(x0.dtype())?
                    .to_device(x0.device())
            }
        }
    }
}

/// A value that is no number leaves none, as in torch.
fn threshold(image: Vec<f64>, ratio: f64, max: f64) -> Vec<f64> {
    let mut sizes: Vec<f64> = image.iter().map(|v| v.abs()).collect();
    sizes.sort_by(f64::total_cmp);
    let place = ratio * (sizes.len() - 1) as f64;
    let (low, high) = (sizes[place.floor() as usize], sizes[place.ceil() as usize]);
    let quantile = low + (high - low) * place.fract();
    if quantile.is_nan() || image.iter().any(|v| v.is_nan()) {
        return vec![f64::NAN; image.len()];
    }
    let s = quantile.max(1.0).min(max);
    image.into_iter().map(|v| v.max(-s).min(s) / s).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_threshold_hides_no_number_that_is_none() {
        assert_eq!(threshold(vec![4.0, -1.0], 1.0, 2.0), [1.0, -0.5]);
        for bad in [f64::NAN, -f64::NAN] {
            for ratio in [0.0, 0.5, 1.0] {
                let image = threshold(vec![0.5, bad, 2.0], ratio, 1.0);
                assert!(image.iter().all(|v| v.is_nan()), "{image:?}");
            }
        }
        let infinite = threshold(vec![f64::INFINITY; 3], 0.9, 1.0);
        assert!(infinite.iter().all(|v| v.is_nan()), "{infinite:?}");
    }
}
