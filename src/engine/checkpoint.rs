//! STUB
use anyhow::{Result, bail};
use std::path::{Path, PathBuf};
pub struct Checkpoint { pub root: PathBuf }
impl Checkpoint {
    pub fn open(model: &str, _revision: &str) -> Result<Self> {
        let root = Path::new(model);
        if !root.is_dir() { bail!("no model {model}: give a folder in the diffusers layout or a hub id like google/ddpm-cat-256"); }
        Ok(Self { root: root.to_path_buf() })
    }
}
