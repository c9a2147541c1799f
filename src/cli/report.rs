//! What scripts read on stdout: a path, or with `--json` an object, for each picture.
use super::rows::Place;
use super::terminal::Terminal;
use crate::engine::pipelines::Plan;
use crate::engine::progress::Seconds;
use crate::engine::{memory, provenance};
use anyhow::Result;
use image::RgbImage;
use serde_json::{Map, Value, json};
use std::path::Path;

/// Tells of pictures on stdout.
pub struct Report<'a> {
    pub terminal: &'a Terminal,
    pub json: bool,
}

/// A picture that was written.
pub struct Written<'a> {
    pub place: Place,
    /// None on stdout.
    pub path: Option<&'a Path>,
    pub plan: &'a Plan,
    pub seed: u64,
    pub picture: &'a RgbImage,
    pub seconds: Seconds,
    pub prompt: Option<&'a str>,
    /// With `--from`: whether the pixels are those of its picture.
    pub same_pixels: Option<bool>,
}

impl Report<'_> {
    pub fn written(&self, written: &Written) -> Result<()> {
        match (self.json, written.path) {
            (false, None) => Ok(()),
            (false, Some(path)) => self.terminal.print(&path.display().to_string()),
            (true, path) => {
                let mut object = start(written.place, path);
                if let Some(prompt) = written.prompt {
                    object.insert("prompt".into(), prompt.into());
                }
                let Plan { size, calls, .. } = written.plan;
                let more = json!({
                    "seed": written.seed,
                    "width": size.1,
                    "height": size.0,
                    "steps": written.plan.request.steps,
                    "calls": calls,
                    "scheduler": written.plan.scheduler.kind().name(),
                    "seconds": rounded(written.seconds),
                    "peak_memory": memory::peak(),
                    "pixels": provenance::pixel_hash(written.picture),
                });
                object.extend(more.as_object().cloned().unwrap_or_default());
                if let Some(same) = written.same_pixels {
                    object.insert("same_pixels".into(), same.into());
                }
                self.object(object)
            }
        }
    }

    /// The picture was there already, drawn with other values of `differing`.
    pub fn skipped(&self, place: Place, path: &Path, differing: &[String]) -> Result<()> {
        let path_shown = path.display();
        match differing {
            [] => tracing::info!("{path_shown} exists: skipped"),
            keys => tracing::warn!(
                "{path_shown} exists and was drawn with other settings ({}): skipped; --overwrite draws it anew, another --output beside it",
                keys.join(", ")
            ),
        }
        if !self.json {
            return Ok(());
        }
        let mut object = start(place, Some(path));
        object.insert("skipped".into(), true.into());
        self.object(object)
    }

    /// A row that came to nothing.
    pub fn failed(&self, place: Place, message: &str) -> Result<()> {
        let line = place.line.unwrap_or_default();
        self.terminal.complain(&format!("line {line}: {message}"));
        if !self.json {
            return Ok(());
        }
        let mut object = start(place, None);
        object.insert("error".into(), message.into());
        self.object(object)
    }

    fn object(&self, object: Map<String, Value>) -> Result<()> {
        self.terminal.print(&Value::from(object).to_string())
    }
}

fn start(place: Place, path: Option<&Path>) -> Map<String, Value> {
    let mut object = Map::new();
    if let Some(line) = place.line {
        object.insert("row".into(), place.number.into());
        object.insert("line".into(), line.into());
    }
    if let Some(path) = path {
        object.insert("path".into(), path.to_string_lossy().into());
    }
    object
}

/// Seconds to the millisecond.
fn rounded(seconds: Seconds) -> Value {
    let round = |x: f64| (x * 1e3).round() / 1e3;
    json!({
        "load": round(seconds.load),
        "text": round(seconds.text),
        "denoise": round(seconds.denoise),
        "decode": round(seconds.decode),
        "write": round(seconds.write),
    })
}
