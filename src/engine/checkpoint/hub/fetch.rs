//! All files that a run downloads, of however many repositories: one look at the disk's room, then several at once.
use super::client::About;
use super::download::{Downloads, Job, check_space};
use super::{Repository, bars};
use anyhow::Result;
use hf_hub::Repo;
use indicatif::{DecimalBytes, ProgressBar};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// Files that are downloaded at once.
const THREADS: usize = 4;

/// A file of one of the repositories, by the repository's place in the list.
struct File<J> {
    of: usize,
    file: J,
}

/// Brings files of repositories into the cache. They must be there.
pub fn fetch(wanted: &[(&Repository, Vec<String>)]) -> Result<()> {
    let (mut missing, mut commits) = (Vec::new(), Vec::new());
    let mut seen = BTreeSet::<PathBuf>::new();
    for (of, (repository, names)) in wanted.iter().enumerate() {
        let lacks = |name: &&String| repository.cached_path(name).is_none();
        let names: Vec<&String> = names.iter().filter(lacks).collect();
        let commit = match names.is_empty() {
            true => None,
            false => Some(repository.at_commit()?),
        };
        // Two parts of a run may be one repository.
        let place = |name: &str| repository.snapshot().unwrap_or_default().join(name);
        let new = names.into_iter().filter(|name| seen.insert(place(name)));
        missing.extend(new.map(|file| File { of, file }));
        commits.push(commit);
    }
    if missing.is_empty() {
        return Ok(());
    }
    let stop = AtomicBool::new(false);
    let at = |of: usize| -> (&Repository, &Repo) {
        let commit = commits[of].as_ref();
        (wanted[of].0, commit.expect("a file of it is missing"))
    };
    let mut jobs = in_parallel(&missing, &stop, |missing| {
        let (repository, commit) = at(missing.of);
        Ok(File {
            of: missing.of,
            file: Job {
                about: repository.about(commit, missing.file)?,
                name: missing.file.clone(),
            },
        })
    })?;
    jobs.sort_by(|a, b| (a.of, &a.file.name).cmp(&(b.of, &b.file.name)));
    let left = |job: &File<Job>| wanted[job.of].0.bytes_left(&job.file.about);
    check_space(wanted[0].0.layout.cache(), jobs.iter().map(left).sum())?;
    for (of, (repository, _)) in wanted.iter().enumerate() {
        let mine = |job: &&File<Job>| job.of == of;
        let names = missing.iter().filter(|missing| missing.of == of);
        let names: Vec<&str> = names.map(|missing| missing.file.as_str()).collect();
        let bytes = DecimalBytes(jobs.iter().filter(mine).map(left).sum());
        let (names, id) = (names.join(", "), repository.id());
        match jobs.iter().filter(mine).all(|job| is_small(&job.file)) {
            true if names.is_empty() => {}
            true => tracing::debug!("downloading {names} of {id}"),
            false => tracing::info!("downloading {names} of {id} ({bytes})"),
        }
    }
    let names = jobs
        .iter()
        .map(|job| (wanted[job.of].0.id(), job.file.name.as_str()));
    let labels = bars::labels(&names.collect::<Vec<_>>());
    let width = bars::width(&labels);
    let jobs: Vec<(&File<Job>, &String)> = std::iter::zip(&jobs, &labels).collect();
    in_parallel(&jobs, &stop, |(job, label)| {
        let (repository, commit) = at(job.of);
        let downloads = Downloads {
            client: &repository.client,
            layout: &repository.layout,
            repository: commit,
            asked: repository.asked(),
            stop: &stop,
        };
        let bar = repository.bar(&job.file, label, width);
        let fetched = downloads.fetch(&job.file, &bar);
        bar.finish_and_clear();
        fetched
    })?;
    Ok(())
}

impl Repository {
    /// What a download has still to bring.
    fn bytes_left(&self, about: &About) -> u64 {
        let blob = self.layout.blob(&about.etag);
        let partial = blob.with_file_name(format!("{}.incomplete", about.etag));
        let here = match (std::fs::metadata(blob), std::fs::metadata(partial)) {
            (Ok(found), _) | (_, Ok(found)) => found.len(),
            _ => 0,
        };
        about.size.unwrap_or(0).saturating_sub(here)
    }

    /// Where a download shows how far it is.
    fn bar(&self, job: &Job, label: &str, width: usize) -> ProgressBar {
        match self.bars.get().filter(|_| !is_small(job)) {
            Some(bars) => bars::add(bars, label, width, job.about.size.unwrap_or(0)),
            None => ProgressBar::hidden(),
        }
    }
}

/// Whether a file comes before a bar for it could be read.
fn is_small(job: &Job) -> bool {
    job.about.size.is_some_and(|size| size < 1 << 20)
}

/// `work` on each item, on several threads; the first error ends all and sets `stop`.
fn in_parallel<T: Sync, R: Send>(
    items: &[T],
    stop: &AtomicBool,
    work: impl Fn(&T) -> Result<R> + Sync,
) -> Result<Vec<R>> {
    let next = AtomicUsize::new(0);
    let done = Mutex::new(Ok(Vec::new()));
    let lock = || done.lock().unwrap_or_else(PoisonError::into_inner);
    std::thread::scope(|scope| {
        for _ in 0..THREADS.min(items.len()) {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed)
                    && let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed))
                {
                    let result = work(item);
                    match (&mut *lock(), result) {
                        (Ok(results), Ok(result)) => results.push(result),
                        (so_far @ Ok(_), Err(err)) => {
                            stop.store(true, Ordering::Relaxed);
                            *so_far = Err(err);
                        }
                        // The first error is the cause of others.
                        (Err(_), _) => {}
                    }
                }
            });
        }
    });
    done.into_inner().unwrap_or_else(PoisonError::into_inner)
}
