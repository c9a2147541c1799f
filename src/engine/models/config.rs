//! Reading `config.json`: what the models use, and a refusal of what would change the picture and is not implemented.
//!
//! A key that diffusers' class does not know is ignored, as there (files of 2022 carry several). A key that it does know and
//! that a model here does not use is compared with the one value under which the two agree.
use anyhow::{Result, bail, ensure};
use serde::Deserialize;
use serde_json::{Map, Value};

/// A value for all blocks, or one for each.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(untagged)]
pub enum OneOrMany<T> {
    One(T),
    Many(Vec<T>),
}

impl<T: Clone> OneOrMany<T> {
    /// One value a block; `key` names the list if it has another length.
    pub fn for_blocks(&self, blocks: usize, key: &str) -> Result<Vec<T>> {
        match self {
            Self::One(value) => Ok(vec![value.clone(); blocks]),
            Self::Many(values) if values.len() == blocks => Ok(values.clone()),
            Self::Many(values) => bail!("{key} has {} values for {blocks} blocks", values.len()),
        }
    }
}

/// `sample_size`: one side of a square, or height and width.
pub fn height_and_width(size: &OneOrMany<usize>) -> Result<(usize, usize)> {
    let (height, width) = match size {
        OneOrMany::One(side) => (*side, *side),
        OneOrMany::Many(sides) if sides.len() == 2 => (sides[0], sides[1]),
        OneOrMany::Many(sides) => bail!(
            "sample_size has {} values; one or two are accepted",
            sides.len()
        ),
    };
    check_count("sample_size", height, 1 << 16)?;
    check_count("sample_size", width, 1 << 16)?;
    Ok((height, width))
}

/// Refuses a key whose value is none of those in the table; null and absence are always accepted.
pub fn refuse_unsupported(rest: &Map<String, Value>, supported: &[(&str, &[Value])]) -> Result<()> {
    for (key, accepted) in supported {
        match rest.get(*key) {
            None | Some(Value::Null) => {}
            Some(value) if accepted.contains(value) => {}
            Some(value) => {
                let accepted: Vec<String> = accepted
                    .iter()
                    .map(Value::to_string)
                    .chain(["null".into()])
                    .collect();
                bail!(
                    "{key} = {value} is not supported (accepted: {})",
                    accepted.join(", ")
                );
            }
        }
    }
    Ok(())
}

/// Bounds what a configuration may ask for before anything is built from it.
pub fn check_count(key: &str, value: usize, most: usize) -> Result<usize> {
    if value == 0 || value > most {
        bail!("{key} = {value}: it must be between 1 and {most}");
    }
    Ok(value)
}

/// What every decoder needs: pictures of one channel or three, and a scale for its latents.
pub fn check_decoder(out_channels: usize, scaling_factor: f64) -> Result<()> {
    ensure!(
        out_channels == 3 || out_channels == 1,
        "out_channels = {out_channels}: a picture has 3, or 1"
    );
    ensure!(
        scaling_factor.is_finite() && scaling_factor != 0.0,
        "scaling_factor = {scaling_factor} is not a number to divide by"
    );
    Ok(())
}
