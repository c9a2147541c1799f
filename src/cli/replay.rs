//! `--from IMAGE`: the settings that a picture carries, as the first flags of the command line, where later ones override.
use super::settings::{self, Settings};
use super::{Drawing, Line, usage};
use crate::engine::checkpoint::Identity;
use crate::engine::schedulers::{SchedulerConfig, SchedulerKind};
use crate::engine::{beside, png, provenance, sheet};
use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::parser::ValueSource;
use image::RgbImage;
use serde_json::{Map, Value};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use tempfile::{NamedTempFile, TempPath};

/// The bytes of the settings, at most: a long prompt has thousands.
const LIMIT: usize = 1 << 20;
/// Words of a command line that settings become, at most: far more than there are flags and keys.
const MOST_WORDS: usize = 1000;

/// The bytes of a picture that comes through a pipe, at most.
const PIPED: u64 = 1 << 30;

/// The picture that is drawn again.
pub struct Replay {
    name: String,
    file: Kept,
    chunk: Value,
    /// Whether the model is the one that the picture names.
    has_its_model: bool,
    /// What was left out because the other scheduler has no use for it, and that scheduler's name.
    left_out: Option<(&'static str, Vec<String>)>,
}

/// `line` with the settings of its `--from`, where it has one.
pub fn expand<A: Drawing>(line: Line<A>) -> Result<(Line<A>, Option<Replay>)> {
    let Some(path) = line.args.shared().batch.from.clone() else {
        return Ok((line, None));
    };
    let name = match path == Path::new("-") {
        true => "the picture on stdin".to_owned(),
        false => path.display().to_string(),
    };
    let file = Kept::of(path).map_err(|err| anyhow!("{name} {err:#}"))?;
    let chunk = read(file.path()).map_err(|err| anyhow!("{name} {err:#}"))?;
    match chunk["command"].as_str() {
        Some(command) if command == A::NAME => {}
        Some(command @ ("ddpm" | "txt2img")) => {
            bail!("{name} was drawn by another command; type: diffuse {command} --from {name}")
        }
        _ => bail!("{name} was drawn by no command that is known here"),
    }
    let mut settings = chunk["settings"].as_object().cloned().unwrap_or_default();
    let scheduler = line.args.shared().sampling.scheduler();
    let left_out = scheduler.and_then(|kind| {
        let left_out = leave_out(&mut settings, kind, &chunk["steps"]);
        (!left_out.is_empty()).then_some((kind.name(), left_out))
    });
    let (flags, prompt) = settings::of_picture(&settings).with_context(|| name.clone())?;
    if flags.len() > MOST_WORDS {
        bail!("{name}: more than {MOST_WORDS} settings: no picture of this program has them");
    }
    let mut words = line.words[..2].to_vec();
    words.extend(settings::overridden(flags, &line.words[2..]));
    let is_given = |id| line.matches.value_source(id).is_some();
    if let Some(prompt) = prompt.filter(|_| A::HAS_PROMPT && !is_given("prompt")) {
        if words.last().is_none_or(|word| word != "--") {
            words.push("--".into());
        }
        words.push(prompt.into());
    }
    let expanded = Line::parse(words).map_err(|err| anyhow!("{name}: {}", usage::plain(&err)))?;
    let replay = Replay {
        name,
        file,
        chunk,
        has_its_model: line.matches.value_source("model") != Some(ValueSource::CommandLine),
        left_out,
    };
    Ok((expanded, Some(replay)))
}

/// A file that can be read again and again.
enum Kept {
    AsItIs(PathBuf),
    /// What came through a pipe.
    Copy(TempPath),
}

impl Kept {
    /// `-` is stdin.
    fn of(path: PathBuf) -> Result<Self> {
        let mut from: Box<dyn Read> = if path == Path::new("-") {
            Box::new(std::io::stdin().lock())
        } else if std::fs::metadata(&path).is_ok_and(|found| found.is_file() || found.is_dir()) {
            return Ok(Self::AsItIs(path));
        } else {
            Box::new(File::open(&path).context("cannot be read")?)
        };
        let mut copy = NamedTempFile::new().context("cannot be copied")?;
        let length = std::io::copy(&mut from.by_ref().take(PIPED), &mut copy);
        let length = length.context("cannot be copied")?;
        ensure!(length < PIPED, "is larger than {PIPED} bytes");
        Ok(Self::Copy(copy.into_temp_path()))
    }

    fn path(&self) -> &Path {
        match self {
            Self::AsItIs(path) => path,
            Self::Copy(path) => path,
        }
    }
}

/// Takes out of a picture's settings what the scheduler `kind`, asked for in place of its own, does not take; as flags. A list of steps that
/// goes leaves their number.
fn leave_out(settings: &mut Settings, kind: SchedulerKind, steps: &Value) -> Vec<String> {
    let mut left_out = Vec::new();
    for (key, taken) in [
        ("eta", kind.takes_eta()),
        ("timesteps", kind.takes_timesteps()),
        ("sigmas", kind.takes_sigmas()),
    ] {
        if !taken && settings.shift_remove(key).is_some() {
            left_out.push(format!("--{key}"));
            if key != "eta" && steps.is_u64() {
                settings.insert("steps".into(), steps.clone());
            }
        }
    }
    if let Some(Value::Array(options)) = settings.get_mut("scheduler_option") {
        options.retain(|option| {
            // Whether the class has the key and takes the value depends on no file.
            let class = SchedulerConfig::new(kind, Map::new());
            let unfit = |option: &&str| class.clone().with_option(option).is_err();
            let unfit = option.as_str().filter(unfit);
            left_out.extend(unfit.map(|option| format!("--scheduler-option {option}")));
            unfit.is_none()
        });
    }
    left_out
}

/// The settings in which the picture at `path` differs from `settings`, the model's aside, which may be spelled in many ways; none where it
/// carries none.
pub fn differences(path: &Path, settings: &Settings) -> Vec<String> {
    let Ok(chunk) = read(path) else {
        return Vec::new();
    };
    let theirs = chunk["settings"].as_object().cloned().unwrap_or_default();
    let keys: BTreeSet<&String> = settings.keys().chain(theirs.keys()).collect();
    let differs =
        |key: &&String| !settings::is_of_model(key) && settings.get(*key) != theirs.get(*key);
    keys.into_iter().filter(differs).cloned().collect()
}

/// What the picture at `path` carries; what is wrong with it is told without its name.
fn read(path: &Path) -> Result<Value> {
    let text = match png::read_text(path, provenance::JSON) {
        Ok(Some(text)) => text,
        _ if sheet::is_one(path) => {
            bail!("carries no settings: it is a contact sheet; give one of its pictures")
        }
        _ if beside::is_one(path) => bail!(
            "carries no settings: it was made beside a picture, by --animate or --save-steps; give that"
        ),
        Ok(None) => bail!(
            "carries no settings: it was written by another program, or with --no-metadata, or lost them when it was saved anew"
        ),
        Err(err) => return Err(err),
    };
    if text.len() > LIMIT {
        bail!("has settings of more than {LIMIT} bytes");
    }
    let chunk: Value = serde_json::from_str(&text)
        .map_err(|err| anyhow!("has settings that are not JSON: {err}"))?;
    Ok(chunk)
}

impl Replay {
    /// Says which of the picture's settings another scheduler made void.
    pub fn tell(&self) {
        if let Some((scheduler, flags)) = &self.left_out {
            tracing::warn!(
                "{scheduler} has no use for what {} sets: left out {}",
                self.name,
                flags.join(", ")
            );
        }
    }

    /// What went wrong with the model, and where that is from.
    pub fn explain(&self, err: anyhow::Error) -> anyhow::Error {
        match self.has_its_model {
            true => err.context(format!(
                "the model that {} names; --model gives another",
                self.name
            )),
            false => err,
        }
    }

    /// Says whether `picture` has the pixels of the one it was drawn from; `model` is what drew it now.
    pub fn compare(&self, picture: &RgbImage, model: Option<&Identity>) -> bool {
        let name = &self.name;
        if let Some(model) = model
            && self.chunk["model"]["sha256"] != model.sha256.as_str()
        {
            let files = self.chunk["model"]["files"].as_object();
            let changed = model.files.iter().filter(|(file, hash)| {
                files
                    .and_then(|files| files.get(*file))
                    .and_then(Value::as_str)
                    != Some(hash.as_str())
            });
            let changed: Vec<_> = changed.map(|(file, _)| file.as_str()).collect();
            tracing::warn!(
                "the model is not the one of {name}: {} differ",
                changed.join(", ")
            );
        }
        let theirs = match png::read_pixels(self.file.path(), picture) {
            Ok(Some(theirs)) => theirs,
            Ok(None) => {
                tracing::info!("the size differs from that of {name}");
                return false;
            }
            Err(err) => {
                tracing::warn!("{name} {err:#}");
                return false;
            }
        };
        let differences = picture
            .iter()
            .zip(theirs.iter())
            .map(|(a, b)| a.abs_diff(*b));
        let (count, largest) = differences.fold((0usize, 0), |(count, largest), d| {
            (count + usize::from(d > 0), d.max(largest))
        });
        if count == 0 {
            tracing::info!("the pixels are those of {name}");
        } else {
            tracing::info!(
                "the pixels differ from those of {name}: {count} of {} values, by {largest} at most",
                picture.len()
            );
        }
        count == 0
    }
}
