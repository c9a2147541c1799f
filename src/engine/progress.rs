//! The look of the progress bar: step k of n, the rate, the time left.
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};
use std::fmt::Write;

/// Shows `bar`, made by [`ProgressBar::hidden`], for `calls` calls of the model, starting its clock now.
///
/// It draws on stderr, and only when that is a terminal.
pub fn show(bar: &ProgressBar, calls: u64) {
    let style = ProgressStyle::with_template("{pos}/{len} [{bar:30}] {rate}, {eta} left")
        .expect("the template is well formed")
        .progress_chars("=> ")
        .with_key("rate", |state: &ProgressState, out: &mut dyn Write| {
            // A formatter has nowhere to report an error to.
            let _ = out.write_str(&rate(state.per_sec()));
        });
    bar.set_style(style);
    bar.reset();
    bar.set_length(calls);
    bar.set_draw_target(ProgressDrawTarget::stderr());
    bar.tick();
}

/// Steps in a second, or seconds for a step when that is the larger number.
fn rate(per_second: f64) -> String {
    if per_second >= 1.0 {
        format!("{per_second:.1} it/s")
    } else if per_second > 0.0 {
        format!("{:.1} s/it", 1.0 / per_second)
    } else {
        "- it/s".to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slow_steps_are_told_in_seconds() {
        assert_eq!(rate(12.34), "12.3 it/s");
        assert_eq!(rate(0.125), "8.0 s/it");
        assert_eq!(rate(0.0), "- it/s");
    }
}
