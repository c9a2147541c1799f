//! The networks of the fixtures, with diffusers' random weights, and what they give.
use super::support::{distance, fixture, magnitude, tensors};
use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use diffuse::engine::models::{
    clip::*, condition::Conditioning, tiny_vae::*, unet::UNet, unet_config::UNetFile, vae::*,
};
use std::collections::HashMap;

pub const UNCONDITIONAL: &[&str] = &[
    "ddpm-cat",
    "butterflies",
    "scale-shift",
    "no-attention",
    "no-middle",
];
pub const CONDITIONAL: &[&str] = &["sd1", "sd2", "distilled", "only-cross", "mixed"];
pub const VAES: &[&str] = &["vae", "vae-plain"];
pub const TINY_VAES: &[&str] = &["tiny-vae", "tiny-vae-silu"];
pub const TOWERS: &[&str] = &["clip", "open-clip"];

pub fn builder(name: &str, file: &str, dtype: DType, device: &Device) -> VarBuilder<'static> {
    let all: HashMap<String, Tensor> = tensors(&fixture("models").join(name).join(file))
        .into_iter()
        .map(|(k, v)| {
            let v = if k.contains("proj_in") || k.contains("proj_out") {
                if v.rank() == 4 {
                    v.flatten_from(1).unwrap()
                } else {
                    v
                }
            } else {
                v
            };
            (k, v)
        })
        .collect();
    VarBuilder::from_tensors(all, dtype, device)
}

pub fn config<C: serde::de::DeserializeOwned>(name: &str) -> C {
    serde_json::from_slice(
        &std::fs::read(fixture("models").join(name).join("config.json")).unwrap(),
    )
    .unwrap()
}

/// What the network of this name makes of its fixture's input, in the dtype of its activations.
pub fn output(name: &str, e: &HashMap<String, Tensor>, dtype: DType, device: &Device) -> Tensor {
    let there = |key: &str| e[key].to_device(device).unwrap().to_dtype(dtype).unwrap();
    if TOWERS.contains(&name) {
        let weights = builder(name, "model.safetensors", dtype, device);
        let config: ClipTextConfig = config(name);
        config.check().unwrap();
        let tower = ClipTextModel::load(&config, weights, dtype, false).unwrap();
        let ids: Vec<Vec<i64>> = e["ids"].to_vec2().unwrap();
        let ids: Vec<Vec<u32>> = ids
            .into_iter()
            .map(|row| row.into_iter().map(|id| id as u32).collect())
            .collect();
        return tower.forward(&ids, Depth::WHOLE).unwrap().states;
    }
    let weights = builder(name, "diffusion_pytorch_model.safetensors", dtype, device);
    if VAES.contains(&name) {
        return vae(name, weights, dtype).decode(&there("x")).unwrap();
    }
    if TINY_VAES.contains(&name) {
        let config: TinyVaeConfig = config(name);
        config.check().unwrap();
        let vae = TinyVaeDecoder::load(&config, weights, dtype).unwrap();
        return vae.decode(&there("x")).unwrap();
    }
    let file: UNetFile = config(name);
    let config = match UNCONDITIONAL.contains(&name) {
        true => file.unconditional(),
        false => file.conditional(),
    };
    let unet = UNet::load(&config.unwrap(), weights, dtype).unwrap();
    let text = e.contains_key("text").then(|| {
        let given = Conditioning::text(there("text"));
        unet.condition(&given).unwrap()
    });
    let t = f64::from(e["t"].to_scalar::<f32>().unwrap());
    unet.forward(&there("x"), t, text.as_ref()).unwrap()
}

fn vae(name: &str, weights: VarBuilder, dtype: DType) -> VaeDecoder {
    let config: VaeConfig = config(name);
    config.check().unwrap();
    VaeDecoder::load(&config, weights, dtype).unwrap()
}

/// The same of a VAE's decoder that has no room for more than what `rows` of latents become.
pub fn in_bands(
    name: &str,
    e: &HashMap<String, Tensor>,
    rows: usize,
    dtype: DType,
    device: &Device,
) -> Tensor {
    let weights = builder(name, "diffusion_pytorch_model.safetensors", dtype, device);
    let vae = vae(name, weights, dtype);
    let x = e["x"].to_device(device).unwrap().to_dtype(dtype).unwrap();
    let pictures: Vec<_> = (0..x.dim(0).unwrap())
        .map(|k| {
            vae.decode_in_bands(&x.narrow(0, k, 1).unwrap(), rows)
                .unwrap()
        })
        .collect();
    Tensor::cat(&pictures, 0).unwrap()
}

/// How far from the f64 output of a fixture f32 may be.
pub fn f32_bound(expected: &HashMap<String, Tensor>) -> f64 {
    let exact = &expected["f64"];
    (3.0 * distance(&expected["f32"], exact)).max(4e-6 * magnitude(exact))
}
