//! Which model it was: its name, its commit, and the SHA-256 of every file that was read.
//!
//! The hub keeps weights under their SHA-256, so those of its cache cost nothing; other files are read once more, by a
//! thread beside the drawing.
use super::{Checkpoint, Part, Place, Source};
use anyhow::{Context, Result};
use serde::Serialize;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use std::sync::PoisonError;
use std::thread::JoinHandle;

/// A model as a picture's metadata names it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Identity {
    /// The hub's id, or the folder as it was written on the command line.
    pub id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub commit: Option<String>,
    /// Of the lines `sha256  name` of all files, sorted by name: one hash for the whole model.
    pub sha256: String,
    /// The files that were read, by their names in the checkpoint; those of a component from elsewhere behind that place's name.
    pub files: BTreeMap<String, String>,
    /// The commits of components and configurations that are taken from other repositories, by these repositories' names.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub commits: BTreeMap<String, String>,
    /// In the order in which they were given; their files are among `files`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub loras: Vec<UsedLora>,
}

/// A LoRA as a picture's metadata names it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct UsedLora {
    pub file: String,
    pub weight: f64,
    pub sha256: String,
    /// `owner/name@COMMIT/file`, where it comes from the hub.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
}

impl Identity {
    fn of(
        id: String,
        commit: Option<String>,
        commits: BTreeMap<String, String>,
        mut loras: Vec<UsedLora>,
        files: BTreeMap<String, Place>,
    ) -> Result<Self> {
        let hashes = files.into_iter().map(|(name, place)| {
            let hash = file_hash(&place).with_context(|| format!("reading {}", place.display()))?;
            Ok((name, hash))
        });
        let files: BTreeMap<String, String> = hashes.collect::<Result<_>>()?;
        for lora in &mut loras {
            lora.sha256 = files.get(&lora.file).cloned().unwrap_or_default();
        }
        let lines: String = files
            .iter()
            .map(|(name, hash)| format!("{hash}  {name}\n"))
            .collect();
        Ok(Self {
            id,
            commit,
            sha256: hex(&Sha256::digest(lines)),
            files,
            commits,
            loras,
        })
    }

    /// The hash of the UNet's first file of weights.
    pub fn weights_hash(&self) -> Option<&str> {
        let is_weights = |name: &str| {
            [".safetensors", ".bin", ".ckpt"]
                .iter()
                .any(|end| name.ends_with(end))
        };
        let in_unet = |name: &str| name.starts_with("unet/") || !name.contains('/');
        let mut files = self.files.iter();
        let found = files.find(|(name, _)| is_weights(name) && in_unet(name));
        found.map(|(_, hash)| hash.as_str())
    }
}

impl Checkpoint {
    /// Begins to hash every file that was read so far.
    pub fn identify(&self) -> JoinHandle<Result<Identity>> {
        let mut files = self.files_read();
        let mut commits = BTreeMap::new();
        // A part of another name than its own there is no part of the model, and no pixel depends on it.
        let parts = self
            .parts
            .iter()
            .filter(|(name, part)| **name == part.component);
        for (_, Part { checkpoint, .. }) in parts {
            let id = checkpoint.id().trim_end_matches('/').to_owned();
            let theirs = checkpoint.files_read().into_iter();
            files.extend(theirs.map(|(name, place)| (format!("{id}/{name}"), place)));
            if let Some(commit) = checkpoint.commit() {
                commits.insert(id, commit.to_owned());
            }
        }
        if let Source::Original(file) = &self.source
            && let Some(config) = &file.config
            && let Some(commit) = config.commit()
        {
            commits.insert(config.id(), commit.to_owned());
        }
        let mut loras = Vec::new();
        for lora in &self.loras {
            let (mut name, source) = (lora.name().to_owned(), lora.pinned());
            // It was read, so it is here. One file may be given at two commits.
            if let Ok(place) = lora.place() {
                if let (Some(other), Some(source)) = (files.get(&name), &source)
                    && *other != place
                {
                    name.clone_from(source);
                }
                files.insert(name.clone(), place);
            }
            loras.push(UsedLora {
                file: name,
                weight: lora.weight,
                sha256: String::new(),
                source,
            });
        }
        let (id, commit) = (self.id(), self.commit().map(str::to_owned));
        std::thread::spawn(move || Identity::of(id, commit, commits, loras, files))
    }

    fn files_read(&self) -> BTreeMap<String, Place> {
        let files = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        files.clone()
    }

    /// The hub's id, the folder as it was written on the command line, or `demo`.
    fn id(&self) -> String {
        match &self.source {
            Source::Folder(_) | Source::Original(_) | Source::Program(_) => self.name.clone(),
            Source::Hub(repository) => repository.id().to_owned(),
        }
    }
}

fn file_hash(place: &Place) -> Result<String> {
    let path = match place {
        Place::Disk(path) => path,
        Place::Program(_, bytes) => return Ok(hex(&Sha256::digest(bytes))),
    };
    // In the cache a name is a link to a blob, which is named by its SHA-256 where git LFS keeps it. The blob may be a link
    // in turn, to a store whose names are other hashes.
    let blob = std::fs::read_link(path).unwrap_or_default();
    let name = blob.file_name().unwrap_or_default().to_string_lossy();
    let is_blob = blob.parent().and_then(Path::file_name) == Some("blobs".as_ref());
    if is_blob && name.len() == 64 && name.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Ok(name.into_owned());
    }
    let mut hasher = Sha256::new();
    std::io::copy(&mut File::open(path)?, &mut hasher)?;
    Ok(hex(&hasher.finalize()))
}

/// Lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
