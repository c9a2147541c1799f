//! From a `--model` text to a checkpoint: what it is, and where its parts are. Reads a config or two, no weights.
use super::hub::{self, Network};
use super::{Checkpoint, Demo, Part, Source, demo, json, original};
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, Once, OnceLock};

/// `--config` completes a model that is one file.
fn refuse_config(model: &str, config: Option<&str>) -> Result<()> {
    match config {
        Some(config) => bail!(
            "--config {config} is for a model that is one file, and {model} is none: leave it out"
        ),
        None => Ok(()),
    }
}

/// A model's snapshot in a folder of the hub's cache: that of a repository, or its `snapshots`.
fn snapshot_in(folder: &Path) -> Option<PathBuf> {
    let inner = [folder.join("snapshots"), folder.to_path_buf()];
    let snapshots = inner
        .into_iter()
        .find(|folder| folder.ends_with("snapshots") && folder.is_dir())?;
    let found = std::fs::read_dir(snapshots).ok()?.flatten();
    found
        .map(|entry| entry.path())
        .find(|path| path.join("model_index.json").exists())
}

impl Checkpoint {
    /// A path that exists wins, else `model` is a repository of the hub.
    pub fn open(model: &str, revision: &str) -> Result<Self> {
        Self::open_by(Network::Allowed, model, revision)
    }

    /// The same, over the network or from the cache alone.
    pub fn open_by(network: Network, model: &str, revision: &str) -> Result<Self> {
        Self::open_with(network, model, revision, None)
    }

    /// The same; where `model` is a file in the original layout, with the configurations and the tokenizer of the folder or
    /// repository `config`.
    pub fn open_with(
        network: Network,
        model: &str,
        revision: &str,
        config: Option<&str>,
    ) -> Result<Self> {
        if Path::new(model).is_file() {
            return Self::open_file(network, model, config);
        }
        let of_repository =
            hub::Address::parse(model).is_some_and(|address| address.file.is_some());
        ensure!(
            !of_repository,
            "{model} is a file of a repository, and a whole model in one file is read from the disk alone: download it and give its path"
        );
        let extension = Path::new(model).extension().unwrap_or_default();
        let mut of_files = ["safetensors", "ckpt"].into_iter();
        let is_of_file = of_files.any(|of| extension.eq_ignore_ascii_case(of));
        ensure!(
            !is_of_file || Path::new(model).exists(),
            "there is no file {model}: check its path"
        );
        refuse_config(model, config)?;
        Self::at(network, model, revision)?.with_index()
    }

    /// Whether `model` is what the program carries. No hub id has this form, and a folder of this name is `./demo`.
    pub fn is_demo(model: &str) -> bool {
        model == demo::NAME
    }

    /// One of the checkpoints in the program; `network` is for parts that are taken from elsewhere.
    pub fn demo(network: Network, demo: Demo, config: Option<&str>) -> Result<Self> {
        refuse_config(demo::NAME, config)?;
        let folder = Path::new(demo::NAME);
        let files = ["model_index.json", "unet/config.json", "config.json"];
        if files.iter().any(|name| folder.join(name).exists()) {
            tracing::warn!(
                "{0} is the model in this program; type ./{0} for the folder",
                demo::NAME
            );
        }
        Self::new(network, demo::NAME, Source::Program(demo)).with_index()
    }

    fn with_index(mut self) -> Result<Self> {
        if self.read_index()? {
            return Ok(self);
        }
        let Some(config) = self.file("unet", "config.json")? else {
            let snapshot = snapshot_in(Path::new(&self.name));
            let advice = snapshot.map(|folder| {
                let folder = folder.display();
                format!("; it is a folder of the hub's cache, with a model in {folder}")
            });
            bail!(
                "{model} is no model in the diffusers layout: it has no model_index.json, unet/config.json or config.json{advice}",
                model = self.name,
                advice = advice.unwrap_or_default()
            );
        };
        // Names of UNets vary, and some files have none.
        let config = json::read_object(&config, json::CONFIG_LIMIT)?;
        match config.get("_class_name").and_then(Value::as_str) {
            Some(class) if !class.contains("UNet") => bail!(
                "{} is {} alone, which draws nothing by itself: give the folder of a whole model, with a model_index.json, or of an unconditional UNet",
                self.name,
                json::one_line(class)
            ),
            _ => Ok(self),
        }
    }

    /// Whether there is a `model_index.json`; it is read.
    fn read_index(&mut self) -> Result<bool> {
        let place = self.get("model_index.json")?;
        if let Some(place) = &place {
            self.index = json::read_object(place, json::CONFIG_LIMIT)?;
            if let Some(class @ Value::Array(_)) = self.index.get("_class_name") {
                bail!(
                    "model_index.json names a pipeline of its own code, {class}, which is not run"
                );
            }
        }
        Ok(place.is_some())
    }

    fn open_file(network: Network, model: &str, config: Option<&str>) -> Result<Self> {
        let config = config.map(|config| Self::elsewhere(network, config)?.with_index());
        let config = config.transpose().context("--config")?;
        let file = original::Original::open(model, config)?;
        let (family, folder) = (file.family(), file.folder().to_path_buf());
        let index = match &file.config {
            Some(config) => config.index.clone(),
            None => file.json("")?.unwrap_or_default(),
        };
        let own = file.config.is_none();
        if own && family == original::Family::OpenClip {
            tracing::info!(
                "{model} is taken for a model that predicts v, as that of 768x768 does; for the base: --scheduler-option prediction_type=epsilon --width 512 --height 512"
            );
        }
        let mut checkpoint = Self::new(network, model, Source::Original(Box::new(file)));
        checkpoint.index = index;
        for &component in family.tokenizers().iter().filter(|_| own) {
            // Beside the file, else where the family's is.
            let beside = folder.join(component).is_dir();
            let source = match beside {
                true => Source::Folder(folder.clone()),
                false => Source::Hub(Box::new(hub::Repository::open(
                    family.repository(),
                    "main",
                    network,
                )?)),
            };
            let name = match beside {
                true => folder.to_string_lossy().into_owned(),
                false => family.repository().to_owned(),
            };
            let part = Part {
                checkpoint: Self::new(network, &name, source),
                component,
            };
            checkpoint.parts.insert(component, part);
        }
        Ok(checkpoint)
    }

    /// Takes `name` from `model`, a folder or a repository, `owner/name` or `owner/name@REVISION`: its component `component`, or itself where it is nothing else.
    pub fn replace(
        &mut self,
        name: &'static str,
        model: &str,
        component: &'static str,
    ) -> Result<()> {
        let mut checkpoint = Self::elsewhere(self.network, model)?;
        checkpoint.lone = Some(component);
        if checkpoint.file(component, "config.json")?.is_none() {
            bail!(
                "{model} has no {component}/config.json and no config.json{}",
                checkpoint.searched()
            );
        }
        checkpoint.read_index()?;
        let part = Part {
            checkpoint,
            component,
        };
        self.parts.insert(name, part);
        Ok(())
    }

    /// What completes a checkpoint: it has no flag for its revision, so that stands behind its id.
    fn elsewhere(network: Network, model: &str) -> Result<Self> {
        match hub::split_revision(model).filter(|_| !Path::new(model).exists()) {
            Some((id, revision)) => Self::at(network, id, revision),
            None => Self::at(network, model, "main"),
        }
    }

    fn at(network: Network, model: &str, revision: &str) -> Result<Self> {
        let path = Path::new(model);
        let source = if path.is_dir() {
            Source::Folder(path.to_path_buf())
        } else if path.exists() {
            bail!(
                "{model} is a file: give a folder in the diffusers layout, or a hub id such as owner/name"
            );
        } else if hub::is_id(model) {
            Source::Hub(Box::new(hub::Repository::open(model, revision, network)?))
        } else if let Some((id, revision)) = hub::split_revision(model) {
            bail!(
                "\"{model}\" is no folder here: for a revision of {id} type --model {id} --revision {revision}"
            );
        } else {
            bail!(
                "\"{model}\" is no folder here and no hub id: give the path of a model's folder, or owner/name"
            );
        };
        Ok(Self::new(network, model, source))
    }

    fn new(network: Network, name: &str, source: Source) -> Self {
        Self {
            name: name.to_string(),
            network,
            source,
            index: Map::new(),
            read: Mutex::default(),
            lone: None,
            parts: BTreeMap::new(),
            said: Once::new(),
            loras: Vec::new(),
            patches: OnceLock::new(),
        }
    }
}
