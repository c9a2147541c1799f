//! Flags that change the scheduler, and `--print-schedule`: what it is going to do, without weights.
use crate::engine::pipelines::Overrides;
use crate::engine::schedulers::{Report, Source};
use clap::Args;
use serde_json::Value;
use std::fmt::Write as _;

#[derive(Debug, Args)]
pub struct ScheduleArgs {
    /// Set a key of the scheduler's config, as in use_karras_sigmas=true; may be given several times
    #[arg(long, value_name = "KEY=VALUE")]
    scheduler_option: Vec<String>,
    /// Call the model at these training steps, as in 999,750,500,250, in place of --steps
    #[arg(long, value_name = "LIST", value_parser = list, conflicts_with_all = ["steps", "sigmas"], allow_hyphen_values = true)]
    timesteps: Option<List>,
    /// Walk along these noise levels, the last one reached included, as in 14.6,3,0.5,0, in place of --steps
    #[arg(long, value_name = "LIST", value_parser = list, conflicts_with = "steps", allow_hyphen_values = true)]
    sigmas: Option<List>,
    /// Share of noise that ddim and tcd add, 0 to 1 [default: 0]
    #[arg(long, value_name = "SHARE", value_parser = share, allow_negative_numbers = true)]
    eta: Option<f64>,
    /// Print the timesteps, noise levels and keys of the run in place of drawing
    #[arg(long, conflicts_with = "prompts")]
    pub print_schedule: bool,
}

impl ScheduleArgs {
    pub fn overrides(&self) -> Overrides {
        let numbers = |list: &Option<List>| list.as_ref().map(|list| list.0.clone());
        Overrides {
            options: self.scheduler_option.clone(),
            timesteps: numbers(&self.timesteps),
            sigmas: numbers(&self.sigmas),
            eta: self.eta,
        }
    }
}

/// The report as a table or as JSON.
pub fn text(report: &Report, as_json: bool) -> String {
    match as_json {
        true => format!("{:#}", report.json()),
        false => table(report).trim_end().to_owned(),
    }
}

/// Numbers between commas. A type of its own, so that clap takes the list as one value.
#[derive(Clone, Debug)]
struct List(Vec<f64>);

fn list(text: &str) -> Result<List, String> {
    let number = |part: &str| {
        let number: f64 = part.trim().parse().ok()?;
        number.is_finite().then_some(number)
    };
    let numbers = text.split(',').map(|part| {
        number(part).ok_or_else(|| {
            format!("\"{part}\" is not a number; give numbers between commas, as in 999,500,1")
        })
    });
    Ok(List(numbers.collect::<Result<_, _>>()?))
}

/// A number from 0 to 1.
pub fn share(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(share) if (0.0..=1.0).contains(&share) => Ok(share),
        _ => Err("give a number from 0 to 1".to_owned()),
    }
}

fn table(report: &Report) -> String {
    let mut text = format!(
        "{} ({}): {}, {}, noise of {:.6} at the start\n\n",
        report.name,
        report.class,
        count(report.steps, "step"),
        count(report.calls.len(), "UNet call"),
        report.init_noise_sigma
    );
    let mut line = |line: String| {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{}", line.trim_end());
    };
    line(format!(
        "{:>5}  {:>10}  {:>12}  {:>12}  {:>12}",
        "call", "timestep", "sigma", "alpha-bar", "SNR"
    ));
    for (i, call) in report.calls.iter().enumerate() {
        line(format!(
            "{:>5}  {:>10}  {:>12.6}  {:>12.6e}  {:>12.6e}",
            i + 1,
            round(call.timestep),
            call.sigma,
            call.alpha_bar(),
            call.snr()
        ));
    }
    line(String::new());
    let width =
        |of: fn(&(String, Value, Source)) -> usize| report.keys.iter().map(of).max().unwrap_or(0);
    let (names, values) = (width(|key| key.0.len()), width(|key| shown(&key.1).len()));
    for (name, value, source) in &report.keys {
        line(format!(
            "{name:names$}  {:values$}  {}",
            shown(value),
            source.text()
        ));
    }
    text
}

fn count(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

/// Whole timesteps as such, others to a few places.
fn round(t: f64) -> String {
    if t.fract() == 0.0 {
        format!("{t}")
    } else {
        format!("{t:.5}")
    }
}

/// A value in a column: long lists are cut, null is what it stands for.
fn shown(value: &Value) -> String {
    match value {
        Value::String(word) if word.is_empty() => "null".to_owned(),
        Value::String(word) => word.clone(),
        Value::Array(list) if list.len() > 4 => format!("a list of {}", list.len()),
        value => value.to_string(),
    }
}
