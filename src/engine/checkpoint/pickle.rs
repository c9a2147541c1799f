//! Just enough of Python's pickle to read tensors, and nothing that could run.
//!
//! A pickle is a program for a stack machine which may call any Python function by name. Here only the handful of
//! names that a state dict needs exist; every other is refused with its name. Values live in one arena and refer to each
//! other by number, so no nesting can exhaust the stack, and the arena's size is bounded.
use super::json::one_line;
use super::weights::FileType;
use anyhow::{Context, Result, bail};
use std::collections::HashMap;

/// The largest published networks need some ten thousand.
const MOST_VALUES: usize = 1 << 18;
/// The bytes of a name. One text may be used a million times, and each use is a copy.
const LONGEST_NAME: usize = 1000;

/// A value; containers and texts are numbers of their place in the machine's arena.
#[derive(Clone, Copy, Debug)]
enum Value<'a> {
    None,
    Bool(#[allow(dead_code, reason = "only its kind matters")] bool),
    Int(i64),
    Float,
    Text(&'a str),
    Sequence(usize),
    Dict(usize),
    Class(Class),
    Storage(usize),
    Tensor(usize),
}

#[derive(Clone, Copy, Debug)]
enum Class {
    OrderedDict,
    RebuildTensor,
    RebuildParameter,
    /// A name that may stand in a training's file, and nothing more: calling it is refused as calling any other is.
    Inert,
    /// With the place of its name in [`STORAGES`].
    Storage(usize),
}

/// torch's storage classes and the size of their numbers.
const STORAGES: [(&str, usize); 10] = [
    ("FloatStorage", 4),
    ("HalfStorage", 2),
    ("BFloat16Storage", 2),
    ("DoubleStorage", 8),
    ("LongStorage", 8),
    ("IntStorage", 4),
    ("ShortStorage", 2),
    ("CharStorage", 1),
    ("ByteStorage", 1),
    ("BoolStorage", 1),
];

/// Where a tensor's numbers are: `key` is the name of the storage in its archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Storage {
    pub key: String,
    pub dtype: FileType,
    /// Bytes per number.
    pub size: usize,
    pub count: usize,
}

/// A view of a storage; it lies inside.
#[derive(Clone, Debug)]
pub struct Tensor {
    pub storage: Storage,
    pub offset: usize,
    pub shape: Vec<usize>,
    pub strides: Vec<usize>,
}

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
        let items = &self.machine.dicts[dict];
        let tensor = |&(key, value): &(Value, Value)| match (key, value) {
            (Value::Text(name), _) if name.len() > LONGEST_NAME => {
                bail!("a name is too long: refused")
            }
            (Value::Text(name), Value::Tensor(tensor)) => {
                Ok((name.to_string(), self.machine.tensors[tensor].clone()))
            }
            (Value::Text(name), _) => bail!("entry {:?} is not a tensor: refused", one_line(name)),
            _ => bail!("an entry has no name: refused"),
        };
        items.iter().map(tensor).collect()
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
    let mut machine = Machine {
        bytes,
        ..Machine::default()
    };
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

#[derive(Default)]
struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    made: usize,
    stack: Vec<Value<'a>>,
    marks: Vec<usize>,
    memo: HashMap<u32, Value<'a>>,
    sequences: Vec<Vec<Value<'a>>>,
    dicts: Vec<Vec<(Value<'a>, Value<'a>)>>,
    storages: Vec<Storage>,
    tensors: Vec<Tensor>,
}

impl<'a> Machine<'a> {
    /// One instruction; the result where it was the last.
    fn step(&mut self) -> Result<Option<Value<'a>>> {
        let op = self.take(1)?[0];
        match op {
            // PROTO, FRAME
            0x80 => drop(self.take(1)?),
            0x95 => drop(self.take(8)?),
            b'.' => return Ok(Some(self.pop()?)),
            // MARK, POP, POP_MARK, DUP
            b'(' => {
                self.count()?;
                self.marks.push(self.stack.len());
            }
            b'0' => drop(self.pop()?),
            b'1' => drop(self.pop_mark()?),
            b'2' => {
                let top = self.top()?;
                self.push(top)?;
            }
            b'N' => self.push(Value::None)?,
            0x88 | 0x89 => self.push(Value::Bool(op == 0x88))?,
            // BININT, BININT1, BININT2, LONG1, BINFLOAT
            b'J' => {
                let value = i32::from_le_bytes(self.array()?);
                self.push(Value::Int(value.into()))?;
            }
            b'K' => {
                let value = self.take(1)?[0];
                self.push(Value::Int(value.into()))?;
            }
            b'M' => {
                let value = u16::from_le_bytes(self.array()?);
                self.push(Value::Int(value.into()))?;
            }
            0x8a => {
                let value = self.long()?;
                self.push(Value::Int(value))?;
            }
            b'G' => {
                self.take(8)?;
                self.push(Value::Float)?;
            }
            // BINUNICODE, SHORT_BINUNICODE, BINUNICODE8, and the byte strings of Python 2
            b'X' | b'T' => {
                let length = u32::from_le_bytes(self.array()?);
                self.text(length as usize)?;
            }
            0x8c | b'U' => {
                let length = self.take(1)?[0];
                self.text(length.into())?;
            }
            0x8d => {
                let length = u64::from_le_bytes(self.array()?);
                self.text(usize::try_from(length)?)?;
            }
            // EMPTY_LIST, EMPTY_TUPLE, EMPTY_DICT, TUPLE, TUPLE1-3, LIST
            b']' | b')' => self.push_sequence(Vec::new())?,
            b'}' => self.push_dict(Vec::new())?,
            b't' | b'l' => {
                let values = self.pop_mark()?;
                self.push_sequence(values)?;
            }
            0x85..=0x87 => {
                let values = self.pop_many((op - 0x84).into())?;
                self.push_sequence(values)?;
            }
            // APPEND, APPENDS, SETITEM, SETITEMS
            b'a' => {
                let value = self.pop()?;
                self.append(vec![value])?;
            }
            b'e' => {
                let values = self.pop_mark()?;
                self.append(values)?;
            }
            b's' => {
                let pair = self.pop_many(2)?;
                self.set_items(pair)?;
            }
            b'u' => {
                let values = self.pop_mark()?;
                self.set_items(values)?;
            }
            // BINPUT, LONG_BINPUT, MEMOIZE, BINGET, LONG_BINGET
            b'q' => {
                let key = self.take(1)?[0];
                self.remember(key.into())?;
            }
            b'r' => {
                let key = u32::from_le_bytes(self.array()?);
                self.remember(key)?;
            }
            0x94 => self.remember(self.memo.len() as u32)?,
            b'h' => {
                let key = self.take(1)?[0];
                self.recall(key.into())?;
            }
            b'j' => {
                let key = u32::from_le_bytes(self.array()?);
                self.recall(key)?;
            }
            // GLOBAL, STACK_GLOBAL
            b'c' => {
                let module = self.line()?;
                let name = self.line()?;
                self.class(module, name)?;
            }
            0x93 => match self.pop_many(2)?[..] {
                [Value::Text(module), Value::Text(name)] => self.class(module, name)?,
                _ => bail!("a name is not a text"),
            },
            // REDUCE, NEWOBJ: the only calls
            b'R' | 0x81 => {
                let args = self.pop()?;
                let class = self.pop()?;
                self.call(class, args)?;
            }
            // BUILD: a state dict's `_metadata`, which nothing needs
            b'b' => drop(self.pop()?),
            b'Q' => {
                let id = self.pop()?;
                self.persistent(id)?;
            }
            other => bail!("instruction {other:#04x} is not one that tensors need: refused"),
        }
        Ok(None)
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8]> {
        let rest = &self.bytes[self.at..];
        let taken = rest.get(..count).context("it ends too early")?;
        self.at += count;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        Ok(self.take(N)?.try_into().expect("N bytes were taken"))
    }

    /// A whole number of any length; those over 64 bits (a magic number) are only skipped.
    fn long(&mut self) -> Result<i64> {
        let length = self.take(1)?[0].into();
        let bytes = self.take(length)?;
        if bytes.len() > 8 {
            return Ok(i64::MIN);
        }
        let negative = bytes.last().is_some_and(|b| b & 0x80 != 0);
        let mut all = [if negative { 0xff } else { 0 }; 8];
        all[..bytes.len()].copy_from_slice(bytes);
        Ok(i64::from_le_bytes(all))
    }

    fn line(&mut self) -> Result<&'a str> {
        let rest = &self.bytes[self.at..];
        let end = rest
            .iter()
            .take(1000)
            .position(|&b| b == b'\n')
            .context("a name has no end")?;
        self.at += end + 1;
        Ok(std::str::from_utf8(&rest[..end])?)
    }

    fn text(&mut self, length: usize) -> Result<()> {
        let text = std::str::from_utf8(self.take(length)?)?;
        self.push(Value::Text(text))
    }

    fn count(&mut self) -> Result<()> {
        self.made += 1;
        if self.made > MOST_VALUES {
            bail!("it makes more than {MOST_VALUES} values: refused");
        }
        Ok(())
    }

    fn push(&mut self, value: Value<'a>) -> Result<()> {
        self.count()?;
        self.stack.push(value);
        Ok(())
    }

    fn push_sequence(&mut self, values: Vec<Value<'a>>) -> Result<()> {
        self.sequences.push(values);
        self.push(Value::Sequence(self.sequences.len() - 1))
    }

    fn push_dict(&mut self, items: Vec<(Value<'a>, Value<'a>)>) -> Result<()> {
        self.dicts.push(items);
        self.push(Value::Dict(self.dicts.len() - 1))
    }

    fn top(&self) -> Result<Value<'a>> {
        self.stack.last().copied().context("the stack is empty")
    }

    fn pop(&mut self) -> Result<Value<'a>> {
        // What lies under a mark belongs to the frame below.
        if self
            .marks
            .last()
            .is_some_and(|&mark| mark >= self.stack.len())
        {
            bail!("the stack is empty");
        }
        self.stack.pop().context("the stack is empty")
    }

    fn pop_many(&mut self, count: usize) -> Result<Vec<Value<'a>>> {
        let mut values = Vec::with_capacity(count);
        for _ in 0..count {
            values.push(self.pop()?);
        }
        values.reverse();
        Ok(values)
    }

    fn pop_mark(&mut self) -> Result<Vec<Value<'a>>> {
        let mark = self.marks.pop().context("a mark is missing")?;
        Ok(self.stack.split_off(mark))
    }

    fn remember(&mut self, key: u32) -> Result<()> {
        self.count()?;
        self.memo.insert(key, self.top()?);
        Ok(())
    }

    fn recall(&mut self, key: u32) -> Result<()> {
        let value = *self
            .memo
            .get(&key)
            .context("a value is used before it is made")?;
        self.push(value)
    }

    fn append(&mut self, values: Vec<Value<'a>>) -> Result<()> {
        let Value::Sequence(list) = self.top()? else {
            bail!("something is appended to what is no list");
        };
        self.sequences[list].extend(values);
        Ok(())
    }

    fn set_items(&mut self, values: Vec<Value<'a>>) -> Result<()> {
        let Value::Dict(dict) = self.top()? else {
            bail!("a key is set in what is no dictionary");
        };
        let (pairs, []) = values.as_chunks::<2>() else {
            bail!("a key has no value");
        };
        self.dicts[dict].extend(pairs.iter().map(|&[key, value]| (key, value)));
        Ok(())
    }

    /// The allow-list.
    fn class(&mut self, module: &str, name: &str) -> Result<()> {
        let storage = STORAGES.iter().position(|(storage, _)| *storage == name);
        let class = match (module, name) {
            ("collections", "OrderedDict") => Class::OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2") => Class::RebuildTensor,
            ("torch._utils", "_rebuild_parameter") => Class::RebuildParameter,
            ("torch" | "torch.storage", _) if storage.is_some() => {
                Class::Storage(storage.unwrap_or_default())
            }
            (module, _) if module.starts_with("pytorch_lightning.") => Class::Inert,
            _ => bail!(
                "contains {}.{}, which is not a tensor: refused",
                one_line(module),
                one_line(name)
            ),
        };
        self.push(Value::Class(class))
    }

    fn call(&mut self, class: Value<'a>, args: Value<'a>) -> Result<()> {
        let (Value::Class(class), Value::Sequence(args)) = (class, args) else {
            bail!("it calls what is no class: refused");
        };
        let args = std::mem::take(&mut self.sequences[args]);
        match (class, &args[..]) {
            (Class::OrderedDict, []) => self.push_dict(Vec::new()),
            (Class::OrderedDict, &[Value::Sequence(pairs)]) => {
                let mut items = Vec::new();
                // One list may be copied as often as it is named.
                self.made += self.sequences[pairs].len();
                for pair in &self.sequences[pairs] {
                    match pair {
                        Value::Sequence(pair) if self.sequences[*pair].len() == 2 => {
                            items.push((self.sequences[*pair][0], self.sequences[*pair][1]));
                        }
                        _ => bail!("a dictionary is made of what are no pairs"),
                    }
                }
                self.push_dict(items)
            }
            (Class::RebuildParameter, [tensor @ Value::Tensor(_), ..]) => self.push(*tensor),
            (
                Class::RebuildTensor,
                &[
                    Value::Storage(storage),
                    Value::Int(offset),
                    Value::Sequence(shape),
                    Value::Sequence(strides),
                    ..,
                ],
            ) => {
                let tensor = self.tensor(storage, offset, shape, strides)?;
                self.tensors.push(tensor);
                self.push(Value::Tensor(self.tensors.len() - 1))
            }
            _ => bail!("it calls {class:?} in a way that makes no tensor: refused"),
        }
    }

    fn sizes(&self, sequence: usize) -> Result<Vec<usize>> {
        let size = |value: &Value| match value {
            Value::Int(size) => usize::try_from(*size).context("a size is negative"),
            _ => bail!("a size is not a number"),
        };
        let sizes = &self.sequences[sequence];
        if sizes.len() > 8 {
            bail!("a tensor has {} dimensions", sizes.len());
        }
        sizes.iter().map(size).collect()
    }

    /// A view that lies inside its storage and is not larger than it.
    fn tensor(&self, storage: usize, offset: i64, shape: usize, strides: usize) -> Result<Tensor> {
        let storage = self.storages[storage].clone();
        let (shape, strides) = (self.sizes(shape)?, self.sizes(strides)?);
        let offset = usize::try_from(offset).context("an offset is negative")?;
        let count = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
        let mut last = Some(offset);
        for (&size, &stride) in std::iter::zip(&shape, &strides) {
            last = last
                .zip(size.saturating_sub(1).checked_mul(stride))
                .and_then(|(a, b)| a.checked_add(b));
        }
        let inside = match (count, last) {
            (Some(0), Some(_)) => offset <= storage.count,
            (Some(count), Some(last)) => last < storage.count && count <= storage.count,
            _ => false,
        };
        if shape.len() != strides.len() || !inside {
            bail!(
                "a tensor of shape {shape:?} does not lie inside its storage of {} numbers",
                storage.count
            );
        }
        Ok(Tensor {
            storage,
            offset,
            shape,
            strides,
        })
    }

    /// `('storage', class, key, device, count)`: torch keeps numbers outside of the pickle.
    fn persistent(&mut self, id: Value<'a>) -> Result<()> {
        let Value::Sequence(id) = id else {
            bail!("a reference is not torch's");
        };
        let &[
            Value::Text("storage"),
            Value::Class(Class::Storage(class)),
            Value::Text(key),
            _,
            Value::Int(count),
            ..,
        ] = &self.sequences[id][..]
        else {
            bail!("a reference is not torch's");
        };
        if key.len() > LONGEST_NAME {
            bail!("a storage's name is too long: refused");
        }
        let (name, size) = STORAGES[class];
        let dtype = match name {
            "FloatStorage" => FileType::F32,
            "HalfStorage" => FileType::F16,
            "BFloat16Storage" => FileType::BF16,
            "DoubleStorage" => FileType::F64,
            other => FileType::Other(other.trim_end_matches("Storage").to_string()),
        };
        let count = usize::try_from(count).context("a storage has a negative size")?;
        self.storages.push(Storage {
            key: key.to_string(),
            dtype,
            size,
            count,
        });
        self.push(Value::Storage(self.storages.len() - 1))
    }
}
