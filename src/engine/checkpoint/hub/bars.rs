//! The bars of downloads: one a file, with its rate and the time left, in lines that fit a terminal of 80 columns.
use crate::engine::bar_screen::ECHO;
use indicatif::{HumanDuration, MultiProgress, ProgressBar, ProgressState, ProgressStyle};
use std::fmt::Write;
use std::time::Duration;

/// Letters of a name, at most.
const LONGEST: usize = 24;

/// Short names for files, each an id of a model and a name in it: the folder (for a file in none, the model) where no other file is from it,
/// with the number of a part, or the whole name. A name that files of two models would have begins with the model.
pub fn labels(files: &[(&str, &str)]) -> Vec<String> {
    let label = |&(id, name): &(&str, &str)| {
        let beside = |file: &&(&str, &str)| file.0 == id && folder(file.1) == folder(name);
        let place = folder(name).unwrap_or_else(|| last(id));
        match part(name) {
            _ if files.iter().filter(beside).count() == 1 => place.to_owned(),
            Some(part) => format!("{place} {part}"),
            None => name.to_owned(),
        }
    };
    let labels: Vec<String> = files.iter().map(label).collect();
    let whole = |((id, _), label): (&(&str, &str), &String)| match labels
        .iter()
        .filter(|other| *other == label)
        .count()
    {
        1 => label.clone(),
        _ => format!("{} {label}", last(id)),
    };
    std::iter::zip(files, &labels).map(whole).collect()
}

fn folder(name: &str) -> Option<&str> {
    Some(name.rsplit_once('/')?.0)
}

/// The name of `owner/name`.
fn last(id: &str) -> &str {
    id.rsplit_once('/').map_or(id, |(_, name)| name)
}

/// `2/7` of a file's name with `-00002-of-00007`.
fn part(name: &str) -> Option<String> {
    let (left, right) = name.rsplit_once("-of-")?;
    let (_, number) = left.rsplit_once('-')?;
    let of: String = right.chars().take_while(char::is_ascii_digit).collect();
    let (number, of): (u32, u32) = (number.parse().ok()?, of.parse().ok()?);
    Some(format!("{number}/{of}"))
}

/// Adds a bar for a file of `bytes`; its label takes `width` letters.
pub fn add(bars: &MultiProgress, label: &str, width: usize, bytes: u64) -> ProgressBar {
    let template = "{msg} [{wide_bar}] {decimal_bytes:>9}/{decimal_total_bytes:9} {decimal_bytes_per_sec:>11}{left}";
    let style = ProgressStyle::with_template(&format!("{template}{ECHO}"))
        .expect("the template is well formed")
        // A formatter has nowhere to report an error to.
        .with_key("left", |state: &ProgressState, out: &mut dyn Write| {
            // Before the first bytes nothing can be foretold.
            if state.per_sec() > 0.0 {
                let _ = write!(
                    out,
                    ", {:>3} left",
                    format!("{:#}", HumanDuration(state.eta()))
                );
            }
        });
    let bar = bars.add(ProgressBar::new(bytes));
    bar.set_style(style.progress_chars("=> "));
    // The end of a long name tells more than its start.
    let skip = label.chars().count().saturating_sub(LONGEST);
    let label: String = label.chars().skip(skip).collect();
    bar.set_message(format!("{label:width$}"));
    // A rate that falls to nothing is seen to.
    bar.enable_steady_tick(Duration::from_millis(250));
    bar
}

/// As many letters as the longest of `labels` has on a bar.
pub fn width(labels: &[String]) -> usize {
    let lengths = labels.iter().map(|label| label.chars().count());
    lengths.max().unwrap_or(0).min(LONGEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_is_short_and_no_other_files() {
        let names = [
            "text_encoder/model.safetensors",
            "unet/diffusion_pytorch_model-00001-of-00002.safetensors",
            "unet/diffusion_pytorch_model-00002-of-00002.safetensors",
            "vae/a.bin",
            "vae/b.bin",
            "model.safetensors",
        ];
        let wanted = [
            "text_encoder",
            "unet 1/2",
            "unet 2/2",
            "vae/a.bin",
            "vae/b.bin",
            "small",
        ];
        let files = names.map(|name| ("owner/small", name));
        assert_eq!(labels(&files), wanted);
        assert_eq!(width(&labels(&files)), 12);
        // Of two models.
        let files = [
            ("owner/small", "vae/a.bin"),
            ("other/tiny", "vae/a.bin"),
            ("other/tiny", "a.bin"),
        ];
        assert_eq!(labels(&files), ["small vae", "tiny vae", "tiny"]);
    }
}
