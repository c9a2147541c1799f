//! Command lines that cannot be meant: one line of what was given, what is accepted, what to type.
use super::colour;
use super::terminal::written;
use crate::engine::{kernels, memory};
use clap::error::{ContextKind, ContextValue, ErrorKind};
use console::Term;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io::Write;
use std::process::ExitCode;

/// Prints what clap found in `words`, the program's name and its command first: help and version to stdout with exit code 0, all else to
/// stderr with 2.
pub fn report(err: &clap::Error, words: &[OsString]) -> ExitCode {
    let command = words.get(1);
    match err.kind() {
        ErrorKind::DisplayHelp
        | ErrorKind::DisplayVersion
        | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let (mut out, mut errors) = (std::io::stdout(), std::io::stderr());
            let stream = match err.use_stderr() {
                true => Term::stderr(),
                false => Term::stdout(),
            };
            let text = match colour::is_wanted(&stream) {
                true => err.render().ansi().to_string(),
                false => err.render().to_string(),
            };
            let written = match err.use_stderr() {
                true => write!(errors, "{text}"),
                false => write!(out, "{text}").and_then(|()| out.flush()),
            };
            if !is_written(written) {
                return ExitCode::FAILURE;
            }
        }
        _ => {
            let mut message = err.to_string();
            if err.kind() == ErrorKind::InvalidUtf8
                && let Some(word) = words.iter().find(|word| word.to_str().is_none())
            {
                message = format!("{word:?} is not UTF-8; write names and prompts in UTF-8");
            }
            if has_second_prompt(err, command) {
                message += "\n\nput quotes around a prompt of several words, as in \"a red fox\"";
            }
            if is_of_a_variable(err) {
                message += "\n\nit is what DIFFUSE_DEVICE says";
            }
            let _ = writeln!(std::io::stderr(), "diffuse: {}", line(&message, command));
        }
    }
    ExitCode::from(err.exit_code() as u8)
}

/// A command line that cannot be meant, and that clap takes.
#[derive(Debug)]
pub struct Meaningless(pub String);

impl fmt::Display for Meaningless {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Meaningless {}

/// An error where the words of a command line do not go together.
pub fn ensure_meaning(meant: bool, otherwise: impl FnOnce() -> String) -> anyhow::Result<()> {
    match meant {
        true => Ok(()),
        false => Err(Meaningless(otherwise()).into()),
    }
}

/// Whether clap met a second prompt: most likely the first has no quotes.
fn has_second_prompt(err: &clap::Error, command: Option<&OsString>) -> bool {
    let unexpected = err.get(ContextKind::InvalidArg);
    let is_free = matches!(unexpected, Some(ContextValue::String(word)) if !word.starts_with('-'));
    is_free
        && err.kind() == ErrorKind::UnknownArgument
        && command.is_some_and(|name| name == "txt2img")
}

/// Whether a value that clap refuses is none of the command line's. No other variable has a value that can be refused.
fn is_of_a_variable(err: &clap::Error) -> bool {
    let invalid = err.get(ContextKind::InvalidArg);
    let mut words = std::env::args_os();
    matches!(invalid, Some(ContextValue::String(arg)) if arg.starts_with("--device "))
        && !words.any(|word| word.as_encoded_bytes().starts_with(b"--device"))
}

/// Whether a word is `--verbose`, once or several times.
pub fn is_verbose(word: &OsStr) -> bool {
    let letters = |word: &str| {
        word.strip_prefix('-')
            .is_some_and(|vs| !vs.is_empty() && vs.chars().all(|c| c == 'v'))
    };
    word == "--verbose" || word.to_str().is_some_and(letters)
}

/// Whether the command line is `--version --verbose`.
pub fn asks_for_versions(words: &[OsString]) -> bool {
    let has = |long: &str, short: &str| words.iter().any(|word| word == long || word == short);
    let alone = has("--version", "-V") && has("--verbose", "-v") && words.len() == 2;
    alone || matches!(words, [word] if word == "-Vv" || word == "-vV")
}

/// The version, what it was built with and what it finds here.
pub fn print_versions() -> ExitCode {
    let features = [("cuda", cfg!(feature = "cuda"))];
    let features: Vec<_> = features
        .iter()
        .filter_map(|(name, on)| on.then_some(*name))
        .collect();
    let features = match features.is_empty() {
        true => "none".to_owned(),
        false => features.join(" "),
    };
    let cuda = match (cfg!(feature = "cuda"), crate::engine::runtime::cuda_card()) {
        (false, _) => "not in this build".to_owned(),
        (true, Ok(())) => "cuda:0 is ready".to_owned(),
        (true, Err(reason)) => format!("{reason:#}"),
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let memory = memory::available().map_or("unknown".to_owned(), memory::gigabytes);
    let lines = [
        format!("diffuse {}", env!("CARGO_PKG_VERSION")),
        format!("features  {features}"),
        format!(
            "platform  {} {}{}",
            std::env::consts::OS,
            std::env::consts::ARCH,
            if cfg!(debug_assertions) {
                ", debug build"
            } else {
                ""
            }
        ),
        format!(
            "kernels   {}, {threads} threads",
            kernels::instruction_set()
        ),
        format!("memory    {memory} free"),
        format!("cuda      {cuda}"),
    ];
    match is_written(writeln!(std::io::stdout(), "{}", lines.join("\n"))) {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

/// Whether stdout was written to; says why not.
fn is_written(result: std::io::Result<()>) -> bool {
    let failure = written(result).err();
    if let Some(err) = &failure {
        let _ = writeln!(std::io::stderr(), "diffuse: {err:#}");
    }
    failure.is_none()
}

/// Clap's paragraphs in one line, without the usage.
fn line(message: &str, command: Option<&OsString>) -> String {
    // An error in a value carries no usage, so the command's name is looked for where the user wrote it.
    let help = match command {
        Some(name) if name == "ddpm" => "diffuse ddpm --help",
        Some(name) if name == "txt2img" => "diffuse txt2img --help",
        _ => "diffuse --help",
    };
    // Of an unknown flag of several letters clap says so too, where it knows no other like it.
    let is_long = message.contains(&format!("{TIP_OF_DASHES}'--"));
    let dash = match message.contains(TIP_OF_DASHES) && !is_long {
        true => "; a value that begins with - is written as --flag=VALUE, a prompt behind --",
        false => "",
    };
    format!("{}{dash} (see {help})", sentence(message))
}

/// How clap's tip begins which names the first letter of a value, and no flag.
const TIP_OF_DASHES: &str = "tip: to pass ";

/// What clap found wrong, in one line.
pub fn plain(err: &clap::Error) -> String {
    sentence(&err.to_string())
}

fn sentence(message: &str) -> String {
    let message = message.strip_prefix("error: ").unwrap_or(message);
    let parts = message
        .split("\n\n")
        .filter(|part| !part.starts_with("Usage:") && !part.starts_with("For more information"))
        .map(one_line)
        .filter(|part| !part.starts_with(TIP_OF_DASHES));
    parts.collect::<Vec<_>>().join("; ")
}

/// `text` with every run of white space and control characters as one space.
pub fn one_line(text: &str) -> String {
    let words = text.split(|c: char| c.is_whitespace() || c.is_control());
    words
        .filter(|word| !word.is_empty())
        .collect::<Vec<_>>()
        .join(" ")
}
