//! Which files hold a component's weights.
use super::json;
use super::lora::Lora;
use super::original::Selection;
use super::place::{self, Place};
use super::weights::Entry;
use super::{Checkpoint, Source, header, hub, torch};
use anyhow::{Context, Result, bail};
use candle_core::DType;
use std::sync::Arc;

/// What the bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Safetensors,
    /// `torch.save`: a pickle.
    Torch,
}

impl Format {
    /// The tensors of a file, by name; none is read.
    pub fn entries(self, file: &place::Source) -> Result<Vec<(String, Entry)>> {
        let length = file.length()?;
        match self {
            Self::Safetensors => header::read(file.reader(), length),
            Self::Torch => torch::read(file.reader(), length),
        }
    }
}

/// Where a component's weights are: one file, or the parts of one.
#[derive(Clone, Debug)]
pub struct WeightFiles {
    pub component: String,
    pub format: Format,
    /// Saved in 16 bits beside (or instead of) the full precision.
    pub half: bool,
    pub places: Vec<Place>,
    /// Which tensors of the file are the component's, where it has them all.
    pub original: Option<Arc<Selection>>,
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
            let whole = format!("{stem}{variant}.{ext}");
            // Python's libraries put the variant behind `index`; files in the wild have it in front too.
            let parts = [
                format!("{stem}.{ext}.index{variant}.json"),
                format!("{stem}{variant}.{ext}.index.json"),
            ];
            let parts = parts.into_iter().take(if half { 2 } else { 1 });
            // Where a network was saved over an older one both may be there: diffusers reads the parts, transformers the whole.
            let found: Vec<_> = match stem {
                "diffusion_pytorch_model" => parts.chain([whole]).collect(),
                _ => [whole].into_iter().chain(parts).collect(),
            };
            names.extend(found.into_iter().map(|name| (name, format, half)));
        }
    }
    names
}

/// A file of weights that a load would read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// In the checkpoint; that of a part from elsewhere behind that place's name.
    pub name: String,
    pub bytes: u64,
    /// Whether it is on this machine; otherwise a load downloads it.
    pub here: bool,
    /// Saved in 16 bits.
    pub half: bool,
}

/// Where a component's weights are, by their names in the checkpoint.
struct Found {
    names: Vec<String>,
    format: Format,
    half: bool,
}

impl Checkpoint {
    /// Finds the weight files of a component, and downloads them where the checkpoint is on the hub.
    pub fn prepare_weights(&self, component: &str, dtype: DType) -> Result<WeightFiles> {
        let (at, inside) = self.of(component);
        if let Source::Original(file) = &at.source {
            let files = file.files(inside)?;
            at.remember_file(&files.places);
            return Ok(files);
        }
        let found = at.find_weights(inside, dtype)?;
        at.say_precision(dtype, found.half);
        let places = found.names.iter().map(|name| {
            let place = at.get(name)?;
            place.with_context(|| format!("{} has no {name}", at.name()))
        });
        Ok(WeightFiles {
            component: component.to_string(),
            format: found.format,
            half: found.half,
            places: places.collect::<Result<_>>()?,
            original: None,
        })
    }

    /// Downloads the weights of all components, and the LoRAs, that are not here yet, several files at once. Fails before the first of them
    /// where a component has none; the cache's gaps are told together where the network is off.
    pub fn fetch_weights(&self, components: &[(&str, DType)]) -> Result<()> {
        let (mut wanted, mut missing) = (Vec::new(), Vec::new());
        for (component, dtype) in components {
            let (at, inside) = self.of(component);
            match (at.find_weights(inside, *dtype), &at.source) {
                (Ok(found), Source::Hub(repository)) => wanted.push((&**repository, found.names)),
                (Ok(_), Source::Folder(_) | Source::Program(_)) | (_, Source::Original(_)) => {}
                (Err(error), _) => missing.push((*component, error)),
            }
        }
        let searched = self.searched();
        if missing.len() > 1 && !searched.is_empty() {
            let missing: Vec<_> = missing.iter().map(|(component, _)| *component).collect();
            bail!(
                "{} has no weights of {}{searched}: run once without that",
                self.name(),
                missing.join(", ")
            );
        }
        if let Some((_, error)) = missing.into_iter().next() {
            return Err(error);
        }
        let loras = self.loras.iter().filter_map(Lora::on_hub);
        wanted.extend(loras.map(|(repository, file)| (repository, vec![file.to_owned()])));
        hub::fetch(&wanted)
    }

    /// What [`Checkpoint::prepare_weights`] would read, with nothing downloaded but the list of a model in parts.
    pub fn wanted_weights(&self, component: &str, dtype: DType) -> Result<Vec<Wanted>> {
        let (at, component) = self.of(component);
        if let Source::Original(file) = &at.source {
            return Ok(vec![file.wanted(component)?]);
        }
        let found = at.find_weights(component, dtype)?;
        let wanted = found.names.into_iter().map(|name| {
            let (bytes, here) = at.size(&name)?;
            let place = if here { at.get(&name)? } else { None };
            // What is wrong with a file is told when it is loaded.
            let known = place.and_then(|place| is_half(&place, found.format).ok());
            let half = known.unwrap_or(found.half);
            let name = match std::ptr::eq(at, self) {
                true => name,
                false => format!("{}/{name}", at.name().trim_end_matches('/')),
            };
            Ok(Wanted {
                name,
                bytes,
                here,
                half,
            })
        });
        wanted.collect()
    }

    /// Says once that the files are not in the precision that was asked for.
    fn say_precision(&self, dtype: DType, half: bool) {
        let name = dtype.as_str();
        match (matches!(dtype, DType::F16 | DType::BF16), half) {
            (true, false) => self.said.call_once(|| {
                tracing::info!(
                    "{} has no fp16 files: the full ones are read and cast to {name}",
                    self.name()
                );
            }),
            (false, true) => self.said.call_once(|| {
                tracing::info!(
                    "{} has fp16 files alone: they are read as {name}",
                    self.name()
                );
            }),
            _ => {}
        }
    }

    fn find_weights(&self, component: &str, dtype: DType) -> Result<Found> {
        for (name, format, half) in candidates(dtype) {
            let Some(inside) = self.find(component, &name)? else {
                continue;
            };
            let names = match inside.ends_with(".json") {
                false => vec![inside],
                true => self.parts(component, &inside)?,
            };
            return Ok(Found {
                names,
                format,
                half,
            });
        }
        bail!(
            "{} has no weights for {component}{}: looked for diffusion_pytorch_model or model as .safetensors, .fp16.safetensors, .bin, or in parts with an index.json{}",
            self.name(),
            self.searched(),
            self.instead(component)?
        )
    }

    /// The weights that another program would read: `; there is diffusion_flax_model.msgpack`.
    fn instead(&self, component: &str) -> Result<String> {
        let start = match self.is_flat(component)? {
            true => String::new(),
            false => format!("{component}/"),
        };
        let mut names = match &self.source {
            Source::Folder(folder) => place::names_in(&folder.join(&start)).unwrap_or_default(),
            Source::Hub(repository) => {
                let names = repository.names().unwrap_or_default();
                let inside = names.iter().filter_map(|name| name.strip_prefix(&start));
                let beside = inside.filter(|name| !name.contains('/'));
                beside.map(str::to_owned).collect()
            }
            Source::Original(_) | Source::Program(_) => Vec::new(),
        };
        names.retain(|name| holds_weights(name));
        names.sort();
        Ok(match names.is_empty() {
            true => String::new(),
            false => format!("; there is {}", names.join(", ")),
        })
    }

    fn parts(&self, component: &str, index: &str) -> Result<Vec<String>> {
        let index = self
            .get(index)?
            .context("the index was there a moment ago")?;
        let found = read_index(&index)?.into_iter().map(|name| {
            self.find(component, &name)?
                .with_context(|| format!("{} is missing: {} names it", name, index.display()))
        });
        found.collect()
    }
}

/// Whether a name is one of torch's, Flax's, TensorFlow's, ONNX's, OpenVINO's or ggml's files of weights.
fn holds_weights(name: &str) -> bool {
    const ENDINGS: [&str; 10] = [
        "safetensors",
        "bin",
        "pt",
        "pth",
        "ckpt",
        "msgpack",
        "h5",
        "onnx",
        "xml",
        "gguf",
    ];
    let ending = name.rsplit_once('.').map(|(_, ending)| ending);
    ending.is_some_and(|ending| ENDINGS.contains(&ending))
}

/// Whether all numbers of a file are in 16 bits, which its name does not always tell.
fn is_half(place: &Place, format: Format) -> Result<bool> {
    let entries = format.entries(&place.open()?)?;
    Ok(entries.iter().all(|(_, entry)| entry.is_half()))
}

/// The files an index names, in order and each once.
pub fn read_index(path: &Place) -> Result<Vec<String>> {
    let index = json::read_object(path, json::CONFIG_LIMIT)?;
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
