//! The run of both commands: rows in, pictures out.
//!
//! ```text
//! for each row:   plan it (sizes, tokens, names: all that can fail early), put its pictures in the queue
//! queue full, or the next picture unlike the others:   draw them as one batch, write each, tell of each
//! ```
//! The model is loaded when the first picture is to be drawn, once.
use super::look::Look;
use super::names::Names;
use super::output::Output;
use super::plan::Price;
use super::replay;
use super::report::Report;
use super::rows::{self, Rows};
use super::schedule;
use super::studio::{Studio, Tally};
use super::terminal::Terminal;
use super::usage;
use super::{Drawing, Line};
use crate::engine::pipelines;
use anyhow::Result;
use std::process::ExitCode;

/// Does what `line` says; the exit code.
pub(super) fn run<A: Drawing>(line: Line<A>, terminal: &Terminal) -> Result<ExitCode> {
    let (line, replay) = replay::expand(line)?;
    let shared = line.args.shared();
    shared.machine.start(terminal)?;
    if let Some(replay) = &replay {
        replay.tell();
    }
    let open = || {
        let opened = line.args.open();
        opened.map_err(|err| match &replay {
            Some(replay) => replay.explain(err),
            None => err,
        })
    };
    if shared.sampling.schedule.print_schedule {
        let checkpoint = open()?;
        let (scheduler, steps) = A::scheduler(&checkpoint)?;
        let report = pipelines::report(scheduler, steps, &shared.sampling.sampling())?;
        terminal.print(&schedule::text(&report, shared.output.json))?;
        return Ok(ExitCode::SUCCESS);
    }
    let (has_rows, options) = (shared.batch.prompts.is_some(), &shared.output);
    usage::ensure_meaning(!has_rows || line.args.prompts().0.is_empty(), || {
        format!(
            "--prompts brings the prompts; leave out \"{}\", or write it into the file",
            line.args.prompts().0
        )
    })?;
    let (dry_run, as_json) = (shared.batch.dry_run, options.json);
    let to_stdout = options.output == Some(Output::Stdout);
    usage::ensure_meaning(!(as_json && to_stdout), || {
        "--json and --output - both write to stdout; give a file as --output".to_owned()
    })?;
    let images = shared.sampling.images();
    let of = shared.batch.shard.map_or(1, |shard| shard.of);
    usage::ensure_meaning(of == 1 || shared.look.grid.is_none(), || {
        "--grid makes one sheet of all pictures, and --shard draws a part of them; leave --grid out, and when all shards are done run the same with --grid and without --shard, which draws nothing anew".to_owned()
    })?;
    let mut names = Names::new(has_rows, options.parents);
    names.check(options.output.as_ref(), images, options.overwrite)?;
    if let Some(film) = &shared.look.animate {
        let known = if has_rows { 0 } else { images };
        names.check_films(film, known, options.overwrite)?;
    }
    let replace_sheet = match &shared.look.grid {
        Some(sheet) => names.sheet(sheet, options.overwrite)?,
        None => false,
    };
    let look = Look::new(&shared.look, to_stdout, options.overwrite, replace_sheet)?;
    let lines = shared
        .batch
        .prompts
        .as_deref()
        .map(rows::open)
        .transpose()?;
    let runtime = shared.machine.runtime()?;
    let mut checkpoint = open()?;
    line.args.attach(&mut checkpoint)?;
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
        at_once: !has_rows && images <= shared.batch.batch_size,
        names,
        look,
        replay,
        loaded: None,
        queue: Vec::new(),
        tally: Tally::default(),
    };
    let mut price = dry_run.then(Price::default);
    let mut seen = false;
    for (place, row) in Rows::new(line, lines) {
        seen = true;
        match (row.and_then(|row| studio.plan(place, row)), &mut price) {
            (Ok(orders), Some(price)) => orders.iter().for_each(|order| {
                let beside = studio.look.bytes(&order.plan);
                price.add(&order.plan, &order.target, studio.batch_size, beside);
                studio.tally.done();
            }),
            (Ok(orders), None) => orders
                .into_iter()
                .try_for_each(|order| studio.enqueue(order))?,
            (Err(err), _) => studio.fail(place, err)?,
        }
    }
    if !seen {
        tracing::warn!("there is no row to draw");
    }
    if let Some(price) = price {
        let Studio {
            system, runtime, ..
        } = &studio;
        let lets_go = (!has_rows, studio.at_once);
        price.print(terminal, as_json, &checkpoint, system, runtime, lets_go)?;
        return Ok(studio.tally.code(has_rows));
    }
    studio.draw_queue()?;
    studio.look.finish()?;
    Ok(studio.tally.code(has_rows))
}
