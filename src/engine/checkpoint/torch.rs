//! `.bin` files: what `torch.save` writes.
//!
//! Since torch 1.6 a zip archive, nothing compressed: `NAME/data.pkl` (a pickle that names the tensors) and
//! `NAME/data/KEY` (the numbers of one storage). Before, one stream:
//!
//! ```text
//! pickles   magic number, protocol, system, the state dict, the list of storage keys
//! then      for each key: count (i64), numbers
//! ```
use super::json::one_line;
use super::pickle::{self, Storage, Tensor};
use super::place::Reader;
use super::weights::Entry;
use anyhow::{Context, Result, bail};
use std::collections::HashMap;
use std::io::{Read, Seek, SeekFrom};
use zip::{CompressionMethod, ZipArchive};

/// Real ones have a few hundred kilobytes.
const PICKLE_LIMIT: u64 = 4 << 20;
/// `LONG1` with the ten bytes of torch's magic number.
const MAGIC: &[u8] = b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19";

/// The tensors of a file of `length` bytes.
pub fn read(mut file: Reader, length: u64) -> Result<Vec<(String, Entry)>> {
    let mut start = Vec::new();
    (&mut file).take(16).read_to_end(&mut start)?;
    if start.starts_with(b"PK") {
        from_zip(file, length)
    } else if start.get(2..).is_some_and(|rest| rest.starts_with(MAGIC)) {
        from_stream(file, length)
    } else {
        bail!("is not a file of torch.save");
    }
}

fn from_zip(file: Reader, length: u64) -> Result<Vec<(String, Entry)>> {
    let bad = |err: zip::result::ZipError| {
        anyhow::anyhow!(
            "is a bad zip archive (truncated?): {}",
            one_line(&err.to_string())
        )
    };
    let mut archive = ZipArchive::new(std::io::BufReader::new(file)).map_err(bad)?;
    let pickle_name = archive
        .file_names()
        .filter_map(Result::ok)
        .find(|name| name.ends_with("/data.pkl"))
        .map(|name| name.into_owned());
    let pickle_name = pickle_name.context("has no data.pkl: not a file of torch.save")?;
    let folder = pickle_name
        .strip_suffix("data.pkl")
        .unwrap_or_default()
        .to_string();
    if let Ok(order) = archive.by_name(&format!("{folder}byteorder")) {
        let mut text = String::new();
        order
            .take(16)
            .read_to_string(&mut text)
            .context("has a bad byteorder")?;
        if text != "little" {
            bail!(
                "was written in {:?} byte order, which is not read",
                one_line(&text)
            );
        }
    }
    let mut program = Vec::new();
    let entry = archive.by_name(&pickle_name).map_err(bad)?;
    if entry.compression() != CompressionMethod::Stored || entry.size() > PICKLE_LIMIT {
        bail!("has a data.pkl that is compressed or larger than {PICKLE_LIMIT} bytes: refused");
    }
    entry
        .take(PICKLE_LIMIT)
        .read_to_end(&mut program)
        .context("has a bad data.pkl")?;
    let mut places = HashMap::new();
    let mut place = |storage: &Storage| -> Result<u64> {
        if let Some(&(start, size)) = places.get(&storage.key) {
            return fits(storage, start, size);
        }
        let name = format!("{folder}data/{}", storage.key);
        // The header of an entry is read, not its data.
        let entry = archive
            .by_name(&name)
            .map_err(|_| anyhow::anyhow!("lacks {}", one_line(&name)))?;
        let start = entry.data_start().context("has an entry without data")?;
        let inside = start
            .checked_add(entry.size())
            .is_some_and(|end| end <= length);
        if entry.compression() != CompressionMethod::Stored || entry.encrypted() || !inside {
            bail!(
                "{} is compressed or reaches past the end of the file: refused",
                one_line(&name)
            );
        }
        places.insert(storage.key.clone(), (start, entry.size()));
        fits(storage, start, entry.size())
    };
    let tensors = pickle::run(&program)?.tensors()?;
    tensors
        .into_iter()
        .map(|(name, tensor)| Ok((name, entry_of(&tensor, place(&tensor.storage)?))))
        .collect()
}

fn from_stream(mut file: Reader, length: u64) -> Result<Vec<(String, Entry)>> {
    let mut start = Vec::new();
    file.seek(SeekFrom::Start(0))?;
    (&mut file).take(PICKLE_LIMIT).read_to_end(&mut start)?;
    let mut at = 0;
    let mut next = || -> Result<pickle::Unpickled> {
        let done = pickle::run(&start[at..])?;
        at += done.length;
        Ok(done)
    };
    // Magic number, protocol and system.
    for _ in 0..3 {
        next()?;
    }
    let state = next()?;
    let keys = next()?.texts()?;
    let storages: HashMap<&str, &Storage> = state
        .storages()
        .iter()
        .map(|s| (s.key.as_str(), s))
        .collect();
    let mut places = HashMap::new();
    let mut at = at as u64;
    for key in keys {
        let storage = storages
            .get(key.as_str())
            .with_context(|| format!("has a storage {:?} that nothing uses", one_line(&key)))?;
        let mut count = [0; 8];
        file.seek(SeekFrom::Start(at))?;
        file.read_exact(&mut count).context("is truncated")?;
        let size = u64::from_le_bytes(count).checked_mul(storage.size as u64);
        let end = size
            .and_then(|size| (at + 8).checked_add(size))
            .filter(|&end| end <= length);
        let end = end.context("is truncated, or a storage claims more than the file has")?;
        places.insert(key, (at + 8, end - at - 8));
        at = end;
    }
    let place = |storage: &Storage| {
        let &(start, size) = places
            .get(&storage.key)
            .with_context(|| format!("lacks storage {:?}", one_line(&storage.key)))?;
        fits(storage, start, size)
    };
    let tensors = state.tensors()?;
    tensors
        .into_iter()
        .map(|(name, tensor)| Ok((name, entry_of(&tensor, place(&tensor.storage)?))))
        .collect()
}

/// The start of a storage of `size` bytes, if it is as large as the pickle says.
fn fits(storage: &Storage, start: u64, size: u64) -> Result<u64> {
    let claimed = (storage.count as u64).checked_mul(storage.size as u64);
    if claimed.is_none_or(|claimed| claimed > size) {
        bail!(
            "storage {:?} claims {} numbers but has {size} bytes",
            one_line(&storage.key),
            storage.count
        );
    }
    Ok(start)
}

fn entry_of(tensor: &Tensor, start: u64) -> Entry {
    let offset = start + (tensor.offset * tensor.storage.size) as u64;
    let mut entry = Entry::new(tensor.storage.dtype.clone(), tensor.shape.clone(), offset);
    let mut dense = 1;
    let follows = |(&size, &stride): (&usize, &usize)| {
        let fits = size == 1 || stride == dense;
        dense *= size;
        fits
    };
    if !std::iter::zip(&tensor.shape, &tensor.strides)
        .rev()
        .all(follows)
    {
        entry.strides = Some(tensor.strides.clone());
    }
    entry
}
