//! Everything between a `--model` text and tensors: a folder or a repository in the diffusers layout.
//!
//! - [`json`]: configs, as Python writes them
//! - [`hub`]: repositories and their cache
//! - [`place`]: where a file is
//! - [`files`]: which files hold the weights
//! - [`identity`]: names and hashes for the picture's metadata
//! - [`weights`]: tensors by name, from `.safetensors` ([`header`]) and `.bin` ([`torch`], [`pickle`])
use anyhow::{Context, Result, bail};
use indicatif::MultiProgress;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

mod files;
mod header;
mod hub;
mod identity;
pub mod json;
mod pickle;
mod place;
mod read;
mod torch;
mod weights;

pub use files::{Format, Wanted, WeightFiles};
pub use hub::Network;
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
}

impl Checkpoint {
    /// A path that exists wins, else `model` is a repository of the hub. Reads a config or two, no weights.
    pub fn open(model: &str, revision: &str) -> Result<Self> {
        Self::open_by(Network::Allowed, model, revision)
    }

    /// The same, over the network or from the cache alone.
    pub fn open_by(network: Network, model: &str, revision: &str) -> Result<Self> {
        let mut checkpoint = Self::at(network, model, revision)?;
        if let Some(place) = checkpoint.get("model_index.json")? {
            checkpoint.index = json::read_object(&place, json::CONFIG_LIMIT)?;
        } else if checkpoint.file("unet", "config.json")?.is_none() {
            bail!(
                "{model} is no model in the diffusers layout: it has no model_index.json, unet/config.json or config.json"
            );
        }
        Ok(checkpoint)
    }

    /// Takes `name` from `model`, a folder or a repository: its component `component`, or itself where it is nothing else.
    pub fn replace(
        &mut self,
        name: &'static str,
        model: &str,
        component: &'static str,
    ) -> Result<()> {
        let mut checkpoint = Self::at(self.network, model, "main")?;
        checkpoint.lone = Some(component);
        if checkpoint.file(component, "config.json")?.is_none() {
            bail!(
                "{model} has no {component}/config.json and no config.json{}",
                checkpoint.searched()
            );
        }
        if let Some(place) = checkpoint.get("model_index.json")? {
            checkpoint.index = json::read_object(&place, json::CONFIG_LIMIT)?;
        }
        let part = Part {
            checkpoint,
            component,
        };
        self.parts.insert(name, part);
        Ok(())
    }

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

    fn at(network: Network, model: &str, revision: &str) -> Result<Self> {
        let path = Path::new(model);
        let source = if path.is_dir() {
            Source::Folder(path.to_path_buf())
        } else if path.exists() {
            bail!(
                "{model} is a file: give the folder of a model in the diffusers layout, or a hub id such as owner/name"
            );
        } else if hub::is_id(model) {
            Source::Hub(Box::new(hub::Repository::open(model, revision, network)?))
        } else {
            bail!(
                "{model:?} is no folder here and no hub id: give the path of a model's folder, or owner/name"
            );
        };
        Ok(Self {
            name: model.to_string(),
            network,
            source,
            index: Map::new(),
            read: Mutex::default(),
            lone: None,
            parts: BTreeMap::new(),
        })
    }

    /// As the user wrote it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The commit that is used, where the checkpoint is a repository.
    pub fn commit(&self) -> Option<&str> {
        match &self.source {
            Source::Folder(_) => None,
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
    }

    /// The pipeline that saved the checkpoint.
    pub fn pipeline_class(&self) -> Option<&str> {
        self.index.get("_class_name")?.as_str()
    }

    /// The class that the index names for a component; diffusers takes it over the one in the component's own config.
    pub fn component_class(&self, component: &str) -> Option<&str> {
        let (at, component) = self.of(component);
        at.index.get(component)?.get(1)?.as_str()
    }

    /// The diffusers version that saved it.
    pub fn version(&self) -> Option<&str> {
        self.index.get("_diffusers_version")?.as_str()
    }

    /// The components that the index names; null ones (a safety checker left out) are not there.
    pub fn components(&self) -> Vec<&str> {
        let is_component = |value: &Value| matches!(value.as_array().map(Vec::as_slice), Some([_, class]) if !class.is_null());
        self.index
            .iter()
            .filter(|(_, value)| is_component(value))
            .map(|(key, _)| key.as_str())
            .collect()
    }

    /// Whether the component is there, by its config.
    pub fn has(&self, component: &str) -> bool {
        [
            "config.json",
            "scheduler_config.json",
            "tokenizer_config.json",
            "vocab.json",
            "tokenizer.json",
        ]
        .iter()
        .any(|name| matches!(self.file(component, name), Ok(Some(_))))
    }

    /// A file of a component, downloaded if need be. `None` where the checkpoint has no such file.
    pub fn file(&self, component: &str, name: &str) -> Result<Option<Place>> {
        let (at, component) = self.of(component);
        match at.find(component, name)? {
            Some(inside) => at.get(&inside),
            None => Ok(None),
        }
    }

    /// The name in the checkpoint of a component's file, if there is one; nothing is downloaded.
    fn find(&self, component: &str, name: &str) -> Result<Option<String>> {
        let inside = format!("{component}/{name}");
        if self.contains(&inside)? {
            return Ok(Some(inside));
        }
        let flat = self.is_flat(component)? && self.contains(name)?;
        Ok(flat.then(|| name.to_string()))
    }

    fn contains(&self, name: &str) -> Result<bool> {
        match &self.source {
            Source::Folder(folder) => Ok(folder.join(name).exists()),
            Source::Hub(repository) => repository.contains(name),
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
        };
        let found = std::fs::metadata(&path).with_context(|| path.display().to_string())?;
        Ok((found.len(), true))
    }

    /// A config as it stands.
    pub fn json(&self, component: &str, name: &str) -> Result<Map<String, Value>> {
        let (at, component) = self.of(component);
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
            Source::Folder(_) => String::new(),
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
        })
    }

    fn get(&self, name: &str) -> Result<Option<Place>> {
        let found = match &self.source {
            Source::Folder(folder) => Some(folder.join(name)).filter(|path| path.exists()),
            Source::Hub(repository) => repository.get(name)?,
        };
        let found = found.map(Place::Disk);
        if let Some(place) = &found {
            let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
            read.insert(name.to_string(), place.clone());
        }
        Ok(found)
    }
}
