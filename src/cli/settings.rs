//! Settings as JSON: one key for each flag, `_` for `-`. A row of a batch is such an object, and so is what a picture
//! remembers of its making.
//!
//! There is one way from text to settings, the command line's own: an object becomes flags, and those are parsed with the
//! rest. So a flag that is added is a key at once, checked alike and refused in the same words.
use anyhow::{Result, bail, ensure};
use clap::ArgMatches;
use clap::parser::ValueSource;
use serde_json::{Map, Number, Value};
use std::ffi::{OsStr, OsString};

pub type Settings = Map<String, Value>;

/// Flags of a whole run: no row has them and no picture remembers them.
const RUN: [&str; 21] = [
    "offline",
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
    "preview_vae",
    "animate",
    "show",
    "print_schedule",
    "help",
    "version",
];
/// Flags of a whole run that a picture remembers.
const MODEL: [&str; 6] = ["model", "revision", "dtype", "config", "vae", "lora"];
/// Flags of a row that its pictures do not remember: where they went, and how many there were.
const PLACE: [&str; 3] = ["output", "overwrite", "num_images"];
/// How long a run is: a command line says it in one of these ways.
const LENGTH: [&str; 3] = ["steps", "timesteps", "sigmas"];
/// Texts, which stay texts where they look like numbers.
const TEXTS: [&str; 7] = [
    "config",
    "prompt",
    "negative_prompt",
    "model",
    "revision",
    "vae",
    "lora",
];

/// The settings in a parsed command line, its own defaults included, that a picture remembers.
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
        // A text is what it was parsed to: the address of a model's page is an id.
        let mut values: Vec<Value> = match matches.try_get_many::<String>(id) {
            Ok(texts) => texts
                .into_iter()
                .flatten()
                .map(|text| typed(id, text))
                .collect(),
            Err(_) => {
                let raw = matches.get_raw(id).into_iter().flatten();
                raw.map(|value| typed(id, &value.to_string_lossy()))
                    .collect()
            }
        };
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

/// Whether a key is one that all rows share.
pub fn is_of_model(key: &str) -> bool {
    MODEL.contains(&key)
}

/// A number as it would stand on a command line.
pub fn number(value: f64) -> Value {
    typed("", &value.to_string())
}

fn typed(id: &str, text: &str) -> Value {
    match serde_json::from_str::<Number>(text) {
        Ok(number) if !TEXTS.contains(&id) && is_exact(&number, text) => number.into(),
        _ => text.into(),
    }
}

/// Whether `number`, read from `text`, is what `text` says and comes back from a file: serde_json may read fractions of many digits
/// as a neighbour. What is not exact stays a text, which a flag takes as well.
fn is_exact(number: &Number, text: &str) -> bool {
    !number.is_f64()
        || (text.parse().ok() == number.as_f64()
            && serde_json::from_str::<Number>(&number.to_string()).ok() == Some(number.clone()))
}

/// A row's settings as flags of `command`, and its prompt.
pub fn of_row(
    settings: &Settings,
    command: &clap::Command,
) -> Result<(Vec<OsString>, Option<String>)> {
    for key in settings.keys() {
        let id = key.replace('-', "_");
        ensure!(
            !RUN.contains(&id.as_str()) && !MODEL.contains(&id.as_str()),
            "\"{key}\" is the same for all rows; give --{} on the command line",
            id.replace('_', "-")
        );
        let is_short = |arg: &&clap::Arg| arg.get_short().is_some_and(|c| *key == c.to_string());
        if let Some(arg) = command.get_arguments().find(is_short) {
            bail!(
                "\"{key}\" is the name of no setting; write \"{}\"",
                arg.get_id()
            );
        }
    }
    let settings: Settings = settings
        .iter()
        .map(|(key, value)| (key.clone(), whole(value)))
        .collect();
    flags(settings.iter())
}

/// The flags of a command line without those that a row turns off.
pub fn turned_off(
    words: &[OsString],
    settings: &Settings,
    command: &clap::Command,
) -> Result<Vec<OsString>> {
    let mut words = words.to_vec();
    for (key, _) in settings.iter().filter(|(_, value)| **value == false) {
        let id = key.replace('-', "_");
        let flag = command.get_arguments().find(|arg| arg.get_id() == &id);
        ensure!(
            flag.is_some_and(|arg| matches!(arg.get_action(), clap::ArgAction::SetTrue)),
            "\"{key}\" is false, which only a flag without a value can be"
        );
        let name = id.replace('_', "-");
        words.retain(|word| !is_one_of(word, &[&name]));
    }
    Ok(words)
}

/// What a picture remembers as flags, and its prompt. Where to write and how to run is not a picture's to say.
pub fn of_picture(settings: &Settings) -> Result<(Vec<OsString>, Option<String>)> {
    flags(settings.iter().filter(|(key, _)| {
        let id = key.replace('-', "_");
        !RUN.contains(&id.as_str()) && !PLACE.contains(&id.as_str())
    }))
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
            // One flag with a list, where other lists are flags that repeat.
            ("timesteps" | "sigmas", Value::Array(list)) => {
                let numbers: Vec<_> = list
                    .iter()
                    .map(|item| scalar(key, item))
                    .collect::<Result<_>>()?;
                words.push(format!("--{name}={}", numbers.join(",")).into());
            }
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

/// The flags `first` with `later` after them, where the last of repeated flags counts. The ways to say how long a run is are one
/// setting here: a later one takes the place of an earlier one of another name. So are all LoRAs together.
pub fn overridden(first: Vec<OsString>, later: &[OsString]) -> Vec<OsString> {
    let mut words = first;
    for setting in [&LENGTH[..], &["lora"]] {
        let mut given = later.iter().take_while(|word| *word != "--");
        if given.any(|word| is_one_of(word, setting)) {
            words = without(words, setting);
        }
    }
    words.extend_from_slice(later);
    words
}

/// The flags but for those of a setting.
fn without(flags: Vec<OsString>, setting: &[&str]) -> Vec<OsString> {
    let mut words = Vec::new();
    let mut rest = flags.into_iter();
    while let Some(word) = rest.next() {
        if !is_one_of(&word, setting) {
            words.push(word);
        } else if !word.to_string_lossy().contains('=') {
            // Its value is a word of its own.
            rest.next();
        }
    }
    words
}

/// Whether a word is one of these flags, with or without its value.
fn is_one_of(word: &OsStr, flags: &[&str]) -> bool {
    let word = word.to_string_lossy();
    let name = word.split_once('=').map_or(&*word, |(name, _)| name);
    flags.iter().any(|id| name.strip_prefix("--") == Some(*id))
}

fn scalar(key: &str, value: &Value) -> Result<String> {
    match value {
        Value::String(text) => Ok(text.clone()),
        Value::Number(number) => Ok(number.to_string()),
        _ => bail!("\"{key}\" is {value}; give a text or a number"),
    }
}

/// A whole number as flags take it, where a program wrote it as `4.0`.
fn whole(value: &Value) -> Value {
    const EXACT: f64 = (1u64 << 53) as f64;
    match value.as_f64() {
        Some(x) if value.is_f64() && x.fract() == 0.0 && x.abs() < EXACT => (x as i64).into(),
        _ => value.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{command_of, txt2img::Txt2ImgArgs};

    fn row(json: &str) -> Result<(Vec<OsString>, Option<String>)> {
        of_row(&serde_json::from_str(json)?, &command_of::<Txt2ImgArgs>())
    }

    #[test]
    fn a_fraction_of_many_digits_is_remembered_to_the_last() -> Result<()> {
        let long = (-9.244701577070743e218f64).to_string();
        for text in [&long, "-9.244701577070743e218", "7.5", "0.1", "8", "1e400"] {
            let value = typed("guidance_scale", text);
            let kept: Value = serde_json::from_str(&value.to_string())?;
            let wanted = text.parse::<f64>()?;
            assert_eq!(scalar("guidance_scale", &kept)?.parse::<f64>()?, wanted);
        }
        assert!(typed("guidance_scale", "7.5").is_f64());
        Ok(())
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
            r#"{"Seed": 1}"#,
        ] {
            assert!(row(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_whole_number_may_be_written_with_a_point_and_a_short_flag_is_told_its_name() -> Result<()>
    {
        let (words, _) = row(r#"{"steps": 4.0, "seed": 3e0, "guidance_scale": 7.5}"#)?;
        assert_eq!(words, ["--steps=4", "--seed=3", "--guidance-scale=7.5"]);
        let said = row(r#"{"n": 2}"#).expect_err("no setting").to_string();
        assert_eq!(
            said,
            "\"n\" is the name of no setting; write \"num_images\""
        );
        Ok(())
    }

    #[test]
    fn a_picture_cannot_say_where_to_write() -> Result<()> {
        let settings = serde_json::from_str(
            r#"{"output": "/etc/passwd", "overwrite": true, "model": "m", "threads": 1, "save-steps": 1, "print_schedule": true}"#,
        )?;
        assert_eq!(of_picture(&settings)?.0, ["--model=m"]);
        Ok(())
    }

    #[test]
    fn a_list_of_a_row_is_one_flag() -> Result<()> {
        let (words, _) = row(r#"{"timesteps": [999, 500, 1], "sigmas": "3,0.5,0"}"#)?;
        assert_eq!(words, ["--timesteps=999,500,1", "--sigmas=3,0.5,0"]);
        Ok(())
    }

    #[test]
    fn a_later_length_of_the_run_takes_the_place_of_an_earlier_one_of_another_name() {
        let words = |text: &str| -> Vec<OsString> { text.split(' ').map(Into::into).collect() };
        for (first, later, wanted) in [
            (
                "--seed 1 --steps 5 -p",
                "--timesteps=9,1",
                "--seed 1 -p --timesteps=9,1",
            ),
            ("--timesteps=9,1 --eta=1", "--steps 5", "--eta=1 --steps 5"),
            ("--sigmas 3,0 -q", "--steps=2", "-q --steps=2"),
            (
                "--steps 5",
                "--seed 2 -- --sigmas",
                "--steps 5 --seed 2 -- --sigmas",
            ),
            (
                "--lora=a:1 --lora b -q --steps=3",
                "--lora=c --seed 1",
                "-q --steps=3 --lora=c --seed 1",
            ),
        ] {
            assert_eq!(overridden(words(first), &words(later)), words(wanted));
        }
    }
}
