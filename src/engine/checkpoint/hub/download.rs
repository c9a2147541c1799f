//! Files of a repository into the cache: any number of cuts, other processes and Ctrl-C leave it whole.
//!
//! ```text
//! lock ─> ETAG.incomplete, gone on with where it ends ─> size and hash ─> renamed to ETAG ─> link in the snapshot
//! ```
use super::client::{About, Client, Failure};
use super::layout::{Layout, make_parent, unwritable};
use super::words::Asked;
use crate::engine::checkpoint::identity::hex;
use crate::engine::output;
use anyhow::{Context, Result, bail};
use hf_hub::Repo;
use indicatif::{DecimalBytes, ProgressBar};
use sha1::Sha1;
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tempfile::TempPath;

/// Read from the network, and written, at once.
const CHUNK: usize = 1 << 18;

/// A file that is wanted.
pub struct Job {
    pub name: String,
    pub about: About,
}

/// What all downloads of a run share.
pub struct Downloads<'a> {
    pub client: &'a Client,
    pub layout: &'a Layout,
    /// At its commit.
    pub repository: &'a Repo,
    pub asked: Asked<'a>,
    /// Set when one has failed, so that the others end.
    pub stop: &'a AtomicBool,
}

impl Downloads<'_> {
    /// Brings one file into the cache.
    pub fn fetch(&self, job: &Job, bar: &ProgressBar) -> Result<()> {
        let (etag, name) = (&job.about.etag, &job.name);
        let blob = self.layout.blob(etag);
        if !blob.is_file() {
            make_parent(&blob)?;
            let lock = self.layout.lock(etag, name)?;
            // Another process may have written it while this one waited, and moved it where there are no links.
            let pointer = self.layout.pointer(self.repository.revision(), name);
            if !blob.is_file() && !pointer.is_file() {
                let partial = match lock.keeps_out {
                    true => PartialPath::Shared(blob.with_file_name(format!("{etag}.incomplete"))),
                    false => PartialPath::own(&blob, etag).with_context(|| unwritable(&blob))?,
                };
                self.fill(job, partial.path(), bar)
                    .with_context(|| format!("downloading {name} of {}", self.asked.id))?;
                std::fs::rename(partial.path(), &blob).with_context(|| unwritable(&blob))?;
            }
        }
        self.layout.link(etag, self.repository.revision(), name)
    }

    /// Completes a file, and checks it.
    fn fill(&self, job: &Job, path: &Path, bar: &ProgressBar) -> Result<()> {
        let mut partial = Partial::open(path, &job.about)?;
        let resumed = partial.length > 0;
        self.receive(job, &mut partial, bar)?;
        if !partial.is_right() && resumed {
            // The start came from elsewhere: another program, a disk that was full, a process that was killed.
            tracing::warn!(
                "{} is not what the hub has: once more from its start",
                job.name
            );
            partial.restart()?;
            self.receive(job, &mut partial, bar)?;
        }
        if !partial.is_right() {
            let found = partial.found();
            std::fs::remove_file(path)?;
            bail!(
                "it came as {found} instead of {}: nothing of it is kept; run again",
                job.about.etag
            );
        }
        // The name is to promise the bytes, also after a power cut.
        partial.file.sync_data()?;
        Ok(())
    }

    /// Reads until nothing is missing, over as many requests as that takes.
    fn receive(&self, job: &Job, partial: &mut Partial, bar: &ProgressBar) -> Result<()> {
        bar.set_length(job.about.size.unwrap_or(0));
        let mut patience = Patience::default();
        while partial.is_short() {
            bar.set_position(partial.length);
            let before = partial.length;
            match self.read_on(job, partial, bar) {
                Ok(()) if partial.about.size.is_none() => return Ok(()),
                Ok(()) if !partial.is_short() => return Ok(()),
                Ok(()) => {
                    let (found, of) = (partial.length, partial.about.size.unwrap_or(0));
                    let failure = Failure::Broken(format!("{found} of {of} bytes came"));
                    patience.wait(failure, partial.length > before, self)?;
                }
                Err(Stop::Failure(failure)) => {
                    patience.wait(failure, partial.length > before, self)?;
                }
                Err(Stop::Disk(err)) => return Err(disk(err, self.layout)),
                Err(Stop::Told) => bail!("another download failed"),
            }
        }
        Ok(())
    }

    /// One request, as far as it goes.
    fn read_on(&self, job: &Job, partial: &mut Partial, bar: &ProgressBar) -> Result<(), Stop> {
        let response = self
            .client
            .bytes(self.repository, &job.name, partial.length);
        let mut response = match response {
            // The hub has fewer bytes than are here.
            Err(Failure::Refused { status: 416, .. }) if partial.length > 0 => {
                partial.restart().map_err(Stop::Disk)?;
                self.client.bytes(self.repository, &job.name, 0)?
            }
            other => other?,
        };
        if partial.about.size.is_none() {
            // The file is checked by its size, and where the etag is git's, by its hash.
            let length = response.headers().get("content-length");
            partial.about.size = length.and_then(|length| length.to_str().ok()?.parse().ok());
            partial.restart().map_err(Stop::Disk)?;
        }
        if partial.length > 0 && !continues(&response, partial.length) {
            partial.restart().map_err(Stop::Disk)?;
            bar.set_position(0);
            if response.status() == 206 {
                let text = "sends another part than was asked for".to_owned();
                return Err(Stop::Failure(Failure::Strange(text)));
            }
        }
        let mut body = response.body_mut().as_reader();
        let mut chunk = vec![0; CHUNK];
        loop {
            if self.stop.load(Ordering::Relaxed) {
                return Err(Stop::Told);
            }
            let n = match body.read(&mut chunk) {
                Ok(0) => return Ok(()),
                Ok(n) => n,
                Err(err) if err.kind() == ErrorKind::Interrupted => continue,
                Err(err) => return Err(Failure::Broken(err.to_string()).into()),
            };
            partial.write(&chunk[..n]).map_err(Stop::Disk)?;
            bar.set_position(partial.length);
            if partial.is_long() {
                // The hash will not be right either; a body without end would fill the disk.
                return Ok(());
            }
        }
    }
}

/// Where a file is received.
enum PartialPath {
    /// Gone on with by the next run.
    Shared(PathBuf),
    /// Of this process alone, where locks keep nobody out. Gone when it fails.
    Own(TempPath),
}

impl PartialPath {
    fn own(blob: &Path, etag: &str) -> std::io::Result<Self> {
        let folder = output::folder_of(blob);
        let file = output::temporary(folder, &format!("{etag}."), ".incomplete")?;
        Ok(Self::Own(file.into_temp_path()))
    }

    fn path(&self) -> &Path {
        match self {
            Self::Shared(path) => path,
            Self::Own(path) => path,
        }
    }
}

/// Whether the body begins where the file ends.
fn continues(response: &ureq::http::Response<ureq::Body>, length: u64) -> bool {
    let range = response.headers().get("content-range");
    let range = range.and_then(|range| range.to_str().ok());
    response.status() == 206
        && range.is_some_and(|range| range.starts_with(&format!("bytes {length}-")))
}

/// Why a request ended early.
enum Stop {
    Failure(Failure),
    Disk(std::io::Error),
    /// Another download failed.
    Told,
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Self {
        Self::Failure(failure)
    }
}

/// What the disk refuses, and where it is.
fn disk(err: std::io::Error, layout: &Layout) -> anyhow::Error {
    let cache = layout.cache().display();
    match err.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => anyhow::anyhow!(
            "the disk of {cache} is full: free some space, or set HF_HUB_CACHE to a folder on another; what came is kept"
        ),
        _ => anyhow::anyhow!("{cache}: {err}"),
    }
}

/// How often a request is made again, and after how long.
#[derive(Default)]
pub struct Patience {
    failures: u32,
}

impl Patience {
    const TRIES: u32 = 6;
    /// No hub has reason to ask for more.
    const LONGEST: Duration = Duration::from_secs(120);

    /// Waits, or gives up with the failure. `progress`: something came, so the network works.
    fn wait(&mut self, failure: Failure, progress: bool, of: &Downloads) -> Result<()> {
        if progress {
            self.failures = 0;
        }
        match self.pause(&failure) {
            Some(pause) => {
                sleep(pause, of.stop);
                Ok(())
            }
            None => Err(of.asked.explain(failure)),
        }
    }

    /// How long to wait before the next try; None where there is none.
    pub fn pause(&mut self, failure: &Failure) -> Option<Duration> {
        self.failures += 1;
        if self.failures >= Self::TRIES || !failure.may_pass() {
            return None;
        }
        let own = Duration::from_millis(125 << self.failures);
        let pause = match failure {
            Failure::Refused {
                wait: Some(wait), ..
            } => own.max(*wait),
            _ => own,
        };
        if pause > Self::LONGEST {
            return None;
        }
        tracing::debug!("{failure:?}: trying again in {pause:?}");
        Some(pause)
    }
}

fn sleep(pause: Duration, stop: &AtomicBool) {
    let slice = Duration::from_millis(50);
    let mut left = pause;
    while !left.is_zero() && !stop.load(Ordering::Relaxed) {
        std::thread::sleep(left.min(slice));
        left = left.saturating_sub(slice);
    }
}

/// A file that is being received, and the hash of what there is of it.
struct Partial {
    file: File,
    length: u64,
    about: About,
    hash: Hash,
}

/// By which an etag can be checked.
enum Hash {
    /// git LFS.
    Sha256(Sha256),
    /// git: of `blob LENGTH\0` and the bytes.
    Sha1(Sha1),
    Unknown,
}

impl Hash {
    fn new(about: &About) -> Self {
        let is_hex = about.etag.bytes().all(|b| b.is_ascii_hexdigit());
        match (about.etag.len(), about.size) {
            (64, _) if is_hex => Self::Sha256(Sha256::new()),
            (40, Some(size)) if is_hex => {
                Self::Sha1(Sha1::new_with_prefix(format!("blob {size}\0")))
            }
            _ => Self::Unknown,
        }
    }

    fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hash) => hash.update(bytes),
            Self::Sha1(hash) => hash.update(bytes),
            Self::Unknown => {}
        }
    }

    fn hex(&self) -> Option<String> {
        match self {
            Self::Sha256(hash) => Some(hex(&hash.clone().finalize())),
            Self::Sha1(hash) => Some(hex(&hash.clone().finalize())),
            Self::Unknown => None,
        }
    }
}

impl Partial {
    /// What an earlier run left of it, or nothing.
    fn open(path: &Path, about: &About) -> Result<Self> {
        let mut options = File::options();
        let file = options.read(true).write(true).create(true).truncate(false);
        let mut partial = Self {
            file: file.open(path).with_context(|| unwritable(path))?,
            length: 0,
            about: about.clone(),
            hash: Hash::new(about),
        };
        let mut chunk = vec![0; CHUNK];
        loop {
            match partial.file.read(&mut chunk)? {
                0 => break,
                n => {
                    partial.hash.update(&chunk[..n]);
                    partial.length += n as u64;
                }
            }
        }
        // Nor is a start gone on with that nothing can tell from another file's.
        if partial.is_long() || about.size.is_none() {
            partial.restart()?;
        }
        Ok(partial)
    }

    fn restart(&mut self) -> std::io::Result<()> {
        self.file.set_len(0)?;
        self.file.seek(SeekFrom::Start(0))?;
        self.length = 0;
        self.hash = Hash::new(&self.about);
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.file.write_all(bytes)?;
        self.hash.update(bytes);
        self.length += bytes.len() as u64;
        Ok(())
    }

    fn is_short(&self) -> bool {
        self.about.size.is_none_or(|size| self.length < size)
    }

    fn is_long(&self) -> bool {
        self.about.size.is_some_and(|size| self.length > size)
    }

    /// Whether it has the size and the hash that the hub names.
    fn is_right(&self) -> bool {
        let right_size = self.about.size.is_none_or(|size| self.length == size);
        right_size && self.hash.hex().is_none_or(|hash| hash == self.about.etag)
    }

    /// What it is, for a message.
    fn found(&self) -> String {
        match self.about.size {
            Some(size) if self.length != size => format!("{} bytes of {size}", self.length),
            _ => self.hash.hex().unwrap_or_default(),
        }
    }
}

/// Refuses a download that the disk has no room for. `bytes` are those that are not here yet.
pub fn check_space(folder: &Path, bytes: u64) -> Result<()> {
    match free(folder) {
        Some(free) if bytes > free => bail!(
            "the download takes {} and the disk of {} has {} free: free some space, or set HF_HUB_CACHE to a folder on another",
            DecimalBytes(bytes),
            folder.display(),
            DecimalBytes(free)
        ),
        _ => Ok(()),
    }
}

/// Bytes that this user can still write where `folder` is, or is going to be; None where the system does not say.
fn free(folder: &Path) -> Option<u64> {
    let found = folder.ancestors().find(|folder| folder.exists())?;
    fs4::available_space(found).ok()
}
