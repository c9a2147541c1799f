//! A picture to draw: what it is, where it goes, and what it will carry.
use super::names::Target;
use super::rows::Place;
use super::settings::{self, Settings};
use crate::engine::checkpoint::Identity;
use crate::engine::pipelines::Plan;
use crate::engine::provenance::Provenance;
use crate::engine::runtime::Runtime;
use anyhow::{Context, Result, anyhow};
use image::RgbImage;
use serde_json::Value;
use std::path::PathBuf;
use std::rc::Rc;
use std::thread::JoinHandle;

/// A picture to draw, and where it goes.
pub struct Order {
    pub place: Place,
    pub plan: Rc<Plan>,
    pub seed: u64,
    pub target: Target,
    /// Where its animation goes.
    pub film: Option<PathBuf>,
    pub settings: Rc<Settings>,
    pub prompts: Rc<(String, String)>,
}

impl Order {
    /// The texts that its PNG carries: what the row said, with all that was settled meanwhile.
    pub fn texts(
        &self,
        command: &str,
        model: &Identity,
        runtime: &Runtime,
        picture: &RgbImage,
    ) -> Result<Vec<(&'static str, String)>> {
        let mut settings = self.settled(runtime);
        settings.insert("model".into(), model.id.clone().into());
        settings.shift_remove("revision");
        if let Some(commit) = &model.commit {
            settings.insert("revision".into(), commit.clone().into());
        }
        pin(&mut settings, model);
        // The same picture is the same file, wherever its settings came from.
        settings.sort_keys();
        let (prompt, negative_prompt) = (&self.prompts.0, &self.prompts.1);
        let provenance = Provenance {
            command,
            settings: &settings,
            prompt,
            negative_prompt,
            model,
            plan: &self.plan,
            seed: self.seed,
            runtime,
        };
        provenance.texts(picture)
    }

    /// What the row said, and what a repetition needs beside it and the model.
    pub fn settled(&self, runtime: &Runtime) -> Settings {
        let mut settings = (*self.settings).clone();
        settings.insert("seed".into(), self.seed.into());
        settings.insert("dtype".into(), runtime.weights.as_str().into());
        let listed = ["timesteps", "sigmas"];
        if !listed.iter().any(|key| settings.contains_key(*key)) {
            settings.insert("steps".into(), self.plan.request.steps.into());
        }
        if let Some(text) = &self.plan.text {
            if let Some(scale) = text.guidance.scale()
                && !settings.contains_key("guidance_scale")
            {
                // A whole number stays one, as where it was given.
                settings.insert("guidance_scale".into(), settings::number(scale));
            }
            settings.insert("width".into(), self.plan.size.1.into());
            settings.insert("height".into(), self.plan.size.0.into());
        }
        settings
    }
}

/// Writes the commits of what completes the model, which may be on the hub as well: that is what was drawn with.
fn pin(settings: &mut Settings, model: &Identity) {
    for key in ["vae", "config"] {
        if let Some(Value::String(text)) = settings.get_mut(key) {
            let id = text.split('@').next().unwrap_or_default();
            if let Some(commit) = model.commits.get(id) {
                *text = format!("{id}@{commit}");
            }
        }
    }
    let loras = settings.get_mut("lora").and_then(Value::as_array_mut);
    for (text, used) in loras.into_iter().flatten().zip(&model.loras) {
        if let Some(source) = &used.source {
            *text = match used.weight {
                1.0 => source.clone(),
                weight => format!("{source}:{weight}"),
            }
            .into();
        }
    }
}

/// The model's identity, which a thread works out while the first picture is drawn.
pub enum Known {
    Unwanted,
    Pending(Option<JoinHandle<Result<Identity>>>),
    Yes(Identity),
}

impl Known {
    pub fn get(&mut self) -> Result<Option<&Identity>> {
        if let Self::Pending(thread) = self {
            let thread = thread.take().context("the model's files cannot be read")?;
            let identity = thread
                .join()
                .map_err(|_| anyhow!("hashing the model failed"))?;
            *self = Self::Yes(identity.context("hashing the model")?);
        }
        Ok(match self {
            Self::Yes(identity) => Some(identity),
            _ => None,
        })
    }
}

/// What a contact sheet says below a picture.
pub fn caption(prompt: &str, seed: u64) -> String {
    match prompt {
        "" => format!("seed {seed}"),
        // First, so that no long prompt hides it.
        _ => format!("{seed}: {prompt}"),
    }
}
