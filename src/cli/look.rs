//! What is made to look at: pictures of the steps, an animation, a contact sheet, the picture in the terminal.
use super::args::LookArgs;
use super::names::step_of;
use super::order::Order;
use super::show::Screen;
use super::terminal::Terminal;
use super::usage;
use crate::engine::beside::Mark;
use crate::engine::pipelines::Plan;
use crate::engine::sheet::Sheet;
use crate::engine::{animate, output, png};
use anyhow::{Context, Result};
use image::RgbImage;
use std::path::{Path, PathBuf};

/// The pictures of a contact sheet, at most: it is held in memory.
const SHEET_LIMIT: usize = 1024;
/// The frames of an animation, about.
const FRAMES: usize = 60;

/// Calls of `of` from a frame to the next.
fn between(of: usize) -> usize {
    of.div_ceil(FRAMES).max(1)
}

/// What was asked for, and what was collected for it.
pub struct Look {
    grid: Option<PathBuf>,
    replace_sheet: bool,
    sheet: Sheet,
    /// After how many calls, again and again.
    pub save_steps: Option<usize>,
    /// Of each picture of the batch that is being drawn.
    frames: Vec<Vec<RgbImage>>,
    screen: Option<Screen>,
    /// Whether frames are kept for animations.
    films: bool,
    overwrite: bool,
}

impl Look {
    /// Checks, before any work, that all of it can be made.
    pub fn new(
        args: &LookArgs,
        to_stdout: bool,
        overwrite: bool,
        replace_sheet: bool,
    ) -> Result<Self> {
        usage::ensure_meaning(args.save_steps.is_none() || !to_stdout, || {
            "--save-steps writes beside the picture, which goes to stdout; give a file as --output"
                .to_owned()
        })?;
        Ok(Self {
            grid: args.grid.clone(),
            replace_sheet,
            sheet: Sheet::default(),
            save_steps: args.save_steps,
            frames: Vec::new(),
            screen: args.show.then(Screen::find).transpose()?,
            films: args.animate.is_some(),
            overwrite,
        })
    }

    /// Bytes of the frames that are kept of a picture until it is drawn.
    pub fn bytes(&self, plan: &Plan) -> u64 {
        let frames = match self.films {
            true => plan.calls / between(plan.calls),
            false => 0,
        };
        let (height, width) = plan.size;
        (frames * height * width * 3) as u64
    }

    /// A batch of `pictures` begins.
    pub fn start(&mut self, pictures: usize) {
        self.frames = vec![Vec::new(); pictures];
    }

    /// After `calls` of `of` calls; `sample` makes the sample of one of `orders` visible.
    pub fn step(
        &mut self,
        (calls, of): (usize, usize),
        orders: &[Order],
        sample: &dyn Fn(usize) -> Result<RgbImage>,
    ) -> Result<()> {
        // The last sample is the picture itself.
        if calls == of {
            return Ok(());
        }
        let save = self.save_steps.is_some_and(|n| calls.is_multiple_of(n));
        let film = calls.is_multiple_of(between(of));
        for ((k, order), frames) in orders.iter().enumerate().zip(&mut self.frames) {
            let path = order.target.path().filter(|_| save);
            let filmed = film && order.film.is_some();
            if path.is_none() && !filmed {
                continue;
            }
            let picture = sample(k)?;
            if let Some(path) = path {
                let mark = Mark::of(path);
                let (path, bytes) = (step_of(path, calls), png::encode(&picture, &[mark.text()])?);
                output::write(&path, &bytes, self.overwrite || mark.is_on(&path))?;
            }
            if filmed {
                frames.push(picture);
            }
        }
        Ok(())
    }

    /// Picture `k` of the batch is drawn and not yet written: a picture that is there has its animation.
    pub fn film(&mut self, k: usize, order: &Order, picture: &RgbImage) -> Result<()> {
        let Some(file) = &order.film else {
            return Ok(());
        };
        let mut frames = std::mem::take(&mut self.frames[k]);
        frames.push(picture.clone());
        let mark = order.target.path().map(Mark::of);
        let bytes = match file.extension() {
            Some(end) if end.eq_ignore_ascii_case("gif") => animate::gif(&frames, mark.as_ref())?,
            _ => animate::png(&frames, mark.as_ref())?,
        };
        let is_ours = mark.is_some_and(|mark| mark.is_on(file));
        output::write(file, &bytes, self.overwrite || is_ours)
    }

    /// A picture is written; `caption` tells what it is.
    pub fn picture(
        &mut self,
        picture: &RgbImage,
        caption: &str,
        terminal: &Terminal,
    ) -> Result<()> {
        if let Some(screen) = self.screen
            && let Err(err) = terminal.progress().suspend(|| screen.draw(picture))
        {
            // The picture is written all the same.
            tracing::warn!("--show: {err:#}");
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
        let picture =
            png::check_palette(path).and_then(|()| image::open(path).context("cannot be read"));
        match picture {
            Ok(picture) => self.sheet.add(&picture.into_rgb8(), caption.to_owned()),
            Err(err) => {
                tracing::warn!("{} is not on the sheet: it {err:#}", path.display());
            }
        }
    }

    /// All pictures are done.
    pub fn finish(&self) -> Result<()> {
        match &self.grid {
            Some(file) if !self.sheet.is_empty() => {
                output::write(file, &self.sheet.encode()?, self.replace_sheet)
            }
            _ => Ok(()),
        }
    }
}
