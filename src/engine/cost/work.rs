//! Arithmetic, which is time on a machine whose speed is known.
//!
//! Convolutions of k x k from a to b channels on p pixels are `k^2 a b p` multiplications, attention of n queries to m keys in
//! c channels `2 n m c` and as many exponentials as scores, `n m` for each head; a product of p rows is `a b p`. Norms and activations
//! are left out: the speed is measured on a convolution with all that goes with it, and the whole is an estimate.
use super::{Kind, Network, Part};
use std::ops::{Add, AddAssign, Mul};

#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Work {
    pub multiplications: f64,
    /// Scores of attention, each an exponential.
    pub scores: f64,
    /// Layers that are called: what each costs however small its map is.
    pub layers: f64,
}

impl Network {
    pub fn work(&self) -> Work {
        self.0
            .iter()
            .fold(Work::default(), |sum, part| sum + part.work())
    }
}

impl Part {
    fn work(&self) -> Work {
        let (from, c, p) = (self.from as f64, self.to as f64, self.pixels);
        let square = c * c * p;
        let (multiplications, scores, layers) = match self.kind {
            Kind::Conv(kernel) => ((kernel * kernel) as f64 * from * c * p, 0.0, 1.0),
            Kind::Resnet => {
                let (shortcut, layers) = match self.from == self.to {
                    true => (0.0, 5.0),
                    false => (from * c * p, 6.0),
                };
                (9.0 * from * c * p + 9.0 * square + shortcut, 0.0, layers)
            }
            Kind::TinyBlock => (27.0 * square, 0.0, 6.0),
            Kind::Pixels { heads } => (4.0 * square + 2.0 * p * p * c, p * p * heads as f64, 6.0),
            Kind::Text {
                heads,
                blocks,
                tokens,
            } => {
                // Self-attention, the text's queries and output, and the gated pair of layers.
                let (n, keys) = (blocks as f64, p + tokens as f64);
                let block = 6.0 * square + 2.0 * p * keys * c + 12.0 * square;
                (
                    2.0 * square + n * block,
                    n * p * keys * heads as f64,
                    3.0 + 13.0 * n,
                )
            }
        };
        Work {
            multiplications,
            scores,
            layers,
        }
    }
}

impl Add for Work {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            multiplications: self.multiplications + other.multiplications,
            scores: self.scores + other.scores,
            layers: self.layers + other.layers,
        }
    }
}

impl AddAssign for Work {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

/// Of several calls one after another.
impl Mul<usize> for Work {
    type Output = Self;

    fn mul(self, times: usize) -> Self {
        let times = times as f64;
        Self {
            multiplications: times * self.multiplications,
            scores: times * self.scores,
            layers: times * self.layers,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::models::autoencoder::Autoencoder;
    use crate::engine::models::unet_config::UNetFile;
    use anyhow::Result;
    use serde::de::DeserializeOwned;

    fn read<C: DeserializeOwned>(file: &str) -> Result<C> {
        let path = format!("{}/assets/{file}", env!("CARGO_MANIFEST_DIR"));
        Ok(serde_json::from_slice(&std::fs::read(path)?)?)
    }

    fn is_near(ours: f64, torch: f64) {
        assert!((ours / torch - 1.0).abs() < 0.005, "{ours} of {torch}");
    }

    // torch.utils.flop_counter on diffusers' models of the same configurations, halved: it counts additions too.
    #[test]
    fn the_multiplications_are_those_that_torch_counts() -> Result<()> {
        let ddpm = read::<UNetFile>("tiny-ddpm/unet/config.json")?.unconditional()?;
        let call = Network::unet(&ddpm, (16, 16), 0).work();
        is_near(call.multiplications, 7_835_904.0);
        let vae = Autoencoder::Kl(read("tiny-sd/vae/config.json")?);
        let decode = Network::decoder(&vae, (8, 8)).work();
        is_near(decode.multiplications, 19_247_104.0);
        // torch makes keys and values of the text in every call, which is once in a run here: 1.5 of 401.6 billion in
        // Stable Diffusion 1.5 and much more in this one.
        let sd = read::<UNetFile>("tiny-sd/unet/config.json")?.conditional()?;
        let ours = Network::unet(&sd, (8, 8), 77).work().multiplications;
        assert!((3_500_000.0..3_940_864.0).contains(&ours), "{ours}");
        Ok(())
    }

    #[test]
    fn a_score_is_counted_for_each_head_pixel_and_key() -> Result<()> {
        let vae = Autoencoder::Kl(read("tiny-sd/vae/config.json")?);
        assert_eq!(Network::decoder(&vae, (8, 8)).work().scores, 64.0 * 64.0);
        Ok(())
    }
}
