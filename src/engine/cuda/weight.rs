//! Weights of convolutions and linear layers, laid out as the card's products read them: `kernels/tile_weight.cu`.
use super::{Args, Launch, Work, blocks, card, int, name};
use candle_core::{DType, Result, Shape, Tensor};

/// Channels of a tile, which products take at once.
pub const DEPTH: usize = 64;

/// As `kernels/tile_weight.cu` has it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Tiling {
    pub weight: u64,
    pub tiles: u64,
    pub outputs: i32,
    pub channels: i32,
    pub places: i32,
    pub pairs: i32,
}
const _: () = assert!(size_of::<Tiling>() == 32);

// SAFETY: as in tile_weight.cu, which asserts the same size.
unsafe impl Args for Tiling {
    fn place(&mut self, inputs: &[u64], result: u64, _scratch: u64) {
        (self.weight, self.tiles) = (inputs[0], result);
    }
}

/// Rows of a tile that are laid out together, and numbers that lie together in a row.
const EIGHT: usize = 8;

/// The kernel that lays a weight out in tiles; depths and rows of those.
pub fn plan_tiling(dtype: DType, args: Tiling) -> Result<(Work<Tiling>, usize, usize)> {
    let [outputs, channels, places] =
        [args.outputs, args.channels, args.places].map(|n| n as usize);
    let depths = channels.div_ceil(DEPTH) * places;
    let rows = outputs.next_multiple_of(EIGHT);
    let launch = Launch {
        kernel: format!("tile_weight_{}", name(dtype)?),
        grid: [blocks(depths * rows * DEPTH / EIGHT, 256)?, 1, 1],
        threads: 256,
        shared_bytes: 0,
        args,
    };
    let work = Work {
        scratch: 0,
        launches: vec![launch],
    };
    Ok((work, depths, rows))
}

/// The weights of a layer, as the kernels read them.
pub struct Weight {
    /// `(depths, outputs, 64)` in tiles, else `(outputs, places, channels)`: see `kernels/product.cuh`.
    pub(super) tensor: Tensor,
    pub(super) outputs: usize,
    pub(super) kernel: usize,
    pub(super) channels: usize,
    pub(super) tiled: bool,
}

impl Weight {
    /// Of a convolution, `(outputs, channels, kernel, kernel)`.
    pub fn of_convolution(weight: &Tensor) -> Result<Self> {
        Self::new(weight, false)
    }

    /// Of a linear layer, `(outputs, inputs)`.
    pub fn of_linear(weight: &Tensor) -> Result<Self> {
        Self::new(&weight.unsqueeze(2)?.unsqueeze(3)?, false)
    }

    /// Of a linear layer for GEGLU, `(outputs, inputs)`, the gates behind what they open: on a card each stands beside its gate, so that the
    /// thread that has one has the other.
    pub fn of_gated(weight: &Tensor) -> Result<Self> {
        Self::new(&weight.unsqueeze(2)?.unsqueeze(3)?, true)
    }

    /// The bias of such a layer.
    pub fn bias_of_gated(bias: &Tensor) -> Result<Tensor> {
        Tensor::stack(&bias.chunk(2, 0)?, 1)?.flatten(0, 1)
    }

    fn new(weight: &Tensor, pairs: bool) -> Result<Self> {
        let (outputs, channels, kernel, _) = weight.dims4()?;
        let tiled = matches!(weight.dtype(), DType::F16 | DType::BF16) && channels % EIGHT == 0;
        let tensor = match tiled {
            true => {
                let args = Tiling {
                    outputs: int(outputs)?,
                    channels: int(channels)?,
                    places: int(kernel * kernel)?,
                    pairs: pairs.into(),
                    ..Tiling::default()
                };
                let (work, depths, rows) = plan_tiling(weight.dtype(), args)?;
                let weight = weight.contiguous()?;
                card::run(work, &[Some(&weight)], Shape::from((depths, rows, DEPTH)))?
            }
            false => {
                let weight = weight.permute((0, 2, 3, 1))?;
                match pairs {
                    true => Self::bias_of_gated(&weight)?,
                    false => weight.contiguous()?,
                }
            }
        };
        Ok(Self {
            tensor,
            outputs,
            kernel,
            channels,
            tiled,
        })
    }

    /// Those of several layers of the same inputs, beside each other, or `None` where they would not lie as one's.
    pub fn joined(parts: &[&Self]) -> Result<Option<Self>> {
        let Some(first) = parts.first() else {
            return Ok(None);
        };
        let alike = |part: &&Self| {
            (part.kernel, part.channels, part.tiled) == (first.kernel, first.channels, first.tiled)
                && (!part.tiled || part.outputs.is_multiple_of(EIGHT))
        };
        if !parts.iter().all(alike) {
            return Ok(None);
        }
        let tensors: Vec<&Tensor> = parts.iter().map(|part| &part.tensor).collect();
        Ok(Some(Self {
            tensor: Tensor::cat(&tensors, if first.tiled { 1 } else { 0 })?,
            outputs: parts.iter().map(|part| part.outputs).sum(),
            kernel: first.kernel,
            channels: first.channels,
            tiled: first.tiled,
        }))
    }
}
