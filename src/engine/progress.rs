//! What is being done, how far it is and how long each phase took.
//!
//! One line on a terminal: pictures done, the phase, and while denoising the calls made, the rate and the time left.
use super::bar_screen;
use anyhow::Result;
use indicatif::{
    HumanDuration, MultiProgress, ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle,
};
use std::fmt::Write;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The parts of a run, in the order they come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Load,
    Text,
    Denoise,
    Decode,
    Write,
}

/// Seconds spent in each phase.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize)]
pub struct Seconds {
    pub load: f64,
    pub text: f64,
    pub denoise: f64,
    pub decode: f64,
    pub write: f64,
}

impl Seconds {
    fn of(&mut self, phase: Phase) -> &mut f64 {
        match phase {
            Phase::Load => &mut self.load,
            Phase::Text => &mut self.text,
            Phase::Denoise => &mut self.denoise,
            Phase::Decode => &mut self.decode,
            Phase::Write => &mut self.write,
        }
    }

    /// The share of one of `n` pictures that were drawn together.
    pub fn share(mut self, n: usize) -> Self {
        for phase in [Phase::Text, Phase::Denoise, Phase::Decode, Phase::Write] {
            *self.of(phase) /= n.max(1) as f64;
        }
        self
    }
}

/// Pictures of the whole run.
#[derive(Debug)]
struct Total {
    started: Instant,
    done: usize,
    /// None where the end is not known: lines from a pipe.
    of: Option<usize>,
    /// Pictures in the batch that is being drawn.
    batch: usize,
}

/// The line and the clocks; hidden until [`Progress::show`].
pub struct Progress {
    bars: MultiProgress,
    line: ProgressBar,
    seconds: Mutex<Seconds>,
    total: Arc<Mutex<Total>>,
}

impl Progress {
    /// Draws nothing; the clocks run all the same.
    pub fn hidden() -> Self {
        let bars = MultiProgress::with_draw_target(ProgressDrawTarget::hidden());
        Self {
            line: ProgressBar::hidden(),
            bars,
            seconds: Mutex::default(),
            total: Arc::new(Mutex::new(Total {
                started: Instant::now(),
                done: 0,
                of: Some(1),
                batch: 1,
            })),
        }
    }

    /// Draws on stderr from now on, where that is a terminal.
    pub fn show(&self) {
        self.bars.set_draw_target(bar_screen::stderr());
    }

    /// What other bars, those of downloads, are added to, so that none tears another.
    pub fn bars(&self) -> &MultiProgress {
        &self.bars
    }

    /// Runs `work` with nothing of this on the screen. [`Progress::finish`] waits for it where there is a screen.
    pub fn suspend<T>(&self, work: impl FnOnce() -> T) -> T {
        match self.bars.is_hidden() {
            true => work(),
            false => self.bars.suspend(work),
        }
    }

    /// Takes all of it off the screen, for good.
    pub fn finish(&self) {
        self.line.finish_and_clear();
        // Clearing fails where there is no screen.
        let _ = self.bars.clear();
        // The bars of downloads that go on meanwhile draw nothing more.
        self.bars.set_draw_target(ProgressDrawTarget::hidden());
    }

    /// The number of pictures of the run, None while it is not known.
    pub fn expect(&self, pictures: Option<usize>) {
        lock(&self.total).of = pictures;
    }

    /// `pictures` more are done, drawn or found.
    pub fn done(&self, pictures: usize) {
        lock(&self.total).done += pictures;
    }

    /// The next `pictures` are drawn together in `calls` calls of the model.
    pub fn start_batch(&self, pictures: usize, calls: usize) {
        lock(&self.total).batch = pictures;
        self.line.set_length(calls as u64);
        self.line.set_position(0);
    }

    /// Runs `work`, says so on the line and adds its time to the phase's.
    pub fn phase<T>(&self, phase: Phase, work: impl FnOnce() -> Result<T>) -> Result<T> {
        self.begin(phase);
        let start = Instant::now();
        let result = work();
        *lock(&self.seconds).of(phase) += start.elapsed().as_secs_f64();
        result
    }

    /// One call of the model was made.
    pub fn step(&self) {
        self.line.inc(1);
    }

    /// The clocks' times since the last call.
    pub fn take_seconds(&self) -> Seconds {
        std::mem::take(&mut *lock(&self.seconds))
    }

    fn begin(&self, phase: Phase) {
        if self.bars.is_hidden() {
            return;
        }
        let template = match phase {
            Phase::Load => "{pictures}loading {elapsed}",
            Phase::Text => "{pictures}reading the text",
            Phase::Denoise => "{pictures}denoising {pos}/{len} [{bar:24}] {pace}{whole}",
            Phase::Decode => "{pictures}decoding {elapsed}",
            Phase::Write => "{pictures}writing",
        };
        if self.line.is_hidden() {
            self.bars.add(self.line.clone());
        }
        let (pictures, whole) = (self.total.clone(), self.total.clone());
        let style = ProgressStyle::with_template(template)
            .expect("the template is well formed")
            .progress_chars("=> ")
            // A formatter has nowhere to report an error to.
            .with_key("pace", |state: &ProgressState, out: &mut dyn Write| {
                let _ = out.write_str(&pace(state.per_sec(), state.eta()));
            })
            .with_key("pictures", move |_: &ProgressState, out: &mut dyn Write| {
                let _ = out.write_str(&lock(&pictures).counter());
            })
            .with_key(
                "whole",
                move |state: &ProgressState, out: &mut dyn Write| {
                    let _ = out.write_str(&lock(&whole).time_left(state.fraction()));
                },
            );
        self.line.set_style(style);
        self.line.reset_elapsed();
        self.line.reset_eta();
        self.line.enable_steady_tick(Duration::from_millis(200));
    }
}

impl Total {
    /// `"3/40 "`: the picture that is being drawn, of all; empty for a lone one.
    fn counter(&self) -> String {
        let (first, last) = (self.done + 1, self.done + self.batch);
        let now = match first == last {
            true => format!("{first}"),
            false => format!("{first}-{last}"),
        };
        match self.of {
            Some(1) => String::new(),
            Some(of) => format!("{now}/{of} "),
            None => format!("{now} "),
        }
    }

    /// The time until the last picture, from the mean of those done; empty where nothing can be said.
    fn time_left(&self, fraction: f32) -> String {
        let done = self.done as f64 + self.batch as f64 * f64::from(fraction);
        match self.of {
            Some(of) if of > self.batch && done > 0.0 => {
                let left =
                    self.started.elapsed().as_secs_f64() * (of as f64 - done).max(0.0) / done;
                format!(
                    ", {:#} for all",
                    HumanDuration(Duration::from_secs_f64(left.min(1e9)))
                )
            }
            _ => String::new(),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Numbers alone are guarded; a panic elsewhere leaves them usable.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Steps in a second, or seconds for a step when that is the larger number, and the time left; before the first step neither is known.
fn pace(per_second: f64, left: Duration) -> String {
    let rate = if per_second >= 1.0 {
        format!("{per_second:.1} it/s")
    } else if per_second > 0.0 {
        format!("{:.1} s/it", 1.0 / per_second)
    } else {
        return "- it/s".to_owned();
    };
    format!("{rate}, {:#} left", HumanDuration(left))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slow_steps_are_told_in_seconds_and_nothing_is_foretold_before_the_first() {
        let left = Duration::from_secs(90);
        assert_eq!(pace(12.34, left), "12.3 it/s, 2m left");
        assert_eq!(pace(0.125, left), "8.0 s/it, 2m left");
        assert_eq!(pace(0.0, Duration::ZERO), "- it/s");
    }

    #[test]
    fn a_lone_picture_is_not_counted_and_several_are() {
        let mut total = Total {
            started: Instant::now(),
            done: 0,
            of: Some(1),
            batch: 1,
        };
        assert_eq!(total.counter(), "");
        total.of = Some(40);
        total.done = 2;
        assert_eq!(total.counter(), "3/40 ");
        total.batch = 4;
        assert_eq!(total.counter(), "3-6/40 ");
        total.of = None;
        assert_eq!(total.counter(), "3-6 ");
        assert_eq!(
            total.time_left(0.5),
            "",
            "the end of a stream is not foretold"
        );
    }

    #[test]
    fn phases_are_timed_and_their_sums_are_taken_once() {
        let progress = Progress::hidden();
        for _ in 0..2 {
            progress
                .phase(Phase::Decode, || {
                    std::thread::sleep(Duration::from_millis(5));
                    Ok(())
                })
                .expect("it only sleeps");
        }
        let seconds = progress.take_seconds();
        assert!(seconds.decode >= 0.01, "{seconds:?}");
        assert_eq!(seconds.load, 0.0);
        assert_eq!(progress.take_seconds(), Seconds::default());
    }
}
