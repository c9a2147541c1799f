//! What the environment says of the hub, in the variables that Python's huggingface_hub reads.
use anyhow::{Context, Result};
use std::path::PathBuf;
use std::time::Duration;

/// Whether the network may be used, beside what the environment says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Network {
    #[default]
    Allowed,
    Forbidden,
}

#[derive(Debug)]
pub struct Settings {
    /// The folder of all repositories.
    pub cache: PathBuf,
    /// Without a slash at its end.
    pub endpoint: String,
    pub token: Option<String>,
    /// What forbids the network, by the name it has for the user.
    pub offline: Option<&'static str>,
    /// How long the hub may be silent.
    pub silence: Duration,
}

impl Settings {
    pub fn read(network: Network) -> Result<Self> {
        let is_set = |name| variable(name).is_some_and(|value| is_true(&value));
        let switches = ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"];
        let offline = match network {
            Network::Forbidden => Some("--offline"),
            Network::Allowed => switches.into_iter().find(|name| is_set(name)),
        };
        let endpoint = variable("HF_ENDPOINT");
        let endpoint = endpoint.as_deref().unwrap_or("https://huggingface.co");
        let seconds = variable("HF_HUB_DOWNLOAD_TIMEOUT").and_then(|text| text.parse().ok());
        Ok(Self {
            cache: cache_folder()?,
            endpoint: endpoint.trim_end_matches('/').to_string(),
            token: (!is_set("HF_HUB_DISABLE_IMPLICIT_TOKEN"))
                .then(token)
                .flatten(),
            offline,
            silence: Duration::from_secs(seconds.unwrap_or(10).clamp(1, 3600)),
        })
    }
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

fn is_true(value: &str) -> bool {
    matches!(
        value.to_ascii_uppercase().as_str(),
        "1" | "ON" | "YES" | "TRUE"
    )
}

/// A folder that a variable names; `~` and other variables in it are replaced, as by Python, where no shell has done it.
fn folder(name: &str) -> Option<PathBuf> {
    let home = || std::env::home_dir()?.into_os_string().into_string().ok();
    let text = variable(name)?;
    let text =
        shellexpand::full_with_context_no_errors(&text, home, |name| std::env::var(name).ok());
    Some(text.into_owned().into())
}

fn home() -> Result<PathBuf> {
    if let Some(home) = folder("HF_HOME") {
        return Ok(home);
    }
    let cache = match folder("XDG_CACHE_HOME") {
        Some(cache) => cache,
        None => std::env::home_dir()
            .context("no home folder: set HF_HOME to a folder for downloads")?
            .join(".cache"),
    };
    Ok(cache.join("huggingface"))
}

fn cache_folder() -> Result<PathBuf> {
    let folder = match folder("HF_HUB_CACHE").or_else(|| folder("HUGGINGFACE_HUB_CACHE")) {
        Some(folder) => folder,
        None => home()?.join("hub"),
    };
    std::path::absolute(&folder)
        .with_context(|| format!("{} is no usable cache folder", folder.display()))
}

fn token() -> Option<String> {
    let text = variable("HF_TOKEN").or_else(|| {
        let path = folder("HF_TOKEN_PATH").or_else(|| Some(home().ok()?.join("token")));
        std::fs::read_to_string(path?).ok()
    });
    text.map(|t| t.trim().to_string()).filter(|t| !t.is_empty())
}
