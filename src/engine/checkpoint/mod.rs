//! Everything between a `--model` text and tensors: a folder or a repository in the diffusers layout.
//!
//! - [`open`]: what a text means
//! - [`json`]: configs, as Python writes them
//! - [`hub`]: repositories and their cache
//! - [`demo`]: the checkpoints inside of the program
//! - [`place`]: where a file is
//! - [`original`]: one file with everything
//! - [`files`]: which files hold the weights
//! - [`lora`]: small files that change the weights
//! - [`identity`]: names and hashes for the picture's metadata
//! - [`weights`]: tensors by name, from `.safetensors` ([`header`]) and `.bin` ([`torch`], [`pickle`])
use anyhow::{Context, Result, bail};
use indicatif::MultiProgress;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, Once, OnceLock, PoisonError};

mod demo;
mod files;
mod header;
mod hub;
mod identity;
pub mod json;
pub mod lora;
mod open;
mod original;
mod pickle;
mod place;
mod read;
mod torch;
mod weights;

pub use demo::Demo;
pub use files::{Format, Wanted, WeightFiles};
pub use hub::{Address, Network};
pub use identity::{Identity, hex};
pub use place::Place;
pub use weights::{Naming, Weights};

/// A model in the diffusers layout: `model_index.json`, `unet/config.json`, `unet/*.safetensors`, ...
/// Repositories of a single network may be flat: the network and its scheduler at the root.
#[derive(Debug)]
pub struct Checkpoint {
    /// As the user wrote it, for messages.
    name: String,
    /// Whether parts from elsewhere may be downloaded.
    network: Network,
    source: Source,
    index: Map<String, Value>,
    /// Every file that was handed out, by its name in the checkpoint.
    read: Mutex<BTreeMap<String, Place>>,
    /// The component that may lie at the root, where the checkpoint was opened for it alone.
    lone: Option<&'static str>,
    /// Components that are taken from elsewhere.
    parts: BTreeMap<&'static str, Part>,
    /// Whether the precision of its files was told.
    said: Once,
    loras: Vec<lora::Lora>,
    /// What the LoRAs do to each component, once they were read.
    patches: OnceLock<HashMap<String, lora::Patches>>,
}

/// A component of another checkpoint.
#[derive(Debug)]
struct Part {
    checkpoint: Checkpoint,
    /// Its name there.
    component: &'static str,
}

#[derive(Debug)]
enum Source {
    Folder(PathBuf),
    Hub(Box<hub::Repository>),
    Original(Box<original::Original>),
    Program(Demo),
}

impl Checkpoint {
    /// Whether a component is taken from elsewhere.
    pub fn is_replaced(&self, component: &str) -> bool {
        self.parts.contains_key(component)
    }

    /// Where a component is, and its name there.
    fn of<'a, 'b>(&'a self, component: &'b str) -> (&'a Checkpoint, &'b str) {
        match self.parts.get(component) {
            Some(part) => (&part.checkpoint, part.component),
            None => (self, component),
        }
    }

    /// Notes that the model's one file was read.
    fn remember_file(&self, places: &[Place]) {
        let name = Path::new(&self.name).file_name().unwrap_or_default();
        let name = name.to_string_lossy();
        places.iter().for_each(|place| self.remember(&name, place));
    }

    fn remember(&self, name: &str, place: &Place) {
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        read.insert(name.to_string(), place.clone());
    }

    /// As the user wrote it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The commit that is used, where the checkpoint is a repository.
    pub fn commit(&self) -> Option<&str> {
        match &self.source {
            Source::Folder(_) | Source::Original(_) | Source::Program(_) => None,
            Source::Hub(repository) => repository.commit(),
        }
    }

    /// Where downloads of weights show how far they are; before this is called they do not.
    pub fn show_downloads(&self, bars: &MultiProgress) {
        if let Source::Hub(repository) = &self.source {
            repository.show_bars(bars);
        }
        let parts = self.parts.values();
        parts.for_each(|part| part.checkpoint.show_downloads(bars));
        self.loras.iter().for_each(|lora| lora.show_download(bars));
    }

    /// The pipeline that saved the checkpoint.
    pub fn pipeline_class(&self) -> Option<&str> {
        self.index.get("_class_name")?.as_str().map(torch_class)
    }

    /// The class that the index names for a component; diffusers takes it over the one in the component's own config.
    pub fn component_class(&self, component: &str) -> Option<&str> {
        let (at, component) = self.of(component);
        let named = at.index.get(component)?.get(1)?.as_str();
        named.map(torch_class)
    }

    /// A setting of the pipeline itself, beside its components.
    pub fn setting(&self, key: &str) -> Option<&Value> {
        self.index.get(key)
    }

    /// A file of a component, downloaded if need be. `None` where the checkpoint has no such file.
    pub fn file(&self, component: &str, name: &str) -> Result<Option<Place>> {
        if matches!(self.source, Source::Original(_)) && component.starts_with("tokenizer") {
            let found = self.file_of(component, name);
            return found.with_context(|| {
                format!(
                    "{} has no {component} in it, and none lies beside it: give one with --config",
                    self.name
                )
            });
        }
        self.file_of(component, name)
    }

    fn file_of(&self, component: &str, name: &str) -> Result<Option<Place>> {
        let (at, component) = self.of(component);
        match at.find(component, name)? {
            Some(inside) => at.get(&inside),
            None => Ok(None),
        }
    }

    /// The name in the checkpoint of a component's file, if there is one; nothing is downloaded.
    fn find(&self, component: &str, name: &str) -> Result<Option<String>> {
        if let Source::Original(file) = &self.source {
            let config = file.config.as_ref();
            return config.map_or(Ok(None), |config| config.find(component, name));
        }
        let inside = format!("{component}/{name}");
        if self.contains(&inside)? {
            return Ok(Some(inside));
        }
        let flat = self.is_flat(component)? && self.contains(name)?;
        Ok(flat.then(|| name.to_string()))
    }

    fn contains(&self, name: &str) -> Result<bool> {
        match &self.source {
            Source::Folder(folder) => exists(&folder.join(name)),
            Source::Hub(repository) => repository.contains(name),
            Source::Original(_) => Ok(false),
            Source::Program(demo) => Ok(demo.get(name).is_some()),
        }
    }

    /// The bytes of a file, and whether it is on this machine.
    fn size(&self, name: &str) -> Result<(u64, bool)> {
        let path = match &self.source {
            Source::Folder(folder) => folder.join(name),
            Source::Hub(repository) => match repository.cached_path(name) {
                Some(path) => path,
                None => return Ok((repository.size(name)?, false)),
            },
            Source::Original(_) => bail!("{} has no {name}", self.name),
            Source::Program(demo) => {
                let bytes = demo.get(name);
                let bytes = bytes.with_context(|| format!("{} has no {name}", self.name))?;
                return Ok((bytes.len() as u64, true));
            }
        };
        let found = std::fs::metadata(&path).with_context(|| path.display().to_string())?;
        Ok((found.len(), true))
    }

    /// A config as it stands.
    pub fn json(&self, component: &str, name: &str) -> Result<Map<String, Value>> {
        let (at, component) = self.of(component);
        if let Source::Original(file) = &at.source
            && file.config.is_none()
        {
            let advice = match component {
                "vae" => "; give one with --vae",
                _ => "",
            };
            return file
                .json(component)?
                .with_context(|| format!("{} has no {component} in it{advice}", at.name));
        }
        let path = at
            .file(component, name)?
            .with_context(|| format!("{} has no {component}/{name}{}", at.name, at.searched()))?;
        json::read_object(&path, json::CONFIG_LIMIT)
    }

    /// The component's config as a struct; the error names file and key.
    pub fn config<C: DeserializeOwned>(&self, component: &str) -> Result<C> {
        let name = match component {
            "scheduler" => "scheduler_config.json",
            _ => "config.json",
        };
        let map = self.json(component, name)?;
        json::decode(&map).with_context(|| format!("{}/{name}", self.place(component)))
    }

    /// Where a component is, for messages.
    fn place(&self, component: &str) -> String {
        let (at, component) = self.of(component);
        format!("{}/{component}", at.name.trim_end_matches('/'))
    }

    /// The end of a message about a file that is not there.
    fn searched(&self) -> String {
        match &self.source {
            Source::Hub(repository) => repository.searched(),
            Source::Folder(_) | Source::Original(_) | Source::Program(_) => String::new(),
        }
    }

    /// Only a lone network and its scheduler may lie at the root, and only where they have no folder.
    fn is_flat(&self, component: &str) -> Result<bool> {
        if !matches!(component, "unet" | "scheduler") && self.lone != Some(component) {
            return Ok(false);
        }
        Ok(match &self.source {
            Source::Folder(folder) => !folder.join(component).is_dir(),
            Source::Hub(repository) => !repository.has_folder(component)?,
            Source::Original(_) | Source::Program(_) => false,
        })
    }

    fn get(&self, name: &str) -> Result<Option<Place>> {
        let found = match &self.source {
            Source::Folder(folder) => {
                let path = folder.join(name);
                exists(&path)?.then_some(Place::Disk(path))
            }
            Source::Hub(repository) => repository.get(name)?.map(Place::Disk),
            Source::Program(demo) => demo
                .get(name)
                .map(|bytes| Place::Program(format!("{}/{name}", self.name), bytes)),
            Source::Original(file) => {
                let config = file.config.as_ref();
                config.map_or(Ok(None), |config| config.get(name))?
            }
        };
        if let Some(place) = &found {
            self.remember(name, place);
        }
        Ok(found)
    }
}

/// Whether something is at `path`; an error where that cannot be known, as in a folder that may not be read.
fn exists(path: &Path) -> Result<bool> {
    path.try_exists()
        .with_context(|| format!("{} cannot be read", path.display()))
}

/// The class of torch that `class` is: diffusers once had each class for Flax, too, and read checkpoints of either as the other's.
pub fn torch_class(class: &str) -> &str {
    class.strip_prefix("Flax").unwrap_or(class)
}
