//! The configurations of a model: any change of them is a picture or an error.
use super::harness::{Edit, Model, Reached, draw, edit, fuzz};
use proptest::prelude::*;
use serde_json::Value;

/// Values of configurations, of any class.
const TEXTS: [&str; 48] = [
    "",
    "x",
    "../x",
    "NaN",
    "-Infinity",
    "0.42.1",
    "0.2",
    "AttnDownBlock2D",
    "AttnUpBlock2D",
    "AutoencoderKL",
    "AutoencoderTiny",
    "CLIPTextModel",
    "CLIPTextModelWithProjection",
    "CrossAttnDownBlock2D",
    "CrossAttnUpBlock2D",
    "DDIMScheduler",
    "DDPMScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DownBlock2D",
    "DownEncoderBlock2D",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "LCMScheduler",
    "LatentConsistencyModelPipeline",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "StableDiffusionPipeline",
    "StableDiffusionXLPipeline",
    "UNetMidBlock2D",
    "UNetMidBlock2DCrossAttn",
    "UniPCMultistepScheduler",
    "UpBlock2D",
    "UpDecoderBlock2D",
    "conv",
    "default",
    "epsilon",
    "exponential",
    "gelu",
    "leading",
    "linear",
    "linspace",
    "quick_gelu",
    "scale_shift",
    "silu",
    "squaredcos_cap_v2",
    "text_time",
    "v_prediction",
];

/// Keys that change what is built.
const NAMES: [&str; 48] = [
    "_class_name",
    "_diffusers_version",
    "add_attention",
    "addition_embed_type",
    "addition_time_embed_dim",
    "attention_head_dim",
    "beta_schedule",
    "beta_start",
    "block_out_channels",
    "clip_sample",
    "cross_attention_dim",
    "down_block_types",
    "downsample_padding",
    "final_sigmas_type",
    "flip_sin_to_cos",
    "force_zeros_for_empty_prompt",
    "freq_shift",
    "hidden_act",
    "latents_mean",
    "layers_per_block",
    "max_position_embeddings",
    "mid_block_add_attention",
    "mid_block_type",
    "model_max_length",
    "norm_num_groups",
    "num_attention_heads",
    "num_train_timesteps",
    "only_cross_attention",
    "original_inference_steps",
    "prediction_type",
    "projection_class_embeddings_input_dim",
    "rescale_betas_zero_snr",
    "resnet_time_scale_shift",
    "sample_size",
    "scaling_factor",
    "sigma_max",
    "sigma_min",
    "solver_order",
    "steps_offset",
    "thresholding",
    "time_cond_proj_dim",
    "timestep_spacing",
    "trained_betas",
    "transformer_layers_per_block",
    "unet",
    "use_beta_sigmas",
    "use_karras_sigmas",
    "use_linear_projection",
];

/// The corpus: a model of each kind.
fn models() -> Vec<Model> {
    let families = ["distilled", "lcm", "v2", "xl", "xl-uneven"];
    let families = families.map(|name| format!("tests/fixtures/families/{name}"));
    let assets = ["assets/tiny-ddpm", "assets/tiny-sd"].map(str::to_owned);
    let all = assets.iter().chain(&families);
    all.map(|folder| Model::of(folder)).collect()
}

/// The names of a model's configurations; the large tables of tokenizers are tried elsewhere.
fn configs(model: &Model) -> Vec<&str> {
    let small = |name: &&str| name.ends_with("config.json") || *name == "model_index.json";
    model.names().filter(small).collect()
}

#[test]
fn no_config_panics() {
    let models = models();
    let edits = prop::collection::vec((any::<prop::sample::Index>(), edit(&TEXTS, &NAMES)), 1..4);
    let inputs = (0..models.len(), edits);
    fuzz(64, inputs, "drawn", |(model, edits)| -> Reached {
        let model = &models[*model];
        let names = configs(model);
        model.mend();
        let mut spoiled = std::collections::BTreeMap::<&str, Value>::new();
        for (at, edit) in edits {
            let name = names[at.index(names.len())];
            let whole = || serde_json::from_slice(model.file(name)).unwrap();
            Edit::apply(edit, spoiled.entry(name).or_insert_with(whole));
        }
        for (name, config) in spoiled {
            model.spoil(name, config.to_string());
        }
        draw(&model.open()?, "a cat")
    });
}

#[test]
fn no_damage_to_a_config_panics() {
    let models = models();
    let bytes = prop_oneof![
        3 => prop::sample::select(b"{}[]\",:0123456789-eE.tfn\\ \n".to_vec()),
        1 => any::<u8>()
    ];
    let edits = prop::collection::vec((any::<prop::sample::Index>(), bytes), 1..4);
    let inputs = (0..models.len(), any::<prop::sample::Index>(), edits);
    fuzz(48, inputs, "drawn", |(model, name, edits)| {
        let model = &models[*model];
        let names = configs(model);
        model.mend();
        let name = names[name.index(names.len())];
        let mut text = model.file(name).to_vec();
        for (at, byte) in edits {
            let at = at.index(text.len());
            text[at] = *byte;
        }
        model.spoil(name, text);
        draw(&model.open()?, "a cat")
    });
}

#[test]
fn no_bytes_panic_the_json_reader() {
    let text = "[\\[\\]{}:,\"\\\\aN0-9eE. -]{0,60}|-Infinity|NaN|\\{(\"[a-c]\": ?(NaN|-?Infinity|[0-9]{1,3}|\"\\\\\\\\?\"),?){0,4}\\}";
    let inputs = prop_oneof![
        1 => prop::collection::vec(any::<u8>(), 0..200),
        3 => text.prop_map(String::into_bytes)
    ];
    fuzz(64, inputs, "an object", |bytes| {
        diffuse::engine::checkpoint::json::parse_object(bytes)?;
        Ok("an object")
    });
}
