//! Command lines, rows and pictures' settings from anyone, drawn at random: each is meant, or refused in one line.
//!
//! The same few in every run of the tests; `FUZZ_CASES=100000 cargo test --lib cli::fuzz -- --nocapture` tries others, and tells how
//! many were meant.
use super::ddpm::DdpmArgs;
use super::rows::{Lines, Rows};
use super::txt2img::Txt2ImgArgs;
use super::{Cli, Command, Drawing, Line, command, settings, usage};
use anyhow::{Result, anyhow};
use clap::Parser;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngSeed, TestRunner};
use serde_json::{Map, Value};
use std::cell::Cell;
use std::ffi::OsString;
use std::io::Cursor;

/// Tries `reader`, which says whether an input was meant, on `few` inputs or on `FUZZ_CASES`. Some must be meant, and some not.
fn fuzz<S: Strategy>(few: u32, inputs: S, reader: impl Fn(S::Value) -> bool) {
    let asked = std::env::var("FUZZ_CASES").ok();
    let config = Config {
        rng_seed: match asked {
            Some(_) => RngSeed::Random,
            None => RngSeed::Fixed(0),
        },
        cases: asked.and_then(|n| n.parse().ok()).unwrap_or(few),
        failure_persistence: None,
        ..Config::default()
    };
    let (all, meant) = (Cell::new(0u32), Cell::new(0u32));
    let result = TestRunner::new(config).run(&inputs, |input| {
        all.set(all.get() + 1);
        meant.set(meant.get() + u32::from(reader(input)));
        Ok(())
    });
    println!("{} of {} inputs were meant", meant.get(), all.get());
    if let Err(err) = result {
        panic!("{err}");
    }
    assert!(meant.get() > 0 && meant.get() < all.get());
}

const VALUES: [&str; 58] = [
    "",
    " ",
    "-",
    "--",
    "=",
    "0",
    "1",
    "-1",
    "8",
    "64",
    "65537",
    "18446744073709551615",
    "99999999999999999999",
    "1e9",
    "0.5",
    "-0.0",
    "nan",
    "inf",
    "0x10",
    "1/8",
    "0/0",
    "9/8",
    "640x480",
    "0x0",
    "3,5",
    "999,500,1",
    "1,1",
    "14.6,2,0",
    "0.1,0",
    ",",
    "a cat",
    "-a cat",
    "--seed",
    "a.png",
    "a.gif",
    "out/{index}-{prompt}.png",
    "{seed}.png",
    "{",
    "{nosuch}",
    "{prompt:3}",
    "/dev/null",
    "../../x",
    "owner/name",
    "owner/name:0.5",
    "demo",
    "./no-model",
    "refs/pr/1",
    "euler",
    "DPMPP-2M",
    "cpu",
    "cuda:1",
    "cuda:99999999999",
    "f16",
    "timestep_spacing=trailing",
    "beta_start=1e-4",
    "=1",
    "é🦊\u{202e}",
    "\u{1b}[31m\n\n",
];

fn value() -> impl Strategy<Value = String> {
    prop_oneof![
        6 => prop::sample::select(VALUES.to_vec()).prop_map(str::to_owned),
        1 => any::<String>(),
        1 => any::<f64>().prop_map(|number| number.to_string()),
        1 => any::<u64>().prop_map(|number| number.to_string()),
    ]
}

/// Every flag of both commands, `--steps` and `-n`.
fn flags() -> Vec<String> {
    let command = command();
    let args = command
        .get_subcommands()
        .flat_map(|sub| sub.get_arguments());
    let mut flags: Vec<String> = args
        .flat_map(|arg| {
            let long = arg.get_long().map(|long| format!("--{long}"));
            let short = arg.get_short().map(|short| format!("-{short}"));
            [long, short]
        })
        .flatten()
        .filter(|flag| !["--help", "--version", "-h", "-V"].contains(&flag.as_str()))
        .collect();
    flags.sort();
    flags.dedup();
    flags
}

/// Words that may stand together: a flag and its value, a value, anything.
fn words() -> impl Strategy<Value = Vec<String>> {
    let flag = || prop::sample::select(flags());
    let group = prop_oneof![
        6 => (flag(), value()).prop_map(|(flag, value)| vec![format!("{flag}={value}")]),
        3 => (flag(), value()).prop_map(|(flag, value)| vec![flag, value]),
        3 => flag().prop_map(|flag| vec![flag]),
        1 => value().prop_map(|value| vec![value]),
        1 => prop::sample::select(vec!["--help", "-V", "-vv", "-qv", "help"]).prop_map(|word| vec![word.to_owned()]),
    ];
    prop::collection::vec(group, 0..4).prop_map(|groups| groups.concat())
}

/// Parses a command line as the program does: it is meant, and what a picture of it remembers is the same command line again,
/// or it is refused with exit code 2 (0 for help) in one line.
fn parses(words: Vec<OsString>) -> bool {
    match Cli::try_parse_from(&words).map(|cli| cli.command) {
        Ok(Command::Ddpm(_)) => is_remembered(Line::<DdpmArgs>::parse(words)),
        Ok(Command::Txt2img(_)) => is_remembered(Line::<Txt2ImgArgs>::parse(words)),
        Err(err) => {
            assert!(matches!(err.exit_code(), 0 | 2), "{err}");
            let line = usage::plain(&err);
            assert!(
                !line.is_empty() && !line.contains(char::is_control),
                "{line:?}"
            );
            false
        }
    }
}

fn is_remembered<A: Drawing>(line: Result<Line<A>, clap::Error>) -> bool {
    // Clap has taken it a moment ago.
    let line = line.expect("it was parsed before");
    let remembered = line.remembered();
    if A::HAS_PROMPT && !remembered.contains_key("prompt") {
        // The prompts come from `--from` or `--prompts`, or there is no picture: no picture remembers this command line alone.
        return true;
    }
    let again = of_picture::<A>(&remembered).expect("what a picture remembers is a command line");
    assert_eq!(again.remembered(), remembered);
    true
}

/// The command line of a picture's settings.
fn of_picture<A: Drawing>(settings: &Map<String, Value>) -> Result<Line<A>> {
    let (flags, prompt) = settings::of_picture(settings)?;
    let mut words = vec!["diffuse".into(), A::NAME.into()];
    words.extend(settings::overridden(flags, &[]));
    if let (Some(prompt), true) = (prompt, A::HAS_PROMPT) {
        words.extend(["--".into(), prompt.into()]);
    }
    Line::parse(words).map_err(|err| anyhow!("{}", usage::plain(&err)))
}

#[test]
fn any_command_line_is_meant_or_refused_in_one_line() {
    let start = prop::sample::select(vec![
        &["ddpm"][..],
        &["txt2img"],
        &["txt2img", "a cat"],
        &[],
    ]);
    let all = (start, words());
    fuzz(512, all, |(start, words)| {
        let start = ["diffuse"]
            .iter()
            .chain(start)
            .map(|word| (*word).to_owned());
        parses(start.chain(words).map(OsString::from).collect())
    });
}

/// Settings: names of flags and others, with values of any kind.
fn object() -> impl Strategy<Value = Map<String, Value>> {
    let names: Vec<String> = flags()
        .iter()
        .filter_map(|flag| Some(flag.strip_prefix("--")?.replace('-', "_")))
        .chain(["prompt", "", "-", "a b", "steps ", "é"].map(str::to_owned))
        .collect();
    let scalar = || {
        prop_oneof![
            3 => value().prop_map(Value::from),
            1 => any::<i64>().prop_map(Value::from),
            1 => any::<f64>().prop_map(Value::from),
            1 => any::<bool>().prop_map(Value::from),
            1 => Just(Value::Null),
        ]
    };
    let value = prop_oneof![
        5 => scalar(),
        1 => prop::collection::vec(scalar(), 0..3).prop_map(Value::from),
        1 => (value(), scalar()).prop_map(|(key, value)| Value::Object([(key, value)].into_iter().collect())),
    ];
    let pairs = prop::collection::vec((prop::sample::select(names), value), 0..4);
    pairs.prop_map(|pairs| pairs.into_iter().collect())
}

fn one_line(err: &anyhow::Error) {
    let text = format!("{err:#}");
    assert!(!text.is_empty(), "an error without words");
    assert!(!text.contains('\n'), "an error of several lines: {text}");
    assert!(text.chars().count() < 2000, "a long error: {text}");
}

#[test]
fn any_settings_of_a_picture_are_meant_or_refused() {
    fuzz(512, object(), |settings| {
        let both = [
            of_picture::<DdpmArgs>(&settings).map(drop),
            of_picture::<Txt2ImgArgs>(&settings).map(drop),
        ];
        both.iter()
            .filter_map(|line| line.as_ref().err())
            .for_each(one_line);
        both.iter().any(Result::is_ok)
    });
}

#[test]
fn any_rows_are_meant_or_refused() {
    let json = || {
        (object(), any::<bool>()).prop_map(|(mut settings, prompt)| {
            if prompt {
                settings.insert("prompt".to_owned(), "a cat".into());
            }
            Value::Object(settings).to_string()
        })
    };
    let line = prop_oneof![
        4 => json().prop_map(String::into_bytes),
        // Cut anywhere.
        1 => (json(), any::<prop::sample::Index>()).prop_map(|(text, at)| text.as_bytes()[..at.index(text.len() + 1)].to_vec()),
        2 => value().prop_map(String::into_bytes),
        1 => prop::collection::vec(any::<u8>(), 0..40),
    ];
    let inputs = (prop::collection::vec(line, 0..4), words());
    fuzz(512, inputs, |(lines, words)| {
        let words = ["diffuse", "txt2img", "--prompts", "rows"]
            .map(str::to_owned)
            .into_iter()
            .chain(words);
        let words = words.map(OsString::from).collect();
        let Ok(own) = Line::<Txt2ImgArgs>::parse(words) else {
            return false;
        };
        let text = lines.join(&b'\n');
        let rows = Rows::new(own, Some(Lines::of(Cursor::new(text))));
        let mut meant = 0;
        for (_, row) in rows {
            match row {
                Ok(_) => meant += 1,
                Err(err) => one_line(&err),
            }
        }
        meant > 0
    });
}
