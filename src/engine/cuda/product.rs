//! Convolutions and linear layers on the card: `kernels/product.cu`.
use super::{Args, Card, Launch, Work, aligned, blocks, card, check, int, name};
use candle_core::{DType, Result, Shape, Tensor};

#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Product {
    pub first: u64,
    pub rest: u64,
    pub weight: u64,
    pub bias: u64,
    pub shift: u64,
    pub residual: u64,
    pub y: u64,
    pub parts: u64,
    pub first_channels: i32,
    pub rest_channels: i32,
    pub images: i32,
    pub height: i32,
    pub width: i32,
    pub enlarged_height: i32,
    pub enlarged_width: i32,
    pub out_height: i32,
    pub out_width: i32,
    pub outputs: i32,
    pub kernel: i32,
    pub stride: i32,
    pub padding: i32,
    pub shift_stride: i32,
    pub splits: i32,
    pub scale: f32,
    pub geglu: i32,
}
const _: () = assert!(size_of::<Product>() == 136);

// SAFETY: as in product.cu, which asserts the same size.
unsafe impl Args for Product {
    fn place(&mut self, inputs: &[u64], result: u64, scratch: u64) {
        [self.first, self.rest, self.weight] = [inputs[0], inputs[1], inputs[2]];
        [self.bias, self.shift, self.residual] = [inputs[3], inputs[4], inputs[5]];
        (self.y, self.parts) = (result, scratch);
    }
}

/// A kernel for tiles of the result.
struct Tile {
    name: &'static str,
    rows: usize,
    columns: usize,
    /// Of k at once.
    depth: usize,
    threads: u32,
    shared_bytes: usize,
}

const fn tensor(name: &'static str, rows: usize, columns: usize, threads: u32) -> Tile {
    // Four stages of 16-bit numbers.
    let shared_bytes = 4 * (rows + columns) * 32 * 2;
    Tile {
        name,
        rows,
        columns,
        depth: 32,
        threads,
        shared_bytes,
    }
}

/// The widest first: it reads each number least often.
const TENSOR: [Tile; 3] = [
    tensor("128x128", 128, 128, 256),
    tensor("128x64", 128, 64, 128),
    tensor("64x64", 64, 64, 128),
];
const PLAIN: Tile = Tile {
    name: "plain",
    rows: 64,
    columns: 64,
    depth: 16,
    threads: 256,
    shared_bytes: 2 * 16 * (64 + 4) * 4,
};
/// Most parts of k: each is written and read once more.
const SPLITS: usize = 16;
/// Fewest tiles of k that are worth a part of their own.
const PART: usize = 8;

/// The kernel for a product, or two where k is split; `aligned` says that the channels of each part of each pixel may be read 16 bytes at once.
pub fn plan(dtype: DType, args: Product, aligned: bool, card: Card) -> Result<Work<Product>> {
    let rows = args.images as usize * args.out_height as usize * args.out_width as usize;
    let outputs = args.outputs as usize;
    let k =
        (args.kernel * args.kernel) as usize * (args.first_channels + args.rest_channels) as usize;
    let fits = |tile: &Tile| rows.div_ceil(tile.rows) * outputs.div_ceil(tile.columns);
    let busy = card.multiprocessors.max(1) as usize;
    let tile = match dtype {
        DType::F16 | DType::BF16 if aligned => {
            let filling = TENSOR.iter().find(|tile| fits(tile) >= busy);
            filling.unwrap_or(&TENSOR[TENSOR.len() - 1])
        }
        _ => &PLAIN,
    };
    let tiles = fits(tile);
    let depth = k.div_ceil(tile.depth);
    // As many parts as bring work to every multiprocessor.
    let splits = (busy / tiles.max(1)).min(SPLITS).min(depth / PART).max(1);
    let args = Product {
        splits: int(splits)?,
        ..args
    };
    let dtype = name(dtype)?;
    let mut launches = vec![Launch {
        kernel: format!("product_{dtype}_{}", tile.name),
        grid: [
            blocks(rows, tile.rows)?,
            blocks(outputs, tile.columns)?,
            splits as u32,
        ],
        threads: tile.threads,
        shared_bytes: tile.shared_bytes as u32,
        args,
    }];
    if splits > 1 {
        launches.push(Launch {
            kernel: format!("product_{dtype}_sum"),
            grid: [blocks(rows * outputs.div_ceil(2), 256)?, 1, 1],
            threads: 256,
            shared_bytes: 0,
            args,
        });
    }
    let scratch = if splits > 1 {
        splits * rows * outputs
    } else {
        0
    };
    Ok(Work { scratch, launches })
}

/// What is done before and after the sum.
#[derive(Clone, Copy)]
pub struct Extras<'a> {
    pub bias: Option<&'a Tensor>,
    /// `(1, outputs)` or `(b, outputs)`
    pub shift: Option<&'a Tensor>,
    /// Of the result's shape.
    pub residual: Option<&'a Tensor>,
    pub scale: f64,
    /// Joins the columns by twos.
    pub geglu: bool,
}

impl Default for Extras<'_> {
    fn default() -> Self {
        Self {
            bias: None,
            shift: None,
            residual: None,
            scale: 1.0,
            geglu: false,
        }
    }
}

/// The geometry of a convolution.
#[derive(Clone, Copy)]
pub struct Geometry {
    /// What the map is enlarged to.
    pub enlarged: (usize, usize),
    pub out: (usize, usize),
    pub kernel: usize,
    pub stride: usize,
    /// Zeros before the first row and column.
    pub padding: usize,
}

/// Of one map or two joined on channels, `(b, h, w, c)` each and contiguous. `weight` is `(outputs, kernel, kernel, channels)`; gives
/// `(b, out height, out width, outputs)`.
pub fn convolution(
    (first, rest): (&Tensor, Option<&Tensor>),
    weight: &Tensor,
    geometry: Geometry,
    extras: Extras,
) -> Result<Tensor> {
    let (b, h, w, first_channels) = first.dims4()?;
    let rest_channels = rest.map_or(Ok(0), |rest| rest.dim(3))?;
    let outputs = weight.dim(0)?;
    let columns = if extras.geglu { outputs / 2 } else { outputs };
    let Geometry { kernel, out, .. } = geometry;
    if let Some(rest) = rest {
        check("second part", rest, &[b, h, w, rest_channels])?;
    }
    let channels = first_channels + rest_channels;
    check("weight", weight, &[outputs, kernel, kernel, channels])?;
    if let Some(bias) = extras.bias {
        check("bias", bias, &[outputs])?;
    }
    let mut shift_stride = 0;
    if let Some(shift) = extras.shift {
        let each = shift.dim(0)? != 1;
        check("shift", shift, &[if each { b } else { 1 }, outputs])?;
        shift_stride = if each { outputs } else { 0 };
    }
    if let Some(residual) = extras.residual {
        check("residual", residual, &[b, out.0, out.1, columns])?;
    }
    let whole = aligned(first, first_channels)
        && rest.is_none_or(|rest| aligned(rest, rest_channels))
        && aligned(weight, channels);
    let args = Product {
        first_channels: int(first_channels)?,
        rest_channels: int(rest_channels)?,
        images: int(b)?,
        height: int(h)?,
        width: int(w)?,
        enlarged_height: int(geometry.enlarged.0)?,
        enlarged_width: int(geometry.enlarged.1)?,
        out_height: int(geometry.out.0)?,
        out_width: int(geometry.out.1)?,
        outputs: int(outputs)?,
        kernel: int(geometry.kernel)?,
        stride: int(geometry.stride)?,
        padding: int(geometry.padding)?,
        shift_stride: int(shift_stride)?,
        splits: 1,
        scale: extras.scale as f32,
        geglu: extras.geglu.into(),
        ..Product::default()
    };
    let work = plan(first.dtype(), args, whole, card::card(first.device())?)?;
    let shape = Shape::from((b, out.0, out.1, columns));
    let inputs = [
        Some(first),
        rest,
        Some(weight),
        extras.bias,
        extras.shift,
        extras.residual,
    ];
    card::run(work, &inputs, shape)
}

/// Of the rows of a contiguous `(.., inputs)`, by a weight `(outputs, inputs)`; gives `(.., outputs)`.
pub fn linear(x: &Tensor, weight: &Tensor, extras: Extras) -> Result<Tensor> {
    let (outputs, inputs) = weight.dims2()?;
    let rows = x.elem_count() / inputs.max(1);
    let geometry = Geometry {
        enlarged: (1, rows),
        out: (1, rows),
        kernel: 1,
        stride: 1,
        padding: 0,
    };
    let map = x.reshape((1, 1, rows, inputs))?;
    let residual = extras.residual.map(|x| x.reshape((1, 1, rows, ())));
    let residual = residual.transpose()?;
    let extras = Extras {
        residual: residual.as_ref(),
        ..extras
    };
    let weight = weight.reshape((outputs, 1, 1, inputs))?;
    let y = convolution((&map, None), &weight, geometry, extras)?;
    let mut shape = x.dims().to_vec();
    shape.pop();
    shape.push(y.dim(3)?);
    y.reshape(shape)
}
