//! From bytes in a file to a tensor in memory, in one copy where the types agree.
use super::place::Source;
use super::weights::{Entry, FileType};
use anyhow::{Context, Result, bail};
use bytemuck::Pod;
use candle_core::{DType, Device, Shape, Tensor, WithDType};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use rayon::prelude::*;

/// Numbers read at once by one thread: large enough for the disk, small enough for the cache.
const CHUNK: usize = 1 << 18;

/// The numbers of `entry` as a tensor of `shape` on the CPU.
pub fn tensor(file: &Source, entry: &Entry, shape: Shape, dtype: DType) -> Result<Tensor> {
    // Files are little endian. Big-endian machines would need a swap here.
    if cfg!(target_endian = "big") {
        bail!("this machine's byte order is not supported");
    }
    match dtype {
        DType::F32 => typed::<f32>(file, entry, shape),
        DType::F16 => typed::<f16>(file, entry, shape),
        DType::BF16 => typed::<bf16>(file, entry, shape),
        DType::F64 => typed::<f64>(file, entry, shape),
        other => bail!("weights cannot be kept as {other:?}"),
    }
}

/// The only number of `entry`; unlike weights it may be whole.
pub fn number(file: &Source, entry: &Entry) -> Result<f64> {
    let FileType::Other(name) = &entry.dtype else {
        let number = tensor(file, entry, Shape::from(1), DType::F64)?;
        return Ok(number.get(0)?.to_scalar()?);
    };
    let mut bytes = [0; 8];
    let width = match name.as_str() {
        "I64" | "Long" => 8,
        "I32" | "Int" => 4,
        _ => bail!("holds {name}, where a number is wanted"),
    };
    file.read_exact_at(&mut bytes[8 - width..], entry.offset)?;
    // Little endian, as all of the file; the sign is at the end.
    Ok((i64::from_le_bytes(bytes) >> (64 - 8 * width)) as f64)
}

fn typed<T: Number + WithDType>(file: &Source, entry: &Entry, shape: Shape) -> Result<Tensor> {
    let values: Vec<T> = match &entry.dtype {
        FileType::F64 => numbers::<f64, T>(file, entry)?,
        FileType::F32 => numbers::<f32, T>(file, entry)?,
        FileType::F16 => numbers::<f16, T>(file, entry)?,
        FileType::BF16 => numbers::<bf16, T>(file, entry)?,
        FileType::Other(name) => bail!("holds {name}: numbers of F64, F32, F16 and BF16 are read"),
    };
    Ok(Tensor::from_vec(values, shape, &Device::Cpu)?)
}

fn numbers<S: Number, T: Number>(file: &Source, entry: &Entry) -> Result<Vec<T>> {
    let count = entry.shape.iter().product();
    let values = match &entry.strides {
        None => dense::<S, T>(file, entry.offset, count)?,
        Some(strides) => {
            let last: usize = std::iter::zip(&entry.shape, strides)
                .map(|(n, stride)| n.saturating_sub(1) * stride)
                .sum();
            let span = if count == 0 { 0 } else { last + 1 };
            let stored = dense::<S, T>(file, entry.offset, span)?;
            gather(&stored, &entry.shape, strides, count)?
        }
    };
    Ok(values)
}

/// An empty list with room for `count` numbers: an error, and no abort, where the memory is not there.
fn room<T>(count: usize) -> Result<Vec<T>> {
    let mut values = Vec::new();
    match values.try_reserve_exact(count) {
        Ok(()) => Ok(values),
        Err(_) => bail!("{count} numbers do not fit into memory"),
    }
}

/// `count` numbers that follow each other.
fn dense<S: Number, T: Number>(file: &Source, offset: u64, count: usize) -> Result<Vec<T>> {
    let mut values = room(count)?;
    // SAFETY: the room is there and any bytes are a T; they are written below and read by nobody before, and where writing
    // fails they are dropped. Zeroing gigabytes first would take as long as reading them does.
    #[allow(clippy::uninit_vec)]
    unsafe {
        values.set_len(count)
    };
    let read = |(i, part): (usize, &mut [T])| -> std::io::Result<()> {
        let at = offset + (i * CHUNK * size_of::<S>()) as u64;
        // The same type: straight into place.
        if let Some(same) = S::same(part) {
            return file.read_exact_at(bytemuck::cast_slice_mut(same), at);
        }
        let mut stored = vec![S::zeroed(); part.len()];
        file.read_exact_at(bytemuck::cast_slice_mut(&mut stored), at)?;
        T::convert(&stored, part);
        Ok(())
    };
    values
        .par_chunks_mut(CHUNK)
        .enumerate()
        .try_for_each(read)
        .context("cannot be read")?;
    Ok(values)
}

/// Puts a transposed or sliced tensor in order.
fn gather<T: Copy>(
    stored: &[T],
    shape: &[usize],
    strides: &[usize],
    count: usize,
) -> Result<Vec<T>> {
    let mut values = room(count)?;
    let mut index = vec![0; shape.len()];
    let mut at = 0;
    for _ in 0..count {
        values.push(stored[at]);
        for axis in (0..shape.len()).rev() {
            index[axis] += 1;
            at += strides[axis];
            if index[axis] < shape[axis] {
                break;
            }
            at -= strides[axis] * shape[axis];
            index[axis] = 0;
        }
    }
    Ok(values)
}

/// The four kinds of numbers; between two different kinds the way goes through f32, which holds all but f64.
trait Number: Pod + Send + Sync {
    fn to_f32(from: &[Self], to: &mut [f32]);
    fn from_f32(from: &[f32], to: &mut [Self]);

    /// `part` itself, if it is of this type.
    fn same<T: Number>(part: &mut [T]) -> Option<&mut [Self]> {
        let same = std::any::TypeId::of::<T>() == std::any::TypeId::of::<Self>();
        same.then(|| bytemuck::cast_slice_mut(part))
    }

    fn convert<S: Number>(from: &[S], to: &mut [Self]) {
        let mut between = [0.0; 1024];
        for (from, to) in std::iter::zip(from.chunks(1024), to.chunks_mut(1024)) {
            let between = &mut between[..from.len()];
            S::to_f32(from, between);
            Self::from_f32(between, to);
        }
    }
}

impl Number for f32 {
    fn to_f32(from: &[f32], to: &mut [f32]) {
        to.copy_from_slice(from);
    }
    fn from_f32(from: &[f32], to: &mut [f32]) {
        to.copy_from_slice(from);
    }
}

impl Number for f64 {
    fn to_f32(from: &[f64], to: &mut [f32]) {
        std::iter::zip(from, to).for_each(|(&a, b)| *b = a as f32);
    }
    fn from_f32(from: &[f32], to: &mut [f64]) {
        std::iter::zip(from, to).for_each(|(&a, b)| *b = a.into());
    }
}

impl Number for f16 {
    fn to_f32(from: &[f16], to: &mut [f32]) {
        from.convert_to_f32_slice(to);
    }
    fn from_f32(from: &[f32], to: &mut [f16]) {
        to.convert_from_f32_slice(from);
    }
}

impl Number for bf16 {
    fn to_f32(from: &[bf16], to: &mut [f32]) {
        from.convert_to_f32_slice(to);
    }
    fn from_f32(from: &[f32], to: &mut [bf16]) {
        to.convert_from_f32_slice(from);
    }
}
