//! Tensors by name, read from the file when a layer asks for them.
//!
//! Positioned reads into the tensor's own memory: nothing is mapped and no file is held, so a model costs its own
//! size once. Names are brought to today's diffusers names; what is asked for is remembered, so that tensors
//! nobody asked for are found ([`Weights::finish`]).
use super::files::WeightFiles;
use super::json::one_line;
use super::lora::Patches;
use super::place::Source;
use super::read;
use anyhow::{Context, Result, bail};
use candle_core::{DType, Device, Shape, Tensor};
use candle_nn::VarBuilder;
use candle_nn::var_builder::SimpleBackend;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// The numbers of a tensor in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FileType {
    F64,
    F32,
    F16,
    BF16,
    /// Integers and others: fine where the tensor is ignored.
    Other(String),
}

impl FileType {
    /// Bytes of a number.
    fn size(&self) -> Result<usize> {
        Ok(match self {
            Self::F64 => 8,
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
            Self::Other(name) => bail!("holds {name}, not floating-point numbers"),
        })
    }
}

/// One tensor of a file. The reader of the format has checked that its numbers lie inside the file.
#[derive(Debug)]
pub struct Entry {
    pub dtype: FileType,
    pub shape: Vec<usize>,
    /// Distance between neighbours along each axis, in numbers; `None` where they follow each other.
    pub strides: Option<Vec<usize>>,
    /// Where in the file the first number is.
    pub offset: u64,
    file: usize,
    used: AtomicBool,
}

impl Entry {
    pub fn new(dtype: FileType, shape: Vec<usize>, offset: u64) -> Self {
        let used = AtomicBool::new(false);
        Self {
            dtype,
            shape,
            strides: None,
            offset,
            file: 0,
            used,
        }
    }

    /// Part `i` of `of` equal parts of its rows.
    pub fn rows(&self, i: usize, of: usize) -> Result<Self> {
        let mut part = self.view();
        let Some(rows) = part
            .shape
            .first_mut()
            .filter(|rows| rows.is_multiple_of(of))
        else {
            bail!("a tensor of shape {:?} has no {of} equal parts", self.shape);
        };
        *rows /= of;
        let row: usize = match &self.strides {
            Some(strides) => strides[0],
            None => self.shape[1..].iter().product(),
        };
        part.offset += (i * part.shape[0] * row * self.dtype.size()?) as u64;
        Ok(part)
    }

    /// Rows as columns.
    pub fn transposed(&self) -> Result<Self> {
        let &[rows, columns] = &self.shape[..] else {
            bail!("a tensor of shape {:?} is no matrix", self.shape);
        };
        let strides = match self.strides.as_deref() {
            Some(&[row, column]) => [column, row],
            _ => [1, columns],
        };
        Ok(Self {
            shape: vec![columns, rows],
            strides: Some(strides.to_vec()),
            ..self.view()
        })
    }

    /// How large it is in the file; integers aside.
    pub fn bytes(&self) -> u64 {
        let count: usize = self.shape.iter().product();
        (count * self.dtype.size().unwrap_or(0)) as u64
    }

    /// Whether its numbers are in 16 bits; integers, which no model keeps, pass.
    pub fn is_half(&self) -> bool {
        matches!(
            self.dtype,
            FileType::F16 | FileType::BF16 | FileType::Other(_)
        )
    }

    /// The same numbers for another reader.
    pub fn view(&self) -> Self {
        Self {
            strides: self.strides.clone(),
            file: self.file,
            ..Self::new(self.dtype.clone(), self.shape.clone(), self.offset)
        }
    }
}

/// Which names of a component's files are not today's names, and which are not wanted.
#[derive(Clone, Copy, Debug, Default)]
pub struct Naming {
    /// Removed from the front of a name where it is there: `text_model.`.
    pub strip: &'static str,
    /// `"encoder.*"`: every name that starts so; `"position_ids"`: every name whose last part it is.
    pub ignore: &'static [&'static str],
    /// How many of a text encoder's layers there are to be: a file may have more, and transformers reads the first ones, too.
    pub layers: Option<usize>,
}

impl Naming {
    /// Whether the tensor is one of a layer too many, by today's name.
    fn is_beyond(&self, name: &str) -> bool {
        let layer = name.strip_prefix("encoder.layers.");
        let layer = layer.and_then(|rest| rest.split('.').next()?.parse::<usize>().ok());
        self.layers
            .zip(layer)
            .is_some_and(|(layers, layer)| layer >= layers)
    }

    /// Today's name, or `None` for a tensor to leave out.
    fn name(&self, original: &str) -> Option<String> {
        let name = original.strip_prefix(self.strip).unwrap_or(original);
        let ignored = self
            .ignore
            .iter()
            .any(|pattern| match pattern.strip_suffix('*') {
                Some(start) => name.starts_with(start),
                None => name.rsplit('.').next() == Some(pattern),
            });
        // Attention blocks before diffusers 0.15: `query`, `key`, `value`, `proj_attn`.
        let name = name
            .replace(".query.", ".to_q.")
            .replace(".key.", ".to_k.")
            .replace(".value.", ".to_v.")
            .replace(".proj_attn.", ".to_out.0.");
        (!ignored).then_some(name)
    }
}

/// A component's tensors.
#[derive(Debug)]
pub struct Weights(Arc<Store>);

#[derive(Debug)]
struct Store {
    component: String,
    files: Vec<(String, Source)>,
    entries: HashMap<String, Entry>,
    patches: Patches,
}

impl Weights {
    /// Reads the headers. No tensor is read yet.
    pub fn open(files: &WeightFiles, naming: Naming) -> Result<Self> {
        let mut store = Store {
            component: files.component.clone(),
            files: Vec::new(),
            entries: HashMap::new(),
            patches: Patches::new(),
        };
        let mut beyond = 0;
        for place in &files.places {
            let label = place.display().into_owned();
            let file = place.open()?;
            let found = files.format.entries(&file);
            let mut found = found.with_context(|| label.clone())?;
            if let Some(selection) = &files.original {
                let pieces = found.into_iter();
                let pieces = pieces.map(|(name, entry)| selection.pieces(&name, entry));
                let pieces: Vec<_> = pieces.collect::<Result<_>>()?;
                found = pieces.into_iter().flatten().collect();
            }
            for (original, mut entry) in found {
                let Some(name) = naming.name(&original) else {
                    continue;
                };
                if naming.is_beyond(&name) {
                    beyond += 1;
                    continue;
                }
                entry.file = store.files.len();
                if store.entries.insert(name.clone(), entry).is_some() {
                    bail!("{label}: tensor {} is there twice", one_line(&name));
                }
            }
            store.files.push((label, file));
        }
        if let Some(layers) = naming.layers
            && beyond > 0
        {
            tracing::warn!(
                "{}: num_hidden_layers = {layers} in its config.json, and the file has more: {beyond} tensors are left out",
                store.component
            );
        }
        Ok(Self(Arc::new(store)))
    }

    /// The same with changes, which are made to a tensor when it is read.
    pub fn patched(mut self, patches: Patches) -> Self {
        let store = Arc::get_mut(&mut self.0).expect("nothing was built from it yet");
        store.patches = patches;
        self
    }

    /// What the models are built from. Tensors arrive in `dtype` on `device`.
    pub fn var_builder(&self, dtype: DType, device: &Device) -> VarBuilder<'static> {
        let backend = Box::new(Backend(self.0.clone()));
        VarBuilder::from_backend(backend, dtype, device.clone())
    }

    /// The names, as the models know them.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.entries.keys().map(String::as_str)
    }

    /// The shape of a tensor, where there is one of this name.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.0.entries.get(name).map(|e| e.shape.as_slice())
    }

    /// An error if the file holds tensors that no layer asked for: the config does not describe this file.
    pub fn finish(&self) -> Result<()> {
        let unused = |(name, entry): (&String, &Entry)| {
            (!entry.used.load(Ordering::Relaxed)).then(|| one_line(name))
        };
        let mut left: Vec<String> = self.0.entries.iter().filter_map(unused).collect();
        if left.is_empty() {
            return Ok(());
        }
        left.sort();
        let more = if left.len() > 3 { ", ..." } else { "" };
        bail!(
            "{}: {} tensors of the file have no place in the model that its config.json describes: {}{more}",
            self.0.component,
            left.len(),
            left[..left.len().min(3)].join(", ")
        )
    }
}

impl Store {
    fn entry(&self, name: &str) -> candle_core::Result<&Entry> {
        self.entries.get(name).ok_or_else(|| {
            let files: Vec<&str> = self.files.iter().map(|f| f.0.as_str()).collect();
            let more = if files.len() > 1 {
                " and its other parts"
            } else {
                ""
            };
            let first = files.first().unwrap_or(&"no file");
            error(format!(
                "{}: tensor {} is missing from {first}{more}",
                self.component,
                one_line(name)
            ))
        })
    }

    fn load(
        &self,
        name: &str,
        entry: &Entry,
        shape: Shape,
        dtype: DType,
        device: &Device,
    ) -> candle_core::Result<Tensor> {
        let (label, file) = &self.files[entry.file];
        entry.used.store(true, Ordering::Relaxed);
        let read = || {
            let Some(deltas) = self.patches.get(name) else {
                return read::tensor(file, entry, shape, dtype);
            };
            let wide = if dtype == DType::F64 {
                dtype
            } else {
                DType::F32
            };
            let first = read::tensor(file, entry, shape, wide)?;
            let mut deltas = deltas.iter();
            let changed = deltas.try_fold(first, |w, delta| delta.add_to(&w))?;
            anyhow::Ok(changed.to_dtype(dtype)?)
        };
        read()
            .map_err(|err| {
                error(format!(
                    "{}: tensor {} of {label}: {err}",
                    self.component,
                    one_line(name)
                ))
            })?
            .to_device(device)
    }
}

struct Backend(Arc<Store>);

impl SimpleBackend for Backend {
    fn get(
        &self,
        shape: Shape,
        name: &str,
        _: candle_nn::Init,
        dtype: DType,
        device: &Device,
    ) -> candle_core::Result<Tensor> {
        let entry = self.0.entry(name)?;
        // A 1x1 convolution and a linear layer hold the same numbers in the same order; old VAEs have the one where new ones have the other.
        if without_trailing_ones(shape.dims()) != without_trailing_ones(&entry.shape) {
            return Err(error(format!(
                "{}: tensor {}: expected {:?}, found {:?}",
                self.0.component,
                one_line(name),
                shape.dims(),
                entry.shape
            )));
        }
        self.0.load(name, entry, shape, dtype, device)
    }

    fn get_unchecked(
        &self,
        name: &str,
        dtype: DType,
        device: &Device,
    ) -> candle_core::Result<Tensor> {
        let entry = self.0.entry(name)?;
        self.0
            .load(name, entry, Shape::from_dims(&entry.shape), dtype, device)
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.0.entries.contains_key(name)
    }
}

pub fn without_trailing_ones(dims: &[usize]) -> &[usize] {
    let kept = dims
        .iter()
        .rposition(|&d| d != 1)
        .map_or(0, |last| last + 1);
    &dims[..kept]
}

fn error(message: String) -> candle_core::Error {
    candle_core::Error::Msg(message)
}
