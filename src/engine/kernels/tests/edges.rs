//! Sizes at the edges: nothing, one, one more than a vector, three images; and sizes that no slice has.
//!
//! Results begin as NaN here, and so does working memory wherever debug assertions are on: a number that is not written, or
//! read before it is, shows. All of it is small, so that slow tools can run it.
use super::*;
use crate::engine::kernels::activation::paths;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// `check` for each of the three kinds that weights come in, with the f32 values that the kind holds.
fn of_each_kind(w: &[f32], check: impl Fn(Weights<'_>, &[f32])) {
    check(Weights::F32(w), w);
    let f16: Vec<half::f16> = w.iter().map(|&w| half::f16::from_f32(w)).collect();
    let values: Vec<f32> = f16.iter().map(|w| w.to_f32()).collect();
    check(Weights::F16(&f16), &values);
    let bf16: Vec<half::bf16> = w.iter().map(|&w| half::bf16::from_f32(w)).collect();
    let values: Vec<f32> = bf16.iter().map(|w| w.to_f32()).collect();
    check(Weights::BF16(&bf16), &values);
}

fn check_conv(isa: Isa, shape: ConvShape, size: (usize, usize, usize)) {
    let (b, h, w) = size;
    let (oh, ow) = shape.output_size(h, w).expect("the kernel fits");
    let (c, n) = (shape.in_channels, shape.out_channels);
    let x = numbers(b * h * w * c, 1);
    let bias = numbers(n, 2);
    let weights = numbers(n * c * shape.kernel.0 * shape.kernel.1, 3);
    of_each_kind(&weights, |weight, values| {
        let (mut y, mut expected) = (vec![f32::NAN; b * oh * ow * n], vec![0.0; b * oh * ow * n]);
        let conv = PackedConv2d::pack_for(isa, shape, weight, Some(&bias));
        conv.run(Parts::whole(&x, c), size, Epilogue::default(), &mut y);
        conv2d_naive(&shape, values, Some(&bias), &x, size, &mut expected);
        let error = distance(&y, &expected);
        assert!(error < WINOGRAD, "{isa:?} {shape:?} {size:?}: {error}");
    });
}

#[test]
fn a_convolution_writes_every_number_at_the_edges_of_shapes() {
    for &isa in Isa::available() {
        for (in_channels, out_channels) in [(1, 1), (1, 17), (17, 1), (16, 9)] {
            for (kernel, stride, padding) in [(1, 1, [0; 4]), (3, 1, [1; 4]), (3, 2, [0, 1, 0, 1])]
            {
                for size in [(3, 1, 1), (1, 1, 7), (3, 5, 1), (1, 4, 4), (1, 5, 6)] {
                    let shape = ConvShape {
                        in_channels,
                        out_channels,
                        kernel: (kernel, kernel),
                        stride,
                        padding,
                    };
                    if shape.output_size(size.1, size.2).is_some() {
                        check_conv(isa, shape, size);
                    }
                }
            }
        }
    }
}

#[test]
#[cfg_attr(miri, ignore = "minutes")]
fn a_convolution_of_channels_in_several_blocks_equals_its_definition() {
    for &isa in Isa::available() {
        // 300 are two blocks and a part of one with vectors of 8 numbers
        let shape = ConvShape {
            in_channels: 300,
            out_channels: 21,
            kernel: (3, 3),
            stride: 1,
            padding: [1; 4],
        };
        check_conv(isa, shape, (3, 9, 10));
    }
}

#[test]
fn a_linear_layer_writes_every_number_at_the_edges_of_shapes() {
    for &isa in Isa::available() {
        for (m, n, k) in [(1, 1, 1), (3, 1, 2), (1, 33, 3), (3, 7, 1), (2, 2, 641)] {
            let (x, bias) = (numbers(m * k, 1), numbers(n, 2));
            of_each_kind(&numbers(n * k, 3), |weight, values| {
                let (mut y, mut expected) = (vec![f32::NAN; m * n], vec![0.0; m * n]);
                let layer = PackedLinear::pack_for(isa, weight, n, k, Some(&bias));
                layer.run(&x, m, Epilogue::default(), &mut y);
                linear_naive(values, Some(&bias), &x, k, &mut expected);
                let error = distance(&y, &expected);
                assert!(error < SUMS, "{isa:?} {m} {n} {k}: {error}");
            });
        }
    }
}

#[test]
fn attention_writes_every_number_at_the_edges_of_shapes() {
    for &isa in Isa::available() {
        for (b, heads, lq, lk, d) in [
            (3, 1, 1, 1, 1),
            (3, 2, 1, 5, 3),
            (1, 1, 2, 257, 1),
            (1, 1, 33, 33, 2),
        ] {
            for causal in [false, true] {
                let shape = AttentionShape {
                    b,
                    heads,
                    lq,
                    lk,
                    d,
                    causal,
                };
                let q = numbers(b * lq * heads * d, 1);
                let k = numbers(b * lk * heads * d, 2);
                let v = numbers(b * lk * heads * d, 3);
                let (mut y, mut expected) = (vec![f32::NAN; q.len()], vec![0.0; q.len()]);
                attention_for(isa, &q, &k, &v, shape, 0.5, &mut y);
                attention_naive(&q, &k, &v, shape, 0.5, &mut expected);
                // of the values, below one, whose mean may cancel
                let error = y.iter().zip(&expected).map(|(y, e)| (y - e).abs());
                assert!(
                    error.clone().all(|error| error < 1e-6),
                    "{isa:?} {shape:?}: {:?}",
                    error.collect::<Vec<_>>()
                );
            }
        }
    }
}

#[test]
fn norms_write_every_number_at_the_edges_of_shapes() {
    for &isa in Isa::available() {
        for (b, pixels, channels, groups) in
            [(3, 1, 2, 1), (1, 1, 34, 2), (3, 65, 1, 1), (2, 513, 3, 1)]
        {
            let shape = GroupNormShape {
                b,
                pixels,
                channels,
                groups,
            };
            let x = numbers(b * pixels * channels, 1);
            let (gamma, beta) = (numbers(channels, 2), numbers(channels, 3));
            let weights = (&gamma[..], &beta[..]);
            let (mut y, mut expected) = (vec![f32::NAN; x.len()], vec![0.0; x.len()]);
            let parts = Parts::whole(&x, channels);
            group_norm_for(isa, parts, shape, weights, 1e-2, true, &mut y);
            group_norm_naive(&x, shape, weights, 1e-2, true, &mut expected);
            let error = distance(&y, &expected);
            assert!(error < SUMS, "{isa:?} {shape:?}: {error}");

            y.fill(f32::NAN);
            layer_norm_for(isa, &x, &gamma, &beta, 1e-2, &mut y);
            let rows = GroupNormShape {
                b: b * pixels,
                pixels: 1,
                channels,
                groups: 1,
            };
            group_norm_naive(&x, rows, weights, 1e-2, false, &mut expected);
            let error = distance(&y, &expected);
            assert!(error < SUMS, "{isa:?} rows of {channels}: {error}");
        }
    }
}

#[test]
fn an_activation_of_a_number_is_the_same_at_every_place_of_a_slice() {
    let kernels: [fn(Isa, &mut [f32]); 4] = [
        paths::silu,
        paths::gelu_erf,
        paths::gelu_tanh,
        paths::quick_gelu,
    ];
    for &isa in Isa::available() {
        for len in [0, 1, 7, 16, 17, 35] {
            let x = numbers(len, 1);
            for kernel in kernels {
                let mut y = x.clone();
                kernel(isa, &mut y);
                for (&x, y) in x.iter().zip(y) {
                    let mut alone = [x];
                    kernel(isa, &mut alone);
                    assert!(alone[0] == y && y != x, "{isa:?} {len}: {x}");
                }
            }
            // with a = 1 the gate is GELU
            let both: Vec<f32> = x.iter().flat_map(|&g| [1.0, g]).collect();
            let (mut gate, mut gelu) = (vec![f32::NAN; len], x.clone());
            geglu(&both, 1, &mut gate);
            gelu_erf(&mut gelu);
            assert!(gate == gelu, "{len}");
        }
    }
}

#[test]
fn an_empty_batch_gives_an_empty_result() {
    for (kernel, in_channels) in [(1, 3), (3, 3), (3, 16)] {
        let shape = ConvShape {
            in_channels,
            out_channels: 5,
            kernel: (kernel, kernel),
            stride: 1,
            padding: [kernel / 2; 4],
        };
        let weight = numbers(5 * in_channels * kernel * kernel, 1);
        let conv = PackedConv2d::pack(shape, Weights::F32(&weight), None);
        let none = Parts::whole(&[], in_channels);
        conv.run(none, (0, 8, 8), Epilogue::default(), &mut []);
    }
    let weight = numbers(6, 1);
    let layer = PackedLinear::pack(Weights::F32(&weight), 2, 3, None);
    layer.run(&[], 0, Epilogue::default(), &mut []);
    layer.run_geglu(&[], 0, &mut []);
    let shape = AttentionShape {
        b: 0,
        heads: 2,
        lq: 3,
        lk: 3,
        d: 4,
        causal: true,
    };
    attention(&[], &[], &[], shape, 1.0, &mut []);
    let shape = GroupNormShape {
        b: 0,
        pixels: 4,
        channels: 2,
        groups: 1,
    };
    let ones = [1.0; 2];
    let none = Parts::whole(&[], 2);
    group_norm(none, shape, (&ones, &ones), 1e-5, false, &mut []);
    layer_norm(&[], &ones, &ones, 1e-5, &mut []);
    geglu(&[], 0, &mut []);
}

/// In a release build a product that overflows wraps around, here always to nothing, which is what the empty slices hold.
#[test]
fn sizes_whose_product_overflows_are_refused_and_not_the_length_of_an_empty_slice() {
    const HALF: usize = 1 << (usize::BITS - 1);
    let refused = |what: &str, kernel: &dyn Fn()| {
        let panic = catch_unwind(AssertUnwindSafe(kernel)).expect_err(what);
        let message = panic.downcast_ref::<String>().map_or("", String::as_str);
        assert!(
            message.starts_with("no slice is as long"),
            "{what}: {message}"
        );
    };
    let ones = [1.0; 4];
    let layer = PackedLinear::pack(Weights::F32(&ones), 2, 2, None);
    refused("linear", &|| {
        layer.run(&[], HALF, Epilogue::default(), &mut [])
    });
    refused("gate", &|| layer.run_geglu(&[], HALF, &mut []));
    refused("weights", &|| {
        PackedLinear::pack(Weights::F32(&[]), HALF, 2, None);
    });
    let shape = ConvShape {
        in_channels: 2,
        out_channels: 2,
        kernel: (1, 1),
        stride: 1,
        padding: [0; 4],
    };
    let conv = PackedConv2d::pack(shape, Weights::F32(&ones), None);
    refused("convolution", &|| {
        let none = Parts::whole(&[], 2);
        conv.run(none, (HALF, 1, 2), Epilogue::default(), &mut [])
    });
    let shape = AttentionShape {
        b: HALF,
        heads: 2,
        lq: 1,
        lk: 1,
        d: 1,
        causal: false,
    };
    refused("attention", &|| {
        attention(&[], &[], &[], shape, 1.0, &mut [])
    });
    let shape = GroupNormShape {
        b: HALF,
        pixels: 2,
        channels: 2,
        groups: 1,
    };
    refused("group norm", &|| {
        let none = Parts::whole(&[], 2);
        group_norm(none, shape, (&ones[..2], &ones[..2]), 1e-5, false, &mut [])
    });
}
