//! Every kernel against its definition, on sizes that leave tails, on every instruction set of the machine.
use super::attention::{attention_for, attention_naive};
use super::conv::conv2d_naive;
use super::linear::linear_naive;
use super::norm::{group_norm_for, group_norm_naive, layer_norm_for};
use super::simd::Isa;
use super::*;

mod activations;
mod edges;

/// Uniform numbers in [-1, 1), the same in every run.
fn numbers(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    (0..len)
        .map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        })
        .collect()
}

/// The largest difference over the largest expected magnitude.
fn distance(got: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(got.len(), expected.len());
    let size = expected.iter().fold(1e-20f32, |a, b| a.max(b.abs()));
    let worst = got.iter().zip(expected).fold(0f32, |a, (g, e)| {
        assert!(g.is_finite(), "{g}");
        a.max((g - e).abs())
    });
    worst / size
}

fn with_threads<T: Send>(threads: usize, work: impl FnOnce() -> T + Send) -> T {
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build()
        .expect("a pool")
        .install(work)
}

/// Sums of k products of numbers below one: f32 rounding grows like sqrt(k) ulps; 4e-6 of the largest is about 30 ulps.
const SUMS: f32 = 4e-6;
/// F(4x4, 3x3) loses some digits in its transforms (Lavin & Gray 2016 find errors of this order).
const WINOGRAD: f32 = 3e-5;

#[test]
fn linear_equals_its_definition_on_every_instruction_set() {
    for &isa in Isa::available() {
        for (m, n, k) in [
            (1, 1, 1),
            (3, 5, 17),
            (5, 33, 64),
            (7, 64, 3),
            (17, 17, 300),
            (97, 31, 513),
            (2, 1000, 40),
            (150, 70, 328),
            (9, 33, 1000),
        ] {
            let (w, x, bias) = (numbers(n * k, 1), numbers(m * k, 2), numbers(n, 3));
            let layer = PackedLinear::pack_for(isa, Weights::F32(&w), n, k, Some(&bias));
            let (mut y, mut expected) = (vec![f32::NAN; m * n], vec![0.0; m * n]);
            layer.run(&x, m, Epilogue::default(), &mut y);
            linear_naive(&w, Some(&bias), &x, k, &mut expected);
            assert!(
                distance(&y, &expected) < SUMS,
                "{isa:?} {m} {n} {k}: {}",
                distance(&y, &expected)
            );
        }
    }
}

#[test]
fn a_linear_layer_takes_every_number_of_rows() {
    for &isa in Isa::available() {
        for m in 1..30 {
            let (n, k) = (40, 48);
            let (w, x) = (numbers(n * k, 1), numbers(m * k, 2));
            let (mut y, mut expected) = (vec![f32::NAN; m * n], vec![0.0; m * n]);
            let layer = PackedLinear::pack_for(isa, Weights::F32(&w), n, k, None);
            layer.run(&x, m, Epilogue::default(), &mut y);
            linear_naive(&w, None, &x, k, &mut expected);
            assert!(distance(&y, &expected) < SUMS, "{isa:?} {m}");
        }
    }
}

/// Where additions stand in for multiplications a small row would lose its digits to large weights, and a large mean to its square.
#[test]
fn a_row_keeps_its_digits_whatever_its_size_and_mean() {
    for &isa in Isa::available() {
        let (m, n, k) = (21, 50, 640);
        let w: Vec<f32> = numbers(n * k, 1).iter().map(|w| 0.01 * w).collect();
        let x: Vec<f32> = (numbers(m * k, 2).iter().enumerate())
            .map(|(i, x)| (x + (i / k % 3) as f32) * 10f32.powi((i / k) as i32 - 10))
            .collect();
        let (mut y, mut expected) = (vec![f32::NAN; m * n], vec![0.0; m * n]);
        let layer = PackedLinear::pack_for(isa, Weights::F32(&w), n, k, None);
        layer.run(&x, m, Epilogue::default(), &mut y);
        linear_naive(&w, None, &x, k, &mut expected);
        for (i, (y, expected)) in y.chunks(n).zip(expected.chunks(n)).enumerate() {
            let error = distance(y, expected);
            assert!(error < SUMS, "{isa:?} row {i}: {error}");
        }
    }
}

#[test]
fn sixteen_bit_weights_give_the_results_of_their_f32_values() {
    for &isa in Isa::available() {
        let (m, n, k) = (13, 37, 291);
        let (w, x) = (numbers(n * k, 1), numbers(m * k, 2));
        let f16: Vec<half::f16> = w.iter().map(|&w| half::f16::from_f32(w)).collect();
        let bf16: Vec<half::bf16> = w.iter().map(|&w| half::bf16::from_f32(w)).collect();
        let from_f16: Vec<f32> = f16.iter().map(|w| w.to_f32()).collect();
        let from_bf16: Vec<f32> = bf16.iter().map(|w| w.to_f32()).collect();
        for (narrow, wide) in [
            (Weights::F16(&f16), &from_f16),
            (Weights::BF16(&bf16), &from_bf16),
        ] {
            let (mut y, mut expected) = (vec![f32::NAN; m * n], vec![0.0; m * n]);
            PackedLinear::pack_for(isa, narrow, n, k, None).run(&x, m, Epilogue::default(), &mut y);
            PackedLinear::pack_for(isa, Weights::F32(wide), n, k, None).run(
                &x,
                m,
                Epilogue::default(),
                &mut expected,
            );
            assert_eq!(y, expected, "{isa:?}");
        }
    }
}

#[test]
fn the_epilogue_adds_shift_and_residual_then_scales() {
    for &isa in Isa::available() {
        let (images, rows, n, k) = (2, 7, 19, 23);
        let m = images * rows;
        let (w, x, bias) = (numbers(n * k, 1), numbers(m * k, 2), numbers(n, 3));
        let (shift, residual) = (numbers(images * n, 4), numbers(m * n, 5));
        let mut expected = vec![0.0; m * n];
        linear_naive(&w, Some(&bias), &x, k, &mut expected);
        for (i, y) in expected.iter_mut().enumerate() {
            *y = (*y + shift[i / n / rows * n + i % n] + residual[i]) * 0.5;
        }
        let epilogue = Epilogue {
            shift: Some(&shift),
            residual: Some(&residual),
            scale: 0.5,
        };
        let mut y = vec![f32::NAN; m * n];
        let layer = PackedLinear::pack_for(isa, Weights::F32(&w), n, k, Some(&bias));
        layer.run(&x, m, epilogue, &mut y);
        assert!(
            distance(&y, &expected) < SUMS,
            "{isa:?}: {}",
            distance(&y, &expected)
        );
    }
}

#[test]
fn the_gated_layer_is_a_times_gelu_of_g() {
    for &isa in Isa::available() {
        let (m, n, k) = (11, 33, 29);
        let (w, x, bias) = (numbers(2 * n * k, 1), numbers(m * k, 2), numbers(2 * n, 3));
        let mut both = vec![0.0; m * 2 * n];
        linear_naive(&w, Some(&bias), &x, k, &mut both);
        let expected: Vec<f32> = (0..m * n)
            .map(|i| {
                let (a, g) = (
                    both[i / n * 2 * n + i % n],
                    f64::from(both[i / n * 2 * n + n + i % n]),
                );
                (f64::from(a) * g * 0.5 * (1.0 + erf(g / 2f64.sqrt()))) as f32
            })
            .collect();
        let mut y = vec![f32::NAN; m * n];
        PackedLinear::pack_for(isa, Weights::F32(&w), 2 * n, k, Some(&bias))
            .run_geglu(&x, m, &mut y);
        assert!(
            distance(&y, &expected) < SUMS,
            "{isa:?}: {}",
            distance(&y, &expected)
        );
    }
}

fn conv_shapes() -> Vec<(ConvShape, (usize, usize, usize))> {
    let mut cases = Vec::new();
    for (c, n) in [
        (1, 1),
        (3, 5),
        (4, 33),
        (17, 17),
        (20, 16),
        (33, 64),
        (64, 33),
        (130, 40),
    ] {
        for (kernel, stride, padding) in [
            ((3, 3), 1, [1, 1, 1, 1]),
            ((3, 3), 2, [1, 1, 1, 1]),
            ((3, 3), 2, [0, 1, 0, 1]),
            ((3, 3), 1, [0, 1, 0, 1]),
            ((3, 3), 1, [0, 0, 0, 0]),
            ((1, 1), 1, [0, 0, 0, 0]),
            ((4, 2), 3, [2, 0, 1, 1]),
        ] {
            for (b, h, w) in [(1, 3, 5), (2, 5, 3), (2, 17, 9), (1, 8, 8), (1, 33, 12)] {
                let shape = ConvShape {
                    in_channels: c,
                    out_channels: n,
                    kernel,
                    stride,
                    padding,
                };
                if shape.output_size(h, w).is_some() {
                    cases.push((shape, (b, h, w)));
                }
            }
        }
    }
    cases
}

#[test]
fn convolutions_equal_their_definition_on_every_instruction_set() {
    for (shape, (b, h, w)) in conv_shapes() {
        let (oh, ow) = shape.output_size(h, w).expect("kept only those that fit");
        let weight = numbers(
            shape.out_channels * shape.in_channels * shape.kernel.0 * shape.kernel.1,
            1,
        );
        let (x, bias) = (
            numbers(b * h * w * shape.in_channels, 2),
            numbers(shape.out_channels, 3),
        );
        let mut expected = vec![0.0; b * oh * ow * shape.out_channels];
        conv2d_naive(&shape, &weight, Some(&bias), &x, (b, h, w), &mut expected);
        for &isa in Isa::available() {
            let mut y = vec![f32::NAN; expected.len()];
            let conv = PackedConv2d::pack_for(isa, shape, Weights::F32(&weight), Some(&bias));
            conv.run(
                Parts::whole(&x, shape.in_channels),
                (b, h, w),
                Epilogue::default(),
                &mut y,
            );
            let error = distance(&y, &expected);
            assert!(error < WINOGRAD, "{isa:?} {shape:?} {b} {h} {w}: {error}");
        }
    }
}

#[test]
fn a_convolution_of_two_maps_is_that_of_their_concatenation() {
    for (kernel, stride, c0, c1) in [
        ((3, 3), 1, 40, 23),
        ((3, 3), 2, 5, 12),
        ((1, 1), 1, 17, 64),
        ((3, 3), 1, 3, 2),
    ] {
        let padding = if kernel == (1, 1) { [0; 4] } else { [1; 4] };
        let shape = ConvShape {
            in_channels: c0 + c1,
            out_channels: 37,
            kernel,
            stride,
            padding,
        };
        let (b, h, w) = (2, 9, 11);
        let (x0, x1) = (numbers(b * h * w * c0, 1), numbers(b * h * w * c1, 2));
        let joined: Vec<f32> = x0
            .chunks(c0)
            .zip(x1.chunks(c1))
            .flat_map(|(a, b)| [a, b].concat())
            .collect();
        let weight = numbers(37 * (c0 + c1) * kernel.0 * kernel.1, 3);
        let (oh, ow) = shape.output_size(h, w).expect("fits");
        let mut expected = vec![0.0; b * oh * ow * 37];
        conv2d_naive(&shape, &weight, None, &joined, (b, h, w), &mut expected);
        for &isa in Isa::available() {
            let mut y = vec![f32::NAN; expected.len()];
            let conv = PackedConv2d::pack_for(isa, shape, Weights::F32(&weight), None);
            conv.run(
                Parts::joined((&x0, c0), (&x1, c1)),
                (b, h, w),
                Epilogue::default(),
                &mut y,
            );
            assert!(
                distance(&y, &expected) < WINOGRAD,
                "{isa:?} {shape:?}: {}",
                distance(&y, &expected)
            );
        }
    }
}

#[test]
fn an_image_is_bit_for_bit_the_same_in_every_batch_and_with_any_threads() {
    for (c, n, h, w, stride) in [
        (64, 64, 24, 20, 1),
        (33, 40, 8, 8, 1),
        (32, 48, 9, 7, 2),
        (320, 64, 4, 4, 1),
    ] {
        let shape = ConvShape {
            in_channels: c,
            out_channels: n,
            kernel: (3, 3),
            stride,
            padding: [1; 4],
        };
        let (oh, ow) = shape.output_size(h, w).expect("fits");
        let x = numbers(3 * h * w * c, 1);
        let weight = numbers(n * c * 9, 2);
        let conv = PackedConv2d::pack(shape, Weights::F32(&weight), None);
        let mut batch = vec![f32::NAN; 3 * oh * ow * n];
        with_threads(3, || {
            let x = Parts::whole(&x, c);
            conv.run(x, (3, h, w), Epilogue::default(), &mut batch)
        });
        let mut alone = vec![f32::NAN; oh * ow * n];
        for image in 0..3 {
            let x = &x[image * h * w * c..][..h * w * c];
            with_threads(1, || {
                let x = Parts::whole(x, c);
                conv.run(x, (1, h, w), Epilogue::default(), &mut alone)
            });
            assert!(
                alone == batch[image * oh * ow * n..][..oh * ow * n],
                "{shape:?}"
            );
        }
    }
    let (m, n, k) = (100, 70, 600);
    let (w, x) = (numbers(n * k, 1), numbers(m * k, 2));
    let layer = PackedLinear::pack(Weights::F32(&w), n, k, None);
    let (mut all, mut one) = (vec![f32::NAN; m * n], vec![f32::NAN; n]);
    with_threads(4, || layer.run(&x, m, Epilogue::default(), &mut all));
    for row in 0..m {
        with_threads(1, || {
            layer.run(&x[row * k..][..k], 1, Epilogue::default(), &mut one)
        });
        assert!(one == all[row * n..][..n], "row {row}");
    }
}

#[test]
fn attention_equals_its_definition_on_every_instruction_set() {
    for (b, heads, lq, lk, d) in [
        (1, 1, 1, 1, 1),
        (2, 3, 5, 17, 4),
        (1, 2, 33, 64, 8),
        (2, 2, 50, 77, 40),
        (1, 2, 9, 600, 24),
        (1, 1, 64, 300, 64),
        (1, 1, 49, 513, 80),
        (1, 1, 17, 33, 160),
        (1, 1, 13, 260, 512),
        (1, 3, 3, 5, 33),
    ] {
        for causal in [false, true] {
            if causal && lq > lk {
                continue;
            }
            let shape = AttentionShape {
                b,
                heads,
                lq,
                lk,
                d,
                causal,
            };
            // scores of some tens, so that the running maximum matters
            let q: Vec<f32> = numbers(b * lq * heads * d, 1)
                .iter()
                .map(|x| 8.0 * x)
                .collect();
            let (k, v) = (
                numbers(b * lk * heads * d, 2),
                numbers(b * lk * heads * d, 3),
            );
            let mut expected = vec![0.0; q.len()];
            let scale = 4.0 / (d as f32).sqrt();
            attention_naive(&q, &k, &v, shape, scale, &mut expected);
            for &isa in Isa::available() {
                let mut y = vec![f32::NAN; q.len()];
                attention_for(isa, &q, &k, &v, shape, scale, &mut y);
                // a score's own rounding, some tens times 6e-8, is a relative error of its weight
                assert!(
                    distance(&y, &expected) < 2e-5,
                    "{isa:?} {shape:?}: {}",
                    distance(&y, &expected)
                );
            }
        }
    }
}

#[test]
fn a_head_of_attention_is_bit_for_bit_the_same_in_every_batch_and_with_any_threads() {
    let shape = AttentionShape {
        b: 2,
        heads: 3,
        lq: 70,
        lk: 300,
        d: 40,
        causal: false,
    };
    let len = 70 * 3 * 40;
    let (q, k, v) = (
        numbers(2 * len, 1),
        numbers(2 * 300 * 120, 2),
        numbers(2 * 300 * 120, 3),
    );
    let (mut batch, mut alone) = (vec![f32::NAN; 2 * len], vec![f32::NAN; len]);
    with_threads(3, || attention(&q, &k, &v, shape, 0.2, &mut batch));
    for image in 0..2 {
        let part = |x: &[f32], len: usize| x[image * len..][..len].to_vec();
        let (q, k, v) = (part(&q, len), part(&k, 300 * 120), part(&v, 300 * 120));
        with_threads(1, || {
            attention(
                &q,
                &k,
                &v,
                AttentionShape { b: 1, ..shape },
                0.2,
                &mut alone,
            )
        });
        assert!(alone == batch[image * len..][..len]);
    }
}

#[test]
fn group_norm_equals_its_definition_and_keeps_its_digits_under_a_large_mean() {
    for (b, pixels, c, groups) in [
        (1, 1, 4, 1),
        (2, 5, 6, 3),
        (2, 64, 33, 3),
        (1, 1000, 64, 32),
        (1, 1100, 20, 4),
    ] {
        for (offset, silu) in [(0.0, false), (0.0, true), (100.0, false)] {
            let shape = GroupNormShape {
                b,
                pixels,
                channels: c,
                groups,
            };
            let x: Vec<f32> = numbers(b * pixels * c, 1)
                .iter()
                .map(|x| x + offset)
                .collect();
            let (gamma, beta) = (numbers(c, 2), numbers(c, 3));
            let mut expected = vec![0.0; x.len()];
            group_norm_naive(&x, shape, (&gamma, &beta), 1e-5, silu, &mut expected);
            for &isa in Isa::available() {
                let mut y = vec![f32::NAN; x.len()];
                let whole = Parts::whole(&x, c);
                group_norm_for(isa, whole, shape, (&gamma, &beta), 1e-5, silu, &mut y);
                // x * scale + offset rounds at the size of the mean over the deviation
                let bound = if offset == 0.0 { SUMS } else { 4e-5 };
                assert!(
                    distance(&y, &expected) < bound,
                    "{isa:?} {shape:?} {offset}: {}",
                    distance(&y, &expected)
                );
            }
        }
    }
}

#[test]
fn layer_norm_is_group_norm_with_one_pixel_and_one_group() {
    for (rows, c) in [(1, 1), (3, 5), (5, 17), (2, 33), (7, 64), (4, 321)] {
        let x: Vec<f32> = numbers(rows * c, 1).iter().map(|x| x + 3.0).collect();
        let (gamma, beta) = (numbers(c, 2), numbers(c, 3));
        let mut expected = vec![0.0; x.len()];
        let shape = GroupNormShape {
            b: rows,
            pixels: 1,
            channels: c,
            groups: 1,
        };
        group_norm_naive(&x, shape, (&gamma, &beta), 1e-5, false, &mut expected);
        for &isa in Isa::available() {
            let mut y = vec![f32::NAN; x.len()];
            layer_norm_for(isa, &x, &gamma, &beta, 1e-5, &mut y);
            assert!(
                distance(&y, &expected) < 1e-5,
                "{isa:?} {rows} {c}: {}",
                distance(&y, &expected)
            );
        }
    }
}

/// erf by the series whose terms are all of one sign: 2 / sqrt(pi) e^(-x^2) sum of 2^n x^(2n+1) / (1 3 5 .. (2n+1)).
fn erf(x: f64) -> f64 {
    let (mut term, mut sum, mut n) = (x, x, 0.0);
    while x.abs() < 6.0 && term.abs() > 1e-18 * sum.abs() {
        n += 1.0;
        term *= 2.0 * x * x / (2.0 * n + 1.0);
        sum += term;
    }
    if x.abs() < 6.0 {
        sum * 2.0 / std::f64::consts::PI.sqrt() * (-x * x).exp()
    } else {
        x.signum()
    }
}

#[test]
fn group_norm_of_two_maps_is_that_of_the_joined_map_bit_for_bit() {
    for (c0, c1, groups) in [(20, 12, 4), (33, 7, 5), (64, 32, 32)] {
        let (b, pixels, c) = (2, 600, c0 + c1);
        let (x0, x1) = (numbers(b * pixels * c0, 1), numbers(b * pixels * c1, 2));
        let joined: Vec<f32> = x0
            .chunks(c0)
            .zip(x1.chunks(c1))
            .flat_map(|(a, b)| [a, b].concat())
            .collect();
        let (gamma, beta) = (numbers(c, 3), numbers(c, 4));
        let shape = GroupNormShape {
            b,
            pixels,
            channels: c,
            groups,
        };
        for &isa in Isa::available() {
            let mut results = [joined.clone(), joined.clone()];
            for (x, y) in [
                Parts::whole(&joined, c),
                Parts::joined((&x0, c0), (&x1, c1)),
            ]
            .into_iter()
            .zip(&mut results)
            {
                group_norm_for(isa, x, shape, (&gamma, &beta), 1e-5, true, y);
            }
            assert!(results[0] == results[1], "{isa:?} {c0} {c1}");
            assert!(results[0] != joined);
        }
    }
}

#[test]
fn enlarging_repeats_lines_as_torch_does() {
    let lines = |from, to| (0..to).map(|i| nearest(i, from, to)).collect::<Vec<_>>();
    assert_eq!(lines(3, 6), [0, 0, 1, 1, 2, 2]);
    assert_eq!(lines(3, 5), [0, 0, 1, 1, 2]);
    assert_eq!(lines(4, 4), [0, 1, 2, 3]);
    assert_eq!(lines(4, 7), [0, 0, 1, 1, 2, 2, 3]);
}

#[test]
fn a_convolution_of_an_enlarged_map_is_that_of_the_map_made_large_bit_for_bit() {
    let (b, h, w, c, n) = (2, 5, 6, 18, 20);
    let x = numbers(b * h * w * c, 1);
    for (to, kernel) in [((10, 12), 3), ((9, 11), 3), ((5, 6), 3), ((9, 12), 1)] {
        let mut large = Vec::new();
        for (image, oy, ox) in
            (0..b).flat_map(|i| (0..to.0).flat_map(move |y| (0..to.1).map(move |x| (i, y, x))))
        {
            let (iy, ix) = (nearest(oy, h, to.0), nearest(ox, w, to.1));
            large.extend_from_slice(&x[((image * h + iy) * w + ix) * c..][..c]);
        }
        let shape = ConvShape {
            in_channels: c,
            out_channels: n,
            kernel: (kernel, kernel),
            stride: 1,
            padding: [kernel / 2; 4],
        };
        let weight = numbers(n * c * kernel * kernel, 2);
        let conv = PackedConv2d::pack(shape, Weights::F32(&weight), None);
        let mut expected = vec![f32::NAN; b * to.0 * to.1 * n];
        let mut y = expected.clone();
        let (all, small) = (Parts::whole(&large, c), Parts::whole(&x, c));
        conv.run(all, (b, to.0, to.1), Epilogue::default(), &mut expected);
        conv.run_enlarged(small, (b, h, w), to, Epilogue::default(), &mut y);
        assert!(y == expected, "{to:?} {kernel}");
    }
}
