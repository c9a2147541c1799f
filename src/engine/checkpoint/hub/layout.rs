//! Where the cache keeps a repository, as Python's huggingface_hub does:
//!
//! ```text
//! models--OWNER--NAME/refs/REVISION              the commit, as a text
//! models--OWNER--NAME/snapshots/COMMIT/FILE      a link to its blob
//! models--OWNER--NAME/blobs/ETAG                 the bytes; ETAG.incomplete until they are checked
//! models--OWNER--NAME/.no_exist/COMMIT/FILE      empty: the commit has no such file
//! .locks/models--OWNER--NAME/ETAG.lock           held by the process that writes the blob
//! ```
use crate::engine::output;
use anyhow::{Context, Result, bail};
use hf_hub::{Cache, CacheRepo, Repo};
use std::fs::{File, TryLockError};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

#[derive(Debug)]
pub struct Layout {
    cache: PathBuf,
    /// The repository's name as a folder.
    name: String,
    repository: CacheRepo,
}

impl Layout {
    pub fn new(cache: PathBuf, repository: Repo) -> Self {
        Self {
            name: repository.folder_name(),
            repository: Cache::new(cache.clone()).repo(repository),
            cache,
        }
    }

    /// The folder of all repositories.
    pub fn cache(&self) -> &Path {
        &self.cache
    }

    fn folder(&self) -> PathBuf {
        self.cache.join(&self.name)
    }

    /// The commit the cache holds for a revision: by its branch or tag, or because the revision is a commit.
    pub fn commit(&self, revision: &str) -> Option<String> {
        let named = std::fs::read_to_string(self.folder().join("refs").join(revision)).ok();
        let commit = named.map_or_else(|| revision.to_string(), |text| text.trim().to_string());
        (is_commit(&commit) && self.snapshot(&commit).is_dir()).then_some(commit)
    }

    pub fn snapshot(&self, commit: &str) -> PathBuf {
        self.repository.pointer_path(commit)
    }

    /// Where a commit's file is.
    pub fn pointer(&self, commit: &str, name: &str) -> PathBuf {
        self.snapshot(commit).join(name)
    }

    pub fn blob(&self, etag: &str) -> PathBuf {
        self.repository.blob_path(etag)
    }

    /// Whether the cache knows that the commit has no such file.
    pub fn lacks(&self, commit: &str, name: &str) -> bool {
        self.absence(commit, name).is_file()
    }

    /// Notes that the commit has no such file, so that nobody asks again. A cache that cannot be written is asked again.
    pub fn note_absence(&self, commit: &str, name: &str) {
        let path = self.absence(commit, name);
        if let Some(folder) = path.parent()
            && std::fs::create_dir_all(folder).is_ok()
        {
            let _ = File::create(path);
        }
    }

    fn absence(&self, commit: &str, name: &str) -> PathBuf {
        self.folder().join(".no_exist").join(commit).join(name)
    }

    /// Notes the commit of a branch or tag; a reader finds the old one or the new one.
    pub fn note_commit(&self, revision: &str, commit: &str) -> Result<()> {
        if revision == commit {
            return Ok(());
        }
        let path = self.folder().join("refs").join(revision);
        if std::fs::read_to_string(&path).is_ok_and(|text| text == commit) {
            return Ok(());
        }
        make_parent(&path)?;
        let write = || -> std::io::Result<()> {
            // Not among the refs: Python takes every file there for one, also what a killed process left.
            let mut file = output::temporary(&self.folder(), ".tmp", ".tmp")?;
            file.write_all(commit.as_bytes())?;
            file.persist(&path)?;
            Ok(())
        };
        write().with_context(|| unwritable(&path))
    }

    /// Waits until nobody else writes this blob, be it another process or a second file of the same bytes. It ends with what is
    /// returned, or with the process.
    pub fn lock(&self, etag: &str, name: &str) -> Result<Lock> {
        let folder = self.cache.join(".locks").join(&self.name);
        let path = folder.join(format!("{etag}.lock"));
        make_parent(&path)?;
        let mut options = File::options();
        let options = options.read(true).write(true).create(true).truncate(false);
        let file = options.open(&path).with_context(|| unwritable(&path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                tracing::info!("{name} is being downloaded already: waiting for it");
                file.lock().with_context(|| unwritable(&path))?;
            }
            Err(TryLockError::Error(err)) => {
                tracing::debug!("no lock at {}: {err}", path.display())
            }
        }
        // Some network file systems have no locks, or give one to all who ask.
        let second = options.open(&path).with_context(|| unwritable(&path))?;
        let keeps_out = matches!(second.try_lock(), Err(TryLockError::WouldBlock));
        Ok(Lock {
            _file: file,
            keeps_out,
        })
    }

    /// Makes a whole blob visible under its name.
    pub fn link(&self, etag: &str, commit: &str, name: &str) -> Result<()> {
        let pointer = self.pointer(commit, name);
        if pointer.is_file() {
            return Ok(());
        }
        make_parent(&pointer)?;
        // Relative, so that the cache can be moved.
        let up = "../".repeat(2 + name.matches('/').count());
        let target = format!("{up}blobs/{etag}");
        let blob = self.blob(etag);
        let mut made = match symlink(&target, &pointer) {
            Err(err) if err.kind() == ErrorKind::AlreadyExists && !pointer.is_file() => {
                std::fs::remove_file(&pointer).and_then(|()| symlink(&target, &pointer))
            }
            other => other,
        };
        // Where there are no links, the file itself is there, as in Python's. Wine 8 says that it made one.
        if !pointer.is_file() {
            made = std::fs::rename(&blob, &pointer);
        }
        match made {
            // Another process may have been quicker, with a link or with the file.
            Err(_) if pointer.is_file() => Ok(()),
            other => other.with_context(|| unwritable(&pointer)),
        }
    }
}

/// Ends with its file.
pub struct Lock {
    _file: File,
    /// Whether anybody else waits for it.
    pub keeps_out: bool,
}

#[cfg(unix)]
fn symlink(target: &str, link: &Path) -> std::io::Result<()> {
    std::os::unix::fs::symlink(target, link)
}

#[cfg(windows)]
fn symlink(target: &str, link: &Path) -> std::io::Result<()> {
    std::os::windows::fs::symlink_file(target.replace('/', "\\"), link)
}

/// Makes the folder that `path` is in.
pub fn make_parent(path: &Path) -> Result<&Path> {
    let Some(folder) = path.parent() else {
        bail!("{} has no folder", path.display());
    };
    std::fs::create_dir_all(folder).with_context(|| unwritable(folder))?;
    Ok(folder)
}

pub fn unwritable(path: &Path) -> String {
    format!(
        "{} cannot be written; set HF_HUB_CACHE to a folder that can",
        path.display()
    )
}

/// Whether a text can be a commit: the hub's own have 40 digits.
pub fn is_commit(text: &str) -> bool {
    text.len() >= 7 && text.len() <= 64 && text.chars().all(|c| c.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;
    use hf_hub::RepoType;
    use std::sync::atomic::{AtomicBool, Ordering};

    #[test]
    fn a_lock_tells_whether_it_keeps_others_out() {
        let cache = tempfile::tempdir().expect("a temporary folder");
        let repository = Repo::new("owner/name".to_owned(), RepoType::Model);
        let layout = Layout::new(cache.path().to_owned(), repository);
        let lock = layout.lock("ab", "x").expect("the folder is writable");
        assert!(lock.keeps_out);
    }

    #[test]
    fn nothing_but_refs_is_ever_among_the_refs() {
        let cache = tempfile::tempdir().expect("a temporary folder");
        let repository = Repo::new("owner/name".to_owned(), RepoType::Model);
        let layout = Layout::new(cache.path().to_owned(), repository);
        let done = AtomicBool::new(false);
        let names = std::thread::scope(|scope| {
            let look = scope.spawn(|| {
                let mut names = std::collections::BTreeSet::new();
                // However late this starts, it looks once.
                let mut is_last = false;
                while !std::mem::replace(&mut is_last, done.load(Ordering::Relaxed)) {
                    let refs = std::fs::read_dir(layout.folder().join("refs"));
                    let refs = refs.into_iter().flatten().flatten();
                    names.extend(refs.filter_map(|entry| entry.file_name().into_string().ok()));
                }
                names
            });
            let noted = (0..500).try_for_each(|k| layout.note_commit("main", &format!("{k:040x}")));
            done.store(true, Ordering::Relaxed);
            noted.expect("the folder is writable");
            look.join().expect("it only looks")
        });
        assert_eq!(names.into_iter().collect::<Vec<_>>(), ["main"]);
    }
}
