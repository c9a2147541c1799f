//! Just enough of Python's pickle to read tensors, and nothing that could run.
//!
//! A pickle is a program for a stack machine which may call any Python function by name. Here only the handful of
//! names that a state dict needs exist; every other is refused with its name. Values live in one arena and refer to each
//! other by number, so no nesting can exhaust the stack, and the arena's size is bounded.
//!
//! - [`machine`]: the instructions and what they work on
//! - [`names`]: the names that exist, and what calling them makes
mod machine;
mod names;

use anyhow::{Context, Result, bail, ensure};
use machine::{Machine, Value};
pub use names::{Storage, Tensor};

/// The bytes of a name. One text may be used a million times, and each use is a copy.
const LONGEST_NAME: usize = 1000;

/// What a finished program left behind.
pub struct Unpickled<'a> {
    machine: Machine<'a>,
    result: Value<'a>,
    /// How many bytes the program has.
    pub length: usize,
}

impl Unpickled<'_> {
    /// The tensors of a state dict.
    pub fn tensors(&self) -> Result<Vec<(String, Tensor)>> {
        let Value::Dict(mut dict) = self.result else {
            bail!("holds no dictionary of tensors");
        };
        // A training's file has the state dict among other things, which are left aside.
        let inner = self.machine.dicts[dict].iter().find_map(|item| match item {
            (Value::Text("state_dict"), Value::Dict(inner)) => Some(*inner),
            _ => None,
        });
        dict = inner.unwrap_or(dict);
        let mut tensors = Vec::new();
        for &(key, value) in &self.machine.dicts[dict] {
            match (key, value) {
                (Value::Text(name), _) if name.len() > LONGEST_NAME => {
                    bail!("a name is too long: refused")
                }
                (Value::Text(name), Value::Tensor(tensor)) => {
                    tensors.push((name.to_string(), self.machine.tensors[tensor].clone()));
                }
                // The step a training was at, and the like.
                _ => {}
            }
        }
        ensure!(!tensors.is_empty(), "holds no dictionary of tensors");
        Ok(tensors)
    }

    /// The storages that were named, in the order of their first mention.
    pub fn storages(&self) -> &[Storage] {
        &self.machine.storages
    }

    /// The texts of a list of texts.
    pub fn texts(&self) -> Result<Vec<String>> {
        let Value::Sequence(list) = self.result else {
            bail!("holds no list of storages");
        };
        let text = |value: &Value| match value {
            Value::Text(text) if text.len() <= LONGEST_NAME => Ok(text.to_string()),
            _ => bail!("a storage has no name, or a long one: refused"),
        };
        self.machine.sequences[list].iter().map(text).collect()
    }
}

/// Runs the program at the start of `bytes`.
pub fn run(bytes: &[u8]) -> Result<Unpickled<'_>> {
    let mut machine = Machine::new(bytes);
    loop {
        let at = machine.at;
        if let Some(result) = machine
            .step()
            .with_context(|| format!("its pickle is bad at byte {at}"))?
        {
            let length = machine.at;
            return Ok(Unpickled {
                machine,
                result,
                length,
            });
        }
    }
}
