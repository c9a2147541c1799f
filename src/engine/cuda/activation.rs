//! The functions of every element on the card: `kernels/activation.cu`.
use super::{Args, Launch, Work, blocks, card, name};
use candle_core::{DType, Result, Tensor};

const THREADS: usize = 256;

/// In the order of the source.
#[derive(Clone, Copy, Debug)]
pub enum Function {
    Silu,
    Mish,
    Gelu,
    GeluTanh,
    QuickGelu,
    Relu,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Activation {
    pub x: u64,
    pub y: u64,
    pub numbers: i64,
    pub function: i32,
}
const _: () = assert!(size_of::<Activation>() == 32);

// SAFETY: as in activation.cu, which asserts the same size.
unsafe impl Args for Activation {
    fn place(&mut self, inputs: &[u64], result: u64, _scratch: u64) {
        (self.x, self.y) = (inputs[0], result);
    }
}

pub fn plan(dtype: DType, numbers: usize, function: Function) -> Result<Work<Activation>> {
    let args = Activation {
        numbers: numbers as i64,
        function: function as i32,
        ..Activation::default()
    };
    let launch = Launch {
        kernel: format!("activation_{}", name(dtype)?),
        grid: [blocks(numbers, THREADS)?, 1, 1],
        threads: THREADS as u32,
        shared_bytes: 0,
        args,
    };
    Ok(Work {
        scratch: 0,
        launches: vec![launch],
    })
}

/// Of every number of a contiguous tensor.
pub fn activation(x: &Tensor, function: Function) -> Result<Tensor> {
    let work = plan(x.dtype(), x.elem_count(), function)?;
    card::run(work, &[Some(x)], x.shape().clone())
}
