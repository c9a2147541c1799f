//! The kernels' own source, run on a processor: each kernel against its definition, whole networks against the same on the CPU, and what
//! a card itself is tested with.
//!
//! They need a C++ compiler (`CXX`, else `c++`) and so run only when they are asked for: `cargo test --lib emulated -- --ignored`.
//!
//! The bound: inputs are exact in the dtype, sums are in f32, and the result is rounded once; attention rounds its weights too.
use super::card;
use candle_core::DType;
use half::{bf16, f16};

mod definitions;
mod networks;
// What a card is tested with, on this one.
#[path = "../../../tests/engine/devices.rs"]
mod devices;
#[path = "../../../tests/engine/parity"]
mod parity {
    pub mod models;
    pub mod support;
}

const DTYPES: [DType; 3] = [DType::F32, DType::F16, DType::BF16];
/// Numbers of a dtype in memory, at an address of whole 16 bytes.
struct Buffer {
    dtype: DType,
    numbers: usize,
    memory: Vec<u128>,
}

/// What lies around the numbers: NaN in every dtype, so that reading it shows.
const AROUND: u128 = u128::MAX;
/// How much of it, in 16 bytes.
const MARGIN: usize = 8;

impl Buffer {
    fn empty(dtype: DType, numbers: usize) -> Self {
        let inside = (numbers * dtype.size_in_bytes()).div_ceil(16);
        let memory = vec![AROUND; inside + 2 * MARGIN];
        Self {
            dtype,
            numbers,
            memory,
        }
    }

    fn of(dtype: DType, values: &[f32]) -> Self {
        let mut buffer = Self::empty(dtype, values.len());
        let bytes: Vec<u8> = match dtype {
            DType::F16 => values
                .iter()
                .flat_map(|&x| f16::from_f32(x).to_le_bytes())
                .collect(),
            DType::BF16 => values
                .iter()
                .flat_map(|&x| bf16::from_f32(x).to_le_bytes())
                .collect(),
            _ => values.iter().flat_map(|&x| x.to_le_bytes()).collect(),
        };
        bytemuck::cast_slice_mut(&mut buffer.memory)[16 * MARGIN..][..bytes.len()]
            .copy_from_slice(&bytes);
        buffer
    }

    fn values(&self) -> Vec<f32> {
        let size = self.dtype.size_in_bytes();
        let bytes: &[u8] = bytemuck::cast_slice(&self.memory);
        let (inside, after) = bytes[16 * MARGIN..].split_at(self.numbers * size);
        assert!(
            bytes[..16 * MARGIN].iter().chain(after).all(|&b| b == 0xff),
            "a kernel wrote beside its result"
        );
        let one = |bytes: &[u8]| match self.dtype {
            DType::F16 => f16::from_le_bytes(bytes.try_into().unwrap()).to_f32(),
            DType::BF16 => bf16::from_le_bytes(bytes.try_into().unwrap()).to_f32(),
            _ => f32::from_le_bytes(bytes.try_into().unwrap()),
        };
        inside.chunks(size).map(one).collect()
    }

    fn address(&self) -> u64 {
        self.memory[MARGIN..].as_ptr() as u64
    }
}

/// Values in [-1, 1] that are exact in `dtype`, other ones for every seed.
fn values(dtype: DType, seed: u32, count: usize) -> Vec<f32> {
    mapped(dtype, seed, count, |x| x)
}

/// What `f` makes of values in [-1, 1], rounded to `dtype`.
fn mapped(dtype: DType, seed: u32, count: usize, f: impl Fn(f32) -> f32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as f32 / u32::MAX as f32 * 2.0 - 1.0
    };
    let plain: Vec<f32> = (0..count).map(|_| f(next())).collect();
    Buffer::of(dtype, &plain).values()
}

/// Within `ulps` roundings of the dtype, for sums in f32 within 16 of f32's, of numbers as large as the largest.
fn assert_close(got: &[f32], want: &[f32], dtype: DType, ulps: f32, what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    let unit = match dtype {
        DType::F16 => 2f32.powi(-11),
        DType::BF16 => 2f32.powi(-8),
        _ => 2f32.powi(-20),
    };
    let largest = want.iter().fold(0f32, |m, x| m.max(x.abs()));
    let bound = ulps * unit * largest;
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert!(
            (g - w).abs() <= bound,
            "{what} {dtype:?}: number {i} is {g} and should be {w} (within {bound})"
        );
    }
    assert!(largest > 0.0, "{what}: only zeros");
}
