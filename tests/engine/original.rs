//! Files in the original layout: which tensors are whose, and what they are called today.
use candle_core::{DType, Device, Tensor};
use diffuse::engine::checkpoint::{Checkpoint, Naming, Weights};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

fn fixture(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/single");
    folder.join(name)
}

fn open(file: &str) -> Checkpoint {
    Checkpoint::open(fixture(file).to_str().unwrap(), "main").unwrap()
}

fn weights(checkpoint: &Checkpoint, component: &str) -> Weights {
    let files = checkpoint.prepare_weights(component, DType::F32).unwrap();
    let naming = Naming {
        strip: "text_model.",
        ignore: &["position_ids"],
        ..Naming::default()
    };
    Weights::open(&files, naming).unwrap()
}

/// Sizes of the XL fixture's second tower.
const WIDTH: usize = 14;

#[test]
fn the_tower_of_open_clip_is_cut_and_turned() {
    let raw = candle_core::safetensors::load(fixture("xl.safetensors"), &Device::Cpu).unwrap();
    let raw = |name: &str| {
        let tensor = &raw[&format!("conditioner.embedders.1.model.{name}")];
        tensor.to_dtype(DType::F32).unwrap()
    };
    let checkpoint = open("xl.safetensors");
    assert_eq!(
        checkpoint.pipeline_class(),
        Some("StableDiffusionXLPipeline")
    );
    let tower = weights(&checkpoint, "text_encoder_2");
    let vb = tower.var_builder(DType::F32, &Device::Cpu);
    let same = |ours: Tensor, theirs: Tensor| {
        let theirs = theirs.contiguous().unwrap();
        assert_eq!(ours.dims(), theirs.dims());
        let values = |x: Tensor| x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(values(ours), values(theirs));
    };
    let square = (WIDTH, WIDTH);
    same(
        vb.get(square, "text_projection.weight").unwrap(),
        raw("text_projection").t().unwrap(),
    );
    let three = raw("transformer.resblocks.2.attn.in_proj_weight");
    let biases = raw("transformer.resblocks.2.attn.in_proj_bias");
    for (i, part) in ["q", "k", "v"].into_iter().enumerate() {
        let part = vb.pp(format!("encoder.layers.2.self_attn.{part}_proj"));
        same(
            part.get(square, "weight").unwrap(),
            three.narrow(0, i * WIDTH, WIDTH).unwrap(),
        );
        same(
            part.get(WIDTH, "bias").unwrap(),
            biases.narrow(0, i * WIDTH, WIDTH).unwrap(),
        );
    }
    same(
        vb.get((77, WIDTH), "embeddings.position_embedding.weight")
            .unwrap(),
        raw("positional_embedding"),
    );
    assert_eq!(
        tower.shape("encoder.layers.0.mlp.fc1.weight"),
        Some(&[20, WIDTH][..])
    );
}

#[test]
fn every_tensor_of_every_network_has_a_name_of_today() {
    for (file, components) in [
        ("sd1.safetensors", &["unet", "vae", "text_encoder"][..]),
        ("sd2.ckpt", &["unet", "vae", "text_encoder"]),
        (
            "xl.safetensors",
            &["unet", "vae", "text_encoder", "text_encoder_2"],
        ),
        (
            "xl-pruned.safetensors",
            &["unet", "vae", "text_encoder", "text_encoder_2"],
        ),
    ] {
        let checkpoint = open(file);
        for component in components {
            let weights = weights(&checkpoint, component);
            let old = [
                "model.",
                "first_stage_model.",
                "cond_stage_model.",
                "conditioner.",
                "decoder.up.",
                "transformer.",
            ];
            for name in weights.names() {
                assert!(
                    !old.iter().any(|start| name.starts_with(start)),
                    "{file} {component}: {name}"
                );
            }
        }
    }
    let unet = weights(&open("xl.safetensors"), "unet");
    let names: HashMap<&str, ()> = unet.names().map(|name| (name, ())).collect();
    for name in [
        "add_embedding.linear_2.bias",
        "down_blocks.0.downsamplers.0.conv.weight",
        "down_blocks.1.attentions.0.transformer_blocks.1.attn2.to_v.weight",
        "mid_block.resnets.1.time_emb_proj.weight",
        "up_blocks.0.attentions.1.proj_out.weight",
        "up_blocks.0.upsamplers.0.conv.bias",
        "up_blocks.1.resnets.1.conv_shortcut.weight",
    ] {
        assert!(names.contains_key(name), "{name}");
    }
}

// The last layer is in the file and in no tower.
#[test]
fn the_tower_of_stable_diffusion_2_ends_a_layer_early() {
    let checkpoint = open("sd2.ckpt");
    let tower = weights(&checkpoint, "text_encoder");
    assert!(tower.shape("encoder.layers.1.layer_norm1.weight").is_some());
    assert!(tower.shape("encoder.layers.2.layer_norm1.weight").is_none());
    let config = checkpoint.json("text_encoder", "config.json").unwrap();
    assert_eq!(config["num_hidden_layers"], 2);
    assert_eq!(config["hidden_act"], "gelu");
    let scheduler = checkpoint
        .json("scheduler", "scheduler_config.json")
        .unwrap();
    assert_eq!(scheduler["prediction_type"], "v_prediction");
}

// Of a file with a configuration, it says how many layers there are.
#[test]
fn the_tower_of_stable_diffusion_2_has_as_many_layers_as_its_configuration_says() {
    let folder = tempfile::tempdir().unwrap();
    let tower = folder.path().join("text_encoder");
    std::fs::create_dir(&tower).unwrap();
    let index = fixture("sd2/model_index.json");
    std::fs::copy(index, folder.path().join("model_index.json")).unwrap();
    let text = std::fs::read_to_string(fixture("sd2/text_encoder/config.json")).unwrap();
    let more = text.replace("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3");
    assert_ne!(text, more);
    std::fs::write(tower.join("config.json"), more).unwrap();
    let (file, config) = (fixture("sd2.ckpt"), folder.path().to_str());
    let file = file.to_str().unwrap();
    let checkpoint = Checkpoint::open_with(Default::default(), file, "main", config).unwrap();
    let tower = weights(&checkpoint, "text_encoder");
    assert!(tower.shape("encoder.layers.2.layer_norm1.weight").is_some());
}

/// What a file's shapes tell of its UNet.
const UNET_KEYS: [&str; 11] = [
    "in_channels",
    "out_channels",
    "block_out_channels",
    "down_block_types",
    "up_block_types",
    "mid_block_type",
    "cross_attention_dim",
    "use_linear_projection",
    "addition_embed_type",
    "addition_time_embed_dim",
    "projection_class_embeddings_input_dim",
];

// What diffusers wrote about the same networks.
#[test]
fn the_shapes_tell_what_the_configurations_say() {
    for file in ["sd2.ckpt", "xl.safetensors"] {
        let (checkpoint, name) = (open(file), file.split_once('.').unwrap().0);
        for (component, keys) in [
            ("unet", &UNET_KEYS[..]),
            (
                "vae",
                &[
                    "block_out_channels",
                    "layers_per_block",
                    "latent_channels",
                    "out_channels",
                    "scaling_factor",
                ],
            ),
            (
                "text_encoder",
                &[
                    "vocab_size",
                    "hidden_size",
                    "intermediate_size",
                    "num_hidden_layers",
                    "max_position_embeddings",
                    "hidden_act",
                ],
            ),
        ] {
            let ours = checkpoint.json(component, "config.json").unwrap();
            let theirs = fixture(name).join(component).join("config.json");
            let theirs: serde_json::Value =
                serde_json::from_slice(&std::fs::read(theirs).unwrap()).unwrap();
            for key in keys {
                let ours = ours.get(*key).unwrap_or(&serde_json::Value::Null);
                assert_eq!(ours, &theirs[key], "{file} {component} {key}");
            }
        }
    }
}

#[test]
fn the_shapes_of_a_pruned_file_tell_what_its_configuration_does() {
    let read = |name: &str| -> serde_json::Map<String, serde_json::Value> {
        serde_json::from_slice(&std::fs::read(fixture(name)).unwrap()).unwrap()
    };
    let config = read("xl-pruned/unet/config.json");
    let told = open("xl-pruned.safetensors")
        .json("unet", "config.json")
        .unwrap();
    for key in UNET_KEYS
        .iter()
        .chain(&["reverse_transformer_layers_per_block"])
    {
        assert_eq!(told[*key], config[*key], "{key}");
    }
    assert_eq!(config["layers_per_block"], 2);
    assert_eq!(told["layers_per_block"], serde_json::json!([2, 2]));
    // Of a block without attention the number is never read.
    let key = "transformer_layers_per_block";
    assert_eq!(config[key], serde_json::json!([0, [1, 2]]));
    assert_eq!(told[key], serde_json::json!([1, [1, 2]]));
}
