//! Where a checkpoint's file is: on the disk, or among the bytes of the program. Readers above do not tell the two apart.
use anyhow::{Context, Result, ensure};
use std::borrow::Cow;
use std::fs::File;
use std::io::{Cursor, Read, Result as IoResult, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// A file that is there. Nothing of it is read yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    Disk(PathBuf),
    /// In the program: its name for messages, and its bytes.
    Program(String, &'static [u8]),
}

impl Place {
    /// For messages.
    pub fn display(&self) -> Cow<'_, str> {
        match self {
            Place::Disk(path) => path.to_string_lossy(),
            Place::Program(name, _) => name.into(),
        }
    }

    pub fn open(&self) -> Result<Source> {
        match self {
            Place::Disk(path) => open(path).map(Source::File),
            Place::Program(_, bytes) => Ok(Source::Bytes(bytes)),
        }
    }
}

/// The names of what lies in a folder, but for those that are no text.
pub fn names_in(folder: &Path) -> Result<Vec<String>> {
    let entries = std::fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    Ok(names.collect())
}

/// Opens a plain file; a pipe or a device would block or never end.
fn open(path: &Path) -> Result<File> {
    let opened = || -> IoResult<(File, bool)> {
        if !std::fs::metadata(path)?.is_file() {
            return Err(std::io::Error::other("it is not a plain file"));
        }
        let mut file = File::open(path)?;
        let is_pointer = is_pointer(&mut file)?;
        Ok((file, is_pointer))
    };
    let name = path.display();
    let (file, is_pointer) = opened().with_context(|| format!("{name} cannot be read"))?;
    ensure!(
        !is_pointer,
        "{name} is a Git LFS pointer, which stands for the file; fetch the file by git lfs pull"
    );
    Ok(file)
}

/// Whether a file is what a clone without Git LFS has in place of a large one (its specification, version 1). It stands at its start again.
fn is_pointer(file: &mut File) -> IoResult<bool> {
    const START: &[u8] = b"version https://git-lfs.github.com/spec/";
    if file.metadata()?.len() >= 1024 {
        return Ok(false);
    }
    let mut start = [0; START.len()];
    let read = file.read_exact(&mut start);
    file.rewind()?;
    Ok(read.is_ok() && start == START)
}

/// An open file.
#[derive(Debug)]
pub enum Source {
    File(File),
    Bytes(&'static [u8]),
}

impl Source {
    /// Bytes in all.
    pub fn length(&self) -> IoResult<u64> {
        match self {
            Source::File(file) => Ok(file.metadata()?.len()),
            Source::Bytes(bytes) => Ok(bytes.len() as u64),
        }
    }

    /// From the start, one after the other.
    pub fn reader(&self) -> Reader<'_> {
        match self {
            Source::File(file) => Reader::File(file),
            Source::Bytes(bytes) => Reader::Bytes(Cursor::new(bytes)),
        }
    }

    /// Fills `part` with what stands at `offset`; many threads may do so at once.
    pub fn read_exact_at(&self, part: &mut [u8], offset: u64) -> IoResult<()> {
        match self {
            Source::File(file) => read_exact_at(file, part, offset),
            Source::Bytes(bytes) => {
                let end = |start: usize| start.checked_add(part.len());
                let found = usize::try_from(offset)
                    .ok()
                    .and_then(|start| bytes.get(start..end(start)?));
                part.copy_from_slice(found.ok_or(std::io::ErrorKind::UnexpectedEof)?);
                Ok(())
            }
        }
    }
}

#[cfg(unix)]
fn read_exact_at(file: &File, bytes: &mut [u8], offset: u64) -> IoResult<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, bytes, offset)
}

#[cfg(windows)]
fn read_exact_at(file: &File, mut bytes: &mut [u8], mut offset: u64) -> IoResult<()> {
    while !bytes.is_empty() {
        let n = std::os::windows::fs::FileExt::seek_read(file, bytes, offset)?;
        if n == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        bytes = &mut bytes[n..];
        offset += n as u64;
    }
    Ok(())
}

pub enum Reader<'a> {
    File(&'a File),
    Bytes(Cursor<&'static [u8]>),
}

impl Read for Reader<'_> {
    fn read(&mut self, part: &mut [u8]) -> IoResult<usize> {
        match self {
            Reader::File(file) => file.read(part),
            Reader::Bytes(bytes) => bytes.read(part),
        }
    }
}

impl Seek for Reader<'_> {
    fn seek(&mut self, to: SeekFrom) -> IoResult<u64> {
        match self {
            Reader::File(file) => file.seek(to),
            Reader::Bytes(bytes) => bytes.seek(to),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_of_the_program_read_as_a_file_of_the_same_bytes() {
        let bytes: &'static [u8] = b"0123456789";
        let folder = tempfile::tempdir().expect("the system has a temporary folder");
        let path = folder.path().join("file");
        std::fs::write(&path, bytes).expect("the folder is writable");
        let places = [Place::Disk(path), Place::Program("inside".into(), bytes)];
        for source in places.map(|place| place.open().expect("the file is there")) {
            assert_eq!(source.length().expect("it has a length"), 10);
            let (mut reader, mut text) = (source.reader(), String::new());
            reader.seek(SeekFrom::Start(7)).expect("it has ten bytes");
            reader.read_to_string(&mut text).expect("it is text");
            assert_eq!(text, "789");
            let mut part = [0; 3];
            source
                .read_exact_at(&mut part, 7)
                .expect("it has ten bytes");
            assert_eq!(&part, b"789");
            assert!(source.read_exact_at(&mut part, 8).is_err());
            assert!(source.read_exact_at(&mut part, u64::MAX).is_err());
        }
    }
}
