//! Networks with diffusers' random weights. In f64 they are the same function; in f32 they are as close to it as torch's f32 is.
use super::models::*;
use super::support::{distance, fixture, magnitude, tensors};
use candle_core::{DType, Device, Tensor};
use diffuse::engine::models::{condition::Conditioning, unet::UNet, unet_config::UNetFile, vae::*};
use diffuse::engine::noise::Noise;

/// In f64 they agree to rounding (the sinusoid alone is f32 in both).
/// f32 may be three times as far from the f64 output as torch's f32 is, or 4e-6 of the largest value where torch is nearer by luck.
fn compare(names: &[&str]) {
    for name in names {
        let expected = tensors(&fixture("models").join(name).join("expected.safetensors"));
        let exact = &expected["f64"];
        let scale = magnitude(exact);
        let f64_error = distance(&output(name, &expected, DType::F64, &Device::Cpu), exact);
        assert!(
            f64_error <= 2e-6 * scale,
            "{name}: f64 differs by {f64_error:e} of {scale}"
        );
        let f32_error = distance(&output(name, &expected, DType::F32, &Device::Cpu), exact);
        let bound = f32_bound(&expected);
        println!("{name}: f64 {f64_error:.1e}, f32 {f32_error:.1e}, bound {bound:.1e}");
        assert!(
            f32_error <= bound,
            "{name}: f32 differs by {f32_error:e}, more than {bound:e}"
        );
    }
}

#[test]
fn unconditional_unets_are_diffusers() {
    compare(UNCONDITIONAL);
}

#[test]
fn conditional_unets_are_diffusers() {
    compare(CONDITIONAL);
}

#[test]
fn several_texts_may_look_at_one_map() {
    for name in CONDITIONAL {
        let expected = tensors(&fixture("models").join(name).join("expected.safetensors"));
        let config = config::<UNetFile>(name).conditional().unwrap();
        let file = builder(
            name,
            "diffusion_pytorch_model.safetensors",
            DType::F32,
            &Device::Cpu,
        );
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
    compare(VAES);
}

#[test]
fn tiny_vae_decoders_are_diffusers() {
    compare(TINY_VAES);
}

#[test]
fn vae_decoders_in_bands_are_diffusers() {
    for name in VAES {
        let expected = tensors(&fixture("models").join(name).join("expected.safetensors"));
        let exact = &expected["f64"];
        for rows in [1, 2, 3, 7] {
            for (dtype, bound) in [
                (DType::F64, 2e-6 * magnitude(exact)),
                (DType::F32, f32_bound(&expected)),
            ] {
                let ours = in_bands(name, &expected, rows, dtype, &Device::Cpu);
                let error = distance(&ours, exact);
                assert!(
                    error <= bound,
                    "{name} in bands of {rows}: {dtype:?} differs by {error:e}, more than {bound:e}"
                );
            }
        }
    }
}

#[test]
fn text_towers_are_transformers() {
    compare(TOWERS);
}

/// candle's own VAE is an independent reading of the same paper; its UNet and text tower approximate GELU and cannot serve.
#[test]
fn the_vae_decoder_is_that_of_candle_transformers() {
    use candle_transformers::models::stable_diffusion::vae::{AutoEncoderKL, AutoEncoderKLConfig};
    let file = "diffusion_pytorch_model.safetensors";
    let their_config = AutoEncoderKLConfig {
        block_out_channels: vec![8, 12, 16],
        layers_per_block: 1,
        latent_channels: 4,
        norm_num_groups: 4,
        use_quant_conv: true,
        use_post_quant_conv: true,
    };
    let theirs = AutoEncoderKL::new(
        builder("vae", file, DType::F32, &Device::Cpu),
        3,
        3,
        their_config,
    )
    .unwrap();
    let ours: VaeConfig = config("vae");
    let decoder = VaeDecoder::load(
        &ours,
        builder("vae", file, DType::F32, &Device::Cpu),
        DType::F32,
    )
    .unwrap();
    let x = Noise::new(7, 1)
        .normal((4, 9, 11), DType::F32, &Device::Cpu)
        .unwrap();
    let expected = theirs.decode(&(&x / ours.scaling_factor).unwrap()).unwrap();
    let error = distance(&decoder.decode(&x).unwrap(), &expected);
    // Two f32 computations in different orders.
    assert!(error <= 1e-5 * magnitude(&expected), "differs by {error:e}");
}
