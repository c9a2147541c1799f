//! `--from IMAGE`: the settings that a picture carries, as the first flags of the command line, where later ones override.
use super::settings::{self, Settings};
use super::{Drawing, Line, usage};
use crate::engine::checkpoint::Identity;
use crate::engine::schedulers::{SchedulerConfig, SchedulerKind};
use crate::engine::{png, provenance};
use anyhow::{Context, Result, anyhow, bail};
use image::RgbImage;
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

/// The bytes of the settings, at most: a long prompt has thousands.
const LIMIT: usize = 1 << 20;
/// Words of a command line that settings become, at most: far more than there are flags and keys.
const MOST_WORDS: usize = 1000;

/// The picture that is drawn again.
pub struct Replay {
    path: PathBuf,
    chunk: Value,
    /// What was left out because the other scheduler has no use for it, and that scheduler's name.
    left_out: Option<(&'static str, Vec<String>)>,
}

/// `line` with the settings of its `--from`, where it has one.
pub fn expand<A: Drawing>(line: Line<A>) -> Result<(Line<A>, Option<Replay>)> {
    let Some(path) = line.args.shared().batch.from.clone() else {
        return Ok((line, None));
    };
    let name = path.display().to_string();
    let chunk = read(&path)?;
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
        path,
        chunk,
        left_out,
    };
    Ok((expanded, Some(replay)))
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

fn read(path: &Path) -> Result<Value> {
    let name = path.display();
    let Some(text) = png::read_text(path, provenance::JSON)? else {
        bail!(
            "{name} carries no settings: it was written by another program, or with --no-metadata"
        );
    };
    if text.len() > LIMIT {
        bail!("{name}: its settings are longer than {LIMIT} bytes");
    }
    let chunk: Value = serde_json::from_str(&text)
        .map_err(|err| anyhow!("{name}: its settings are not JSON: {err}"))?;
    Ok(chunk)
}

impl Replay {
    /// Says which of the picture's settings another scheduler made void.
    pub fn tell(&self) {
        if let Some((scheduler, flags)) = &self.left_out {
            tracing::warn!(
                "{scheduler} has no use for what {} sets: left out {}",
                self.path.display(),
                flags.join(", ")
            );
        }
    }

    /// Says whether `picture` has the pixels of the one it was drawn from; `model` is what drew it now.
    pub fn compare(&self, picture: &RgbImage, model: Option<&Identity>) -> bool {
        let name = self.path.display();
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
        let theirs = match png::read_pixels(&self.path, picture) {
            Ok(theirs) => theirs,
            Err(err) => {
                tracing::warn!("{err:#}");
                return false;
            }
        };
        if theirs.dimensions() != picture.dimensions() {
            tracing::info!("the size differs from that of {name}");
            return false;
        }
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
