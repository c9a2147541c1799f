//! The run of both commands: rows in, pictures out.
//!
//! ```text
//! for each row:   plan it (sizes, tokens, names: all that can fail early), put its pictures in the queue
//! queue full, or the next picture unlike the others:   draw them as one batch, write each, tell of each
//! ```
//! The model is loaded when the first picture is to be drawn, once.
use super::look::Look;
use super::names::{Found, Names, Target, model_name};
use super::output::{About, Output};
use super::plan::Price;
use super::replay::{self, Replay};
use super::report::{Report, Written};
use super::rows::{self, Place, Rows};
use super::settings::Settings;
use super::terminal::Terminal;
use super::{Drawing, Line};
use crate::engine::checkpoint::{Checkpoint, Identity};
use crate::engine::pipelines::{Job, Pipeline, Plan, System};
use crate::engine::progress::Phase;
use crate::engine::provenance::Provenance;
use crate::engine::{png, runtime::Runtime};
use anyhow::{Context, Result, anyhow, ensure};
use image::RgbImage;
use std::process::ExitCode;
use std::rc::Rc;
use std::thread::JoinHandle;

pub fn run<A: Drawing>(line: Line<A>, terminal: &Terminal) -> Result<ExitCode> {
    let (line, replay) = replay::expand(line)?;
    let shared = line.args.shared();
    shared.machine.start(terminal)?;
    let (has_rows, options) = (shared.batch.prompts.is_some(), &shared.output);
    ensure!(
        !has_rows || line.args.prompts().0.is_empty(),
        "--prompts brings the prompts; leave out {:?}, or write it into the file",
        line.args.prompts().0
    );
    let (dry_run, as_json) = (shared.batch.dry_run, options.json);
    let to_stdout = options.output == Some(Output::Stdout);
    ensure!(
        !(as_json && to_stdout),
        "--json and --output - both write to stdout; give a file as --output"
    );
    let images = shared.sampling.images();
    let mut names = Names::new(has_rows, options.parents, dry_run);
    names.check(options.output.as_ref(), images, options.overwrite)?;
    let look = Look::new(
        &shared.look,
        (!has_rows).then_some(images),
        to_stdout,
        options.overwrite,
    )?;
    let runtime = shared.machine.runtime()?;
    let checkpoint = Checkpoint::open(line.args.model(), &shared.revision.revision)?;
    checkpoint.show_downloads(terminal.progress().bars());
    let total = match &shared.batch.prompts {
        None => Some(images),
        Some(path) => rows::count(path, shared.batch.shard).map(|rows| rows * images),
    };
    terminal.progress().expect(total);

    let mut studio = Studio {
        command: A::NAME,
        system: A::read(&checkpoint)?,
        checkpoint: &checkpoint,
        model: line.args.model().to_owned(),
        revision: shared.revision.revision.clone(),
        runtime,
        terminal,
        report: Report {
            terminal,
            json: as_json,
        },
        metadata: !options.no_metadata,
        batch_size: shared.batch.batch_size,
        has_rows,
        names,
        look,
        replay,
        loaded: None,
        queue: Vec::new(),
        tally: Tally::default(),
    };
    let mut price = dry_run.then(Price::default);
    for (place, row) in Rows::new(line)? {
        match (row.and_then(|row| studio.plan(place, row)), &mut price) {
            (Ok(orders), Some(price)) => orders
                .iter()
                .for_each(|order| price.add(&order.plan, &order.target, studio.batch_size)),
            (Ok(orders), None) => orders
                .into_iter()
                .try_for_each(|order| studio.enqueue(order))?,
            (Err(err), _) => studio.fail(place, err)?,
        }
    }
    if let Some(price) = price {
        let Studio {
            system, runtime, ..
        } = &studio;
        price.print(terminal, as_json, &checkpoint, system, runtime, !has_rows)?;
        return Ok(studio.tally.code(has_rows));
    }
    studio.draw_queue()?;
    studio.look.finish()?;
    Ok(studio.tally.code(has_rows))
}

/// All that a run has: the model, what is waiting to be drawn, and what became of the rest.
struct Studio<'a, S> {
    checkpoint: &'a Checkpoint,
    command: &'static str,
    system: S,
    model: String,
    revision: String,
    runtime: Runtime,
    terminal: &'a Terminal,
    report: Report<'a>,
    metadata: bool,
    batch_size: usize,
    has_rows: bool,
    names: Names,
    look: Look,
    /// The picture that the first one is to equal.
    replay: Option<Replay>,
    loaded: Option<Loaded>,
    /// Pictures that can share a batch, fewer than `batch_size`.
    queue: Vec<Order>,
    tally: Tally,
}

struct Loaded {
    pipeline: Box<dyn Pipeline>,
    identity: Known,
}

/// The model's identity, which a thread works out while the first picture is drawn.
enum Known {
    Unwanted,
    Pending(Option<JoinHandle<Result<Identity>>>),
    Yes(Identity),
}

impl Known {
    fn get(&mut self) -> Result<Option<&Identity>> {
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

/// A picture to draw, and where it goes.
struct Order {
    place: Place,
    plan: Rc<Plan>,
    seed: u64,
    target: Target,
    settings: Rc<Settings>,
    prompts: Rc<(String, String)>,
}

impl Order {
    /// The texts that its PNG carries: what the row said, with all that was settled meanwhile.
    fn texts(
        &self,
        command: &str,
        model: &Identity,
        runtime: &Runtime,
        picture: &RgbImage,
    ) -> Result<Vec<(&'static str, String)>> {
        let mut settings = (*self.settings).clone();
        settings.insert("model".into(), model.id.clone().into());
        settings.shift_remove("revision");
        if let Some(commit) = &model.commit {
            settings.insert("revision".into(), commit.clone().into());
        }
        settings.insert("seed".into(), self.seed.into());
        settings.insert("dtype".into(), runtime.weights.as_str().into());
        if self.plan.text.is_some() {
            settings.insert("width".into(), self.plan.size.1.into());
            settings.insert("height".into(), self.plan.size.0.into());
        }
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
}

/// Rows that came out well, and badly.
#[derive(Default)]
struct Tally {
    done: usize,
    failed: usize,
}

impl Tally {
    fn code(&self, has_rows: bool) -> ExitCode {
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
    fn plan<A: Drawing<System = S>>(&mut self, place: Place, row: Line<A>) -> Result<Vec<Order>> {
        let shared = row.args.shared();
        let plan = Rc::new(self.system.plan(&row.args.request())?);
        // Rows are the same for every shard and every run, so their seeds are too.
        let default = self.has_rows.then_some(place.number as u64);
        let seeds = shared.sampling.seeds(default);
        let (prompt, negative) = row.args.prompts();
        let prompts = Rc::new((prompt.to_owned(), negative.to_owned()));
        self.describe(&plan, &seeds, place);
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
                scheduler: &scheduler,
                steps: plan.request.steps,
            };
            let options = &shared.output;
            let (target, found) = self.names.target(
                options.output.as_ref(),
                options.overwrite,
                &about,
                (k, seeds.len()),
            )?;
            if let (Found::Picture, Target::Path { path, .. }) = (found, &target) {
                self.report.skipped(place, path)?;
                self.look.skipped(path, &caption(about.prompt, seed));
                self.tally.done += 1;
                self.terminal.progress().done(1);
                continue;
            }
            orders.push(Order {
                place,
                plan: plan.clone(),
                seed,
                target,
                settings: settings.clone(),
                prompts: prompts.clone(),
            });
        }
        Ok(orders)
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

    fn enqueue(&mut self, order: Order) -> Result<()> {
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

    fn draw_queue(&mut self) -> Result<()> {
        let orders = std::mem::take(&mut self.queue);
        if orders.is_empty() {
            return Ok(());
        }
        self.load(&orders[0].plan)?;
        match self.draw(&orders) {
            Err(err) if orders.len() > 1 => {
                tracing::warn!(
                    "a batch of {} failed ({err:#}); drawing one by one",
                    orders.len()
                );
                for order in &orders {
                    if let Err(err) = self.draw(std::slice::from_ref(order)) {
                        self.fail(order.place, err)?;
                    }
                }
                Ok(())
            }
            Err(err) => self.fail(orders[0].place, err),
            Ok(()) => Ok(()),
        }
    }

    /// A row's failure is told and the others go on; that of a lone command line ends the run.
    fn fail(&mut self, place: Place, err: anyhow::Error) -> Result<()> {
        if !self.has_rows {
            return Err(err);
        }
        self.tally.failed += 1;
        self.terminal.progress().done(1);
        self.report.failed(place, &format!("{err:#}"))
    }

    /// Draws pictures as one batch and writes them.
    fn draw(&mut self, orders: &[Order]) -> Result<()> {
        let loaded = self.loaded.as_mut().context("the model is not loaded")?;
        let progress = self.terminal.progress();
        if orders.len() > 1 {
            let plan = &orders[0].plan;
            plan.check_memory(orders.len(), "try a smaller --batch-size")?;
        }
        let jobs: Vec<Job> = orders
            .iter()
            .map(|order| Job {
                plan: &order.plan,
                seed: order.seed,
            })
            .collect();
        let targets: Vec<&Target> = orders.iter().map(|order| &order.target).collect();
        let of = orders[0].plan.calls;
        let look = &mut self.look;
        let mut watch = |calls, sample: &dyn Fn(usize) -> Result<RgbImage>| {
            look.step((calls, of), &targets, sample)
        };
        let pictures = loaded.pipeline.draw(&jobs, progress, &mut watch)?;
        let drawn = progress.take_seconds().share(orders.len());
        for (order, picture) in orders.iter().zip(&pictures) {
            let path = progress.phase(Phase::Write, || {
                let texts = match loaded.identity.get()? {
                    Some(model) => order.texts(self.command, model, &self.runtime, picture)?,
                    None => Vec::new(),
                };
                order.target.write(&png::encode(picture, &texts)?)
            })?;
            let mut seconds = drawn;
            seconds.write = progress.take_seconds().write;
            let same_pixels = match self.replay.take() {
                Some(replay) => Some(replay.compare(picture, loaded.identity.get()?)),
                None => None,
            };
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
            self.tally.done += 1;
            progress.done(1);
        }
        Ok(())
    }

    fn load(&mut self, first: &Plan) -> Result<()> {
        if self.loaded.is_some() {
            return Ok(());
        }
        let only = (!self.has_rows).then_some(first);
        let progress = self.terminal.progress();
        let pipeline = self
            .system
            .load(self.checkpoint, &self.runtime, only, progress)?;
        let identity = match self.metadata {
            true => Known::Pending(Some(self.checkpoint.identify())),
            false => Known::Unwanted,
        };
        self.loaded = Some(Loaded { pipeline, identity });
        Ok(())
    }
}

fn caption(prompt: &str, seed: u64) -> String {
    match prompt {
        "" => format!("seed {seed}"),
        _ => format!("{prompt} ({seed})"),
    }
}
