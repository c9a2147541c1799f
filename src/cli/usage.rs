//! Command lines that cannot be meant: one line of what was given, what is accepted, what to type.
use clap::error::ErrorKind;
use std::io::Write;
use std::process::ExitCode;

/// Prints what clap found: help and version to stdout with exit code 0, all else to stderr with 2.
pub fn report(err: &clap::Error) -> ExitCode {
    match err.kind() {
        ErrorKind::DisplayHelp
        | ErrorKind::DisplayVersion
        | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            // A closed stream is the reader's choice.
            let _ = err.print();
        }
        _ => {
            let _ = writeln!(std::io::stderr(), "diffuse: {}", line(&err.to_string()));
        }
    }
    ExitCode::from(err.exit_code() as u8)
}

/// Clap's paragraphs in one line, without the usage.
fn line(message: &str) -> String {
    // An error in a value carries no usage, so the command's name is looked for where the user wrote it.
    let help = match std::env::args_os().nth(1) {
        Some(name) if name == "ddpm" => "diffuse ddpm --help",
        Some(name) if name == "txt2img" => "diffuse txt2img --help",
        _ => "diffuse --help",
    };
    let message = message.strip_prefix("error: ").unwrap_or(message);
    let parts: Vec<_> = message
        .split("\n\n")
        .filter(|part| !part.starts_with("Usage:") && !part.starts_with("For more information"))
        .map(one_line)
        .collect();
    format!("{} (see {help})", parts.join("; "))
}

/// `text` with every run of white space and control characters as one space.
pub fn one_line(text: &str) -> String {
    let words = text.split(|c: char| c.is_whitespace() || c.is_control());
    words
        .filter(|word| !word.is_empty())
        .collect::<Vec<_>>()
        .join(" ")
}
