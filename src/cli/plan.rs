//! `--dry-run`: what a run would do and what it would cost, with no weights read.
use super::names::Target;
use super::terminal::Terminal;
use crate::engine::checkpoint::{Checkpoint, Wanted};
use crate::engine::cost::Work;
use crate::engine::memory::gigabytes;
use crate::engine::pipelines::{Plan, System};
use crate::engine::runtime::Runtime;
use anyhow::Result;
use indicatif::HumanDuration;
use serde_json::json;
use std::time::Duration;

/// The price of the pictures planned so far.
#[derive(Default)]
pub struct Price {
    pictures: usize,
    calls: usize,
    /// Of all calls and of all decoding.
    work: Work,
    /// Of one batch, at the widest moment of its calls and of its decoding.
    maps: (u64, u64),
    /// Of one batch, what is kept beside in the machine's memory.
    beside: u64,
    names: Vec<String>,
}

/// Names that are printed one by one; of more, the number is.
const NAMES: usize = 20;

impl Price {
    /// `beside` is what is kept of the picture until it is drawn, in bytes.
    pub fn add(&mut self, plan: &Plan, target: &Target, batch_size: usize, beside: u64) {
        self.pictures += 1;
        self.calls += plan.calls;
        self.work += plan.work;
        let (calls, decoding) = plan.working_bytes(batch_size);
        self.maps = (self.maps.0.max(calls), self.maps.1.max(decoding));
        self.beside = self.beside.max(beside.saturating_mul(batch_size as u64));
        if self.names.len() < NAMES {
            let name = target.path().map(|path| path.display().to_string());
            self.names.push(name.unwrap_or_else(|| "stdout".to_owned()));
        }
    }

    /// Prints it, as lines or as a JSON object. `lone`: one row, for which the text encoder is let go early; `at_once`: one batch, for which the
    /// UNet is too.
    pub fn print(
        &self,
        terminal: &Terminal,
        as_json: bool,
        checkpoint: &Checkpoint,
        system: &impl System,
        runtime: &Runtime,
        (lone, at_once): (bool, bool),
    ) -> Result<()> {
        let (mut missing, mut here) = (Vec::<Wanted>::new(), 0);
        let (mut kept, mut unet) = (0, 0);
        let (mut calls, mut decoding) = self.maps;
        // One file may be two parts of a run; it comes once.
        let mut count = |file: Wanted| match file.here {
            true => here += file.bytes,
            false if missing.iter().any(|other| other.name == file.name) => {}
            false => missing.push(file),
        };
        for (component, dtype) in system.weights(runtime) {
            let files = checkpoint.wanted_weights(component, dtype)?;
            // What was saved in 16 bits or in 32 is kept in the precision of the run.
            let width = dtype.size_in_bytes() as u64;
            let held = |file: &Wanted| file.bytes * width / if file.half { 2 } else { 4 };
            let held: u64 = files.iter().map(held).sum();
            // Maps were counted in f32.
            let narrow = |maps: u64| maps / 4 * runtime.width(dtype);
            match component {
                "unet" => (unet, calls) = (held, narrow(calls)),
                "vae" => (kept, decoding) = (kept + held, narrow(decoding)),
                text if lone && text.starts_with("text_encoder") => {}
                _ => kept += held,
            }
            files.into_iter().for_each(&mut count);
        }
        // They are merged into the weights, so they keep no room of their own.
        for lora in checkpoint.loras() {
            count(lora.wanted()?);
        }
        let download: u64 = missing.iter().map(|file| file.bytes).sum();
        let beside = if at_once { 0 } else { unet };
        // The memory that is told is that of the device.
        let frames = if runtime.device.is_cpu() {
            self.beside
        } else {
            0
        };
        let used = kept + (unet + calls).max(beside + decoding) + frames;
        let peak = used + runtime.own_memory(used);
        let seconds = runtime.seconds(self.work)?;
        if as_json {
            let missing: Vec<_> = missing
                .iter()
                .map(|file| json!({"name": file.name, "bytes": file.bytes}))
                .collect();
            let object = json!({
                "pictures": self.pictures,
                "calls": self.calls,
                "outputs": self.names,
                "model": checkpoint.name(),
                "commit": checkpoint.commit(),
                "weights": here + download,
                "download": {"bytes": download, "files": missing},
                "memory": peak,
                "memory_free": runtime.free_memory(),
                "seconds": (seconds * 1e6).round() / 1e6,
            });
            return terminal.print(&object.to_string());
        }
        let commit = checkpoint.commit().map(|commit| format!(" at {commit}"));
        let mut lines = vec![
            format!(
                "model     {}{}",
                checkpoint.name(),
                commit.unwrap_or_default()
            ),
            format!("weights   {} in {}", gigabytes(here + download), runtime),
        ];
        lines.push(match missing.len() {
            0 => "download  nothing".to_owned(),
            n => format!("download  {n} files, {}", gigabytes(download)),
        });
        lines.extend(
            missing
                .iter()
                .map(|file| format!("          {} ({})", file.name, gigabytes(file.bytes))),
        );
        lines.push(format!("pictures  {}", self.pictures));
        lines.extend(self.names.iter().map(|name| format!("          {name}")));
        if self.pictures > self.names.len() {
            lines.push(format!(
                "          and {} more",
                self.pictures - self.names.len()
            ));
        }
        lines.push(format!("calls     {} of the UNet", self.calls));
        let free = runtime
            .free_memory()
            .map(|free| format!(", {} free", gigabytes(free)));
        lines.push(format!(
            "memory    about {}{}",
            gigabytes(peak),
            free.unwrap_or_default()
        ));
        let time = match seconds < 1.0 {
            true => "less than a second".to_owned(),
            false => format!(
                "about {}",
                HumanDuration(Duration::from_secs_f64(seconds.min(1e12)))
            ),
        };
        lines.push(format!("time      {time}, loading and downloads apart"));
        lines.iter().try_for_each(|line| terminal.print(line))
    }
}
