//! Normalisation on the card: `kernels/norm.cu`.
use super::{Args, Card, Launch, Work, aligned, blocks, card, check, int, name};
use candle_core::{DType, Result, Shape, Tensor};

const THREADS: usize = 256;
/// Most chunks of the pixels of an image: every block of the second kernel reads the sums of all.
const CHUNKS: usize = 64;
/// Pixels that are worth a thread of the second kernel.
const PIXELS: usize = 4;

#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct GroupNorm {
    pub first: u64,
    pub rest: u64,
    pub weight: u64,
    pub bias: u64,
    pub y: u64,
    pub sums: u64,
    pub first_channels: i32,
    pub rest_channels: i32,
    pub pixels: i32,
    pub groups: i32,
    pub chunks: i32,
    pub eps: f32,
    pub silu: i32,
}
const _: () = assert!(size_of::<GroupNorm>() == 80);

// SAFETY: as in norm.cu, which asserts the same size.
unsafe impl Args for GroupNorm {
    fn place(&mut self, inputs: &[u64], result: u64, scratch: u64) {
        [self.first, self.rest, self.weight, self.bias] =
            [inputs[0], inputs[1], inputs[2], inputs[3]];
        (self.y, self.sums) = (result, scratch);
    }
}

/// The two kernels of a group norm of `images` maps. `vector` is how many numbers are read at once.
pub fn plan_group(
    dtype: DType,
    images: usize,
    args: GroupNorm,
    vector: usize,
    card: Card,
) -> Result<Work<GroupNorm>> {
    let channels = (args.first_channels + args.rest_channels) as usize;
    let (pixels, groups) = (args.pixels as usize, args.groups as usize);
    let wanted = (2 * card.multiprocessors as usize).div_ceil(images.max(1));
    let chunks = wanted.min(CHUNKS).min(pixels / 16).max(1);
    let args = GroupNorm {
        chunks: int(chunks)?,
        ..args
    };
    let bytes = |numbers: usize| (numbers * size_of::<f32>()) as u32;
    // A thread for each vector of a pixel, and for so many pixels at once as there are threads.
    let vectors = channels / vector;
    let rows = THREADS / vectors.clamp(1, THREADS);
    let spread = blocks(pixels, PIXELS * rows)?.min(8 * card.multiprocessors);
    let images = blocks(images, 1)?;
    let dtype = name(dtype)?;
    Ok(Work {
        scratch: images as usize * chunks * groups * 2,
        launches: vec![
            Launch {
                kernel: format!("group_sums_{dtype}_{vector}"),
                grid: [chunks as u32, images, 1],
                threads: THREADS as u32,
                shared_bytes: bytes(2 * channels + 2 * THREADS * vector),
                args,
            },
            Launch {
                kernel: format!("group_apply_{dtype}_{vector}"),
                grid: [spread, images, blocks(vectors, THREADS)?],
                threads: THREADS as u32,
                shared_bytes: bytes(2 * groups),
                args,
            },
        ],
    })
}

/// Of one map or two joined on channels, `(b, h, w, c)` each and contiguous; gives `(b, h, w, channels of both)`.
pub fn group_norm(
    (first, rest): (&Tensor, Option<&Tensor>),
    (weight, bias): (&Tensor, &Tensor),
    groups: usize,
    eps: f64,
    silu: bool,
) -> Result<Tensor> {
    let (b, h, w, first_channels) = first.dims4()?;
    let rest_channels = rest.map_or(Ok(0), |rest| rest.dim(3))?;
    if let Some(rest) = rest {
        check("second part", rest, &[b, h, w, rest_channels])?;
    }
    check("weight", weight, &[first_channels + rest_channels])?;
    check("bias", bias, &[first_channels + rest_channels])?;
    let whole =
        aligned(first, first_channels) && rest.is_none_or(|rest| aligned(rest, rest_channels));
    let args = GroupNorm {
        first_channels: int(first_channels)?,
        rest_channels: int(rest_channels)?,
        pixels: int(h * w)?,
        groups: int(groups)?,
        eps: eps as f32,
        silu: silu.into(),
        ..GroupNorm::default()
    };
    let vector = vector(first.dtype(), whole);
    let work = plan_group(first.dtype(), b, args, vector, card::card(first.device())?)?;
    let shape = Shape::from((b, h, w, first_channels + rest_channels));
    let inputs = [Some(first), rest, Some(weight), Some(bias)];
    card::run(work, &inputs, shape)
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct LayerNorm {
    pub x: u64,
    pub weight: u64,
    pub bias: u64,
    pub y: u64,
    pub rows: i32,
    pub width: i32,
    pub eps: f32,
}
const _: () = assert!(size_of::<LayerNorm>() == 48);

// SAFETY: as in norm.cu, which asserts the same size.
unsafe impl Args for LayerNorm {
    fn place(&mut self, inputs: &[u64], result: u64, _scratch: u64) {
        [self.x, self.weight, self.bias] = [inputs[0], inputs[1], inputs[2]];
        self.y = result;
    }
}

/// Vectors of a row that a lane keeps.
const KEPT: usize = 5;

/// The kernel of a layer norm, with as many lanes for each row as keep it, or a warp for a row that is wider.
pub fn plan_layer(dtype: DType, args: LayerNorm, vector: usize) -> Result<Work<LayerNorm>> {
    let vectors = args.width as usize / vector;
    let lanes = [8, 16, 32]
        .into_iter()
        .find(|lanes| lanes * KEPT >= vectors);
    let kind = lanes.map_or("wide".to_owned(), |lanes| lanes.to_string());
    let launch = Launch {
        kernel: format!("layer_norm_{}_{vector}_{kind}", name(dtype)?),
        grid: [
            blocks(args.rows as usize, THREADS / lanes.unwrap_or(32))?,
            1,
            1,
        ],
        threads: THREADS as u32,
        shared_bytes: 0,
        args,
    };
    Ok(Work {
        scratch: 0,
        launches: vec![launch],
    })
}

/// Of the rows of a contiguous `(.., channels)`.
pub fn layer_norm(x: &Tensor, (weight, bias): (&Tensor, &Tensor), eps: f64) -> Result<Tensor> {
    let width = x.dim(candle_core::D::Minus1)?;
    check("weight", weight, &[width])?;
    check("bias", bias, &[width])?;
    let args = LayerNorm {
        rows: int(x.elem_count() / width)?,
        width: int(width)?,
        eps: eps as f32,
        ..LayerNorm::default()
    };
    let work = plan_layer(x.dtype(), args, vector(x.dtype(), aligned(x, width)))?;
    let inputs = [Some(x), Some(weight), Some(bias)];
    card::run(work, &inputs, x.shape().clone())
}

/// How many numbers 16 bytes are, where so many may be read at once.
fn vector(dtype: DType, whole: bool) -> usize {
    if whole { 16 / dtype.size_in_bytes() } else { 1 }
}
