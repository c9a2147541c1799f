//! Whole networks, layer for layer as they run on a card, against the same networks on the CPU.
use super::{DTYPES, assert_close, card, values};
use crate::engine::checkpoint::{Checkpoint, Naming, Weights};
use crate::engine::models::clip::{ClipTextConfig, ClipTextModel, Depth};
use crate::engine::models::condition::Conditioning;
use crate::engine::models::unet::UNet;
use crate::engine::models::unet_config::UNetFile;
use crate::engine::models::vae::{VaeConfig, VaeDecoder};
use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;

/// A component of a checkpoint in `assets`, its weights rounded to `dtype`.
fn component(model: &str, component: &str, dtype: DType) -> (Checkpoint, VarBuilder<'static>) {
    let model = format!("{}/assets/{model}", env!("CARGO_MANIFEST_DIR"));
    let checkpoint = Checkpoint::open(&model, "main").unwrap();
    let files = checkpoint.prepare_weights(component, dtype).unwrap();
    let naming = Naming {
        strip: "text_model.",
        ..Naming::default()
    };
    let weights = Weights::open(&files, naming).unwrap();
    (checkpoint, weights.var_builder(dtype, &Device::Cpu))
}

/// A tensor of values in [-1, 1].
fn tensor(seed: u32, shape: &[usize]) -> Tensor {
    let values = values(DType::F32, seed, shape.iter().product());
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

/// `network` on the CPU and on the card, with the same weights: what is left are the roundings between the layers, which of a few
/// dozen add up to a few.
fn assert_same(what: &str, network: impl Fn(DType, DType) -> anyhow::Result<Tensor>) {
    for dtype in DTYPES {
        let numbers = |x: Tensor| -> Vec<f32> {
            let x = x.to_dtype(DType::F32).unwrap();
            x.flatten_all().unwrap().to_vec1().unwrap()
        };
        let want = numbers(network(dtype, DType::F32).unwrap());
        let got = numbers(card::pretend(|| network(dtype, dtype)).unwrap());
        assert_close(&got, &want, dtype, 8.0, what);
    }
}

#[test]
#[ignore = "needs a C++ compiler"]
fn networks_without_a_text_are_the_same() {
    for model in ["tiny-ddpm", "demo/ddpm"] {
        assert_same(model, |weights, activations| {
            let (checkpoint, vb) = component(model, "unet", weights);
            let config = checkpoint.config::<UNetFile>("unet")?.unconditional()?;
            let unet = UNet::load(&config, vb, activations)?;
            let x = tensor(20, &[2, config.in_channels, 8, 16]);
            Ok(unet.forward(&x, 37.0, None)?)
        });
    }
}

#[test]
#[ignore = "needs a C++ compiler"]
fn networks_with_a_text_are_the_same() {
    for (model, width) in [("tiny-sd", 20), ("demo/txt2img", 128)] {
        assert_same(model, |weights, activations| {
            let (checkpoint, vb) = component(model, "unet", weights);
            let config = checkpoint.config::<UNetFile>("unet")?.conditional()?;
            let unet = UNet::load(&config, vb, activations)?;
            let x = tensor(21, &[1, config.in_channels, 8, 6]);
            let condition = unet.condition(&Conditioning::text(tensor(22, &[2, 77, width])))?;
            Ok(unet.forward(&x, 501.0, Some(&condition))?)
        });
    }
}

#[test]
#[ignore = "needs a C++ compiler"]
fn decoders_are_the_same() {
    for model in ["tiny-sd", "demo/txt2img"] {
        assert_same(model, |weights, activations| {
            let (checkpoint, vb) = component(model, "vae", weights);
            let config: VaeConfig = checkpoint.config("vae")?;
            let vae = VaeDecoder::load(&config, vb, activations)?;
            Ok(vae.decode(&tensor(23, &[1, config.latent_channels, 5, 4]))?)
        });
    }
}

#[test]
#[ignore = "needs a C++ compiler"]
fn text_towers_are_the_same() {
    for model in ["tiny-sd", "demo/txt2img"] {
        assert_same(model, |weights, activations| {
            let (checkpoint, vb) = component(model, "text_encoder", weights);
            let config: ClipTextConfig = checkpoint.config("text_encoder")?;
            let tower = ClipTextModel::load(&config, vb, activations, false)?;
            let length = config.max_position_embeddings as u32;
            let ids: Vec<u32> = (0..length).map(|i| i % 50).collect();
            Ok(tower.forward(&[ids.clone(), ids], Depth::WHOLE)?.states)
        });
    }
}
