//! Where a LoRA is: a file, a folder or a repository with one, or a file of a repository; `owner/name@REVISION` is one at a revision.
use super::super::files::Wanted;
use super::super::hub::{self, Network, Repository};
use super::super::json::one_line;
use super::super::place::{self, Place};
use anyhow::{Context, Result, bail};
use indicatif::MultiProgress;
use std::path::{Path, PathBuf};

/// A LoRA and how much of it is added.
#[derive(Debug)]
pub struct Lora {
    /// As the user wrote it, with the file's name behind a folder's or a repository's.
    name: String,
    pub weight: f64,
    source: Source,
}

#[derive(Debug)]
enum Source {
    File(PathBuf),
    Hub(Box<Repository>, String),
}

impl Lora {
    /// A path that exists wins; else `of` is `owner/name`, or `owner/name/file`, of the hub, with `@REVISION` behind the id or not.
    pub fn find(of: &str, weight: f64, network: Network) -> Result<Self> {
        let path = Path::new(of);
        let (name, source) = if path.is_file() {
            (of.to_owned(), Source::File(path.to_path_buf()))
        } else if path.is_dir() {
            let file = choose(of, place::names_in(path)?)?;
            let name = format!("{}/{file}", of.trim_end_matches('/'));
            (name, Source::File(path.join(file)))
        } else if let Some((id, revision, file)) = split(of) {
            let repository = Repository::open(id, revision, network)?;
            let file = match file {
                Some(file) => {
                    if !repository.contains(file)? {
                        bail!("{id} has no file {file}{}", repository.searched());
                    }
                    file.to_owned()
                }
                None => choose(of, repository.names()?)?,
            };
            let name = format!("{}/{file}", repository.id());
            (name, Source::Hub(Box::new(repository), file))
        } else {
            bail!(
                "\"{}\" is no file here and no hub id: give a file, owner/name[@REVISION] or owner/name[@REVISION]/file.safetensors, with :WEIGHT behind it where that is not 1",
                one_line(of)
            );
        };
        Ok(Self {
            name,
            weight,
            source,
        })
    }

    /// Where the download shows how far it is.
    pub fn show_download(&self, bars: &MultiProgress) {
        if let Source::Hub(repository, _) = &self.source {
            repository.show_bars(bars);
        }
    }

    /// For messages and metadata.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The repository and the name in it, where it comes from the hub.
    pub fn on_hub(&self) -> Option<(&Repository, &str)> {
        match &self.source {
            Source::File(_) => None,
            Source::Hub(repository, file) => Some((repository, file)),
        }
    }

    /// `owner/name@COMMIT/file`, where it comes from the hub.
    pub fn pinned(&self) -> Option<String> {
        let (repository, file) = self.on_hub()?;
        Some(format!(
            "{}@{}/{file}",
            repository.id(),
            repository.commit()?
        ))
    }

    /// The file, downloaded if need be.
    pub fn place(&self) -> Result<Place> {
        Ok(Place::Disk(match &self.source {
            Source::File(path) => path.clone(),
            Source::Hub(repository, file) => repository
                .get(file)?
                .with_context(|| format!("the hub has no {}", self.name))?,
        }))
    }

    /// A file in the same folder, downloaded if need be; None where there is none.
    pub fn beside(&self, name: &str) -> Result<Option<Place>> {
        let path = match &self.source {
            Source::File(path) => Some(path.with_file_name(name)).filter(|path| path.is_file()),
            Source::Hub(repository, file) => {
                let folder = file
                    .rsplit_once('/')
                    .map(|(folder, _)| format!("{folder}/"));
                repository.get(&format!("{}{name}", folder.unwrap_or_default()))?
            }
        };
        Ok(path.map(Place::Disk))
    }

    /// What a load would read.
    pub fn wanted(&self) -> Result<Wanted> {
        let path = match &self.source {
            Source::File(path) => Some(path.clone()),
            Source::Hub(repository, file) => repository.cached_path(file),
        };
        let (bytes, here) = match (path, &self.source) {
            (Some(path), _) => {
                let found = path.metadata();
                (found.with_context(|| self.name.clone())?.len(), true)
            }
            (None, Source::Hub(repository, file)) => (repository.size(file)?, false),
            (None, Source::File(_)) => (0, true),
        };
        Ok(Wanted {
            name: self.name.clone(),
            bytes,
            here,
            half: false,
        })
    }
}

/// `owner/name`, its revision, and a file in it. A revision ends at a slash, but for `refs/pr/1` and the like.
fn split(of: &str) -> Option<(&str, &str, Option<&str>)> {
    fn cut(text: &str, slash: usize) -> Option<usize> {
        text.match_indices('/').nth(slash).map(|(at, _)| at)
    }
    let (id, revision, file) = match hub::split_revision(of) {
        Some((id, rest)) => {
            let end = cut(rest, if rest.starts_with("refs/") { 2 } else { 0 });
            let end = end.unwrap_or(rest.len());
            (id, &rest[..end], rest.get(end + 1..))
        }
        None => {
            let end = cut(of, 1).unwrap_or(of.len());
            (&of[..end], "main", of.get(end + 1..))
        }
    };
    let plain = file.is_none_or(|file| {
        let mut parts = Path::new(file).components();
        parts.all(|part| matches!(part, std::path::Component::Normal(_)))
    });
    (hub::is_id(id) && plain).then_some((id, revision, file))
}

/// The file that diffusers would take: the one of its own name, or the only one; safetensors before pickles.
fn choose(of: &str, names: Vec<String>) -> Result<String> {
    for ext in [".safetensors", ".bin"] {
        let own = format!("pytorch_lora_weights{ext}");
        let wanted = |name: &&String| {
            let other = ["scheduler", "optimizer", "checkpoint"];
            name.ends_with(ext) && !other.iter().any(|part| name.contains(part))
        };
        let mut found: Vec<_> = names.iter().filter(wanted).collect();
        found.sort();
        match found[..] {
            [] => continue,
            [only] => return Ok(only.clone()),
            _ if names.contains(&own) => return Ok(own),
            _ => bail!(
                "{of} has several files of weights: give {of}/{}, or another of {}",
                found[0],
                found.len()
            ),
        }
    }
    bail!("{of} has no .safetensors and no .bin file")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(list: &[&str]) -> Vec<String> {
        list.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn the_file_of_a_repository_is_the_one_that_diffusers_takes() {
        for (list, file) in [
            (&["README.md", "x.safetensors"][..], "x.safetensors"),
            (
                &["a.safetensors", "pytorch_lora_weights.safetensors"],
                "pytorch_lora_weights.safetensors",
            ),
            (&["a.bin", "b.safetensors"], "b.safetensors"),
            (&["checkpoint-1/a.safetensors", "a.bin"], "a.bin"),
        ] {
            assert_eq!(choose("o/n", names(list)).unwrap(), file);
        }
        let several = choose("o/n", names(&["b.safetensors", "a.safetensors"])).unwrap_err();
        assert!(several.to_string().contains("give o/n/a.safetensors"));
        assert!(choose("o/n", names(&["x.txt"])).is_err());
    }

    #[test]
    fn a_file_may_stand_behind_an_id() {
        for (of, id, revision, file) in [
            ("o/n", "o/n", "main", None),
            (
                "o/n/a/b.safetensors",
                "o/n",
                "main",
                Some("a/b.safetensors"),
            ),
            ("o/n@v1", "o/n", "v1", None),
            ("o/n@v1/a/b@2.bin", "o/n", "v1", Some("a/b@2.bin")),
            ("o/n@refs/pr/1", "o/n", "refs/pr/1", None),
            ("o/n@refs/pr/1/a.bin", "o/n", "refs/pr/1", Some("a.bin")),
            ("o/n/a@b.bin", "o/n", "main", Some("a@b.bin")),
        ] {
            assert_eq!(split(of), Some((id, revision, file)), "{of}");
        }
        for no in [
            "x.safetensors",
            "o/n/../x",
            "/o/n",
            "o//n",
            "o@v1/n",
            "o/n@v1/../x",
        ] {
            assert_eq!(split(no), None, "{no}");
        }
    }
}
