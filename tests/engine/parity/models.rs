//! Networks with diffusers' random weights. In f64 they are the same function; in f32 they are as close to it as torch's f32 is.
use super::support::{distance, fixture, magnitude, tensors};
use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use diffuse::engine::models::{
    clip::*, condition::Conditioning, tiny_vae::*, unet::UNet, unet_config::UNetFile, vae::*,
};
use std::collections::HashMap;

fn builder(name: &str, file: &str, dtype: DType) -> VarBuilder<'static> {
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
    VarBuilder::from_tensors(all, dtype, &Device::Cpu)
}

fn config<C: serde::de::DeserializeOwned>(name: &str) -> C {
    serde_json::from_slice(
        &std::fs::read(fixture("models").join(name).join("config.json")).unwrap(),
    )
    .unwrap()
}

/// `run` gives the network's output in the dtype of its activations. f64 agrees to rounding (the sinusoid alone is f32 in both).
/// f32 may be three times as far from the f64 output as torch's f32 is, or 4e-6 of the largest value where torch is nearer by luck.
fn compare(name: &str, run: impl Fn(&HashMap<String, Tensor>, DType) -> Tensor) {
    let expected = tensors(&fixture("models").join(name).join("expected.safetensors"));
    let exact = &expected["f64"];
    let scale = magnitude(exact);
    let f64_error = distance(&run(&expected, DType::F64), exact);
    assert!(
        f64_error <= 2e-6 * scale,
        "{name}: f64 differs by {f64_error:e} of {scale}"
    );
    let f32_error = distance(&run(&expected, DType::F32), exact);
    let bound = (3.0 * distance(&expected["f32"], exact)).max(4e-6 * scale);
    println!("{name}: f64 {f64_error:.1e}, f32 {f32_error:.1e}, bound {bound:.1e}");
    assert!(
        f32_error <= bound,
        "{name}: f32 differs by {f32_error:e}, more than {bound:e}"
    );
}

#[test]
fn unconditional_unets_are_diffusers() {
    for name in [
        "ddpm-cat",
        "butterflies",
        "scale-shift",
        "no-attention",
        "no-middle",
    ] {
        compare(name, |e, dtype| {
            let config = config::<UNetFile>(name).unconditional().unwrap();
            let unet = UNet::load(
                &config,
                builder(name, "diffusion_pytorch_model.safetensors", dtype),
                dtype,
            )
            .unwrap();
            unet.forward(
                &e["x"].to_dtype(dtype).unwrap(),
                e["t"].to_scalar::<f32>().unwrap() as f64,
                None,
            )
            .unwrap()
        });
    }
}

#[test]
fn conditional_unets_are_diffusers() {
    for name in ["sd1", "sd2", "distilled", "only-cross", "mixed"] {
        compare(name, |e, dtype| {
            let config = config::<UNetFile>(name).conditional().unwrap();
            let unet = UNet::load(
                &config,
                builder(name, "diffusion_pytorch_model.safetensors", dtype),
                dtype,
            )
            .unwrap();
            let given = Conditioning::text(e["text"].to_dtype(dtype).unwrap());
            let condition = unet.condition(&given).unwrap();
            unet.forward(
                &e["x"].to_dtype(dtype).unwrap(),
                e["t"].to_scalar::<f32>().unwrap() as f64,
                Some(&condition),
            )
            .unwrap()
        });
    }
}

#[test]
fn several_texts_may_look_at_one_map() {
    for name in ["sd1", "sd2", "distilled", "only-cross", "mixed"] {
        let expected = tensors(&fixture("models").join(name).join("expected.safetensors"));
        let config = config::<UNetFile>(name).conditional().unwrap();
        let file = builder(name, "diffusion_pytorch_model.safetensors", DType::F32);
        let unet = UNet::load(&config, file, DType::F32).unwrap();
        let x = expected["x"].to_dtype(DType::F32).unwrap();
        let states = expected["text"].to_dtype(DType::F32).unwrap();
        let other = (&states * 0.5).unwrap();
        let text = |states: Tensor| unet.condition(&Conditioning::text(states)).unwrap();
        let both = text(Tensor::cat(&[&states, &other], 0).unwrap());
        let once = unet.forward(&x, 7.0, Some(&both)).unwrap();
        let copies = Tensor::cat(&[&x, &x], 0).unwrap();
        let twice = unet.forward(&copies, 7.0, Some(&both)).unwrap();
        assert_eq!(distance(&once, &twice), 0.0, "{name}");
        let three = text(states.repeat((3, 1, 1)).unwrap().narrow(0, 0, 3).unwrap());
        let of_two = unet.forward(&copies.narrow(0, 0, 2).unwrap(), 7.0, Some(&three));
        let message = of_two.unwrap_err().to_string();
        assert!(message.contains("3 texts for a batch of 2"), "{message}");
    }
}

#[test]
fn vae_decoders_are_diffusers() {
    for name in ["vae", "vae-plain"] {
        compare(name, |e, dtype| {
            let config: VaeConfig = config(name);
            config.check().unwrap();
            let vae = VaeDecoder::load(
                &config,
                builder(name, "diffusion_pytorch_model.safetensors", dtype),
                dtype,
            )
            .unwrap();
            vae.decode(&e["x"].to_dtype(dtype).unwrap()).unwrap()
        });
    }
}

#[test]
fn tiny_vae_decoders_are_diffusers() {
    for name in ["tiny-vae", "tiny-vae-silu"] {
        compare(name, |e, dtype| {
            let config: TinyVaeConfig = config(name);
            config.check().unwrap();
            let vae = TinyVaeDecoder::load(
                &config,
                builder(name, "diffusion_pytorch_model.safetensors", dtype),
                dtype,
            )
            .unwrap();
            vae.decode(&e["x"].to_dtype(dtype).unwrap()).unwrap()
        });
    }
}

#[test]
fn text_towers_are_transformers() {
    for name in ["clip", "open-clip"] {
        compare(name, |e, dtype| {
            let config: ClipTextConfig = config(name);
            config.check().unwrap();
            let tower = ClipTextModel::load(
                &config,
                builder(name, "model.safetensors", dtype),
                dtype,
                false,
            )
            .unwrap();
            let ids: Vec<Vec<i64>> = e["ids"].to_vec2().unwrap();
            let ids: Vec<Vec<u32>> = ids
                .into_iter()
                .map(|row| row.into_iter().map(|id| id as u32).collect())
                .collect();
            tower.forward(&ids, Depth::WHOLE).unwrap().states
        });
    }
}

/// candle's own VAE is an independent reading of the same paper; its UNet and text tower approximate GELU and cannot serve.
#[test]
fn the_vae_decoder_is_that_of_candle_transformers() {
    use candle_transformers::models::stable_diffusion::vae::{AutoEncoderKL, AutoEncoderKLConfig};
    let file = "diffusion_pytorch_model.safetensors";
    let config = AutoEncoderKLConfig {
        block_out_channels: vec![8, 12, 16],
        layers_per_block: 1,
        latent_channels: 4,
        norm_num_groups: 4,
        use_quant_conv: true,
        use_post_quant_conv: true,
    };
    let theirs = AutoEncoderKL::new(builder("vae", file, DType::F32), 3, 3, config).unwrap();
    let ours: VaeConfig = self::config("vae");
    let decoder = VaeDecoder::load(&ours, builder("vae", file, DType::F32), DType::F32).unwrap();
    let x = Tensor::randn(0f32, 1.0, (1, 4, 9, 11), &Device::Cpu).unwrap();
    let expected = theirs.decode(&(&x / ours.scaling_factor).unwrap()).unwrap();
    let error = distance(&decoder.decode(&x).unwrap(), &expected);
    // Two f32 computations in different orders.
    assert!(error <= 1e-5 * magnitude(&expected), "differs by {error:e}");
}
