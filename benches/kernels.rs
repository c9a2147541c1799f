//! The kernels at the shapes of the two published architectures: SD 1.5 at 512x512 with guidance (a batch of 2) and ddpm-cat-256.
//!
//! `cargo bench --bench kernels`; `-- conv3x3` runs a part, RAYON_NUM_THREADS=1 takes one thread. "items" are floating-point operations
//! of the definition, so 500 GItem/s is 500 effective GFLOP/s; `ceiling` is what all cores' multipliers do with no memory at all.
use diffuse::engine::kernels::{
    AttentionShape, ConvShape, Epilogue, GroupNormShape, PackedConv2d, PackedLinear, Parts,
    Weights, attention, group_norm, layer_norm, multiply_adds,
};
use divan::{Bencher, counter::ItemsCount};
use rayon::prelude::*;
use std::time::Duration;

fn main() {
    divan::Divan::default()
        .sample_count(20)
        .max_time(Duration::from_secs(1))
        .config_with_args()
        .main();
}

/// Numbers in [-1, 1) without a pattern that a kernel could profit from.
fn numbers(len: usize) -> Vec<f32> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

/// Multiply-adds in registers on every thread.
#[divan::bench]
fn ceiling(bencher: Bencher) {
    const ROUNDS: usize = 2_000_000;
    let threads = rayon::current_num_threads();
    bencher
        .counter(ItemsCount::new(threads * multiply_adds(ROUNDS)))
        .bench_local(|| {
            (0..threads).into_par_iter().with_max_len(1).for_each(|_| {
                multiply_adds(ROUNDS);
            })
        });
}

fn conv(bencher: Bencher, shape: ConvShape, (b, side): (usize, usize)) {
    let (c, n, taps) = (
        shape.in_channels,
        shape.out_channels,
        shape.kernel.0 * shape.kernel.1,
    );
    let weight = numbers(n * c * taps);
    let conv = PackedConv2d::pack(shape, Weights::F32(&weight), Some(&numbers(n)));
    let x = numbers(b * side * side * c);
    let (oh, ow) = conv.output_size(side, side).expect("it fits");
    let mut y = vec![0.0; b * oh * ow * n];
    bencher
        .counter(ItemsCount::new(2 * b * oh * ow * n * c * taps))
        .bench_local(|| {
            conv.run(
                Parts::whole(&x, c),
                (b, side, side),
                Epilogue::default(),
                &mut y,
            )
        });
}

/// Batch, side of the map, channels in and out.
#[divan::bench(args = [
    (2, 64, 320, 320), (2, 64, 640, 320), (2, 64, 960, 320), (2, 32, 640, 640), (2, 32, 1280, 640), (2, 32, 1920, 640),
    (2, 16, 1280, 1280), (2, 16, 2560, 1280), (2, 8, 1280, 1280), (2, 8, 2560, 1280),
    (1, 64, 512, 512), (1, 128, 512, 512), (1, 256, 512, 256), (1, 256, 256, 256), (1, 512, 256, 128), (1, 512, 128, 128), (1, 512, 128, 3),
    (1, 256, 128, 128), (1, 256, 3, 128), (1, 128, 128, 128), (1, 64, 256, 256), (1, 32, 256, 256), (1, 16, 512, 512), (1, 8, 512, 512),
])]
fn conv3x3(bencher: Bencher, (b, side, c, n): (usize, usize, usize, usize)) {
    let shape = ConvShape {
        in_channels: c,
        out_channels: n,
        kernel: (3, 3),
        stride: 1,
        padding: [1; 4],
    };
    conv(bencher, shape, (b, side));
}

#[divan::bench(args = [(2, 64, 320), (2, 32, 640), (2, 16, 1280), (1, 256, 128), (1, 128, 128), (1, 32, 256)])]
fn conv3x3_stride2(bencher: Bencher, (b, side, c): (usize, usize, usize)) {
    let shape = ConvShape {
        in_channels: c,
        out_channels: c,
        kernel: (3, 3),
        stride: 2,
        padding: [1; 4],
    };
    conv(bencher, shape, (b, side));
}

/// Rows, inputs, outputs.
#[divan::bench(args = [
    (8192, 320, 320), (2048, 640, 640), (512, 1280, 1280), (128, 1280, 1280), (8192, 1280, 320), (2048, 2560, 640), (512, 5120, 1280),
    (154, 768, 320), (8192, 960, 320), (4096, 512, 512), (262144, 256, 128), (65536, 256, 128),
])]
fn linear(bencher: Bencher, (m, k, n): (usize, usize, usize)) {
    let linear = PackedLinear::pack(Weights::F32(&numbers(n * k)), n, k, Some(&numbers(n)));
    let x = numbers(m * k);
    let mut y = vec![0.0; m * n];
    bencher
        .counter(ItemsCount::new(2 * m * n * k))
        .bench_local(|| linear.run(&x, m, Epilogue::default(), &mut y));
}

#[divan::bench(args = [(8192, 320), (2048, 640), (512, 1280)])]
fn geglu(bencher: Bencher, (m, k): (usize, usize)) {
    let n = 8 * k;
    let linear = PackedLinear::pack(Weights::F32(&numbers(n * k)), n, k, Some(&numbers(n)));
    let x = numbers(m * k);
    let mut y = vec![0.0; m * n / 2];
    bencher
        .counter(ItemsCount::new(2 * m * n * k))
        .bench_local(|| linear.run_geglu(&x, m, &mut y));
}

/// Batch, heads, queries, keys, numbers of a head.
#[divan::bench(args = [
    (2, 8, 4096, 4096, 40), (2, 8, 1024, 1024, 80), (2, 8, 256, 256, 160), (2, 8, 4096, 77, 40), (2, 8, 1024, 77, 80),
    (1, 1, 4096, 4096, 512), (1, 64, 256, 256, 8),
])]
fn attention_of(bencher: Bencher, (b, heads, lq, lk, d): (usize, usize, usize, usize, usize)) {
    let shape = AttentionShape {
        b,
        heads,
        lq,
        lk,
        d,
        causal: false,
    };
    let (q, k, v) = (
        numbers(b * lq * heads * d),
        numbers(b * lk * heads * d),
        numbers(b * lk * heads * d),
    );
    let mut y = q.clone();
    bencher
        .counter(ItemsCount::new(4 * b * heads * lq * lk * d))
        .bench_local(|| attention(&q, &k, &v, shape, (d as f32).powf(-0.5), &mut y));
}

/// Batch, pixels, channels; with SiLU. Items are numbers of the map.
#[divan::bench(args = [(2, 4096, 320), (2, 1024, 640), (2, 64, 1280), (1, 262144, 128), (1, 65536, 256), (1, 65536, 128)])]
fn group_norm_silu(bencher: Bencher, (b, pixels, channels): (usize, usize, usize)) {
    let shape = GroupNormShape {
        b,
        pixels,
        channels,
        groups: 32,
    };
    let x = numbers(b * pixels * channels);
    let (gamma, beta) = (numbers(channels), numbers(channels));
    let mut y = x.clone();
    bencher.counter(ItemsCount::new(x.len())).bench_local(|| {
        group_norm(
            Parts::whole(&x, channels),
            shape,
            (&gamma, &beta),
            1e-5,
            true,
            &mut y,
        )
    });
}

#[divan::bench(args = [(8192, 320), (2048, 640), (512, 1280)])]
fn layer_norm_of(bencher: Bencher, (rows, channels): (usize, usize)) {
    let x = numbers(rows * channels);
    let (gamma, beta) = (numbers(channels), numbers(channels));
    let mut y = x.clone();
    bencher
        .counter(ItemsCount::new(x.len()))
        .bench_local(|| layer_norm(&x, &gamma, &beta, 1e-5, &mut y));
}
