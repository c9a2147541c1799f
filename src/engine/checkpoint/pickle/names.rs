//! The names that a pickle of tensors needs, which are all that exist, and what calling them makes.
use super::super::json::one_line;
use super::super::weights::FileType;
use super::LONGEST_NAME;
use super::machine::{Machine, Value};
use anyhow::{Context, Result, bail};

#[derive(Clone, Copy, Debug)]
pub enum Class {
    OrderedDict,
    RebuildTensor,
    RebuildParameter,
    /// A tensor that carried attributes of Python's: the call that makes it is an argument.
    RebuildFromType,
    /// What a training's file has beside its tensors: a name that stands for nothing, and calling it makes nothing.
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

/// Lightning's callbacks, its settings, numpy's numbers (the best loss), sets, paths: what trainings write beside the weights.
fn is_inert(module: &str, name: &str) -> bool {
    match module {
        "numpy" => matches!(name, "dtype" | "ndarray"),
        "numpy.core.multiarray" | "numpy._core.multiarray" => {
            matches!(name, "scalar" | "_reconstruct")
        }
        "_codecs" => name == "encode",
        "builtins" | "__builtin__" => {
            matches!(
                name,
                "set" | "frozenset" | "list" | "dict" | "int" | "float"
            )
        }
        "collections" => matches!(name, "Counter" | "defaultdict"),
        "argparse" => name == "Namespace",
        "typing" => name == "Any",
        "pathlib" => name.ends_with("Path"),
        "torch" => matches!(
            name,
            "Tensor" | "Size" | "device" | "float16" | "bfloat16" | "float32"
        ),
        "torch.nn.parameter" => name == "Parameter",
        _ => ["pytorch_lightning.", "lightning.", "omegaconf."]
            .iter()
            .any(|package| module.starts_with(package)),
    }
}

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

impl<'a> Machine<'a> {
    /// The allow-list.
    pub fn class(&mut self, module: &str, name: &str) -> Result<()> {
        let storage = STORAGES.iter().position(|(storage, _)| *storage == name);
        let class = match (module, name) {
            ("collections", "OrderedDict") => Class::OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2") => Class::RebuildTensor,
            ("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state") => {
                Class::RebuildParameter
            }
            ("torch._tensor", "_rebuild_from_type_v2") => Class::RebuildFromType,
            ("torch" | "torch.storage", _) if storage.is_some() => {
                Class::Storage(storage.unwrap_or_default())
            }
            _ if is_inert(module, name) => Class::Inert,
            _ => bail!(
                "contains {}.{}, which is not a tensor: refused",
                one_line(module),
                one_line(name)
            ),
        };
        self.push(Value::Class(class))
    }

    pub fn call(&mut self, class: Value<'a>, args: Value<'a>) -> Result<()> {
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
            (Class::Inert, _) => self.push(Value::None),
            (
                Class::RebuildFromType,
                &[
                    call @ Value::Class(Class::RebuildTensor | Class::RebuildParameter),
                    _,
                    args @ Value::Sequence(_),
                    ..,
                ],
            ) => self.call(call, args),
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

    /// `('storage', class, key, device, count)`: torch keeps numbers outside of the pickle. Before version 0.4 a sixth entry could be a part of
    /// the storage.
    pub fn persistent(&mut self, id: Value<'a>) -> Result<()> {
        let Value::Sequence(id) = id else {
            bail!("a reference is not torch's");
        };
        let &[
            Value::Text("storage"),
            Value::Class(Class::Storage(class)),
            Value::Text(key),
            _,
            Value::Int(count),
            ref part @ ..,
        ] = &self.sequences[id][..]
        else {
            bail!("a reference is not torch's");
        };
        if !matches!(part, [] | [Value::None]) {
            bail!(
                "a storage is a part of another, as torch before 0.4 wrote it: save it again with a newer one"
            );
        }
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
