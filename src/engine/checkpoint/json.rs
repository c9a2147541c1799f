//! JSON as Python writes it: bare `NaN`, `Infinity` and `-Infinity` are allowed and become strings.
//!
//! Scheduler files carry `"lambda_min_clipped": -Infinity`, which is not JSON. Everything else is serde_json's,
//! with its own limit on depth.
use super::place::Place;
use anyhow::{Context, Result, bail};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use std::io::Read;

/// Real configs have a few kilobytes.
pub const CONFIG_LIMIT: u64 = 4 << 20;
/// A vocabulary has 150 000. In memory a value takes many times its room in the file.
const MOST_VALUES: usize = 1 << 19;

/// Reads a whole file, refusing anything that is not a plain file of at most `limit` bytes.
pub fn read_bounded(place: &Place, limit: u64) -> Result<Vec<u8>> {
    let name = place.display();
    let mut bytes = Vec::new();
    let file = place.open()?;
    file.reader()
        .take(limit + 1)
        .read_to_end(&mut bytes)
        .with_context(|| format!("{name} cannot be read"))?;
    if bytes.len() as u64 > limit {
        bail!("{name} is larger than {limit} bytes: not a file of this kind");
    }
    Ok(bytes)
}

/// The object in a file.
pub fn read_object(place: &Place, limit: u64) -> Result<Map<String, Value>> {
    let bytes = read_bounded(place, limit)?;
    parse_object(&bytes).with_context(|| place.display().into_owned())
}

/// The object in a text.
pub fn parse_object(bytes: &[u8]) -> Result<Map<String, Value>> {
    if bytes.iter().filter(|&&byte| byte == b',').count() > MOST_VALUES {
        bail!("more than {MOST_VALUES} values: not a file of this kind");
    }
    let text = quote_bare_numbers(bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes));
    match serde_json::from_slice(&text) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(_) => bail!("not a JSON object"),
        Err(err) => bail!("not valid JSON: {}", one_line(&err.to_string())),
    }
}

/// Puts quotes around the three words outside of strings.
fn quote_bare_numbers(bytes: &[u8]) -> Vec<u8> {
    const WORDS: [&[u8]; 3] = [b"-Infinity", b"Infinity", b"NaN"];
    let mut out = Vec::with_capacity(bytes.len() + 16);
    let mut in_string = false;
    let mut i = 0;
    while i < bytes.len() {
        let byte = bytes[i];
        if in_string {
            out.push(byte);
            if byte == b'\\' && i + 1 < bytes.len() {
                i += 1;
                out.push(bytes[i]);
            } else if byte == b'"' {
                in_string = false;
            }
        } else if let Some(word) = WORDS.iter().find(|w| bytes[i..].starts_with(w)) {
            out.push(b'"');
            out.extend_from_slice(word);
            out.push(b'"');
            i += word.len() - 1;
        } else {
            in_string = byte == b'"';
            out.push(byte);
        }
        i += 1;
    }
    out
}

/// A struct from an object; the error names the key.
pub fn decode<C: DeserializeOwned>(map: &Map<String, Value>) -> Result<C> {
    let error = match serde_json::from_value(Value::Object(map.clone())) {
        Ok(config) => return Ok(config),
        Err(error) => complaint(&error),
    };
    // serde names a key that is missing, but not one whose value is wrong: that is the key
    // without which the complaint is another one.
    // Each try copies the whole, so of what is no config the key is not looked for.
    let small = || serde_json::to_string(map).is_ok_and(|text| text.len() <= 1 << 16);
    if !error.starts_with("missing field") && map.len() <= 1000 && small() {
        for (key, value) in map {
            // In the order of the file: of several complaints the first is made.
            let mut rest = map.clone();
            rest.shift_remove(key);
            let other = serde_json::from_value::<C>(Value::Object(rest)).err();
            if other.is_none_or(|other| complaint(&other) != error) {
                let value = one_line(&value.to_string());
                bail!("{} = {}: {error}", one_line(key), shorten(&value, 60));
            }
        }
    }
    bail!("{error}")
}

/// serde's complaint in one line, without the names of Rust's types.
fn complaint(error: &serde_json::Error) -> String {
    one_line(&error.to_string())
        .replace("expected usize", "expected a whole number")
        .replace("expected f64", "expected a number")
}

/// A text of strangers, fit for one line of a message.
pub fn one_line(text: &str) -> String {
    let clean: String = text
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    shorten(&clean, 300)
}

fn shorten(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_string(),
    }
}
