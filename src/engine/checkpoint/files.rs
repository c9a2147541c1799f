//! Which files hold a component's weights.
use super::Checkpoint;
use super::json;
use super::place::Place;
use anyhow::{Context, Result, bail};
use candle_core::DType;

/// What the bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Safetensors,
    /// `torch.save`: a pickle.
    Torch,
}

/// Where a component's weights are: one file, or the parts of one.
#[derive(Clone, Debug)]
pub struct WeightFiles {
    pub component: String,
    pub format: Format,
    /// Saved in 16 bits beside (or instead of) the full precision.
    pub half: bool,
    pub places: Vec<Place>,
}

/// The names to look for, best first. `.non_ema` files are never wanted.
pub fn candidates(dtype: DType) -> Vec<(String, Format, bool)> {
    use Format::{Safetensors, Torch};
    let order = match dtype {
        DType::F16 | DType::BF16 => [
            (Safetensors, true),
            (Safetensors, false),
            (Torch, true),
            (Torch, false),
        ],
        // Full precision in any format goes before 16 bits: the reference would read that.
        _ => [
            (Safetensors, false),
            (Torch, false),
            (Safetensors, true),
            (Torch, true),
        ],
    };
    let mut names = Vec::new();
    for (format, half) in order {
        let variant = if half { ".fp16" } else { "" };
        let ext = if format == Torch {
            "bin"
        } else {
            "safetensors"
        };
        for stem in ["diffusion_pytorch_model", "model", "pytorch_model"] {
            names.push((format!("{stem}{variant}.{ext}"), format, half));
            names.push((format!("{stem}.{ext}.index{variant}.json"), format, half));
        }
    }
    names
}

impl Checkpoint {
    /// Finds the weight files of a component, and downloads them where the checkpoint is on the hub.
    pub fn prepare_weights(&self, component: &str, dtype: DType) -> Result<WeightFiles> {
        for (name, format, half) in candidates(dtype) {
            let Some(place) = self.file(component, &name)? else {
                continue;
            };
            let places = match name.ends_with(".json") {
                false => vec![place],
                true => self.shards(component, &place)?,
            };
            let component = component.to_string();
            return Ok(WeightFiles {
                component,
                format,
                half,
                places,
            });
        }
        bail!(
            "{} has no weights for {component}{}: looked for diffusion_pytorch_model or model as .safetensors, .fp16.safetensors, .bin, or in parts with an index.json",
            self.name(),
            self.searched()
        )
    }

    fn shards(&self, component: &str, index: &Place) -> Result<Vec<Place>> {
        let names = read_index(index)?;
        let found = names.iter().map(|name| {
            self.file(component, name)?
                .with_context(|| format!("{} is missing: {} names it", name, index.display()))
        });
        found.collect()
    }
}

/// The files an index names, in order and each once.
pub fn read_index(path: &Place) -> Result<Vec<String>> {
    let index = json::read_object(path, 16 << 20)?;
    let Some(map) = index.get("weight_map").and_then(|m| m.as_object()) else {
        bail!("{}: has no weight_map", path.display());
    };
    let mut names = Vec::new();
    for name in map.values() {
        let name = name.as_str().unwrap_or_default();
        // The parts lie beside their index; anything else is an attempt to read another file.
        let plain =
            !name.is_empty() && !name.starts_with('.') && !name.contains(['/', '\\', ':', '\0']);
        if !plain {
            bail!(
                "{}: {:?} is not the name of a file beside it",
                path.display(),
                json::one_line(name)
            );
        }
        names.push(name.to_string());
    }
    names.sort();
    names.dedup();
    if names.is_empty() || names.len() > 1000 {
        bail!("{}: names {} files", path.display(), names.len());
    }
    Ok(names)
}
