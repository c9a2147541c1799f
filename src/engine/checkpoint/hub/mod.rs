//! Repositories of the hub: the cache that Python shares, and downloads.
//!
//! What is in the cache is used without asking the network. Otherwise one request lists the repository's files at a
//! commit, and only files that are asked for are fetched.
//!
//! - `settings`: the environment
//! - `address`: what is copied from a browser
//! - `layout`: the cache's folders and links
//! - `client`: requests
//! - `fetch`: all files of a run, several at once
//! - `bars`: how far downloads are
//! - `download`: files that come whole or not at all
//! - `words`: what went wrong, for the user
mod address;
mod bars;
mod client;
mod download;
mod fetch;
mod layout;
mod settings;
mod words;

use super::place;
pub use address::Address;
use anyhow::{Context, Result, anyhow, bail};
use client::{About, Client, Failure};
use download::Patience;
pub use fetch::fetch;
use hf_hub::{Repo, RepoType};
use indicatif::MultiProgress;
use layout::Layout;
pub use settings::Network;
use settings::Settings;
use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use words::Asked;

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
    // The path of a file is none, whether it is there or not.
    let is_file = [".safetensors", ".ckpt", ".bin", ".pt", ".pth"]
        .iter()
        .any(|end| text.ends_with(end));
    text.split_once('/')
        .is_some_and(|(owner, name)| fits(owner) && fits(name) && !is_file)
}

/// `owner/name@REVISION`, as the file system of Python's library writes it: the id, and what follows the `@`.
pub fn split_revision(text: &str) -> Option<(&str, &str)> {
    text.split_once('@').filter(|(id, _)| is_id(id))
}

/// A repository at a revision.
#[derive(Debug)]
pub struct Repository {
    id: String,
    revision: String,
    layout: Layout,
    client: Client,
    /// Where the bars of downloads are drawn; nowhere at first.
    bars: OnceLock<MultiProgress>,
    /// What forbids the network, if anything does.
    forbidden: Option<&'static str>,
    /// The network did not answer.
    silent: AtomicBool,
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
    pub fn open(id: &str, revision: &str, network: Network) -> Result<Self> {
        if !is_plain(revision) || revision.contains(['\\', '?', '#', '%']) {
            bail!("revision {revision:?} is no branch, tag or commit: main is the usual one");
        }
        let settings = Settings::read(network)?;
        let layout = |id: &str| Layout::new(settings.cache.clone(), model(id, revision));
        let cached = layout(id).commit(revision);
        let id = match words::moved(id) {
            // What was downloaded in time is as good as ever.
            Some(mirror) if cached.is_none() => {
                tracing::warn!("{id} was removed from the hub: using its mirror {mirror}");
                mirror
            }
            _ => id,
        };
        let layout = layout(id);
        Ok(Self {
            cached: layout.commit(revision),
            client: Client::new(&settings),
            layout,
            id: id.to_owned(),
            revision: revision.to_owned(),
            bars: OnceLock::new(),
            forbidden: settings.offline,
            silent: AtomicBool::new(false),
            listing: OnceLock::new(),
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
        if !self.contains(name)? {
            return Ok(None);
        }
        self.fetch(&[name.to_owned()])?;
        Ok(self.cached_path(name))
    }

    /// Whether there is a file of this name, in the cache or the repository.
    pub fn contains(&self, name: &str) -> Result<bool> {
        if self.cached_path(name).is_some() {
            return Ok(true);
        }
        if !is_plain(name) || self.knows_absent(name) {
            return Ok(false);
        }
        let Some(listing) = self.listing()? else {
            return Ok(false);
        };
        let found = listing.names.contains(name);
        if !found {
            self.layout.note_absence(&listing.commit, name);
        }
        Ok(found)
    }

    fn knows_absent(&self, name: &str) -> bool {
        self.commit()
            .is_some_and(|commit| self.layout.lacks(commit, name))
    }

    /// The names of its files: of all, or where only the cache is there, of those at its root.
    pub fn names(&self) -> Result<Vec<String>> {
        if let Some(listing) = self.listing()? {
            return Ok(listing.names.iter().cloned().collect());
        }
        let folder = self.snapshot().context("the cache has nothing of it")?;
        place::names_in(&folder)
    }

    /// The bytes of a file, asked of the hub.
    pub fn size(&self, name: &str) -> Result<u64> {
        let repository = self.at_commit()?;
        let size = self.about(&repository, name)?.size;
        size.with_context(|| format!("the hub does not tell the size of {name}"))
    }

    /// Brings files into the cache, several at once. They must be in the repository.
    pub fn fetch(&self, names: &[String]) -> Result<()> {
        fetch(&[(self, names.to_vec())])
    }

    /// What the hub knows of a file.
    fn about(&self, repository: &Repo, name: &str) -> Result<About> {
        self.patiently(|| self.client.about(repository, name))
    }

    fn patiently<T>(&self, ask: impl Fn() -> Result<T, Failure>) -> Result<T> {
        let mut patience = Patience::default();
        loop {
            let failure = match ask() {
                Ok(answer) => return Ok(answer),
                Err(failure) => failure,
            };
            match patience.pause(&failure) {
                Some(pause) => std::thread::sleep(pause),
                None => return Err(self.asked().explain(failure)),
            }
        }
    }

    fn asked(&self) -> Asked<'_> {
        Asked {
            id: &self.id,
            revision: &self.revision,
            endpoint: self.client.endpoint(),
            has_token: self.client.has_token(),
        }
    }

    /// The repository at the one commit of this run, so that no two are mixed.
    fn at_commit(&self) -> Result<Repo> {
        match self.listing()? {
            Some(listing) => Ok(model(&self.id, &listing.commit)),
            None => bail!("{} is not whole{}", self.id, self.searched()),
        }
    }

    /// Whether the repository has files under `folder/`.
    pub fn has_folder(&self, folder: &str) -> Result<bool> {
        let cached = self.snapshot().is_some_and(|s| s.join(folder).is_dir());
        if cached {
            return Ok(true);
        }
        // A component that has a folder has its config there.
        let configs = ["config.json", "scheduler_config.json"];
        if configs
            .iter()
            .any(|config| self.knows_absent(&format!("{folder}/{config}")))
        {
            return Ok(false);
        }
        let start = format!("{folder}/");
        let listing = self.listing()?;
        Ok(listing.is_some_and(|l| l.names.iter().any(|name| name.starts_with(&start))))
    }

    /// The end of a message about a file that is not there: why only the cache was searched, where that is so.
    pub fn searched(&self) -> String {
        match self.forbidden {
            Some(why) => format!(" in the cache, and the network is off ({why})"),
            None if self.silent.load(Ordering::Relaxed) => {
                " in the cache, and the hub cannot be reached".to_owned()
            }
            None => String::new(),
        }
    }

    fn snapshot(&self) -> Option<PathBuf> {
        Some(self.layout.snapshot(self.commit()?))
    }

    /// Where the cache has a file.
    pub fn cached_path(&self, name: &str) -> Option<PathBuf> {
        self.snapshot()
            .map(|s| s.join(name))
            .filter(|path| is_plain(name) && path.is_file())
    }

    /// What the repository has; `None` where only the cache can be asked, which then must know the revision.
    fn listing(&self) -> Result<Option<&Listing>> {
        if let Some(listing) = self.listing.get() {
            return Ok(Some(listing));
        }
        if self.silent.load(Ordering::Relaxed) || self.forbidden.is_some() {
            return match self.cached {
                Some(_) => Ok(None),
                None => bail!(
                    "{} at {} is not{}: run once without that; {}",
                    self.id,
                    self.revision,
                    self.searched(),
                    words::without_network()
                ),
            };
        }
        let wanted = self.cached.as_deref().unwrap_or(&self.revision);
        let repository = model(&self.id, wanted);
        let list = match self.client.list(&repository) {
            Ok(list) => Ok(list),
            Err(Failure::Broken(text)) if self.cached.is_some() => {
                Err(anyhow!("the hub cannot be reached ({text})"))
            }
            // The hub is there; it may be busy.
            Err(failure @ Failure::Refused { .. }) if failure.may_pass() => {
                self.patiently(|| self.client.list(&repository))
            }
            Err(Failure::Refused { status: 404, .. })
                if wanted != self.revision && self.takes_new_commit()? =>
            {
                bail!(
                    "the hub has another commit of {} at {} now, and no longer the one in the cache: run again to take the new one",
                    self.id,
                    self.revision
                )
            }
            Err(failure) => Err(self.asked().explain(failure)),
        };
        let list = match list {
            Ok(list) => list,
            // What was downloaded in time is as good as ever.
            Err(err) if self.cached.is_some() => {
                tracing::warn!("{err:#}: using what the cache has");
                self.silent.store(true, Ordering::Relaxed);
                return Ok(None);
            }
            Err(err) => return Err(err),
        };
        // Where this cannot be written, nothing else can, and that is told.
        let _ = self.layout.note_commit(&self.revision, &list.commit);
        let names = list.names.into_iter().filter(|name| is_plain(name));
        Ok(Some(self.listing.get_or_init(|| Listing {
            names: names.collect(),
            commit: list.commit,
        })))
    }

    /// Whether the hub has another commit of the revision than the cache, which the cache then notes for the next run: files of two commits are
    /// never mixed.
    fn takes_new_commit(&self) -> Result<bool> {
        let Ok(list) = self.client.list(&model(&self.id, &self.revision)) else {
            return Ok(false);
        };
        self.layout.note_commit(&self.revision, &list.commit)?;
        Ok(self.cached.as_ref() != Some(&list.commit))
    }
}

fn model(id: &str, revision: &str) -> Repo {
    Repo::with_revision(id.to_owned(), RepoType::Model, revision.to_owned())
}

/// Whether a path leads down and nowhere else.
fn is_plain(path: &str) -> bool {
    let mut parts = Path::new(path).components();
    !path.is_empty() && parts.all(|part| matches!(part, Component::Normal(_)))
}
