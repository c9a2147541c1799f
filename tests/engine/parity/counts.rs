//! The published architectures at full size, on paper: a backend that notes every name and shape and holds no numbers.
//!
//! The counts are those of diffusers' and transformers' own modules (`sum(p.numel() for p in m.parameters())` on torch's meta device).
use candle_core::{DType, Device, Result, Shape, Tensor};
use candle_nn::{Init, VarBuilder, var_builder::SimpleBackend};
use diffuse::engine::models::clip::{ClipTextConfig, ClipTextModel};
use diffuse::engine::models::tiny_vae::{TinyVaeConfig, TinyVaeDecoder};
use diffuse::engine::models::unet::UNet;
use diffuse::engine::models::unet_config::{UNetConfig, UNetFile};
use diffuse::engine::models::vae::{VaeConfig, VaeDecoder};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

#[derive(Clone, Default)]
struct Paper(Arc<Mutex<BTreeMap<String, usize>>>);

impl SimpleBackend for Paper {
    fn get(
        &self,
        shape: Shape,
        name: &str,
        _: Init,
        dtype: DType,
        device: &Device,
    ) -> Result<Tensor> {
        let before = self
            .0
            .lock()
            .unwrap()
            .insert(name.to_owned(), shape.elem_count());
        assert_eq!(before, None, "{name} is asked for twice");
        // One number that stands for all.
        Tensor::zeros((), dtype, device)?.broadcast_as(shape)
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> Result<Tensor> {
        candle_core::bail!("{name} has no shape here")
    }

    fn contains_tensor(&self, _: &str) -> bool {
        true
    }
}

/// Parameters of what `build` builds. f64 has no packed kernels, so nothing is copied.
fn count<M>(build: impl FnOnce(VarBuilder) -> Result<M>) -> usize {
    let paper = Paper::default();
    let vb = VarBuilder::from_backend(Box::new(paper.clone()), DType::F64, Device::Cpu);
    build(vb).unwrap();
    let counts = paper.0.lock().unwrap();
    counts.values().sum()
}

fn config<C: DeserializeOwned>(keys: Value) -> C {
    serde_json::from_value(keys).unwrap()
}

fn unet(keys: &Value, of: fn(UNetFile) -> anyhow::Result<UNetConfig>) -> usize {
    let config = of(config(keys.clone())).unwrap();
    count(|vb| UNet::load(&config, vb, DType::F64))
}

/// `keys` with `changes`.
fn with(keys: &Value, changes: Value) -> Value {
    let mut keys = keys.clone();
    let map = keys.as_object_mut().unwrap();
    map.extend(changes.as_object().unwrap().clone());
    keys
}

const DOWN: &str = "DownBlock2D";
const UP: &str = "UpBlock2D";
const CROSS_DOWN: &str = "CrossAttnDownBlock2D";
const CROSS_UP: &str = "CrossAttnUpBlock2D";

#[test]
fn unets_with_a_text_have_as_many_parameters_as_the_published_ones() {
    let first = json!({
        "sample_size": 64, "block_out_channels": [320, 640, 1280, 1280], "layers_per_block": 2, "cross_attention_dim": 768, "attention_head_dim": 8,
        "down_block_types": [CROSS_DOWN, CROSS_DOWN, CROSS_DOWN, DOWN], "up_block_types": [UP, CROSS_UP, CROSS_UP, CROSS_UP],
    });
    let second = with(
        &first,
        json!({"cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20], "use_linear_projection": true}),
    );
    let large = with(
        &second,
        json!({
            "sample_size": 128, "block_out_channels": [320, 640, 1280], "cross_attention_dim": 2048, "attention_head_dim": [5, 10, 20],
            "transformer_layers_per_block": [1, 2, 10], "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816, "down_block_types": [DOWN, CROSS_DOWN, CROSS_DOWN], "up_block_types": [CROSS_UP, CROSS_UP, UP],
        }),
    );
    let one_layer = with(&first, json!({"layers_per_block": 1}));
    let no_middle = with(&one_layer, json!({"mid_block_type": null}));
    for (name, keys, published) in [
        ("stable-diffusion-v1-5", first.clone(), 859_520_964),
        ("stable-diffusion-2-1, sd-turbo", second, 865_910_724),
        (
            "stable-diffusion-xl-base-1.0, sdxl-turbo",
            large.clone(),
            2_567_463_684,
        ),
        (
            "SSD-1B",
            with(
                &large,
                json!({
                    "mid_block_type": "UNetMidBlock2D", "transformer_layers_per_block": [0, [2, 2], [4, 4]],
                    "reverse_transformer_layers_per_block": [[4, 4, 10], [2, 1, 1], 1],
                }),
            ),
            1_331_334_404,
        ),
        (
            "SSD-1B, as the shapes of its file tell",
            with(
                &large,
                json!({
                    "mid_block_type": "UNetMidBlock2D", "layers_per_block": [2, 2, 2], "transformer_layers_per_block": [1, 2, 4],
                    "reverse_transformer_layers_per_block": [[4, 4, 10], [2, 1, 1], 1],
                }),
            ),
            1_331_334_404,
        ),
        (
            "Segmind-Vega",
            with(
                &large,
                json!({
                    "mid_block_type": "UNetMidBlock2D", "transformer_layers_per_block": [0, [1, 1], [2, 2]],
                    "reverse_transformer_layers_per_block": [[2, 2, 2], [1, 1, 1], 0],
                }),
            ),
            745_225_604,
        ),
        (
            "LCM_Dreamshaper_v7",
            with(&first, json!({"time_cond_proj_dim": 256})),
            859_602_884,
        ),
        (
            "lcm-sdxl",
            with(&large, json!({"time_cond_proj_dim": 256})),
            2_567_545_604,
        ),
        ("bk-sdm-base", one_layer, 579_384_964),
        ("bk-sdm-small, small-sd", no_middle.clone(), 482_346_884),
        (
            "bk-sdm-tiny, tiny-sd",
            with(
                &no_middle,
                json!({
                    "block_out_channels": [320, 640, 1280], "down_block_types": [CROSS_DOWN, CROSS_DOWN, CROSS_DOWN], "up_block_types": [CROSS_UP, CROSS_UP, CROSS_UP],
                }),
            ),
            323_384_964,
        ),
    ] {
        assert_eq!(unet(&keys, UNetFile::conditional), published, "{name}");
    }
}

#[test]
fn unets_without_a_text_have_as_many_parameters_as_the_published_ones() {
    let cat = json!({
        "sample_size": 256, "block_out_channels": [128, 128, 256, 256, 512, 512], "layers_per_block": 2, "attention_head_dim": null,
        "down_block_types": [DOWN, DOWN, DOWN, DOWN, "AttnDownBlock2D", DOWN], "up_block_types": [UP, "AttnUpBlock2D", UP, UP, UP, UP],
    });
    let cifar = json!({
        "sample_size": 32, "block_out_channels": [128, 256, 256, 256], "layers_per_block": 2, "attention_head_dim": null,
        "down_block_types": [DOWN, "AttnDownBlock2D", DOWN, DOWN], "up_block_types": [UP, UP, "AttnUpBlock2D", UP],
    });
    for (name, keys, published) in [
        ("ddpm-cat-256", cat, 113_673_219),
        ("ddpm-cifar10-32", cifar, 35_746_307),
    ] {
        assert_eq!(unet(&keys, UNetFile::unconditional), published, "{name}");
    }
}

#[test]
fn text_towers_have_as_many_parameters_as_the_published_ones() {
    let tower = |width: usize, heads: usize, layers: usize, projects: bool| {
        let config: ClipTextConfig = config(json!({
            "hidden_size": width, "intermediate_size": 4 * width, "num_attention_heads": heads, "num_hidden_layers": layers, "projection_dim": width,
        }));
        config.check().unwrap();
        count(|vb| ClipTextModel::load(&config, vb, DType::F64, projects))
    };
    assert_eq!(tower(768, 12, 12, false), 123_060_480, "CLIP ViT-L/14");
    assert_eq!(
        tower(1024, 16, 23, false),
        340_387_840,
        "OpenCLIP ViT-H/14 without its last layer"
    );
    assert_eq!(
        tower(1280, 20, 32, true),
        694_659_840,
        "OpenCLIP ViT-bigG/14"
    );
}

/// The whole of the published VAE has 83,653,863; the encoder and its `quant_conv` are not built here.
#[test]
fn the_vae_decoder_has_as_many_parameters_as_the_published_one() {
    let config: VaeConfig = config(json!({
        "block_out_channels": [128, 256, 512, 512], "layers_per_block": 2, "latent_channels": 4,
        "up_block_types": ["UpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D"],
    }));
    config.check().unwrap();
    assert_eq!(
        count(|vb| VaeDecoder::load(&config, vb, DType::F64)),
        49_490_199
    );
}

/// The whole of taesd has 2,445,063.
#[test]
fn the_tiny_decoder_has_as_many_parameters_as_the_published_one() {
    let config: TinyVaeConfig = config(json!({}));
    config.check().unwrap();
    assert_eq!(
        count(|vb| TinyVaeDecoder::load(&config, vb, DType::F64)),
        1_222_531
    );
}
