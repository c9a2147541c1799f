//! The rows of a run: the command line itself, or one for each line of `--prompts`.
//!
//! A row is the command line with the row's own flags after it, where the last of repeated flags counts.
use super::args::Shard;
use super::settings::{self, Settings};
use super::{Drawing, Line, command_of, usage};
use anyhow::{Context, Result, anyhow, bail};
use serde::de::IgnoredAny;
use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

/// The bytes of a line: a prompt takes hundreds.
const LINE_LIMIT: u64 = 1 << 20;
/// The lines of an object, at most: one for each setting is usual.
const OBJECT_LINES: usize = 200;

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
            let command = command_of::<A>();
            let row = settings::of_row(&settings, &command)?;
            words = settings::turned_off(&words, &settings, &command)?;
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
            if self.shard.takes(self.number) || (text.is_err() && lines.have_ended()) {
                return Some(text);
            }
        }
    }
}

/// The texts of `--prompts`, one for each row: lines that are not blank, and JSON objects that go over several.
pub struct Lines {
    /// None after what ends the rows.
    reader: Option<Box<dyn BufRead>>,
    /// Lines that were read.
    read: usize,
    /// Lines that were read to see whether an object goes on there, and that are texts of their own.
    waiting: VecDeque<(usize, Result<String>)>,
    /// Of the line at which the last text began, counted from 1.
    number: usize,
}

impl Lines {
    pub fn of(reader: impl BufRead + 'static) -> Self {
        Self {
            reader: Some(Box::new(reader)),
            read: 0,
            waiting: VecDeque::new(),
            number: 0,
        }
    }

    /// Whether nothing follows, for the end of the file or for an error.
    fn have_ended(&self) -> bool {
        self.reader.is_none() && self.waiting.is_empty()
    }

    /// The next line that is not blank, without the white space around it, and its number.
    fn line(&mut self) -> Option<(usize, Result<String>)> {
        if let Some(line) = self.waiting.pop_front() {
            return Some(line);
        }
        loop {
            let text = self.read_line()?;
            if !text.as_ref().is_ok_and(String::is_empty) {
                return Some((self.read, text));
            }
        }
    }

    fn read_line(&mut self) -> Option<Result<String>> {
        let mut bytes = Vec::new();
        let mut limited = Read::take(self.reader.as_mut()?, LINE_LIMIT);
        self.read += 1;
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
        if self.read == 1 && (bytes.starts_with(b"\xff\xfe") || bytes.starts_with(b"\xfe\xff")) {
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
        if is_list(text) {
            self.reader = None;
            return Some(Err(anyhow!(
                "it begins a list; give the objects without it, as jq '.[]' does; the rows end here"
            )));
        }
        Some(Ok(text.to_owned()))
    }

    /// The whole object that begins with the line `first`, as programs print it over several lines; None where it is none.
    fn spread(&mut self, first: &str) -> Option<String> {
        let (mut whole, mut taken) = (first.to_owned(), Vec::new());
        while is_cut_off(&whole) && taken.len() < OBJECT_LINES && whole.len() < LINE_LIMIT as usize
        {
            let Some((number, line)) = self.line() else {
                break;
            };
            if let Ok(more) = &line {
                whole = format!("{whole}\n{more}");
            }
            let is_text = line.is_ok();
            taken.push((number, line));
            if !is_text {
                break;
            }
        }
        let is_whole = serde_json::from_str::<IgnoredAny>(&whole).is_ok();
        if !is_whole {
            // They are rows of their own.
            taken
                .into_iter()
                .rev()
                .for_each(|line| self.waiting.push_front(line));
        }
        is_whole.then_some(whole)
    }
}

impl Iterator for Lines {
    type Item = Result<String>;

    fn next(&mut self) -> Option<Result<String>> {
        let (number, text) = self.line()?;
        self.number = number;
        Some(text.map(|text| match is_cut_off(&text) {
            true => self.spread(&text).unwrap_or(text),
            false => text,
        }))
    }
}

/// Whether a text is the beginning of a JSON object and no more of it.
fn is_cut_off(text: &str) -> bool {
    let parsed = || serde_json::from_str::<IgnoredAny>(text);
    text.starts_with('{') && parsed().is_err_and(|err| err.is_eof())
}

/// Whether a line begins a list of objects, whose lines would be drawn as prompts.
fn is_list(line: &str) -> bool {
    let inside = line.strip_prefix('[').map(str::trim_start);
    inside.is_some_and(|inside| inside.is_empty() || inside.starts_with('{'))
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
    // Before it is opened, which Windows refuses.
    if path.is_dir() {
        bail!("--prompts {}: it is a folder; give a file", path.display());
    }
    let file = File::open(path).with_context(|| format!("--prompts {}", path.display()))?;
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
        // An object over several lines is one row, and a list is none.
        assert_eq!(count("a\n{\n\"b\":\n1}\nc".to_owned(), None), Some(3));
        assert_eq!(count("a\n{\nb\nc".to_owned(), None), Some(4));
        assert_eq!(count("a\n[\n{}\n]".to_owned(), None), Some(2));
        assert_eq!(
            super::count(folder.path(), None),
            None,
            "a folder has no rows"
        );
    }
}
