//! How a picture was made, written into it: for people and their programs, and for this program to draw it again.
//!
//! - `parameters`: the text that AUTOMATIC1111's web UI writes, which many viewers and model sites read
//! - `diffuse`: a JSON object with everything
//!
//! ```json
//! {"program": {"name", "version"}, "command", "settings": {one key for each flag}, "model": {"id", "commit", "sha256", "files"},
//!  "scheduler": {"class", "config"}, "seed", "width", "height", "steps", "calls", "dtype", "device", "lost", "pixels"}
//! ```
//!
//! Both depend on what determines the picture and on nothing else: the same picture is the same file.
use super::checkpoint::{Identity, hex};
use super::pipelines::Plan;
use super::runtime::Runtime;
use super::schedulers::SchedulerKind;
use anyhow::Result;
use image::RgbImage;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

/// The keywords of the two texts.
pub const PARAMETERS: &str = "parameters";
pub const JSON: &str = "diffuse";

/// What is known of a picture beside its pixels.
pub struct Provenance<'a> {
    pub command: &'a str,
    /// The command's settings, one key for each flag: what draws it again.
    pub settings: &'a Map<String, Value>,
    pub prompt: &'a str,
    pub negative_prompt: &'a str,
    pub model: &'a Identity,
    pub plan: &'a Plan,
    pub seed: u64,
    pub runtime: &'a Runtime,
}

impl Provenance<'_> {
    /// The texts of the PNG.
    pub fn texts(&self, picture: &RgbImage) -> Result<Vec<(&'static str, String)>> {
        Ok(vec![
            (PARAMETERS, self.parameters()),
            (JSON, ascii(&self.json(picture)?.to_string())),
        ])
    }

    fn json(&self, picture: &RgbImage) -> Result<Value> {
        let scheduler = &self.plan.scheduler;
        let lost = self.plan.text.iter().flat_map(|text| &text.lost);
        let lost: Map<_, _> = lost
            .map(|(name, words)| (name.replace(' ', "_"), words.clone().into()))
            .collect();
        Ok(json!({
            "program": {"name": "diffuse", "version": env!("CARGO_PKG_VERSION")},
            "command": self.command,
            "settings": self.settings,
            "model": self.model,
            "scheduler": {
                "class": scheduler.kind().class(),
                "config": scheduler.effective()?,
            },
            "seed": self.seed,
            "width": self.plan.size.1,
            "height": self.plan.size.0,
            "steps": self.plan.request.steps,
            "calls": self.plan.calls,
            "dtype": self.runtime.weights.as_str(),
            "device": self.runtime.place(),
            "lost": lost,
            "pixels": pixel_hash(picture),
        }))
    }

    /// Prompt, negative prompt, then one line of `Key: value` pairs.
    fn parameters(&self) -> String {
        let mut text = String::new();
        if !self.prompt.is_empty() {
            text += self.prompt;
            text.push('\n');
        }
        if !self.negative_prompt.is_empty() {
            text += &format!("Negative prompt: {}\n", self.negative_prompt);
        }
        let (sampler, spacing) = self.sampler();
        let guidance = self.plan.text.as_ref().map(|text| text.guidance.scale());
        let mut pairs = vec![
            ("Steps", self.plan.request.steps.to_string()),
            ("Sampler", sampler),
        ];
        pairs.extend(spacing.map(|name| ("Schedule type", name.to_owned())));
        pairs.extend(guidance.map(|scale| ("CFG scale", scale.unwrap_or(1.0).to_string())));
        // That program counts from 1.
        let skip = self.plan.text.as_ref().and_then(|text| text.clip_skip);
        pairs.extend(skip.map(|skip| ("Clip skip", (skip + 1).to_string())));
        pairs.extend([
            ("Seed", self.seed.to_string()),
            ("Size", format!("{}x{}", self.plan.size.1, self.plan.size.0)),
        ]);
        if let Some(hash) = self.model.weights_hash() {
            pairs.push(("Model hash", hash[..10].to_owned()));
        }
        // As that program names models: without the folder or the owner.
        let name = self.model.id.trim_end_matches('/').rsplit('/').next();
        pairs.push(("Model", name.unwrap_or_default().to_owned()));
        pairs.push(("Version", format!("diffuse {}", env!("CARGO_PKG_VERSION"))));
        let pairs = pairs
            .iter()
            .map(|(key, value)| format!("{key}: {}", quoted(value)));
        text + &pairs.collect::<Vec<_>>().join(", ")
    }

    /// The sampler's name and the spacing of its noise levels, in the words of that program.
    fn sampler(&self) -> (String, Option<&'static str>) {
        let kind = self.plan.scheduler.kind();
        let name = match kind {
            SchedulerKind::Ddim => "DDIM",
            SchedulerKind::Pndm => "PLMS",
            SchedulerKind::Unipc => "UniPC",
            SchedulerKind::Euler => "Euler",
            SchedulerKind::EulerAncestral => "Euler a",
            SchedulerKind::Heun => "Heun",
            SchedulerKind::Lms => "LMS",
            SchedulerKind::Kdpm2 => "DPM2",
            SchedulerKind::Kdpm2Ancestral => "DPM2 a",
            SchedulerKind::Dpmpp2m => "DPM++ 2M",
            SchedulerKind::Dpmpp2mSde => "DPM++ 2M SDE",
            SchedulerKind::Dpmpp2s => "DPM++ 2S",
            SchedulerKind::DpmSde => "DPM++ SDE",
            SchedulerKind::Lcm => "LCM",
            other => other.class().trim_end_matches("Scheduler"),
        };
        let on = |key: &str| {
            let keys = self.plan.scheduler.effective().unwrap_or_default();
            keys.get(key) == Some(&Value::Bool(true))
        };
        let spacing = [
            ("use_karras_sigmas", "Karras"),
            ("use_exponential_sigmas", "Exponential"),
            ("use_beta_sigmas", "Beta"),
        ];
        let spacing = spacing.into_iter().find(|(key, _)| on(key));
        (name.to_owned(), spacing.map(|(_, name)| name))
    }
}

/// A JSON text in ASCII alone. Programs that drop a PNG's iTXt when they save it anew, as ImageMagick 6 does, keep it.
fn ascii(json: &str) -> String {
    let mut text = String::with_capacity(json.len());
    for c in json.chars() {
        match c.is_ascii() {
            true => text.push(c),
            false => {
                let units = c.encode_utf16(&mut [0; 2]).to_vec();
                text.extend(units.iter().map(|unit| format!("\\u{unit:04x}")));
            }
        }
    }
    text
}

/// A value as the reader of the line expects it: as a JSON string where it would break the pairs.
fn quoted(value: &str) -> String {
    match value.contains([',', '\n', ':']) {
        true => Value::from(value).to_string(),
        false => value.to_owned(),
    }
}

/// The SHA-256 of the pixels: 3 bytes each, row by row, from the upper left.
pub fn pixel_hash(picture: &RgbImage) -> String {
    hex(&Sha256::digest(picture.as_raw()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_in_ascii_says_the_same() {
        let value = json!({"prompt": "línea\n\"кот\" 🐱\u{7f}", "négative": "\\é"});
        let text = ascii(&value.to_string());
        assert!(text.is_ascii(), "{text}");
        let again: Value = serde_json::from_str(&text).expect("it is JSON");
        assert_eq!(again, value);
    }

    #[test]
    fn values_that_would_break_the_line_are_quoted() {
        assert_eq!(quoted("Euler a"), "Euler a");
        assert_eq!(quoted("a, b"), "\"a, b\"");
        assert_eq!(quoted("a\nSteps: 3"), "\"a\\nSteps: 3\"");
    }

    #[test]
    fn the_hash_of_pixels_is_sha256() {
        // The digest of no bytes, from FIPS 180-4's test vectors.
        assert_eq!(
            pixel_hash(&RgbImage::new(0, 0)),
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        );
    }
}
