//! What is made to look at: pictures of the steps, an animation, a contact sheet, the picture in the terminal.
use super::args::LookArgs;
use super::names::{Target, with_suffix};
use super::terminal::Terminal;
use crate::engine::sheet::Sheet;
use crate::engine::{animate, output, png};
use anyhow::{Context, Result, bail, ensure};
use image::RgbImage;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};

/// The pictures of a contact sheet, at most: it is held in memory.
const SHEET_LIMIT: usize = 1024;
/// The frames of an animation, about.
const FRAMES: usize = 60;

/// What was asked for, and what was collected for it.
pub struct Look {
    grid: Option<PathBuf>,
    sheet: Sheet,
    save_steps: Option<usize>,
    animate: Option<PathBuf>,
    frames: Vec<RgbImage>,
    show: bool,
    overwrite: bool,
}

impl Look {
    /// Checks, before any work, that all of it can be made for a run of `images` pictures; None: of rows.
    pub fn new(
        args: &LookArgs,
        images: Option<usize>,
        to_stdout: bool,
        overwrite: bool,
    ) -> Result<Self> {
        if let Some(file) = &args.animate {
            ensure!(
                images == Some(1),
                "--animate {} shows one picture; leave out --num-images",
                file.display()
            );
        }
        if args.save_steps.is_some() && to_stdout {
            bail!(
                "--save-steps writes beside the picture, which goes to stdout; give a file as --output"
            );
        }
        for (flag, file) in [("grid", &args.grid), ("animate", &args.animate)] {
            let Some(file) = file else { continue };
            output::check_folder(output::folder_of(file))
                .with_context(|| format!("--{flag} {}", file.display()))?;
            ensure!(
                overwrite || !file.exists(),
                "--{flag} {} exists; add --overwrite to replace it",
                file.display()
            );
        }
        ensure!(
            !args.show || std::io::stdout().is_terminal(),
            "--show draws in a terminal and stdout is none; leave it out, or use --output"
        );
        Ok(Self {
            grid: args.grid.clone(),
            sheet: Sheet::default(),
            save_steps: args.save_steps,
            animate: args.animate.clone(),
            frames: Vec::new(),
            show: args.show,
            overwrite,
        })
    }

    /// After `calls` of `of` calls; `sample` makes the sample of one of `targets` visible.
    pub fn step(
        &mut self,
        (calls, of): (usize, usize),
        targets: &[&Target],
        sample: &dyn Fn(usize) -> Result<RgbImage>,
    ) -> Result<()> {
        // The last sample is the picture itself.
        if calls == of {
            return Ok(());
        }
        if self.save_steps.is_some_and(|n| calls.is_multiple_of(n)) {
            for (k, target) in targets.iter().enumerate() {
                if let Some(path) = target.path() {
                    let path = with_suffix(path, &format!("step-{calls:03}"));
                    output::write(&path, &png::encode(&sample(k)?, &[])?, true)?;
                }
            }
        }
        if self.animate.is_some() && calls.is_multiple_of(of.div_ceil(FRAMES)) {
            self.frames.push(sample(0)?);
        }
        Ok(())
    }

    /// A picture is written; `caption` tells what it is.
    pub fn picture(
        &mut self,
        picture: &RgbImage,
        caption: &str,
        terminal: &Terminal,
    ) -> Result<()> {
        if let Some(file) = self.animate.take() {
            self.frames.push(picture.clone());
            let bytes = animate::encode(&std::mem::take(&mut self.frames))?;
            output::write(&file, &bytes, self.overwrite)?;
        }
        if self.show {
            terminal.show(picture)?;
        }
        if self.grid.is_some() && self.sheet.len() < SHEET_LIMIT {
            self.sheet.add(picture, caption.to_owned());
            if self.sheet.len() == SHEET_LIMIT {
                tracing::warn!("the contact sheet is full with {SHEET_LIMIT} pictures");
            }
        }
        Ok(())
    }

    /// A picture of the run that was there already: it belongs on the sheet too.
    pub fn skipped(&mut self, path: &Path, caption: &str) {
        if self.grid.is_none() || self.sheet.len() >= SHEET_LIMIT {
            return;
        }
        match image::open(path) {
            Ok(picture) => self.sheet.add(&picture.into_rgb8(), caption.to_owned()),
            Err(err) => tracing::warn!("{} is not on the sheet: {err}", path.display()),
        }
    }

    /// All pictures are done.
    pub fn finish(&self) -> Result<()> {
        match &self.grid {
            Some(file) if !self.sheet.is_empty() => {
                output::write(file, &png::encode(&self.sheet.draw(), &[])?, self.overwrite)
            }
            _ => Ok(()),
        }
    }
}
