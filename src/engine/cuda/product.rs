//! Convolutions and linear layers on the card: `kernels/product.cuh`, `product.cu` and `product_pipe.cu`.
use super::weight::{DEPTH, Weight};
use super::{Args, Card, Launch, Work, aligned, blocks, card, check, int, name};
use candle_core::{D, DType, Result, Shape, Tensor};

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
    pub together: i32,
    pub tiled: i32,
}
const _: () = assert!(size_of::<Product>() == 144);

// SAFETY: as in product.cuh, which asserts the same size.
unsafe impl Args for Product {
    fn place(&mut self, inputs: &[u64], result: u64, scratch: u64) {
        [self.first, self.rest, self.weight] = [inputs[0], inputs[1], inputs[2]];
        [self.bias, self.shift, self.residual] = [inputs[3], inputs[4], inputs[5]];
        (self.y, self.parts) = (result, scratch);
    }
}

impl Product {
    /// Of the result its rows and columns, and of each number in how many depths it is summed.
    fn sizes(&self, tile: &Tile) -> (usize, usize, usize) {
        let rows = self.images as usize * self.out_height as usize * self.out_width as usize;
        let taps = (self.kernel * self.kernel) as usize;
        let channels = (self.first_channels + self.rest_channels) as usize;
        let depths = match tile.way {
            Way::Plain => (taps * channels).div_ceil(tile.depth),
            Way::Warps | Way::Pipe => taps * channels.div_ceil(tile.depth),
        };
        (rows, self.outputs as usize, depths)
    }
}

/// How a kernel makes tiles of the result.
#[derive(Clone, Copy, PartialEq)]
enum Way {
    /// In f32, weights as they come.
    Plain,
    /// By the tensor cores' products of single warps, a block for each tile.
    Warps,
    /// By products of groups of warps, blocks that stay and make one tile after another.
    Pipe,
}

/// A kernel for tiles of the result.
///
/// What it takes is told in microseconds, as fitted to measured products, each convolution and linear layer of Stable Diffusion 1.5 by each tile
/// in many parts: those of single warps on an H100, the others on an H200, where the mean is off by 6 % and choosing by them costs at most
/// 1 % more than the best choice of all.
pub struct Tile {
    name: &'static str,
    way: Way,
    rows: usize,
    columns: usize,
    /// Of k at once.
    depth: usize,
    threads: u32,
    shared_bytes: usize,
    /// What a kernel takes beside its tiles,
    start: f32,
    /// a tile beside its depths,
    once: f32,
    /// and more for each block beside it on the multiprocessor.
    beside: f32,
    /// What a depth takes with one block on a multiprocessor, with two, and so on, as many as there is room for.
    each: &'static [f32],
}

/// Products of single warps, with three depths in shared memory.
const fn warps(
    name: &'static str,
    (rows, columns): (usize, usize),
    threads: u32,
    (once, beside): (f32, f32),
    each: &'static [f32],
) -> Tile {
    Tile {
        name,
        way: Way::Warps,
        rows,
        columns,
        depth: DEPTH,
        threads,
        shared_bytes: 3 * (rows + columns) * DEPTH * 2,
        start: 0.0,
        once,
        beside,
        each,
    }
}

/// Products of groups of warps, with a ring of so many stages in shared memory and two barriers for each.
const fn pipe(
    name: &'static str,
    columns: usize,
    (threads, stages): (u32, usize),
    (start, once): (f32, f32),
    each: &'static [f32],
) -> Tile {
    const ROWS: usize = 128;
    Tile {
        name,
        way: Way::Pipe,
        rows: ROWS,
        columns,
        depth: DEPTH,
        threads,
        shared_bytes: stages * ((ROWS + columns) * DEPTH * 2 + 2 * 8),
        start,
        once,
        beside: 0.0,
        each,
    }
}

/// Every card has them. The first is the best for the smallest results on every card.
const WARPS: [Tile; 3] = [
    warps(
        "64x64",
        (64, 64),
        128,
        (4.24, 0.46),
        &[0.405, 0.533, 0.725, 0.971],
    ),
    warps(
        "128x64",
        (128, 64),
        128,
        (5.88, 1.15),
        &[0.736, 0.957, 1.605],
    ),
    warps("128x128", (128, 128), 256, (4.86, 0.0), &[0.846]),
];
/// Hopper's.
const PIPES: [Tile; 3] = [
    pipe("pipe_128", 128, (512, 7), (1.94, 3.89), &[0.399]),
    pipe("pipe_160", 160, (512, 6), (1.55, 4.09), &[0.481]),
    pipe("pipe_256", 256, (384, 4), (0.23, 5.6), &[0.706]),
];
const PLAIN: Tile = Tile {
    name: "plain",
    way: Way::Plain,
    rows: 64,
    columns: 64,
    depth: 16,
    threads: 256,
    shared_bytes: 2 * 16 * (64 + 4) * 4,
    start: 0.0,
    once: 10.0,
    beside: 0.0,
    each: &[2.0],
};
/// Most parts of k, and most waves of blocks that are parts: what was measured, and a bound of the memory that they take.
const PARTS: usize = 16;
const PART_WAVES: usize = 2;
/// The fewest depths that are worth a part, and what it takes to add up parts, for itself and for each of their numbers.
const PART: usize = 4;
const PART_SUM: f32 = 1.7;
const PART_NUMBER: f32 = 1.75e-6;

impl Tile {
    fn blocks(&self, rows: usize, outputs: usize) -> usize {
        rows.div_ceil(self.rows) * outputs.div_ceil(self.columns)
    }

    /// The microseconds of `splits` parts of `depths` in all.
    fn time(
        &self,
        (rows, outputs, depths): (usize, usize, usize),
        splits: usize,
        card: Card,
    ) -> f32 {
        let busy = card.multiprocessors.max(1) as usize;
        let blocks = self.blocks(rows, outputs) * splits;
        let together = |blocks: usize| match blocks {
            0 => 0.0,
            _ => {
                let each = self.each[blocks - 1] * depths.div_ceil(splits) as f32;
                self.once + each + (blocks - 1) as f32 * self.beside
            }
        };
        let room = self.each.len();
        let (waves, rest) = (blocks / (busy * room), blocks % (busy * room));
        let sum = match splits {
            1 => 0.0,
            _ => PART_SUM + (splits * rows * outputs) as f32 * PART_NUMBER,
        };
        self.start + waves as f32 * together(room) + together(rest.div_ceil(busy)) + sum
    }

    /// In how many parts of `k` it is quickest, and the time.
    fn best(&self, (rows, outputs, depths): (usize, usize, usize), card: Card) -> (usize, f32) {
        let room = PART_WAVES * card.multiprocessors as usize * self.each.len();
        let most = PARTS
            .min(depths / PART)
            .min(room / self.blocks(rows, outputs).max(1));
        let times = (1..=most.max(1))
            .map(|splits| (splits, self.time((rows, outputs, depths), splits, card)));
        times.min_by(|a, b| a.1.total_cmp(&b.1)).unwrap_or((1, 0.0))
    }
}

/// The kernels that can make a product; `aligned` says that the weights lie in tiles and that the channels of each part of each pixel may be
/// read 16 bytes at once.
pub fn tiles(dtype: DType, aligned: bool, card: Card) -> Vec<&'static Tile> {
    match dtype {
        DType::F16 | DType::BF16 if aligned && card.groups => {
            WARPS[..1].iter().chain(&PIPES).collect()
        }
        DType::F16 | DType::BF16 if aligned => WARPS.iter().collect(),
        _ => vec![&PLAIN],
    }
}

/// The quickest kernel for a product, or two where k is split; `aligned` as for [`tiles`].
pub fn plan(dtype: DType, args: Product, aligned: bool, card: Card) -> Result<Work<Product>> {
    let ways = tiles(dtype, aligned, card).into_iter();
    let ways = ways.map(|tile| (tile, tile.best(args.sizes(tile), card)));
    match ways.min_by(|a, b| a.1.1.total_cmp(&b.1.1)) {
        Some((tile, (splits, _))) => work(dtype, args, tile, splits, card),
        None => candle_core::bail!("no kernel for a product in {dtype:?}"),
    }
}

/// The kernel of a tile, and another for the sum of `splits` parts of k.
pub fn work(
    dtype: DType,
    args: Product,
    tile: &Tile,
    splits: usize,
    card: Card,
) -> Result<Work<Product>> {
    let (rows, outputs, _) = args.sizes(tile);
    int(rows)?;
    let args = Product {
        splits: int(splits)?,
        ..args
    };
    let dtype = name(dtype)?;
    let grid = match tile.way {
        Way::Pipe => {
            let pieces = int(tile.blocks(rows, outputs) * splits)? as u32;
            [pieces.min(card.multiprocessors), 1, 1]
        }
        Way::Plain | Way::Warps => [
            blocks(rows, tile.rows)?,
            blocks(outputs, tile.columns)?,
            splits as u32,
        ],
    };
    let mut launches = vec![Launch {
        kernel: format!("product_{dtype}_{}", tile.name),
        grid,
        threads: tile.threads,
        shared_bytes: tile.shared_bytes as u32,
        args,
    }];
    if splits > 1 {
        launches.push(Launch {
            kernel: format!("product_{dtype}_sum"),
            grid: [blocks(rows * outputs.div_ceil(4), 256)?, 1, 1],
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
    pub stride: usize,
    /// Zeros before the first row and column.
    pub padding: usize,
}

/// Of one map or two joined on channels, `(b, h, w, c)` each and contiguous; gives `(b, out height, out width, outputs)`.
pub fn convolution(
    (first, rest): (&Tensor, Option<&Tensor>),
    weight: &Weight,
    geometry: Geometry,
    extras: Extras,
) -> Result<Tensor> {
    let (b, h, w, first_channels) = first.dims4()?;
    let rest_channels = rest.map_or(Ok(0), |rest| rest.dim(3))?;
    let outputs = weight.outputs;
    let columns = if extras.geglu { outputs / 2 } else { outputs };
    let Geometry { out, .. } = geometry;
    if let Some(rest) = rest {
        check("second part", rest, &[b, h, w, rest_channels])?;
    }
    let channels = first_channels + rest_channels;
    if channels != weight.channels {
        candle_core::bail!(
            "expected a map of {} channels, found {channels}",
            weight.channels
        )
    }
    if let Some(bias) = extras.bias {
        check("bias", bias, &[outputs])?;
    }
    let follows = extras.shift.is_some() || extras.residual.is_some() || extras.scale != 1.0;
    if extras.geglu && follows {
        candle_core::bail!("nothing but a bias goes with GEGLU")
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
    let whole = weight.tiled
        && aligned(first, first_channels)
        && rest.is_none_or(|rest| aligned(rest, rest_channels));
    let after = [extras.bias, extras.shift, extras.residual];
    let together = outputs.is_multiple_of(8) && after.iter().flatten().all(|x| aligned(x, outputs));
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
        kernel: int(weight.kernel)?,
        stride: int(geometry.stride)?,
        padding: int(geometry.padding)?,
        shift_stride: int(shift_stride)?,
        splits: 1,
        scale: extras.scale as f32,
        geglu: extras.geglu.into(),
        together: together.into(),
        tiled: weight.tiled.into(),
        ..Product::default()
    };
    let work = plan(first.dtype(), args, whole, card::card(first.device())?)?;
    let shape = Shape::from((b, out.0, out.1, columns));
    let inputs = [
        Some(first),
        rest,
        Some(&weight.tensor),
        extras.bias,
        extras.shift,
        extras.residual,
    ];
    card::run(work, &inputs, shape)
}

/// Of the rows of a contiguous `(.., inputs)`; gives `(.., outputs)`.
pub fn linear(x: &Tensor, weight: &Weight, extras: Extras) -> Result<Tensor> {
    let inputs = x.dim(D::Minus1)?;
    let rows = x.elem_count() / inputs.max(1);
    let geometry = Geometry {
        enlarged: (1, rows),
        out: (1, rows),
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
    let y = convolution((&map, None), weight, geometry, extras)?;
    let mut shape = x.dims().to_vec();
    shape.pop();
    shape.push(y.dim(3)?);
    y.reshape(shape)
}
