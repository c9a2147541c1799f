//! The rows of a run: the command line itself, or one for each line of `--prompts`.
//!
//! A row is the command line with the row's own flags after it, where the last of repeated flags counts.
use super::args::Shard;
use super::settings::{self, Settings};
use super::{Drawing, Line, usage};
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
    lines: Option<Box<dyn BufRead>>,
    shard: Shard,
    number: usize,
    line: usize,
}

impl<A: Drawing> Rows<A> {
    /// The rows of `line`: those of `lines`, what [`open`] opened, or itself.
    pub fn new(line: Line<A>, lines: Option<Box<dyn BufRead>>) -> Self {
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
            line: 0,
        }
    }

    fn parse(&self, text: &str) -> Result<Line<A>> {
        let (flags, prompt) = if text.starts_with('{') {
            let settings: Settings = serde_json::from_str(text)
                .map_err(|err| anyhow!("it begins with {{ and is no JSON object: {err}"))?;
            settings::of_row(&settings)?
        } else {
            (Vec::new(), Some(text.to_owned()))
        };
        let mut words = settings::overridden(self.words.clone(), &flags);
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

    /// The next line that is not empty, with its number; None at the end.
    fn next_line(&mut self) -> Result<Option<String>> {
        let Some(reader) = &mut self.lines else {
            return Ok(None);
        };
        loop {
            let mut bytes = Vec::new();
            let mut limited = Read::take(&mut **reader, LINE_LIMIT);
            self.line += 1;
            if limited
                .read_until(b'\n', &mut bytes)
                .context("reading the rows")?
                == 0
            {
                return Ok(None);
            }
            if bytes.len() as u64 == LINE_LIMIT && bytes.last() != Some(&b'\n') {
                // What follows is no row, so nothing more can be read.
                self.lines = None;
                bail!("it is longer than {LINE_LIMIT} bytes; the rows end here");
            }
            let blank = bytes.iter().all(u8::is_ascii_whitespace);
            if blank {
                continue;
            }
            self.number += 1;
            if !self.shard.takes(self.number) {
                continue;
            }
            let Ok(text) = String::from_utf8(bytes) else {
                bail!("it is not UTF-8");
            };
            return Ok(Some(text.trim_start_matches('\u{feff}').trim().to_owned()));
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
        let text = self.next_line();
        let place = Place {
            number: self.number,
            line: Some(self.line),
        };
        match text {
            Ok(None) => None,
            Ok(Some(text)) => Some((place, self.parse(&text))),
            Err(err) => Some((place, Err(err))),
        }
    }
}

/// The number of rows that `shard` takes of a file, up to a line that is too long to be one; None for a pipe, which can be read only once.
pub fn count(path: &Path, shard: Option<Shard>) -> Option<usize> {
    if !std::fs::metadata(path).ok()?.is_file() {
        return None;
    }
    let mut reader = BufReader::new(File::open(path).ok()?);
    let (mut number, mut count, mut blank, mut length) = (0, 0, true, 0);
    let mut end_line = |blank: bool| {
        number += usize::from(!blank);
        count += usize::from(!blank && shard.is_none_or(|shard| shard.takes(number)));
    };
    loop {
        let bytes = reader.fill_buf().ok()?;
        if bytes.is_empty() {
            end_line(blank);
            return Some(count);
        }
        for &byte in bytes {
            length += 1;
            if byte == b'\n' {
                end_line(blank);
                length = 0;
            } else if length == LINE_LIMIT {
                end_line(false);
                return Some(count);
            }
            blank = byte == b'\n' || blank && byte.is_ascii_whitespace();
        }
        let taken = bytes.len();
        reader.consume(taken);
    }
}

/// The lines of `--prompts`.
pub fn open(path: &Path) -> Result<Box<dyn BufRead>> {
    if path == Path::new("-") {
        return Ok(Box::new(BufReader::new(std::io::stdin())));
    }
    let describe = || format!("--prompts {}", path.display());
    let file = File::open(path).with_context(describe)?;
    if file.metadata().with_context(describe)?.is_dir() {
        bail!("--prompts {}: it is a folder; give a file", path.display());
    }
    Ok(Box::new(BufReader::new(file)))
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
