//! The name of each picture: given, filled in from a pattern, or made up; checked before any work is done.
use super::output::{About, Field, Output, Pattern, slug};
use crate::engine::beside::{self, Mark};
use crate::engine::{output, sheet};
use anyhow::{Context, Result, bail, ensure};
use std::collections::{HashMap, HashSet};
use std::io::{ErrorKind, IsTerminal, Write};
use std::path::{Path, PathBuf};

/// Where one picture goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    Stdout,
    /// This path.
    Path {
        path: PathBuf,
        taken: Taken,
    },
    /// `free`, the first of `wanted.png`, `wanted-2.png`, `wanted-3.png`, ... that was free, or the first that is when it is written.
    New {
        wanted: PathBuf,
        free: PathBuf,
    },
}

/// What becomes of a picture whose path has a file by the time that it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// It takes the file's place.
    Replaces,
    /// The file is the row's picture, drawn by another process.
    Skips,
    /// It gets the next name that is free.
    Moves,
}

/// Where a picture is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Put {
    Stdout,
    At(PathBuf),
    /// Nowhere: a file was made there meanwhile.
    Skipped(PathBuf),
}

/// What is at a target already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    Nothing,
    Picture,
}

/// The names of a run, so that no two of its files want one.
#[derive(Debug, Default)]
pub struct Names {
    /// Many rows: names tell them apart, and what exists is done.
    pub rows: bool,
    /// Missing folders are made.
    pub parents: bool,
    folders: HashSet<PathBuf>,
    /// And the flags that they are from.
    taken: HashMap<PathBuf, &'static str>,
}

/// The flags that name files, for messages.
const OUTPUT: &str = "--output";
const ANIMATE: &str = "--animate";
const GRID: &str = "--grid";

impl Names {
    pub fn new(rows: bool, parents: bool) -> Self {
        Self {
            rows,
            parents,
            ..Self::default()
        }
    }

    /// Checks, before anything is opened, what does not depend on the model.
    pub fn check(&mut self, output: Option<&Output>, images: usize, overwrite: bool) -> Result<()> {
        match output {
            Some(Output::Stdout) => {
                ensure!(
                    images == 1 && !self.rows,
                    "--output - writes one picture to stdout; give a folder or a pattern for several"
                );
                ensure!(
                    !std::io::stdout().is_terminal(),
                    "--output - writes a PNG, which a terminal cannot show; send it to a file or a program, or try --show"
                );
            }
            Some(Output::File(path)) => {
                self.check_folder(path, OUTPUT)?;
                for k in 0..images {
                    found(&numbered(path, k, images), OUTPUT, overwrite || self.rows)?;
                }
            }
            Some(Output::Folder(folder)) => self.check_folder(&folder.join("x.png"), OUTPUT)?,
            Some(Output::Pattern(_)) => {}
            None => output::check_folder(Path::new("."))
                .context("without --output the picture goes to the current folder")?,
        }
        Ok(())
    }

    /// The target of picture `k` of a row's `images`, and what is there.
    pub fn target(
        &mut self,
        output: Option<&Output>,
        overwrite: bool,
        about: &About,
        (k, images): (usize, usize),
    ) -> Result<(Target, Found)> {
        let path = match output {
            Some(Output::Stdout) if self.rows => bail!("a row cannot go to stdout; give a file"),
            Some(Output::Stdout) => return Ok((Target::Stdout, Found::Nothing)),
            Some(Output::File(path)) => numbered(path, k, images),
            Some(Output::Pattern(pattern)) => self.fill(pattern, about, k, images),
            Some(Output::Folder(_)) | None => {
                let folder = match output {
                    Some(Output::Folder(folder)) => folder.as_path(),
                    _ => Path::new(""),
                };
                if !self.rows {
                    let name = format!("{}-{}.png", slug(about.prompt), about.seed);
                    // Free now, so that what is written beside it beforehand has the picture's name.
                    let wanted = folder.join(name);
                    let is_free = |path: &PathBuf| {
                        !path.exists() && !self.taken.contains_key(&one_spelling(path))
                    };
                    let free = free_names(wanted.clone()).find(is_free);
                    let free = free.context("every name for the picture is taken")?;
                    self.take(&free, OUTPUT)?;
                    return Ok((Target::New { wanted, free }, Found::Nothing));
                }
                let name = format!("{:04}-{}.png", about.index, slug(about.prompt));
                numbered(&folder.join(name), k, images)
            }
        };
        self.take(&path, OUTPUT)?;
        let found = match found(&path, OUTPUT, overwrite || self.rows)? {
            true if !overwrite => Found::Picture,
            _ => Found::Nothing,
        };
        let taken = match (overwrite, self.rows) {
            (true, _) => Taken::Replaces,
            (false, true) => Taken::Skips,
            (false, false) => Taken::Moves,
        };
        Ok((Target::Path { path, taken }, found))
    }

    /// Checks the files of `--animate` before anything is opened, as far as they are known.
    pub fn check_films(&mut self, film: &Pattern, images: usize, overwrite: bool) -> Result<()> {
        let Some(path) = film.as_plain() else {
            return Ok(());
        };
        self.check_folder(&path, ANIMATE)?;
        (0..images).try_for_each(|k| {
            let path = numbered(&path, k, images);
            found(&path, ANIMATE, overwrite || beside::is_one(&path)).map(drop)
        })
    }

    /// The animation of picture `k` of a row's `images`, the one with this mark. Where one exists and the picture does not, it is of a run that
    /// broke off; any other file must not be there.
    pub fn film(
        &mut self,
        film: &Pattern,
        overwrite: bool,
        about: &About,
        (k, images): (usize, usize),
        mark: Option<&Mark>,
    ) -> Result<PathBuf> {
        let path = self.fill(film, about, k, images);
        self.take(&path, ANIMATE)?;
        let is_ours = mark.is_some_and(|mark| mark.is_on(&path));
        found(&path, ANIMATE, overwrite || is_ours)?;
        Ok(path)
    }

    /// Checks the files of every `n`-th of so many calls for the picture at `path`. Those of a run that broke off are replaced.
    pub fn check_steps(
        &self,
        path: &Path,
        (n, calls): (usize, usize),
        overwrite: bool,
    ) -> Result<()> {
        let mark = Mark::of(path);
        (n..calls).step_by(n).try_for_each(|call| {
            let path = step_of(path, call);
            found(&path, OUTPUT, overwrite || mark.is_on(&path)).map(drop)
        })
    }

    /// Checks the contact sheet; whether it may replace a file. With rows one of an earlier run is replaced: those rows that failed
    /// there are drawn now.
    pub fn sheet(&mut self, path: &Path, overwrite: bool) -> Result<bool> {
        self.take(path, GRID)?;
        let replace = overwrite || (self.rows && sheet::is_one(path));
        found(path, GRID, replace)?;
        Ok(replace)
    }

    /// Makes `path` this run's, for one file alone.
    fn take(&mut self, path: &Path, flag: &'static str) -> Result<()> {
        self.check_folder(path, flag)?;
        let extension = path.extension().unwrap_or_default().to_string_lossy();
        match self.taken.insert(one_spelling(path), flag) {
            None => Ok(()),
            Some(earlier) if earlier == flag => bail!(
                "{} is an earlier picture of this run; tell them apart, as in {flag} {{index}}-{{seed}}.{extension}",
                path.display()
            ),
            Some(earlier) => bail!(
                "{} is the {earlier} of this run too; give another {flag}",
                path.display()
            ),
        }
    }

    fn fill(&self, pattern: &Pattern, about: &About, k: usize, images: usize) -> PathBuf {
        // Within a lone row the pictures are what is counted.
        let index = if self.rows { about.index } else { k + 1 };
        let path = pattern.fill(&About {
            index,
            ..about.clone()
        });
        match pattern.has(Field::Seed) || (pattern.has(Field::Index) && !self.rows) {
            true => path,
            false => numbered(&path, k, images),
        }
    }

    /// Checks the folder that `path` is in, once for each folder.
    fn check_folder(&mut self, path: &Path, flag: &'static str) -> Result<()> {
        let folder = output::folder_of(path);
        if self.folders.contains(folder) {
            return Ok(());
        }
        match std::fs::metadata(folder) {
            Ok(found) if found.is_dir() => output::check_folder(folder)?,
            Ok(_) => bail!(
                "{flag} {}: {} is not a folder",
                path.display(),
                folder.display()
            ),
            // It is made when a file is written, so that a run that comes to nothing leaves nothing.
            Err(err) if self.parents && err.kind() == ErrorKind::NotFound => {
                let mut above = folder.ancestors().map(output::folder_of);
                if let Some(made_in) = above.find(|folder| folder.exists()) {
                    output::check_folder(made_in).with_context(|| {
                        format!("the folder {} cannot be made", folder.display())
                    })?;
                }
            }
            Err(err) => {
                return Err(err).with_context(|| {
                    format!(
                        "{flag} {}: make the folder {} first, or add --parents",
                        path.display(),
                        folder.display()
                    )
                });
            }
        }
        self.folders.insert(folder.to_owned());
        Ok(())
    }
}

impl Target {
    /// The path that was wished for; None on stdout.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Stdout => None,
            Self::Path { path, .. } | Self::New { free: path, .. } => Some(path),
        }
    }

    /// Writes the file.
    pub fn write(&self, bytes: &[u8]) -> Result<Put> {
        match self {
            Self::Stdout => {
                let mut stdout = std::io::stdout().lock();
                let written = stdout.write_all(bytes).and_then(|()| stdout.flush());
                written.context("writing to stdout")?;
                Ok(Put::Stdout)
            }
            Self::Path {
                path,
                taken: Taken::Replaces,
            } => {
                output::write(path, bytes, true)?;
                Ok(Put::At(path.clone()))
            }
            Self::Path {
                path,
                taken: Taken::Skips,
            } => Ok(match output::write_where_free(path, bytes)? {
                true => Put::At(path.clone()),
                false => Put::Skipped(path.clone()),
            }),
            Self::Path { path, .. } => {
                // The name was free when it was checked. Should someone have taken it since, the work is not thrown away.
                let written = output::write_as_new(free_names(path.clone()), bytes)?;
                if written != *path {
                    tracing::warn!(
                        "{} was made meanwhile; the picture is {}",
                        path.display(),
                        written.display()
                    );
                }
                Ok(Put::At(written))
            }
            Self::New { wanted, free } => {
                let names = std::iter::once(free.clone()).chain(free_names(wanted.clone()));
                output::write_as_new(names, bytes).map(Put::At)
            }
        }
    }
}

/// The part of a model's name that tells it from others: the last of its folders or of its hub id.
pub fn model_name(model: &str) -> String {
    let path = Path::new(model);
    let name = match path.file_name() {
        Some(name) => Some(name.to_owned()),
        // "." and ".." have a name only once they are resolved.
        None => path
            .canonicalize()
            .ok()
            .and_then(|full| Some(full.file_name()?.to_owned())),
    };
    name.map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default()
}

/// Whether a file is at `path`; an error where it must not be touched, or be there at all.
fn found(path: &Path, flag: &str, may_exist: bool) -> Result<bool> {
    let found = match std::fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(err) if err.kind() == ErrorKind::NotFound => return Ok(false),
        Err(err) => return Err(err).with_context(|| format!("{flag} {}", path.display())),
    };
    ensure!(
        !found.is_dir(),
        "{flag} {} is a folder; give a file in it, as in {}",
        path.display(),
        path.join("picture.png").display()
    );
    ensure!(
        may_exist,
        "{} exists; add --overwrite to replace it, or give another {flag}",
        path.display()
    );
    ensure!(
        found.is_file() || found.is_symlink(),
        "{flag} {} is not an ordinary file, so it is not replaced; give another name",
        path.display()
    );
    Ok(true)
}

/// `path` in one of its spellings: as the system has its folder, and from the root where that is not there yet.
fn one_spelling(path: &Path) -> PathBuf {
    let folder = output::folder_of(path);
    let folder = folder
        .canonicalize()
        .or_else(|_| std::path::absolute(folder));
    match (folder, path.file_name()) {
        (Ok(folder), Some(name)) => folder.join(name),
        _ => path.to_owned(),
    }
}

/// The name of picture `k`: `path` itself when it is alone, else `stem-1.png`, `stem-2.png`, ...
fn numbered(path: &Path, k: usize, images: usize) -> PathBuf {
    if images == 1 {
        path.to_owned()
    } else {
        with_suffix(path, &(k + 1).to_string())
    }
}

/// `path`, then `stem-2.png`, `stem-3.png`, ... without end.
fn free_names(path: PathBuf) -> impl Iterator<Item = PathBuf> {
    let others = path.clone();
    std::iter::once(path).chain((2..).map(move |n: u64| with_suffix(&others, &n.to_string())))
}

/// What call `call` made for the picture at `path`.
pub fn step_of(path: &Path, call: usize) -> PathBuf {
    with_suffix(path, &format!("step-{call:03}"))
}

/// `stem-suffix.png`
fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.file_stem().unwrap_or_default().to_owned();
    name.push(format!("-{suffix}."));
    name.push(path.extension().unwrap_or_default());
    path.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_is_named_by_its_last_part() {
        assert_eq!(model_name("google/ddpm-cat-256"), "ddpm-cat-256");
        assert_eq!(model_name("./models/tiny-sd/"), "tiny-sd");
        assert_eq!(model_name("/"), "");
    }

    #[test]
    fn several_pictures_are_numbered_before_the_extension() {
        let path = Path::new("out/a.b.png");
        assert_eq!(numbered(path, 0, 1), path);
        assert_eq!(numbered(path, 0, 2), Path::new("out/a.b-1.png"));
        assert_eq!(numbered(path, 1, 2), Path::new("out/a.b-2.png"));
        let free: Vec<_> = free_names(path.into()).take(3).collect();
        let names = ["out/a.b.png", "out/a.b-2.png", "out/a.b-3.png"];
        assert_eq!(free, names.map(PathBuf::from));
    }

    fn about_a_cat() -> About<'static> {
        About {
            index: 1,
            seed: 7,
            prompt: "a cat",
            model: "m",
            scheduler: "ddim",
            steps: 3,
        }
    }

    #[test]
    fn a_number_that_was_taken_meanwhile_is_followed_by_the_next() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let name = |name: &str| folder.path().join(name);
        std::fs::write(name("a-cat-7.png"), "earlier")?;
        let output = Output::Folder(folder.path().to_owned());
        let mut names = Names::new(false, false);
        let (target, _) = names.target(Some(&output), false, &about_a_cat(), (0, 1))?;
        assert_eq!(target.path(), Some(name("a-cat-7-2.png").as_path()));
        std::fs::write(name("a-cat-7-2.png"), "another's")?;
        assert_eq!(target.write(b"ours")?, Put::At(name("a-cat-7-3.png")));
        Ok(())
    }

    #[test]
    fn a_rows_picture_that_another_process_made_meanwhile_is_left_as_it_is() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("cat.png");
        let output = Output::File(path.clone());
        let mut names = Names::new(true, false);
        let (target, found) = names.target(Some(&output), false, &about_a_cat(), (0, 1))?;
        assert_eq!(found, Found::Nothing);
        std::fs::write(&path, "theirs")?;
        assert_eq!(target.write(b"ours")?, Put::Skipped(path.clone()));
        assert_eq!(std::fs::read(&path)?, b"theirs");
        assert_eq!(folder.path().read_dir()?.count(), 1);
        Ok(())
    }

    #[test]
    fn two_rows_may_not_have_one_name() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let output = Output::File(folder.path().join("cat.png"));
        let about = about_a_cat();
        let mut names = Names::new(true, false);
        assert!(names.target(Some(&output), false, &about, (0, 1)).is_ok());
        let again = names.target(Some(&output), false, &about, (0, 1));
        let message = again.expect_err("the name is taken").to_string();
        assert!(message.contains("{index}-{seed}.png"), "{message}");
    }
}
