//! The stack machine of pickles, without the calls.
use super::names::{Class, Storage, Tensor};
use anyhow::{Context, Result, bail};
use std::collections::HashMap;

/// The largest published networks need some ten thousand.
const MOST_VALUES: usize = 1 << 18;

/// A value; containers and texts are numbers of their place in the machine's arena.
#[derive(Clone, Copy, Debug)]
pub enum Value<'a> {
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

#[derive(Default)]
pub struct Machine<'a> {
    bytes: &'a [u8],
    pub at: usize,
    pub made: usize,
    stack: Vec<Value<'a>>,
    marks: Vec<usize>,
    memo: HashMap<u32, Value<'a>>,
    pub sequences: Vec<Vec<Value<'a>>>,
    pub dicts: Vec<Vec<(Value<'a>, Value<'a>)>>,
    pub storages: Vec<Storage>,
    pub tensors: Vec<Tensor>,
}

impl<'a> Machine<'a> {
    /// At the start of a program.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self {
            bytes,
            ..Self::default()
        }
    }

    /// One instruction; the result where it was the last.
    pub fn step(&mut self) -> Result<Option<Value<'a>>> {
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

    pub fn push(&mut self, value: Value<'a>) -> Result<()> {
        self.count()?;
        self.stack.push(value);
        Ok(())
    }

    fn push_sequence(&mut self, values: Vec<Value<'a>>) -> Result<()> {
        self.sequences.push(values);
        self.push(Value::Sequence(self.sequences.len() - 1))
    }

    pub fn push_dict(&mut self, items: Vec<(Value<'a>, Value<'a>)>) -> Result<()> {
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
}
