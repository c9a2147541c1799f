//! A card against the CPU: every layer on awkward shapes, and the networks of the fixtures.
//!
//! `tests/gpu/run` runs what is ignored here, which needs a card. The kernels' own tests run the same on an emulated one.
use super::card::on_card;
use super::parity::models::{self, CONDITIONAL, TINY_VAES, TOWERS, UNCONDITIONAL, VAES, f32_bound};
use super::parity::support::{distance, fixture, magnitude, tensors};
use candle_core::{DType, Device, Result, Tensor};
use candle_nn::VarBuilder;
use diffuse::engine::nn::{
    Activation, Conv2d, ConvShape, Geglu, GroupNorm, LayerNorm, Linear, Map, attention,
};
use diffuse::engine::noise::Noise;
use serde_json::Value;
use std::collections::{BTreeSet, HashMap};

/// Where a layer is run.
struct Place {
    device: Device,
    dtype: DType,
    /// The dtype that weights and inputs have before they have `dtype`, so that both sides compute on the same numbers.
    rounded: DType,
}

impl Place {
    fn new(device: Device, dtype: DType) -> Self {
        Self {
            device,
            dtype,
            rounded: dtype,
        }
    }

    /// candle's operations in f64 on the numbers of `other`: what `other` would give without rounding.
    fn exact(other: &Self) -> Self {
        Self {
            device: Device::Cpu,
            dtype: DType::F64,
            rounded: other.rounded,
        }
    }

    /// Normal numbers, a function of `seed` and the shape.
    fn normal(&self, seed: u64, dims: &[usize]) -> Result<Tensor> {
        let count = dims.iter().product();
        Noise::new(seed, 1)
            .normal((1, 1, count), DType::F32, &Device::Cpu)?
            .reshape(dims)?
            .to_dtype(self.rounded)?
            .to_dtype(self.dtype)?
            .to_device(&self.device)
    }

    fn map(&self, seed: u64, (b, h, w, c): (usize, usize, usize, usize)) -> Result<Map> {
        Map::from_nchw(&self.normal(seed, &[b, c, h, w])?)
    }

    /// `weight` of this shape, which keeps the numbers' size, and `bias`.
    fn weights(&self, dims: &[usize]) -> Result<VarBuilder<'static>> {
        let inputs: usize = dims.iter().skip(1).product();
        let normal = self.normal(1, dims)?;
        let weight = match dims.len() {
            1 => ((normal * 0.25)? + 1.0)?,
            _ => (normal / (inputs as f64).sqrt())?,
        };
        // The scale is rounded as well.
        let weight = weight.to_dtype(self.rounded)?;
        let bias = self.normal(2, &dims[..1])?;
        let all = HashMap::from([("weight".to_owned(), weight), ("bias".to_owned(), bias)]);
        Ok(VarBuilder::from_tensors(all, self.dtype, &self.device))
    }
}

type Layer = Box<dyn Fn(&Place) -> Result<Tensor>>;

/// Layers by name.
#[derive(Default)]
struct Layers(Vec<(String, Layer)>);

impl Layers {
    fn add(&mut self, name: String, layer: impl Fn(&Place) -> Result<Tensor> + 'static) {
        self.0.push((name, Box::new(layer)));
    }
}

/// Every family of layers in `nn`.
fn layers() -> Layers {
    let mut all = Layers::default();
    convolutions(&mut all);
    norms(&mut all);
    linears(&mut all);
    attentions(&mut all);
    others(&mut all);
    all
}

fn convolutions(all: &mut Layers) {
    // Channels in and out, kernel, stride, padding before and after; batch, height and width.
    for (i, o, kernel, stride, padding, (b, h, w)) in [
        (3, 5, 3, 1, (1, 1), (2, 7, 9)),
        (13, 7, 1, 1, (0, 0), (1, 5, 3)),
        (64, 33, 3, 1, (1, 1), (1, 17, 12)),
        (5, 9, 3, 2, (1, 1), (2, 9, 7)),
        (6, 10, 3, 2, (0, 1), (1, 8, 7)),
        (4, 11, 5, 1, (2, 2), (1, 6, 13)),
        (7, 3, 3, 1, (1, 1), (3, 1, 1)),
    ] {
        let shape = ConvShape {
            in_channels: i,
            out_channels: o,
            kernel,
            stride,
            padding,
        };
        let name = format!("convolution {i} to {o}, {kernel}x{kernel}/{stride} of {b}x{h}x{w}");
        let weights = move |place: &Place| place.weights(&[o, i, kernel, kernel]);
        let x = move |place: &Place| place.map(3, (b, h, w, i));
        let size = move |n: usize| (n + padding.0 + padding.1 - kernel) / stride + 1;
        all.add(format!("{name}, no bias"), move |place| {
            let conv = Conv2d::load_no_bias(weights(place)?, shape)?;
            conv.forward(&x(place)?)?.to_nchw()
        });
        all.add(format!("{name}, joined"), move |place| {
            let conv = Conv2d::load(weights(place)?, shape)?;
            let (a, b) = (
                place.map(3, (b, h, w, i / 2))?,
                place.map(4, (b, h, w, i - i / 2))?,
            );
            conv.forward(&a.concat_channels(b)?)?.to_nchw()
        });
        for rows in BTreeSet::from([1, b]) {
            all.add(format!("{name}, {rows} shifts"), move |place| {
                let conv = Conv2d::load(weights(place)?, shape)?;
                let shift = place.normal(4, &[rows, o])?;
                conv.forward_shifted(&x(place)?, &shift)?.to_nchw()
            });
        }
        for divisor in [1.0, std::f64::consts::SQRT_2] {
            all.add(format!("{name}, residual by {divisor:.1}"), move |place| {
                let conv = Conv2d::load(weights(place)?, shape)?;
                let residual = place.map(4, (b, size(h), size(w), o))?;
                conv.forward_residual(&x(place)?, &residual, divisor)?
                    .to_nchw()
            });
        }
        for to in [(2 * h, 2 * w), (2 * h - 1, 2 * w + 1)] {
            all.add(format!("{name}, enlarged to {to:?}"), move |place| {
                let conv = Conv2d::load(weights(place)?, shape)?;
                conv.forward_enlarged(&x(place)?, to)?.to_nchw()
            });
        }
    }
}

fn norms(all: &mut Layers) {
    for (groups, c, (b, h, w)) in [
        (1, 3, (2, 5, 7)),
        (3, 9, (1, 1, 1)),
        (4, 20, (2, 9, 3)),
        (32, 320, (2, 8, 5)),
        (5, 35, (3, 33, 17)),
    ] {
        let name = format!("group norm {groups} of {c}, {b}x{h}x{w}");
        let load = move |place: &Place| GroupNorm::load(place.weights(&[c])?, groups, c, 1e-6);
        all.add(name.clone(), move |place| {
            load(place)?
                .forward(&place.map(3, (b, h, w, c))?)?
                .to_nchw()
        });
        for activation in [Activation::Silu, Activation::Gelu, Activation::Mish] {
            all.add(format!("{name}, joined, {activation:?}"), move |place| {
                let (first, rest) = (c / 3, c - c / 3);
                let x = place
                    .map(3, (b, h, w, first))?
                    .concat_channels(place.map(4, (b, h, w, rest))?)?;
                load(place)?.forward_act(&x, activation)?.to_nchw()
            });
        }
    }
    for dims in [&[5, 7][..], &[2, 3, 320], &[1, 77, 33], &[3, 1]] {
        all.add(format!("layer norm of {dims:?}"), |place| {
            let c = dims[dims.len() - 1];
            LayerNorm::load(place.weights(&[c])?, c, 1e-5)?.forward(&place.normal(3, dims)?)
        });
    }
}

fn linears(all: &mut Layers) {
    for (i, o, rows) in [
        (3, 6, &[5][..]),
        (37, 22, &[2, 11]),
        (320, 2560, &[1, 64]),
        (1, 2, &[1]),
    ] {
        let name = format!("linear {i} to {o} of {rows:?}");
        let of = move |width| [rows, &[width]].concat();
        let x = move |place: &Place| place.normal(3, &of(i));
        let weights = move |place: &Place| place.weights(&[o, i]);
        all.add(format!("{name}, no bias"), move |place| {
            Linear::load_no_bias(weights(place)?, i, o)?.forward(&x(place)?)
        });
        all.add(format!("{name}, residual"), move |place| {
            let residual = place.normal(4, &of(o))?;
            Linear::load(weights(place)?, i, o)?.forward_residual(&x(place)?, &residual)
        });
        all.add(format!("{name}, GEGLU"), move |place| {
            Geglu::load(weights(place)?, i, o)?.forward(&x(place)?)
        });
    }
}

fn attentions(all: &mut Layers) {
    for (d, heads) in [
        (8, 3),
        (40, 8),
        (64, 2),
        (80, 3),
        (128, 1),
        (160, 2),
        (512, 1),
        (520, 2),
    ] {
        // Rows, keys, causal.
        for (n, m, causal) in [
            (37, 37, false),
            (37, 77, false),
            (1, 77, false),
            (77, 77, true),
        ] {
            let hidden = if causal { ", causal" } else { "" };
            all.add(
                format!("attention of {heads} heads of {d}, {n} to {m}{hidden}"),
                move |place| {
                    let of = |seed, rows| place.normal(seed, &[2, rows, heads * d]);
                    attention(&of(3, n)?, &of(4, m)?, &of(5, m)?, heads, causal)
                },
            );
        }
    }
}

fn others(all: &mut Layers) {
    for activation in [
        Activation::Silu,
        Activation::Mish,
        Activation::Gelu,
        Activation::GeluNew,
        Activation::QuickGelu,
        Activation::Relu,
    ] {
        all.add(format!("{activation:?}"), move |place| {
            activation.of(&(place.normal(3, &[3, 5, 67])? * 4.0)?)
        });
    }
    all.add("scale and shift".to_owned(), |place| {
        let (scale, shift) = (place.normal(4, &[2, 7])?, place.normal(5, &[2, 7])?);
        place
            .map(3, (2, 5, 3, 7))?
            .scale_shift(&scale, &shift)?
            .to_nchw()
    });
    all.add("tokens and back".to_owned(), |place| {
        let x = place.map(3, (2, 5, 3, 7))?;
        x.with_tokens(&x.tokens()?)?.to_nchw()
    });
}

/// Refuses a layer that is farther from its exact output than `bound` of the largest value there, or than `bound` where all are below 1, as inputs
/// are. NaN is beyond every bound.
fn compare_layers(place: &Place, bound: f64) {
    let exact = Place::exact(place);
    let (mut wrong, mut worst) = (vec![], (0.0, String::new()));
    let all = layers().0;
    for (name, layer) in &all {
        let expected = layer(&exact).unwrap();
        let scale = magnitude(&expected).max(1.0);
        let off = match layer(place).and_then(|y| y.to_device(&Device::Cpu)) {
            Ok(ours) => distance(&ours, &expected) / scale,
            Err(error) => {
                wrong.push(format!("{name}: {error}"));
                continue;
            }
        };
        if off.is_nan() || off > bound {
            wrong.push(format!("{name}: {off:.1e}"));
        }
        if off > worst.0 {
            worst = (off, name.clone());
        }
    }
    let dtype = place.dtype.as_str();
    println!(
        "{} layers in {dtype}: at most {:.1e} of the largest value ({}), bound {bound:.1e}",
        all.len(),
        worst.0,
        worst.1
    );
    let wrong = wrong.join("\n");
    assert!(wrong.is_empty(), "layers beyond {bound:.1e}:\n{wrong}");
}

/// Sums of some thousand products, each rounded to 2^-24.
const F32: f64 = 1e-5;
/// A layer rounds up to six results one after another (attention the most), each by half of the last place.
const F16: f64 = 6.0 / 2048.0;
const BF16: f64 = 6.0 / 256.0;

#[test]
fn layers_on_the_cpu_are_candles_operations_in_f64() {
    compare_layers(&Place::new(Device::Cpu, DType::F32), F32);
}

#[test]
#[ignore = "needs a CUDA card"]
fn layers_in_f32_are_those_of_the_cpu() {
    on_card(|card| compare_layers(&Place::new(card, DType::F32), F32));
}

#[test]
#[ignore = "needs a CUDA card"]
fn layers_in_16_bits_are_those_of_the_cpu() {
    on_card(|card| {
        compare_layers(&Place::new(card.clone(), DType::F16), F16);
        compare_layers(&Place::new(card, DType::BF16), BF16);
    });
}

fn networks() -> impl Iterator<Item = &'static str> {
    let all = [UNCONDITIONAL, CONDITIONAL, VAES, TINY_VAES, TOWERS];
    all.into_iter().flatten().copied()
}

/// The output of a network on the card, and the fixture.
fn on_the_card(name: &str, dtype: DType) -> (Tensor, HashMap<String, Tensor>) {
    let expected = tensors(&fixture("models").join(name).join("expected.safetensors"));
    let ours = on_card(|card| models::output(name, &expected, dtype, &card));
    (ours.to_device(&Device::Cpu).unwrap(), expected)
}

/// The root of the mean square of the difference, in f64.
fn spread(a: &Tensor, b: &Tensor) -> f64 {
    let wide = |x: &Tensor| x.to_dtype(DType::F64).unwrap();
    let squares = (wide(a) - wide(b)).unwrap().sqr().unwrap();
    squares
        .mean_all()
        .unwrap()
        .to_scalar::<f64>()
        .unwrap()
        .sqrt()
}

#[test]
#[ignore = "needs a CUDA card"]
fn networks_in_f32_are_as_close_to_f64_as_those_of_torch() {
    let mut wrong = vec![];
    for name in networks() {
        let (ours, expected) = on_the_card(name, DType::F32);
        let (off, bound) = (distance(&ours, &expected["f64"]), f32_bound(&expected));
        println!("{name}: {off:.1e}, bound {bound:.1e}");
        if off.is_nan() || off > bound {
            wrong.push(name);
        }
    }
    assert!(wrong.is_empty(), "{wrong:?}");
}

/// The luck of the last places: for one network of some hundred numbers, and in the mean of all networks.
const LUCK: f64 = 1.25;
const LUCK_OF_ALL: f64 = 1.05;

/// It is the same arithmetic, but for the order of the sums of a group norm.
#[test]
#[ignore = "needs a CUDA card"]
fn decoders_in_bands_are_as_close_to_f64_as_in_one_piece() {
    let mut wrong = vec![];
    for (name, dtype) in VAES
        .iter()
        .flat_map(|name| [DType::F32, DType::F16, DType::BF16].map(|dtype| (*name, dtype)))
    {
        let (whole, expected) = on_the_card(name, dtype);
        let whole = spread(&whole, &expected["f64"]);
        for rows in [1, 3] {
            let ours = on_card(|card| models::in_bands(name, &expected, rows, dtype, &card));
            let ratio = spread(&ours, &expected["f64"]) / whole;
            let what = format!("{name} in {}, bands of {rows}", dtype.as_str());
            println!("{what}: {ratio:.2} of the whole decoder's");
            if ratio.is_nan() || ratio > LUCK {
                wrong.push(what);
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:?}");
}

/// `tests/fixtures/half` says how far diffusers is. Both sides round the same weights, and differ in where they round results.
#[test]
#[ignore = "needs a CUDA card"]
fn networks_in_16_bits_are_no_farther_from_f64_than_those_of_diffusers() {
    let errors = std::fs::read(fixture("half/errors.json")).unwrap();
    let errors: Value = serde_json::from_slice(&errors).unwrap();
    let mut wrong = vec![];
    for dtype in [DType::F16, DType::BF16] {
        let mut ratios = 0.0;
        for name in networks() {
            let (ours, expected) = on_the_card(name, dtype);
            let theirs = &errors["networks"][name][dtype.as_str()]["spread"];
            let ratio = spread(&ours, &expected["f64"]) / theirs.as_f64().unwrap();
            println!("{name} in {}: {ratio:.2} of diffusers'", dtype.as_str());
            if ratio.is_nan() || ratio > LUCK {
                wrong.push(format!("{name} in {}: {ratio:.2}", dtype.as_str()));
            }
            ratios += ratio;
        }
        let mean = ratios / networks().count() as f64;
        println!("all in {}: {mean:.3} of diffusers'", dtype.as_str());
        if mean.is_nan() || mean > LUCK_OF_ALL {
            wrong.push(format!("all in {}: {mean:.3}", dtype.as_str()));
        }
    }
    let wrong = wrong.join("\n");
    assert!(wrong.is_empty(), "farther than diffusers:\n{wrong}");
}
