//! Settings as JSON: one key for each flag, `_` for `-`. A row of a batch is such an object, and so is what a picture
//! remembers of its making.
//!
//! There is one way from text to settings, the command line's own: an object becomes flags, and those are parsed with the
//! rest. So a flag that is added is a key at once, checked alike and refused in the same words.
use anyhow::{Result, bail, ensure};
use clap::ArgMatches;
use clap::parser::ValueSource;
use serde_json::{Map, Number, Value};
use std::ffi::OsString;

pub type Settings = Map<String, Value>;

/// Flags of a whole run: no row has them and no picture remembers them.
const RUN: [&str; 18] = [
    "quiet",
    "verbose",
    "threads",
    "device",
    "parents",
    "no_metadata",
    "json",
    "prompts",
    "batch_size",
    "shard",
    "from",
    "dry_run",
    "grid",
    "save_steps",
    "animate",
    "show",
    "help",
    "version",
];
/// Flags of a whole run that a picture remembers.
const MODEL: [&str; 3] = ["model", "revision", "dtype"];
/// Flags of a row that its pictures do not remember: where they went, and how many there were.
const PLACE: [&str; 3] = ["output", "overwrite", "num_images"];
/// Texts, which stay texts where they look like numbers.
const TEXTS: [&str; 4] = ["prompt", "negative_prompt", "model", "revision"];

/// The settings in a parsed command line, defaults included, that a picture remembers.
pub fn remembered(command: &clap::Command, matches: &ArgMatches) -> Settings {
    let mut settings = Settings::new();
    for arg in command.get_arguments() {
        let id = arg.get_id().as_str();
        let Some(source) = matches.value_source(id) else {
            continue;
        };
        if RUN.contains(&id) || PLACE.contains(&id) {
            continue;
        }
        if matches!(arg.get_action(), clap::ArgAction::SetTrue) {
            if source != ValueSource::DefaultValue {
                settings.insert(id.to_owned(), true.into());
            }
            continue;
        }
        let raw = matches.get_raw(id).into_iter().flatten();
        let mut values: Vec<Value> = raw
            .map(|value| typed(id, &value.to_string_lossy()))
            .collect();
        let many = matches!(arg.get_action(), clap::ArgAction::Append) || values.len() > 1;
        match (many, values.pop()) {
            (false, Some(value)) => settings.insert(id.to_owned(), value),
            (true, Some(last)) => {
                values.push(last);
                settings.insert(id.to_owned(), values.into())
            }
            (_, None) => None,
        };
    }
    settings
}

fn typed(id: &str, text: &str) -> Value {
    match serde_json::from_str::<Number>(text) {
        Ok(number) if !TEXTS.contains(&id) => number.into(),
        _ => text.into(),
    }
}

/// A row's settings as flags, and its prompt.
pub fn of_row(settings: &Settings) -> Result<(Vec<OsString>, Option<String>)> {
    for key in settings.keys() {
        let id = key.replace('-', "_");
        ensure!(
            !RUN.contains(&id.as_str()) && !MODEL.contains(&id.as_str()),
            "\"{key}\" is the same for all rows; give --{} on the command line",
            id.replace('_', "-")
        );
    }
    flags(settings.iter())
}

/// What a picture remembers as flags, and its prompt. Where to write and how to run is not a picture's to say.
pub fn of_picture(settings: &Settings) -> Result<(Vec<OsString>, Option<String>)> {
    flags(
        settings
            .iter()
            .filter(|(key, _)| !RUN.contains(&key.as_str()) && !PLACE.contains(&key.as_str())),
    )
}

fn flags<'a>(
    settings: impl Iterator<Item = (&'a String, &'a Value)>,
) -> Result<(Vec<OsString>, Option<String>)> {
    let (mut words, mut prompt) = (Vec::new(), None);
    for (key, value) in settings {
        let name = key.replace('_', "-");
        let plain = name.starts_with(|c: char| c.is_ascii_lowercase())
            && name
                .chars()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
        ensure!(
            plain && name.len() < 64,
            "{key:?} is the name of no setting"
        );
        match (name.as_str(), value) {
            ("prompt", Value::String(text)) => prompt = Some(text.clone()),
            ("prompt", _) => bail!("\"prompt\" is {value}; give a text"),
            (_, Value::Null | Value::Bool(false)) => {}
            (_, Value::Bool(true)) => words.push(format!("--{name}").into()),
            (_, Value::Array(list)) => {
                for item in list {
                    words.push(format!("--{name}={}", scalar(key, item)?).into());
                }
            }
            _ => words.push(format!("--{name}={}", scalar(key, value)?).into()),
        }
    }
    Ok((words, prompt))
}

fn scalar(key: &str, value: &Value) -> Result<String> {
    match value {
        Value::String(text) => Ok(text.clone()),
        Value::Number(number) => Ok(number.to_string()),
        _ => bail!("\"{key}\" is {value}; give a text or a number"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(json: &str) -> Result<(Vec<OsString>, Option<String>)> {
        of_row(&serde_json::from_str(json)?)
    }

    #[test]
    fn a_row_becomes_flags_and_a_prompt() -> Result<()> {
        let (words, prompt) = row(
            r#"{"prompt": "-a cat", "seed": 18446744073709551615, "negative_prompt": "x", "overwrite": true, "width": null, "scheduler-option": ["a=1", "b=2"]}"#,
        )?;
        assert_eq!(prompt.as_deref(), Some("-a cat"));
        let wanted = [
            "--seed=18446744073709551615",
            "--negative-prompt=x",
            "--overwrite",
            "--scheduler-option=a=1",
            "--scheduler-option=b=2",
        ];
        assert_eq!(words, wanted);
        Ok(())
    }

    #[test]
    fn what_all_rows_share_and_what_is_no_setting_is_refused() {
        for bad in [
            r#"{"model": "x"}"#,
            r#"{"batch-size": 2}"#,
            r#"{"": 1}"#,
            r#"{"a b": 1}"#,
            r#"{"=": 1}"#,
            r#"{"-": 1}"#,
            r#"{"seed": {}}"#,
            r#"{"seed": [[1]]}"#,
            r#"{"prompt": 1}"#,
        ] {
            assert!(row(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_picture_cannot_say_where_to_write() -> Result<()> {
        let settings = serde_json::from_str(
            r#"{"output": "/etc/passwd", "overwrite": true, "model": "m", "threads": 1}"#,
        )?;
        assert_eq!(of_picture(&settings)?.0, ["--model=m"]);
        Ok(())
    }
}
