//! Where pictures are drawn: rows become orders, orders wait for company, batches are drawn, written and told of.
use super::look::Look;
use super::names::{Found, Names, Put, model_name};
use super::order::{Known, Order, caption};
use super::output::About;
use super::replay::{self, Replay};
use super::report::{Report, Written};
use super::rows::Place;
use super::terminal::Terminal;
use super::{Drawing, Line};
use crate::engine::beside::Mark;
use crate::engine::checkpoint::Checkpoint;
use crate::engine::pipelines::{Job, Only, Pipeline, Plan, System};
use crate::engine::png;
use crate::engine::progress::{Phase, Seconds};
use crate::engine::runtime::{self, Runtime};
use anyhow::{Context, Result};
use image::RgbImage;
use std::path::Path;
use std::process::ExitCode;
use std::rc::Rc;

/// All that a run has: the model, what is waiting to be drawn, and what became of the rest.
pub(super) struct Studio<'a, S> {
    pub checkpoint: &'a Checkpoint,
    pub command: &'static str,
    pub system: S,
    pub model: String,
    pub revision: String,
    pub runtime: Runtime,
    pub terminal: &'a Terminal,
    pub report: Report<'a>,
    pub metadata: bool,
    pub batch_size: usize,
    pub has_rows: bool,
    /// No batch follows the first.
    pub at_once: bool,
    pub names: Names,
    pub look: Look,
    /// The picture that the first one is to equal.
    pub replay: Option<Replay>,
    pub loaded: Option<Loaded<'a>>,
    /// Pictures that can share a batch, fewer than `batch_size`.
    pub queue: Vec<Order>,
    pub tally: Tally,
}

pub struct Loaded<'a> {
    pipeline: Box<dyn Pipeline + 'a>,
    identity: Known,
}

/// The pictures of a batch, and what each took.
struct Drawn {
    pictures: Vec<RgbImage>,
    seconds: Seconds,
}

/// Rows that came out well, and badly.
#[derive(Default)]
pub struct Tally {
    done: usize,
    failed: usize,
}

impl Tally {
    /// A picture is drawn, planned, or was there.
    pub fn done(&mut self) {
        self.done += 1;
    }

    /// 0 when all is done, 3 when some rows failed, 1 when none came to anything.
    pub fn code(&self, has_rows: bool) -> ExitCode {
        match (self.done, self.failed) {
            (_, 0) => ExitCode::SUCCESS,
            (0, _) => ExitCode::FAILURE,
            _ if has_rows => ExitCode::from(3),
            _ => ExitCode::FAILURE,
        }
    }
}

impl<S: System> Studio<'_, S> {
    /// Settles a row: the pictures that it is, less those that are there already.
    pub fn plan<A: Drawing<System = S>>(
        &mut self,
        place: Place,
        row: Line<A>,
    ) -> Result<Vec<Order>> {
        let shared = row.args.shared();
        let plan = Rc::new(self.system.plan(&row.args.request())?);
        plan.check_memory(1, self.look.bytes(&plan), &self.runtime)?;
        // Rows are the same for every shard and every run, so their seeds are too.
        let default = self.has_rows.then_some(place.number as u64);
        let seeds = shared.sampling.seeds(default);
        let (prompt, negative) = row.args.prompts();
        let prompts = Rc::new((prompt.to_owned(), negative.to_owned()));
        let settings = Rc::new(row.remembered());
        let model = model_name(&self.model);
        let scheduler = plan.scheduler.kind().name();
        let mut orders = Vec::new();
        for (k, &seed) in seeds.iter().enumerate() {
            let about = About {
                index: place.number,
                seed,
                prompt: if A::HAS_PROMPT { prompt } else { &model },
                model: &model,
                scheduler,
                steps: plan.request.steps,
            };
            let options = &shared.output;
            let (target, found) = self.names.target(
                options.output.as_ref(),
                options.overwrite,
                &about,
                (k, seeds.len()),
            )?;
            let mut order = Order {
                place,
                plan: plan.clone(),
                seed,
                target,
                film: None,
                settings: settings.clone(),
                prompts: prompts.clone(),
            };
            if let (Found::Picture, Some(path)) = (found, order.target.path()) {
                let differing = replay::differences(path, &order.settled(&self.runtime));
                self.skip(&order, path, &differing)?;
                continue;
            }
            if let Some((every, path)) = self.look.save_steps.zip(order.target.path()) {
                let calls = (every, order.plan.calls);
                self.names.check_steps(path, calls, options.overwrite)?;
            }
            if let Some(film) = &shared.look.animate {
                let mark = order.target.path().map(Mark::of);
                let (overwrite, which) = (options.overwrite, (k, seeds.len()));
                let film = self
                    .names
                    .film(film, overwrite, &about, which, mark.as_ref());
                order.film = Some(film?);
            }
            orders.push(order);
        }
        if !orders.is_empty() {
            self.describe(&plan, &seeds, place);
            if let Some(every) = self.look.save_steps.filter(|every| *every >= plan.calls) {
                let calls = plan.calls;
                tracing::warn!(
                    "--save-steps {every} writes nothing: of {calls} calls the last is the picture"
                );
            }
        }
        Ok(orders)
    }

    /// The picture of `order` is there, at `path`, drawn with other values of `differing`.
    fn skip(&mut self, order: &Order, path: &Path, differing: &[String]) -> Result<()> {
        self.report.skipped(order.place, path, differing)?;
        let text = caption(&order.prompts.0, order.seed);
        self.look.skipped(path, &text);
        self.tally.done();
        self.terminal.progress().done(1);
        Ok(())
    }

    /// One line with all that repeats the row.
    fn describe(&self, plan: &Plan, seeds: &[u64], place: Place) {
        let revision = match self.checkpoint.commit() {
            Some(_) => format!(" at {}", self.revision),
            None => String::new(),
        };
        let images = match seeds.len() {
            1 => String::new(),
            n => format!(", {n} pictures"),
        };
        let row = place
            .line
            .map_or(String::new(), |line| format!("line {line}: "));
        tracing::info!(
            "{row}{}{revision}, {}, seed {}{images}, {}",
            self.model,
            plan.summary(),
            seeds.first().copied().unwrap_or_default(),
            self.runtime
        );
    }

    pub fn enqueue(&mut self, order: Order) -> Result<()> {
        let fits = |first: &Order| first.plan.batches_with(&order.plan);
        if !self.queue.first().is_none_or(fits) {
            self.draw_queue()?;
        }
        self.queue.push(order);
        if self.queue.len() >= self.batch_size {
            self.draw_queue()?;
        }
        Ok(())
    }

    pub fn draw_queue(&mut self) -> Result<()> {
        let orders = std::mem::take(&mut self.queue);
        if orders.is_empty() {
            return Ok(());
        }
        self.load(&orders[0].plan)?;
        match self.draw(&orders) {
            Ok(drawn) => self.deliver_all(&orders, drawn),
            Err(err) if orders.len() > 1 => {
                tracing::warn!(
                    "a batch of {} failed ({err:#}); drawing one by one",
                    orders.len()
                );
                orders
                    .chunks(1)
                    .try_for_each(|order| match self.draw(order) {
                        Ok(drawn) => self.deliver_all(order, drawn),
                        Err(err) => self.fail(order[0].place, err),
                    })
            }
            Err(err) => self.fail(orders[0].place, err),
        }
    }

    /// Writes the pictures of a batch: what goes wrong with one is that one's failure.
    fn deliver_all(&mut self, orders: &[Order], drawn: Drawn) -> Result<()> {
        for (k, (order, picture)) in orders.iter().zip(&drawn.pictures).enumerate() {
            if let Err(err) = self.deliver(k, order, picture, drawn.seconds) {
                self.fail(order.place, err)?;
            }
        }
        Ok(())
    }

    /// A row's failure is told and the others go on; that of a lone command line ends the run.
    pub fn fail(&mut self, place: Place, err: anyhow::Error) -> Result<()> {
        if !self.has_rows {
            return Err(err);
        }
        self.tally.failed += 1;
        self.terminal.progress().done(1);
        self.report.failed(place, &format!("{err:#}"))
    }

    /// Draws pictures as one batch.
    fn draw(&mut self, orders: &[Order]) -> Result<Drawn> {
        let loaded = self.loaded.as_mut().context("the model is not loaded")?;
        let progress = self.terminal.progress();
        if orders.len() > 1 {
            let plan = &orders[0].plan;
            plan.check_memory(orders.len(), self.look.bytes(plan), &self.runtime)?;
        }
        let jobs: Vec<Job> = orders
            .iter()
            .map(|order| Job {
                plan: &order.plan,
                seed: order.seed,
            })
            .collect();
        let of = orders[0].plan.calls;
        let look = &mut self.look;
        look.start(orders.len());
        let mut watch = |calls, sample: &dyn Fn(usize) -> Result<RgbImage>| {
            look.step((calls, of), orders, sample)
        };
        let pictures = loaded.pipeline.draw(&jobs, progress, &mut watch);
        let pictures = pictures.map_err(runtime::explain)?;
        let seconds = progress.take_seconds().share(orders.len());
        Ok(Drawn { pictures, seconds })
    }

    /// Writes picture `k` of a batch, which took `seconds`, and tells of it.
    fn deliver(
        &mut self,
        k: usize,
        order: &Order,
        picture: &RgbImage,
        drawn: Seconds,
    ) -> Result<()> {
        let loaded = self.loaded.as_mut().context("the model is not loaded")?;
        let progress = self.terminal.progress();
        // Before it is written, which may be where the other one is.
        let same_pixels = match self.replay.take() {
            Some(replay) => Some(replay.compare(picture, loaded.identity.get()?)),
            None => None,
        };
        let put = progress.phase(Phase::Write, || {
            self.look.film(k, order, picture)?;
            let texts = match loaded.identity.get()? {
                Some(model) => order.texts(self.command, model, &self.runtime, picture)?,
                None => Vec::new(),
            };
            order.target.write(&png::encode(picture, &texts)?)
        })?;
        let path = match put {
            Put::Stdout => None,
            Put::At(path) => Some(path),
            Put::Skipped(path) => return self.skip(order, &path, &[]),
        };
        let mut seconds = drawn;
        seconds.write = progress.take_seconds().write;
        self.report.written(&Written {
            place: order.place,
            path: path.as_deref(),
            plan: &order.plan,
            seed: order.seed,
            picture,
            seconds,
            prompt: Some(order.prompts.0.as_str()).filter(|prompt| !prompt.is_empty()),
            same_pixels,
        })?;
        let text = caption(&order.prompts.0, order.seed);
        self.look.picture(picture, &text, self.terminal)?;
        self.tally.done();
        progress.done(1);
        Ok(())
    }

    fn load(&mut self, first: &Plan) -> Result<()> {
        if self.loaded.is_some() {
            return Ok(());
        }
        let only = (!self.has_rows).then_some(Only {
            plan: first,
            at_once: self.at_once,
        });
        let progress = self.terminal.progress();
        let pipeline = self
            .system
            .load(self.checkpoint, &self.runtime, only, progress)
            .map_err(runtime::explain)?;
        let identity = match self.metadata {
            true => Known::Pending(Some(self.checkpoint.identify())),
            false => Known::Unwanted,
        };
        self.loaded = Some(Loaded { pipeline, identity });
        Ok(())
    }
}
