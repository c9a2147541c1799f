//! Where the pictures go: names that are given, or made of what is drawn and its seed.
use crate::engine::output;
use anyhow::{Context, Result, bail, ensure};
use image::RgbImage;
use std::path::{Path, PathBuf};

/// The bytes of a name's first part: long prompts stay under every file system's 255.
const SLUG_BYTES: usize = 80;

/// Names for the pictures of one run, in order.
#[derive(Debug)]
pub struct Names {
    style: Style,
    written: usize,
}

#[derive(Debug)]
enum Style {
    /// `<slug>-<seed>.png` here, the next free `<slug>-<seed>-2.png`, ...
    MadeUp { slug: String },
    Given {
        path: PathBuf,
        images: usize,
        overwrite: bool,
    },
}

impl Names {
    /// Names in the current folder that are made of `subject` and the seed, and taken by nobody.
    pub fn made_up(subject: &str) -> Result<Self> {
        output::check_folder(Path::new("."))
            .context("without --output the picture goes to the current folder")?;
        let style = Style::MadeUp {
            slug: slug(subject),
        };
        Ok(Self { style, written: 0 })
    }

    /// `path`, or numbered names beside it for several pictures. All are checked now, before any work is done.
    pub fn given(path: PathBuf, images: usize, overwrite: bool) -> Result<Self> {
        let folder = output::folder_of(&path);
        match std::fs::metadata(folder) {
            Ok(found) if found.is_dir() => output::check_folder(folder)?,
            Ok(_) => bail!(
                "--output {}: {} is not a folder",
                path.display(),
                folder.display()
            ),
            Err(err) => {
                return Err(err).with_context(|| {
                    format!(
                        "--output {}: make the folder {} first",
                        path.display(),
                        folder.display()
                    )
                });
            }
        }
        for k in 0..images {
            check_target(&numbered(&path, k, images), overwrite)?;
        }
        let style = Style::Given {
            path,
            images,
            overwrite,
        };
        Ok(Self { style, written: 0 })
    }

    /// Writes the next picture and tells where.
    pub fn write(&mut self, seed: u64, picture: &RgbImage) -> Result<PathBuf> {
        let k = self.written;
        self.written += 1;
        match &self.style {
            Style::MadeUp { slug } => {
                output::write_png_as_new(free_names(format!("{slug}-{seed}.png").into()), picture)
            }
            Style::Given {
                path,
                images,
                overwrite,
            } => {
                let path = numbered(path, k, *images);
                if *overwrite {
                    output::write_png(&path, picture, true)?;
                    return Ok(path);
                }
                // The name was free when the run began. Should someone have taken it since, the work is not thrown away.
                let written = output::write_png_as_new(free_names(path.clone()), picture)?;
                if written != path {
                    tracing::warn!(
                        "{} was made meanwhile; the picture is {}",
                        path.display(),
                        written.display()
                    );
                }
                Ok(written)
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

fn check_target(path: &Path, overwrite: bool) -> Result<()> {
    let found = match std::fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(err) if err.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(err) => return Err(err).with_context(|| format!("--output {}", path.display())),
    };
    ensure!(
        !found.is_dir(),
        "--output {} is a folder; give a file in it, as in {}",
        path.display(),
        path.join("picture.png").display()
    );
    ensure!(
        overwrite,
        "{} exists; add --overwrite to replace it, or give another --output",
        path.display()
    );
    ensure!(
        found.is_file() || found.is_symlink(),
        "--output {} is not an ordinary file, so it is not replaced; give another name",
        path.display()
    );
    Ok(())
}

/// The name of picture `k`: `path` itself when it is alone, else `stem-1.png`, `stem-2.png`, ...
fn numbered(path: &Path, k: usize, images: usize) -> PathBuf {
    if images == 1 {
        path.to_owned()
    } else {
        with_number(path, k + 1)
    }
}

/// `path`, then `stem-2.png`, `stem-3.png`, ... without end.
fn free_names(path: PathBuf) -> impl Iterator<Item = PathBuf> {
    let others = path.clone();
    std::iter::once(path).chain((2..).map(move |n| with_number(&others, n)))
}

fn with_number(path: &Path, n: usize) -> PathBuf {
    let mut name = path.file_stem().unwrap_or_default().to_owned();
    name.push(format!("-{n}."));
    name.push(path.extension().unwrap_or_default());
    path.with_file_name(name)
}

/// Letters and digits of any script, in lower case, with single hyphens for all that is between them.
fn slug(subject: &str) -> String {
    let mut slug = String::new();
    for word in subject
        .split(|c: char| !c.is_alphanumeric())
        .filter(|word| !word.is_empty())
    {
        let word = word.to_lowercase();
        let hyphen = usize::from(!slug.is_empty());
        if slug.len() + hyphen + word.len() > SLUG_BYTES {
            if slug.is_empty() {
                // One endless word, or a script without spaces.
                slug.extend(word.chars().scan(0, |bytes, c| {
                    *bytes += c.len_utf8();
                    (*bytes <= SLUG_BYTES).then_some(c)
                }));
            }
            break;
        }
        if hyphen == 1 {
            slug.push('-');
        }
        slug.push_str(&word);
    }
    if slug.is_empty() {
        "picture".to_owned()
    } else {
        slug
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_prompt_becomes_a_name_that_every_shell_takes() {
        assert_eq!(slug("Astronaut riding a horse"), "astronaut-riding-a-horse");
        assert_eq!(slug("../../etc/passwd"), "etc-passwd");
        assert_eq!(slug("  -rf *  "), "rf");
        assert_eq!(slug("Füchse im 雪"), "füchse-im-雪");
        assert_eq!(slug(""), "picture");
        assert_eq!(slug("🦊!\0\n"), "picture");
    }

    #[test]
    fn long_prompts_are_cut_between_words_and_endless_words_between_letters() {
        // 13 words of 6 bytes with their hyphens, less the last hyphen.
        assert_eq!(slug(&"horse ".repeat(50)), ["horse"; 13].join("-"));
        assert_eq!(slug(&"馬".repeat(50)), "馬".repeat(26));
    }

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

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn any_text_makes_a_short_name_of_letters_digits_and_hyphens(text in any::<String>()) {
            let slug = slug(&text);
            prop_assert!(!slug.is_empty() && slug.len() <= SLUG_BYTES);
            prop_assert!(slug.split('-').all(|word| !word.is_empty()), "{}", slug);
        }
    }
}
