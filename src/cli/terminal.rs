//! What the user sees: paths on stdout; the log, the bar and errors on stderr, which share one terminal without tearing it.
use super::{ask, colour, signals, usage::one_line};
use crate::engine::{output, progress::Progress};
use anyhow::{Context, Result};
use console::Term;
use std::fmt;
use std::io::{self, ErrorKind, IsTerminal, Write};
use std::sync::Arc;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::{FmtSpan, FormatEvent, FormatFields, Writer};
use tracing_subscriber::fmt::{FmtContext, FormattedFields, MakeWriter};
use tracing_subscriber::registry::{LookupSpan, Scope};

/// The two streams and the progress between them.
pub struct Terminal {
    /// Hidden until the run starts, so that it is never drawn too early.
    progress: Arc<Progress>,
}

impl Terminal {
    pub fn new() -> Self {
        Self {
            progress: Arc::new(Progress::hidden()),
        }
    }

    pub fn progress(&self) -> &Progress {
        &self.progress
    }

    /// Starts the log, the progress where a person watches and has not asked for silence, and the answer to signals.
    pub fn start(&self, quiet: bool, verbose: u8) -> Result<()> {
        self.start_log(quiet, verbose);
        let stderr = Term::stderr();
        if !quiet && stderr.is_term() && colour::takes_codes(&stderr) {
            self.progress.show();
        }
        let progress = self.progress.clone();
        signals::answer(move || {
            let writing = output::hold_writes();
            progress.finish();
            ask::restore();
            writing
        })
    }

    /// Prints a line on stdout.
    pub fn print(&self, line: &str) -> Result<()> {
        let mut stdout = io::stdout();
        // The reader of a pipe may let it wait without end, and a signal waits for the bar; on a terminal alone does the bar stand in the way.
        written(match stdout.is_terminal() {
            true => self.progress.suspend(|| writeln!(stdout, "{line}")),
            false => writeln!(stdout, "{line}"),
        })
    }

    /// Prints one line of what went wrong, and goes on.
    pub fn complain(&self, message: &str) {
        self.progress.suspend(|| {
            // With stderr closed there is nowhere left to say so; the exit code still tells.
            let _ = writeln!(io::stderr(), "diffuse: {}", one_line(message));
        });
    }

    /// Ends the progress and prints one line of what went wrong.
    pub fn error(&self, message: &str) {
        self.progress.finish();
        self.complain(message);
    }

    fn start_log(&self, quiet: bool, verbose: u8) {
        let default = match (quiet, verbose) {
            (true, _) => "off",
            (_, 0) => "warn,diffuse=info",
            (_, 1) => "warn,diffuse=debug",
            _ => "info,diffuse=trace",
        };
        let asked = std::env::var("RUST_LOG")
            .ok()
            .filter(|filter| !quiet && !filter.is_empty());
        let filter = asked.as_deref().map(EnvFilter::try_new);
        let wrong = matches!(filter, Some(Err(_)));
        tracing_subscriber::fmt()
            .with_env_filter(
                filter
                    .and_then(Result::ok)
                    .unwrap_or_else(|| EnvFilter::new(default)),
            )
            .with_ansi(colour::is_wanted(&Term::stderr()))
            .log_internal_errors(false)
            .with_span_events(if verbose > 0 {
                FmtSpan::CLOSE
            } else {
                FmtSpan::NONE
            })
            .event_format(Short {
                stages: verbose > 0,
            })
            .with_writer(AroundBar(self.progress.clone()))
            .init();
        if wrong {
            tracing::warn!(
                "RUST_LOG is not a filter, so {default} is used; write it as in diffuse=debug"
            );
        }
    }
}

/// What became of writing to stdout: a reader who has gone away is no failure, as pictures are wanted all the same.
pub fn written(result: io::Result<()>) -> Result<()> {
    match result {
        Err(err) if err.kind() == ErrorKind::BrokenPipe => Ok(()),
        other => other.context("writing to stdout"),
    }
}

/// Log lines without time and target; what is said at the usual level has no level either.
struct Short {
    /// Whether a line begins with the stages it comes from.
    stages: bool,
}

impl<S, N> FormatEvent<S, N> for Short
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut out: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let (word, colour) = match *event.metadata().level() {
            Level::ERROR => ("error: ", "\x1b[31m"),
            Level::WARN => ("warning: ", "\x1b[33m"),
            Level::INFO => ("", ""),
            Level::DEBUG | Level::TRACE => ("", "\x1b[2m"),
        };
        let reset = if colour.is_empty() { "" } else { "\x1b[0m" };
        let (colour, reset) = if out.has_ansi_escapes() {
            (colour, reset)
        } else {
            ("", "")
        };
        write!(out, "{colour}{word}")?;
        if self.stages {
            for span in context.event_scope().into_iter().flat_map(Scope::from_root) {
                write!(out, "{}", span.name())?;
                match span.extensions().get::<FormattedFields<N>>() {
                    Some(fields) if !fields.is_empty() => write!(out, " {fields}: ")?,
                    _ => write!(out, ": ")?,
                }
            }
        }
        context.format_fields(out.by_ref(), event)?;
        writeln!(out, "{reset}")
    }
}

/// stderr, with the bar out of the way while a line is written.
struct AroundBar(Arc<Progress>);

impl<'a> MakeWriter<'a> for AroundBar {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line(&self.0)
    }
}

struct Line<'a>(&'a Progress);

impl Write for Line<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.suspend(|| io::stderr().write_all(bytes))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
