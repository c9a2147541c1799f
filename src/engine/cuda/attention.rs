//! Attention on the card: `kernels/attention.cu`.
use super::{Args, Card, Launch, Work, aligned, blocks, card, check, int, name};
use candle_core::{DType, Result, Shape, Tensor};

/// The widest head that a kernel takes.
pub const WIDEST_HEAD: usize = 512;

#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Attention {
    pub q: u64,
    pub k: u64,
    pub v: u64,
    pub y: u64,
    pub queries: i32,
    pub keys: i32,
    pub heads: i32,
    pub d: i32,
    pub scale: f32,
    pub causal: i32,
    pub stride: i32,
}
const _: () = assert!(size_of::<Attention>() == 64);

// SAFETY: as in attention.cu, which asserts the same size.
unsafe impl Args for Attention {
    fn place(&mut self, inputs: &[u64], result: u64, _scratch: u64) {
        [self.q, self.k, self.v] = [inputs[0], inputs[1], inputs[2]];
        self.y = result;
    }
}

/// A kernel of the tensor cores.
struct Tensor16 {
    name: &'static str,
    /// The widest head; a narrower one is filled up with zeros.
    width: usize,
    /// Of a block.
    queries: usize,
    threads: u32,
    shared_bytes: usize,
}

const fn tiled(name: &'static str, width: usize, queries: usize) -> Tensor16 {
    Tensor16 {
        name,
        width,
        queries,
        threads: 128,
        // Two tiles of 64 keys and two of values, their rows 16 bytes longer.
        shared_bytes: 4 * 64 * (width + 8) * 2,
    }
}

const TENSOR: [Tensor16; 6] = [
    tiled("48", 48, 128),
    tiled("64", 64, 128),
    tiled("80", 80, 64),
    tiled("128", 128, 64),
    tiled("160", 160, 64),
    Tensor16 {
        name: "512",
        width: 512,
        queries: 64,
        threads: 256,
        // 64 queries, 32 keys and values; weights, scores and a number for each query.
        shared_bytes: (64 + 2 * 32) * (512 + 8) * 2 + 64 * 40 * 2 + 64 * 36 * 4 + 64 * 4,
    },
];

/// By groups of warps.
const fn groups(name: &'static str, width: usize) -> Tensor16 {
    Tensor16 {
        name,
        width,
        queries: 128,
        threads: 256,
        // 128 queries, and three tiles of 64 keys and of 64 values.
        shared_bytes: (128 + 3 * 2 * 64) * 64 * 2,
    }
}

const GROUPS: [Tensor16; 2] = [groups("groups_48", 48), groups("groups_64", 64)];

/// The kernel for `images` sequences; `aligned` says that every head of every row may be read 16 bytes at once.
pub fn plan(
    dtype: DType,
    images: usize,
    args: Attention,
    aligned: bool,
    card: Card,
) -> Result<Work<Attention>> {
    let d = args.d as usize;
    let tensor = match dtype {
        DType::F16 | DType::BF16 if aligned => {
            let groups = if card.groups { &GROUPS[..] } else { &[] };
            let mut kernels = groups.iter().chain(&TENSOR);
            kernels.find(|kernel| kernel.width >= d)
        }
        _ => None,
    };
    let (kind, queries, threads, shared_bytes) = match tensor {
        Some(kernel) if kernel.shared_bytes <= card.shared_bytes as usize => (
            kernel.name,
            kernel.queries,
            kernel.threads,
            kernel.shared_bytes,
        ),
        _ if d > WIDEST_HEAD => candle_core::bail!("no kernel for attention heads of {d}"),
        // 16 queries and 32 keys, their rows one number longer, and their scores.
        _ => {
            let kind = if d <= 160 { "plain" } else { "plain_wide" };
            (kind, 16, 256, (48 * (d + 1) + 16 * 32) * 4)
        }
    };
    let launch = Launch {
        kernel: format!("attention_{}_{kind}", name(dtype)?),
        grid: [
            blocks(args.queries as usize, queries)?,
            args.heads as u32,
            blocks(images, 1)?,
        ],
        threads,
        shared_bytes: shared_bytes as u32,
        args,
    };
    Ok(Work {
        scratch: 0,
        launches: vec![launch],
    })
}

/// `q` is `(b, n, heads*d)`, `k` and `v` are `(b, m, heads*d)`, all contiguous; gives `(b, n, heads*d)`. `d` is at most [`WIDEST_HEAD`].
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, heads: usize, causal: bool) -> Result<Tensor> {
    let (b, n, width) = q.dims3()?;
    let (m, d) = (k.dim(1)?, width / heads);
    check("q", q, &[b, n, heads * d])?;
    check("k", k, &[b, m, width])?;
    check("v", v, &[b, m, width])?;
    run([q, k, v], (b, n, m), (heads, d), width, causal)
}

/// The same of queries, keys and values beside each other, `(b, n, 3*heads*d)`.
pub fn joined(qkv: &Tensor, heads: usize, causal: bool) -> Result<Tensor> {
    let (b, n, width) = qkv.dims3()?;
    let d = width / 3 / heads;
    check("queries, keys and values", qkv, &[b, n, 3 * heads * d])?;
    // From the first of each on.
    let numbers = qkv.flatten_all()?;
    let rest = |i: usize| numbers.narrow(0, i * width / 3, numbers.elem_count() - i * width / 3);
    let (k, v) = (rest(1)?, rest(2)?);
    run([&numbers, &k, &v], (b, n, n), (heads, d), width, causal)
}

/// The rows of each part of `parts` are `stride` apart.
fn run(
    parts: [&Tensor; 3],
    (b, queries, keys): (usize, usize, usize),
    (heads, d): (usize, usize),
    stride: usize,
    causal: bool,
) -> Result<Tensor> {
    let args = Attention {
        queries: int(queries)?,
        keys: int(keys)?,
        heads: int(heads)?,
        d: int(d)?,
        scale: 1.0 / (d as f32).sqrt(),
        causal: causal.into(),
        stride: int(stride)?,
        ..Attention::default()
    };
    let aligned = parts.iter().all(|x| aligned(x, d));
    let q = parts[0];
    let work = plan(q.dtype(), b, args, aligned, card::card(q.device())?)?;
    card::run(work, &parts.map(Some), Shape::from((b, queries, heads * d)))
}
