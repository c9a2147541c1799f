//! Every kernel against its definition in `engine::kernels`, in every dtype, on awkward sizes.
use super::{Buffer, DTYPES, assert_close, card, mapped, values};
use crate::engine::cuda::activation::{self, Function};
use crate::engine::cuda::{Args, Card, Work, attention, norm, product, weight};
use crate::engine::kernels as cpu;
use candle_core::DType;

/// So few multiprocessors that small shapes are split and large ones are not.
const CARD: Card = Card {
    multiprocessors: 6,
    shared_bytes: 99 << 10,
    groups: false,
};
const HOPPER: Card = Card {
    shared_bytes: 227 << 10,
    groups: true,
    ..CARD
};

/// Runs the kernels of `work`; gives the result of `numbers` numbers.
fn run<A: Args>(
    work: Work<A>,
    dtype: DType,
    inputs: &[Option<&[f32]>],
    numbers: usize,
) -> Vec<f32> {
    let buffer = |x: &Option<&[f32]>| x.map(|x| Buffer::of(dtype, x));
    let inputs: Vec<Option<Buffer>> = inputs.iter().map(buffer).collect();
    let address = |x: &Option<Buffer>| x.as_ref().map_or(0, Buffer::address);
    let addresses: Vec<u64> = inputs.iter().map(address).collect();
    let result = Buffer::empty(dtype, numbers);
    let scratch = Buffer::empty(DType::F32, work.scratch);
    // SAFETY: the addresses are those of living buffers of the sizes that the plan is for.
    unsafe { card::emulate(work, &addresses, result.address(), scratch.address()) };
    scratch.values();
    result.values()
}

/// A map of pixels in its two parts.
fn split(x: &[f32], parts: [usize; 2]) -> [Vec<f32>; 2] {
    let pixels = || x.chunks(parts[0] + parts[1]);
    [
        pixels()
            .flat_map(|pixel| pixel[..parts[0]].to_vec())
            .collect(),
        pixels()
            .flat_map(|pixel| pixel[parts[0]..].to_vec())
            .collect(),
    ]
}

/// `(outputs, places, channels)` as product.cuh has it in tiles: where each number lies, one after another.
fn in_tiles(weight: &[f32], outputs: usize, places: usize, channels: usize) -> Vec<f32> {
    let (blocks, high) = (channels.div_ceil(64), outputs.div_ceil(8) * 8);
    let mut tiles = vec![0.0; blocks * places * high * 64];
    for (i, &x) in weight.iter().enumerate() {
        let (output, place, channel) = (i / channels / places, i / channels % places, i % channels);
        let row = ((channel / 64 * places) + place) * high + output;
        let chunk = (channel % 64 / 8) ^ (output % 8);
        tiles[row * 64 + chunk * 8 + channel % 8] = x;
    }
    tiles
}

#[test]
#[ignore = "needs a C++ compiler"]
fn a_weight_in_tiles_is_its_definition() {
    for dtype in [DType::F16, DType::BF16] {
        for (outputs, places, channels, pairs) in [
            (5, 1, 8, false),
            (8, 9, 64, false),
            (21, 9, 72, false),
            (12, 1, 136, true),
        ] {
            let numbers = values(dtype, 30, outputs * channels * places);
            let ordered: Vec<f32> = (0..numbers.len())
                .map(|i| {
                    let (output, place, channel) =
                        (i / channels / places, i / channels % places, i % channels);
                    let row = match pairs {
                        true => output % 2 * (outputs / 2) + output / 2,
                        false => output,
                    };
                    numbers[(row * channels + channel) * places + place]
                })
                .collect();
            let want = in_tiles(&ordered, outputs, places, channels);
            let args = weight::Tiling {
                outputs: outputs as i32,
                channels: channels as i32,
                places: places as i32,
                pairs: pairs.into(),
                ..Default::default()
            };
            let (work, depths, rows) = weight::plan_tiling(dtype, args).unwrap();
            assert_eq!(depths * rows * 64, want.len());
            let got = run(work, dtype, &[Some(&numbers)], want.len());
            assert_eq!(got, want, "{outputs} x {places} x {channels}");
        }
    }
}

#[test]
#[ignore = "needs a C++ compiler"]
fn group_norms_are_their_definition() {
    for dtype in DTYPES {
        for (b, pixels, parts, groups, silu) in [
            (2, 35, [32, 0], 4, true),
            (1, 300, [48, 16], 8, false),
            (3, 1, [6, 3], 3, true),
            (1, 17, [20, 12], 4, true),
            (1, 40, [1288, 0], 2, false),
            (2, 9, [2080, 80], 10, true),
        ] {
            let channels = parts[0] + parts[1];
            // Far from zero beside their spread, as after a bias.
            let x = mapped(dtype, 1, b * pixels * channels, |x| x + 3.0);
            let (weight, bias) = (values(dtype, 2, channels), values(dtype, 3, channels));
            let shape = cpu::GroupNormShape {
                b,
                pixels,
                channels,
                groups,
            };
            let mut want = vec![0.0; x.len()];
            cpu::norm::group_norm_naive(&x, shape, (&weight, &bias), 1e-5, silu, &mut want);

            let [first, rest] = split(&x, parts);
            let args = norm::GroupNorm {
                first_channels: parts[0] as i32,
                rest_channels: parts[1] as i32,
                pixels: pixels as i32,
                groups: groups as i32,
                eps: 1e-5,
                silu: silu.into(),
                ..Default::default()
            };
            let wide = 16 / dtype.size_in_bytes();
            let whole = parts.iter().all(|c| c % wide == 0);
            for vector in [1, wide].into_iter().take(1 + usize::from(whole)) {
                let work = norm::plan_group(dtype, b, args, vector, CARD).unwrap();
                let rest = (parts[1] > 0).then_some(&rest[..]);
                let inputs = [Some(&first[..]), rest, Some(&weight), Some(&bias)];
                let got = run(work, dtype, &inputs, want.len());
                assert_close(
                    &got,
                    &want,
                    dtype,
                    4.0,
                    &format!("{b} x {pixels} x {parts:?} by {vector}"),
                );
            }
        }
    }
}

#[test]
#[ignore = "needs a C++ compiler"]
fn layer_norms_are_their_definition() {
    for dtype in DTYPES {
        for (rows, width) in [
            (1, 8),
            (5, 40),
            (19, 33),
            (35, 640),
            (8, 768),
            (3, 1),
            (9, 1288),
            (2, 2048),
        ] {
            let x = mapped(dtype, 4, rows * width, |x| x - 2.0);
            let (weight, bias) = (values(dtype, 5, width), values(dtype, 6, width));
            let mut want = vec![0.0; x.len()];
            // A group norm of one group over one pixel.
            let shape = cpu::GroupNormShape {
                b: rows,
                pixels: 1,
                channels: width,
                groups: 1,
            };
            cpu::norm::group_norm_naive(&x, shape, (&weight, &bias), 1e-5, false, &mut want);
            let args = norm::LayerNorm {
                rows: rows as i32,
                width: width as i32,
                eps: 1e-5,
                ..Default::default()
            };
            let wide = 16 / dtype.size_in_bytes();
            for vector in [1, wide]
                .into_iter()
                .take(1 + usize::from(width % wide == 0))
            {
                let work = norm::plan_layer(dtype, args, vector).unwrap();
                let inputs = [Some(&x[..]), Some(&weight), Some(&bias)];
                let got = run(work, dtype, &inputs, want.len());
                assert_close(
                    &got,
                    &want,
                    dtype,
                    4.0,
                    &format!("{rows} x {width} by {vector}"),
                );
            }
        }
    }
}

#[test]
#[ignore = "needs a C++ compiler"]
fn attentions_are_their_definition() {
    for dtype in DTYPES {
        for (b, heads, lq, lk, d, causal) in [
            (1, 1, 1, 1, 8, false),
            (2, 2, 70, 77, 40, false),
            (1, 3, 64, 64, 64, false),
            (1, 2, 130, 130, 64, true),
            (2, 1, 33, 200, 80, false),
            (1, 2, 20, 77, 128, false),
            (1, 1, 100, 65, 160, false),
            (1, 1, 9, 40, 512, false),
            (1, 2, 21, 21, 13, true),
            (1, 1, 18, 35, 200, false),
            (2, 2, 70, 70, 256, true),
            (1, 1, 130, 96, 512, false),
            (1, 2, 200, 200, 40, true),
        ] {
            let shape = cpu::AttentionShape {
                b,
                heads,
                lq,
                lk,
                d,
                causal,
            };
            let scale = 1.0 / (d as f32).sqrt();
            // Large enough that the weights differ.
            let q = mapped(dtype, 7, b * lq * heads * d, |x| 4.0 * x);
            let (k, v) = (
                values(dtype, 8, b * lk * heads * d),
                values(dtype, 9, b * lk * heads * d),
            );
            let mut want = vec![0.0; q.len()];
            cpu::attention::attention_naive(&q, &k, &v, shape, scale, &mut want);
            let args = attention::Attention {
                queries: lq as i32,
                keys: lk as i32,
                heads: heads as i32,
                d: d as i32,
                scale,
                causal: causal.into(),
                stride: (heads * d) as i32,
                ..Default::default()
            };
            for (aligned, card) in [(false, CARD), (d % 8 == 0, CARD), (d % 8 == 0, HOPPER)] {
                let work = attention::plan(dtype, b, args, aligned, card).unwrap();
                let kernel = work.launches[0].kernel.clone();
                let got = run(work, dtype, &[Some(&q), Some(&k), Some(&v)], want.len());
                assert_close(&got, &want, dtype, 4.0, &format!("{kernel} {shape:?}"));
            }
        }
    }
}

/// A convolution to compare.
struct Case {
    images: usize,
    size: (usize, usize),
    parts: [usize; 2],
    outputs: usize,
    kernel: usize,
    stride: usize,
    padding: [usize; 2],
    enlarged: Option<(usize, usize)>,
}

impl Case {
    /// Stride 1, the same size.
    fn same(
        images: usize,
        size: (usize, usize),
        parts: [usize; 2],
        outputs: usize,
        kernel: usize,
    ) -> Self {
        let padding = [kernel / 2; 2];
        Self {
            images,
            size,
            parts,
            outputs,
            kernel,
            stride: 1,
            padding,
            enlarged: None,
        }
    }

    /// Compares, with everything that may follow the sum, what is planned for `card`.
    fn check(&self, dtype: DType, card: Card) {
        self.check_plans(dtype, |args, aligned| {
            vec![product::plan(dtype, args, aligned, card).unwrap()]
        });
    }

    /// Compares all that is planned, where channels may be read by eights and where they may not.
    fn check_plans(
        &self,
        dtype: DType,
        plans: impl Fn(product::Product, bool) -> Vec<Work<product::Product>>,
    ) {
        let (channels, outputs) = (self.parts[0] + self.parts[1], self.outputs);
        let (h, w) = self.size;
        let (eh, ew) = self.enlarged.unwrap_or(self.size);
        let pixels = self.images * h * w;
        let x = values(dtype, 10, pixels * channels);
        let weight = values(dtype, 11, outputs * channels * self.kernel * self.kernel);
        let bias = values(dtype, 12, outputs);
        let shift = values(dtype, 13, self.images * outputs);

        let [before, after] = self.padding;
        let shape = cpu::ConvShape {
            in_channels: channels,
            out_channels: outputs,
            kernel: (self.kernel, self.kernel),
            stride: self.stride,
            padding: [before, after, before, after],
        };
        let (oh, ow) = shape.output_size(eh, ew).unwrap();
        let seen: Vec<f32> = (0..self.images * eh * ew)
            .flat_map(|i| {
                let (image, y, x0) = (i / (eh * ew), i / ew % eh, i % ew);
                let from = (image * h + cpu::nearest(y, h, eh)) * w + cpu::nearest(x0, w, ew);
                x[from * channels..][..channels].to_vec()
            })
            .collect();
        let count = self.images * oh * ow * outputs;
        let residual = values(dtype, 14, count);
        let mut sums = vec![0.0; count];
        cpu::conv::conv2d_naive(
            &shape,
            &weight,
            Some(&bias),
            &seen,
            (self.images, eh, ew),
            &mut sums,
        );
        let want: Vec<f32> = (0..count)
            .map(|i| {
                (sums[i] + shift[i / (oh * ow * outputs) * outputs + i % outputs] + residual[i])
                    * 0.5
            })
            .collect();

        // (out, in, ky, kx) to (out, ky, kx, in), and the map in its two parts.
        let taps = self.kernel * self.kernel;
        let weight: Vec<f32> = (0..weight.len())
            .map(|i| {
                weight[(i / channels / taps * channels + i % channels) * taps + i / channels % taps]
            })
            .collect();
        let [first, rest] = split(&x, self.parts);
        let args = product::Product {
            first_channels: self.parts[0] as i32,
            rest_channels: self.parts[1] as i32,
            images: self.images as i32,
            height: h as i32,
            width: w as i32,
            enlarged_height: eh as i32,
            enlarged_width: ew as i32,
            out_height: oh as i32,
            out_width: ow as i32,
            outputs: outputs as i32,
            kernel: self.kernel as i32,
            stride: self.stride as i32,
            padding: before as i32,
            shift_stride: outputs as i32,
            scale: 0.5,
            ..Default::default()
        };
        let whole = dtype != DType::F32 && self.parts.iter().all(|c| c % 8 == 0);
        let together = outputs.is_multiple_of(8);
        let tiled = in_tiles(&weight, outputs, taps, channels);
        let ways = [
            (false, false, false),
            (whole, false, false),
            (whole, whole, false),
            (whole, whole, together),
        ];
        for (in_tiles, aligned, together) in ways {
            let args = product::Product {
                together: together.into(),
                tiled: in_tiles.into(),
                ..args
            };
            let weight = if in_tiles { &tiled } else { &weight };
            for work in plans(args, aligned) {
                let what = format!(
                    "{} of {} parts, {:?}",
                    work.launches[0].kernel, work.launches[0].args.splits, args
                );
                let rest = (self.parts[1] > 0).then_some(&rest[..]);
                let inputs = [
                    Some(&first[..]),
                    rest,
                    Some(weight),
                    Some(&bias),
                    Some(&shift),
                    Some(&residual),
                ];
                let got = run(work, dtype, &inputs, count);
                assert_close(&got, &want, dtype, 2.0, &what);
            }
        }
    }
}

#[test]
#[ignore = "needs a C++ compiler"]
fn convolutions_are_their_definition() {
    let odd = (5, 7);
    for dtype in DTYPES {
        for case in [
            Case::same(1, odd, [8, 0], 4, 3),
            Case::same(2, odd, [16, 24], 20, 3),
            Case::same(1, (9, 6), [40, 0], 33, 1),
            Case::same(2, (3, 3), [5, 2], 7, 3),
            Case::same(1, (1, 1), [64, 0], 3, 3),
            Case::same(1, (6, 6), [32, 0], 70, 5),
            Case::same(1, (5, 6), [16, 8], 24, 7),
            Case::same(1, (13, 11), [72, 64], 168, 3),
            Case {
                stride: 2,
                ..Case::same(2, (8, 9), [24, 0], 24, 3)
            },
            Case {
                stride: 2,
                padding: [0, 1],
                ..Case::same(1, (7, 7), [8, 8], 10, 3)
            },
            Case {
                enlarged: Some((10, 14)),
                ..Case::same(1, odd, [16, 0], 8, 3)
            },
            Case {
                enlarged: Some((9, 13)),
                ..Case::same(1, odd, [8, 0], 8, 3)
            },
        ] {
            for card in [CARD, HOPPER] {
                case.check(dtype, card);
            }
        }
    }
}

#[test]
#[ignore = "needs a C++ compiler"]
fn every_tile_of_a_product_is_its_definition() {
    for dtype in DTYPES {
        for card in [CARD, HOPPER] {
            // More than one tile of every kind, none of them full.
            let case = Case::same(1, (15, 19), [40, 24], 264, 3);
            case.check_plans(dtype, |args, aligned| {
                let tiles = product::tiles(dtype, aligned, card).into_iter();
                tiles
                    .flat_map(|tile| {
                        [1, 3].map(|splits| product::work(dtype, args, tile, splits, card).unwrap())
                    })
                    .collect()
            });
        }
    }
}

#[test]
fn wide_tiles_are_for_large_products_and_parts_for_few_tiles() {
    let planned = |rows: i32, channels, outputs, kernel, card| {
        let args = product::Product {
            first_channels: channels,
            images: 1,
            out_height: 1,
            out_width: rows,
            outputs,
            kernel,
            ..Default::default()
        };
        let work = product::plan(DType::F16, args, true, card).unwrap();
        (work.launches[0].kernel.clone(), work.launches.len())
    };
    let large = |groups| Card {
        multiprocessors: 132,
        groups,
        ..HOPPER
    };
    // Of Stable Diffusion 1.5: maps of 64x64 fill a card by themselves, those of 8x8 in parts; the last is the timestep's.
    for (sizes, kernel, launches) in [
        ((8192, 320, 320, 3), "product_f16_pipe_160", 1),
        ((128, 1280, 1280, 3), "product_f16_pipe_128", 2),
        ((2, 320, 1280, 1), "product_f16_64x64", 1),
    ] {
        let (rows, channels, outputs, taps) = sizes;
        let got = planned(rows, channels, outputs, taps, large(true));
        assert_eq!(got, (kernel.to_owned(), launches), "{sizes:?}");
        let (without, _) = planned(rows, channels, outputs, taps, large(false));
        assert!(!without.contains("pipe"), "{without}");
    }
}

#[test]
#[ignore = "needs a C++ compiler"]
fn a_gated_product_is_its_definition() {
    for dtype in DTYPES {
        for (rows, inputs, outputs) in [(5, 16, 12), (70, 40, 66), (1, 9, 2), (70, 40, 176)] {
            let x = values(dtype, 15, rows * inputs);
            let (weight, bias) = (
                values(dtype, 16, outputs * inputs),
                values(dtype, 17, outputs),
            );
            let mut both = vec![0.0; rows * outputs];
            cpu::linear::linear_naive(&weight, Some(&bias), &x, inputs, &mut both);
            let want: Vec<f32> = both
                .chunks(2)
                .map(|pair| {
                    let mut gate = [pair[1]];
                    cpu::gelu_erf(&mut gate);
                    pair[0] * gate[0]
                })
                .collect();
            let args = product::Product {
                first_channels: inputs as i32,
                images: 1,
                height: 1,
                width: rows as i32,
                enlarged_height: 1,
                enlarged_width: rows as i32,
                out_height: 1,
                out_width: rows as i32,
                outputs: outputs as i32,
                kernel: 1,
                stride: 1,
                scale: 1.0,
                geglu: 1,
                together: (outputs % 8 == 0).into(),
                ..Default::default()
            };
            let tiled = dtype != DType::F32 && inputs % 8 == 0;
            let weight = match tiled {
                true => in_tiles(&weight, outputs, 1, inputs),
                false => weight,
            };
            let given = [Some(&x[..]), None, Some(&weight), Some(&bias), None, None];
            let args = product::Product {
                tiled: tiled.into(),
                ..args
            };
            for card in [CARD, HOPPER] {
                for tile in product::tiles(dtype, tiled, card) {
                    let work = product::work(dtype, args, tile, 1, card).unwrap();
                    let what = format!("{rows} rows by {}", work.launches[0].kernel);
                    let got = run(work, dtype, &given, want.len());
                    assert_close(&got, &want, dtype, 2.0, &what);
                }
            }
        }
    }
}

#[test]
#[ignore = "needs a C++ compiler"]
fn activations_are_their_definition() {
    type Definition = fn(f64) -> f64;
    // erf by its integral.
    fn phi(x: f64) -> f64 {
        let steps = 20_000;
        let width = x / steps as f64;
        let at = |i: usize| (-(i as f64 * width).powi(2) / 2.0).exp();
        let middle: f64 = (1..steps).map(at).sum();
        0.5 + width * (0.5 * at(0) + middle + 0.5 * at(steps)) / std::f64::consts::TAU.sqrt()
    }
    let cases: [(Function, Definition); 6] = [
        (Function::Silu, |x| x / (1.0 + (-x).exp())),
        (Function::Mish, |x| x * x.exp().ln_1p().tanh()),
        (Function::Gelu, |x| x * phi(x)),
        (Function::GeluTanh, |x| {
            let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
            x * (1.0 + u.tanh()) / 2.0
        }),
        (Function::QuickGelu, |x| x / (1.0 + (-1.702 * x).exp())),
        (Function::Relu, |x| x.max(0.0)),
    ];
    for dtype in DTYPES {
        let x = mapped(dtype, 20, 301, |x| 30.0 * x.powi(3));
        for (function, definition) in cases {
            let want: Vec<f32> = x.iter().map(|&x| definition(x.into()) as f32).collect();
            let work = activation::plan(dtype, x.len(), function).unwrap();
            let got = run(work, dtype, &[Some(&x)], x.len());
            assert_close(&got, &want, dtype, 1.0, &format!("{function:?}"));
        }
    }
}
