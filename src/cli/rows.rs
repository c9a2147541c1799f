//! The rows of a run: the command line itself, or one for each line of `--prompts`.
//!
//! A row is the command line with the row's own flags after it, where the last of repeated flags counts.
use super::args::Shard;
use super::settings::{self, Settings};
use super::{Drawing, Line, command_of, usage};
use anyhow::{Context, Result, anyhow, bail};
use std::ffi::OsString;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

/// The bytes of a line: a prompt takes hundreds.
const LINE_LIMIT: u64 = 1 << 20;

/// Where a row stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Counted from 1, empty lines left out.
    pub number: usize,
    /// In the file, counted from 1; None for the command line itself.
    pub line: Option<usize>,
}

/// Rows, one after another; a line is read when its row is asked for.
pub(super) struct Rows<A> {
    words: Vec<OsString>,
    /// The command line's own row.
    own: Option<Line<A>>,
    lines: Option<Lines>,
    shard: Shard,
    number: usize,
}

impl<A: Drawing> Rows<A> {
    /// The rows of `line`: those of `lines`, what [`open`] opened, or itself.
    pub fn new(line: Line<A>, lines: Option<Lines>) -> Self {
        let mut words = line.words.clone();
        if words.last().is_some_and(|word| word == "--") {
            words.pop();
        }
        Self {
            words,
            shard: line
                .args
                .shared()
                .batch
                .shard
                .unwrap_or(Shard { index: 1, of: 1 }),
            own: lines.is_none().then_some(line),
            lines,
            number: 0,
        }
    }

    fn parse(&self, text: &str) -> Result<Line<A>> {
        let mut words = self.words.clone();
        let (flags, prompt) = if text.starts_with('{') {
            let settings: Settings = serde_json::from_str(text)
                .map_err(|err| anyhow!("it begins with {{ and is no JSON object: {err}"))?;
            let row = settings::of_row(&settings)?;
            words = settings::turned_off(&words, &settings, &command_of::<A>())?;
            row
        } else {
            (Vec::new(), Some(text.to_owned()))
        };
        let mut words = settings::overridden(words, &flags);
        match prompt {
            Some(prompt) if A::HAS_PROMPT => words.extend(["--".into(), prompt.into()]),
            None if A::HAS_PROMPT => bail!("it has no \"prompt\""),
            Some(_) => bail!(
                "{} takes no prompt; give a JSON object such as {{\"seed\": 7}}",
                A::NAME
            ),
            None => {}
        }
        Line::parse(words).map_err(|err| anyhow!("{}", usage::plain(&err)))
    }

    /// The next line that is this shard's; None at the end.
    fn next_line(&mut self) -> Option<Result<String>> {
        loop {
            let lines = self.lines.as_mut()?;
            let text = lines.next()?;
            self.number += 1;
            // An end before the file's is every shard's.
            if self.shard.takes(self.number) || lines.reader.is_none() {
                return Some(text);
            }
        }
    }
}

/// The lines of `--prompts` that are not blank.
pub struct Lines {
    /// None after what ends the rows.
    reader: Option<Box<dyn BufRead>>,
    /// Of the last line, counted from 1.
    number: usize,
}

impl Lines {
    pub fn of(reader: impl BufRead + 'static) -> Self {
        Self {
            reader: Some(Box::new(reader)),
            number: 0,
        }
    }
}

impl Iterator for Lines {
    type Item = Result<String>;

    /// Without the white space around it.
    fn next(&mut self) -> Option<Result<String>> {
        loop {
            let mut bytes = Vec::new();
            let mut limited = Read::take(self.reader.as_mut()?, LINE_LIMIT);
            self.number += 1;
            match limited.read_until(b'\n', &mut bytes) {
                Ok(0) => return None,
                Ok(_) => {}
                Err(err) => {
                    self.reader = None;
                    return Some(Err(err).context("reading the rows"));
                }
            }
            if bytes.len() as u64 == LINE_LIMIT && bytes.last() != Some(&b'\n') {
                // What follows is no row, so nothing more can be read.
                self.reader = None;
                return Some(Err(anyhow!(
                    "it is longer than {LINE_LIMIT} bytes; the rows end here"
                )));
            }
            if self.number == 1
                && (bytes.starts_with(b"\xff\xfe") || bytes.starts_with(b"\xfe\xff"))
            {
                self.reader = None;
                return Some(Err(anyhow!(
                    "the file is UTF-16; save it as UTF-8, in PowerShell by Out-File -Encoding utf8"
                )));
            }
            let Ok(text) = str::from_utf8(&bytes) else {
                return Some(Err(anyhow!("it is not UTF-8")));
            };
            let text = text.trim_start_matches('\u{feff}').trim();
            if text.contains('\0') {
                return Some(Err(anyhow!(
                    "it has a NUL: is the file UTF-16? Save it as UTF-8"
                )));
            }
            if !text.is_empty() {
                return Some(Ok(text.to_owned()));
            }
        }
    }
}

impl<A: Drawing> Iterator for Rows<A> {
    type Item = (Place, Result<Line<A>>);

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(own) = self.own.take() {
            let place = Place {
                number: 1,
                line: None,
            };
            return Some((place, Ok(own)));
        }
        let text = self.next_line()?;
        let place = Place {
            number: self.number,
            line: self.lines.as_ref().map(|lines| lines.number),
        };
        Some((place, text.and_then(|text| self.parse(&text))))
    }
}

/// The number of rows that `shard` takes of a file; None for a pipe, which can be read only once.
pub fn count(path: &Path, shard: Option<Shard>) -> Option<usize> {
    if !std::fs::metadata(path).ok()?.is_file() {
        return None;
    }
    let numbers = open(path).ok()?.zip(1..);
    Some(
        numbers
            .filter(|(_, number)| shard.is_none_or(|shard| shard.takes(*number)))
            .count(),
    )
}

/// The lines of `--prompts`.
pub fn open(path: &Path) -> Result<Lines> {
    if path == Path::new("-") {
        return Ok(Lines::of(BufReader::new(std::io::stdin())));
    }
    let describe = || format!("--prompts {}", path.display());
    let file = File::open(path).with_context(describe)?;
    if file.metadata().with_context(describe)?.is_dir() {
        bail!("--prompts {}: it is a folder; give a file", path.display());
    }
    Ok(Lines::of(BufReader::new(file)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_count_ends_where_the_rows_do() {
        let folder = tempfile::tempdir().expect("a folder can be made");
        let file = folder.path().join("rows");
        let count = |text: String, shard| {
            std::fs::write(&file, text).expect("the folder is writable");
            count(&file, shard)
        };
        let second = Some(Shard { index: 2, of: 2 });
        let few = "a\n \nb\n\nc";
        assert_eq!(count(few.to_owned(), None), Some(3));
        assert_eq!(count(few.to_owned(), second), Some(1));
        let line = |length: u64| "x".repeat(length as usize);
        assert_eq!(count(line(LINE_LIMIT - 1) + "\nb", None), Some(2));
        // Too long to be a row: it is the last, and it fails.
        assert_eq!(count(line(LINE_LIMIT) + "\nb", None), Some(1));
        assert_eq!(
            count("a\n".to_owned() + &line(LINE_LIMIT + 9000) + "\nb", second),
            Some(1)
        );
        assert_eq!(
            super::count(folder.path(), None),
            None,
            "a folder has no rows"
        );
    }
}
