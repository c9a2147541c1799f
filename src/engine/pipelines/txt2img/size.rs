//! The size of a picture, and the sizes that some UNets are told.
use crate::engine::models::autoencoder::Autoencoder;
use crate::engine::models::unet_config::UNetConfig;

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value};

/// Sizes beside the picture's own, for a UNet that was trained with them (Podell et al. 2023, section 2.2). None is the picture's size
/// and a crop at its upper left.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sizes {
    /// Width and height in pixels.
    pub original: Option<(u32, u32)>,
    /// From the top and from the left, in pixels.
    pub crop: Option<(u32, u32)>,
    /// Width and height in pixels.
    pub target: Option<(u32, u32)>,
}

impl Sizes {
    /// What the UNet is told of a picture of `(height, width)`; None where it is told nothing.
    pub fn resolve(
        &self,
        unet: &UNetConfig,
        (height, width): (usize, usize),
    ) -> Result<Option<[f64; 6]>> {
        if unet.added.is_none() {
            let given = [
                ("original-size", self.original),
                ("crop", self.crop),
                ("target-size", self.target),
            ];
            if let Some((flag, _)) = given.into_iter().find(|(_, value)| value.is_some()) {
                bail!(
                    "--{flag}: this model's UNet is told no sizes (it has no addition_embed_type); leave the flag out"
                );
            }
            return Ok(None);
        }
        let own = (width as u32, height as u32);
        let (original, target) = (self.original.unwrap_or(own), self.target.unwrap_or(own));
        let (top, left) = self.crop.unwrap_or_default();
        let sizes = [original.1, original.0, top, left, target.1, target.0];
        Ok(Some(sizes.map(f64::from)))
    }
}

/// Height and width in pixels, by the reference's rules: the UNet's sample_size times the VAE's factor unless given, and
/// only multiples of 8. With `corrected`, sample_size is raised to 64 for files older than 0.9.0.
pub fn picture_size(
    unet: &UNetConfig,
    file: &Map<String, Value>,
    corrected: bool,
    vae: &Autoencoder,
    height: Option<u32>,
    width: Option<u32>,
) -> Result<(usize, usize)> {
    let one_number = file.get("sample_size").is_some_and(Value::is_u64);
    let old = corrected
        && file
            .get("_diffusers_version")
            .and_then(Value::as_str)
            .is_some_and(before_0_9);
    let own = unet.sample_size.map(|(h, w)| {
        if one_number && old && h < 64 {
            (64, 64)
        } else {
            (h, w)
        }
    });
    let pick = |given: Option<u32>, own: Option<usize>, flag: &str| {
        given
            .map(|side| side as usize)
            .or(own.map(|side| side * vae.scale()))
            .with_context(|| {
                format!("unet/config.json has no sample_size; give the size with --{flag}")
            })
    };
    let height = pick(height, own.map(|s| s.0), "height")?;
    let width = pick(width, own.map(|s| s.1), "width")?;
    let unit = vae.scale().max(8);
    for (flag, side) in [("height", height), ("width", width)] {
        if side == 0 || !side.is_multiple_of(unit) {
            let (below, above) = (side / unit * unit, side.div_ceil(unit).max(1) * unit);
            let candidates = if below == 0 {
                format!("{above}")
            } else {
                format!("{below} or {above}")
            };
            bail!(
                "{flag} {side} is not a multiple of {unit}, as this model needs; try --{flag} {candidates}"
            );
        }
    }
    Ok((height, width))
}

/// Whether a version such as "0.7.0.dev0" comes before 0.9.0, its pre-releases left aside.
fn before_0_9(version: &str) -> bool {
    let mut numbers = version.split('.').map(|part| part.parse::<u64>());
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor) < (0, 9),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_before_0_9_are_told_from_later_ones() {
        for old in ["0.0.4", "0.7.0.dev0", "0.8.1", "0.2"] {
            assert!(before_0_9(old), "{old}");
        }
        for new in ["0.9.0", "0.9.0.dev0", "0.10.2", "0.42.1", "1.0.0", "", "x"] {
            assert!(!before_0_9(new), "{new}");
        }
    }
}
