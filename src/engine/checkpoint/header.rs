//! The header of a `.safetensors` file: what the tensors are and where, checked against the file's length.
//!
//! ```text
//! bytes 0..8     N, little endian
//! bytes 8..8+N   JSON: name -> {dtype, shape, data_offsets}
//! the rest       the data, without gaps
//! ```
use super::json::one_line;
use super::weights::{Entry, FileType};
use anyhow::{Result, bail};
use safetensors::tensor::{Dtype, Metadata};
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};
use std::collections::{HashMap, HashSet};
use std::io::Read;

/// A large network's header is a quarter of a megabyte.
const LIMIT: u64 = 16 << 20;

/// The texts that were written beside the tensors.
pub fn notes(file: impl Read, length: u64) -> Result<HashMap<String, String>> {
    let (metadata, _) = metadata(file, length)?;
    Ok(metadata.metadata().clone().unwrap_or_default())
}

/// The tensors of a file of `length` bytes.
pub fn read(file: impl Read, length: u64) -> Result<Vec<(String, Entry)>> {
    let (metadata, start) = metadata(file, length)?;
    let mut entries = Vec::new();
    for (name, info) in metadata.tensors() {
        let dtype = match info.dtype {
            Dtype::F64 => FileType::F64,
            Dtype::F32 => FileType::F32,
            Dtype::F16 => FileType::F16,
            Dtype::BF16 => FileType::BF16,
            other => FileType::Other(format!("{other:?}")),
        };
        let entry = Entry::new(
            dtype,
            info.shape.clone(),
            start + info.data_offsets.0 as u64,
        );
        entries.push((name, entry));
    }
    Ok(entries)
}

/// The header, and where the data begins.
fn metadata(mut file: impl Read, length: u64) -> Result<(Metadata, u64)> {
    let mut size = [0; 8];
    if length < 8 || file.read_exact(&mut size).is_err() {
        bail!("only {length} bytes long: not a safetensors file");
    }
    let size = u64::from_le_bytes(size);
    if size > LIMIT && size <= length - 8 {
        bail!("has a header of {size} bytes, and {LIMIT} are read at most");
    }
    if size > length - 8 {
        bail!(
            "claims a header of {size} bytes in a file of {length}: truncated or not a safetensors file"
        );
    }
    let mut header = vec![0; size as usize];
    if file.read_exact(&mut header).is_err() {
        bail!("truncated inside its header");
    }
    let bad = |err: &dyn std::fmt::Display| one_line(&format!("has a bad header: {err}"));
    if let Err(err) = serde_json::from_slice::<UniqueKeys>(&header) {
        bail!(bad(&err));
    }
    // The safetensors crate checks that sizes follow from shapes and that the data has no gaps or overlaps.
    let metadata: Metadata = match serde_json::from_slice(&header) {
        Ok(metadata) => metadata,
        Err(err) => bail!(bad(&err)),
    };
    let start = 8 + size;
    let found = length - start;
    if metadata.data_len() as u64 != found {
        bail!(
            "should hold {} bytes of data but has {found}: truncated, download it again",
            metadata.data_len()
        );
    }
    Ok((metadata, start))
}

/// A JSON object in which no key stands twice; serde would silently keep the last.
struct UniqueKeys;

impl<'de> Deserialize<'de> for UniqueKeys {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Keys;
        impl<'de> Visitor<'de> for Keys {
            type Value = UniqueKeys;
            fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<UniqueKeys, A::Error> {
                let mut seen = HashSet::new();
                while let Some((key, _)) = map.next_entry::<String, IgnoredAny>()? {
                    if seen.contains(&key) {
                        return Err(serde::de::Error::custom(format!("{key:?} stands twice")));
                    }
                    seen.insert(key);
                }
                Ok(UniqueKeys)
            }
        }
        deserializer.deserialize_map(Keys)
    }
}
