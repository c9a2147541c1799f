//! Configurations of a file that has none. Widths, depths and places of attention are the shapes'; what no shape tells is that of
//! the published model of the family: numbers of heads, the size of the picture, the VAE's scale, the scheduler.
use super::{CLIP, CLIP_OF_TWO, Family, OPEN_CLIP, OPEN_CLIP_OF_TWO, UNET, VAE};
use anyhow::{Context, Result};
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;

/// Channels of a head, in OpenAI's and OpenCLIP's towers and in the UNets of Stable Diffusion 2 and XL.
const HEAD: usize = 64;
/// Heads of Stable Diffusion 1, in every block.
const HEADS: usize = 8;

/// The shapes in the file, by name; each has an axis at least.
type Shapes<'a> = dyn Fn(&str) -> Option<&'a [usize]> + 'a;

/// The configuration of a component, or the model's index for "".
pub fn of<'a>(
    family: Family,
    component: &str,
    shape: &Shapes<'a>,
    names: &dyn Fn() -> Vec<&'a str>,
) -> Result<Option<Map<String, Value>>> {
    let config = match (component, family) {
        ("", _) => Some(index(family)),
        ("scheduler", _) => Some(scheduler(family)),
        ("unet", _) => Some(unet(family, shape, &names())?),
        ("vae", _) => vae(family, shape),
        ("text_encoder", Family::Clip) => Some(clip(CLIP, shape, &names())?),
        ("text_encoder", Family::Both) => Some(clip(CLIP_OF_TWO, shape, &names())?),
        ("text_encoder", Family::OpenClip) => {
            Some(open_clip(OPEN_CLIP, read_of_open_clip, shape, &names())?)
        }
        ("text_encoder_2", Family::Both) => Some(open_clip(
            OPEN_CLIP_OF_TWO,
            |layers| layers,
            shape,
            &names(),
        )?),
        _ => None,
    };
    Ok(match config {
        Some(Value::Object(map)) => Some(map),
        _ => None,
    })
}

fn index(family: Family) -> Value {
    let mut index = json!({
        "_class_name": "StableDiffusionPipeline",
        "scheduler": ["diffusers", "PNDMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    });
    match family {
        Family::Clip => {}
        Family::OpenClip => index["scheduler"][1] = json!("DDIMScheduler"),
        Family::Both => {
            index["_class_name"] = json!("StableDiffusionXLPipeline");
            index["force_zeros_for_empty_prompt"] = json!(true);
            index["scheduler"][1] = json!("EulerDiscreteScheduler");
            index["text_encoder_2"] = json!(["transformers", "CLIPTextModelWithProjection"]);
            index["tokenizer_2"] = json!(["transformers", "CLIPTokenizer"]);
        }
    }
    index
}

/// The files of the published models. That Stable Diffusion 2 predicts v is true of the one that draws 768x768 and false of its base;
/// no tensor tells, and diffusers takes the same side.
fn scheduler(family: Family) -> Value {
    let mut config = json!({
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "num_train_timesteps": 1000,
        "set_alpha_to_one": false,
        "skip_prk_steps": true,
        "steps_offset": 1,
        "clip_sample": false,
        "trained_betas": null,
    });
    match family {
        Family::Clip => config["_class_name"] = json!("PNDMScheduler"),
        Family::OpenClip => {
            config["_class_name"] = json!("DDIMScheduler");
            config["prediction_type"] = json!("v_prediction");
        }
        Family::Both => {
            config["_class_name"] = json!("EulerDiscreteScheduler");
            config["prediction_type"] = json!("epsilon");
            config["interpolation_type"] = json!("linear");
            config["timestep_spacing"] = json!("leading");
            config["use_karras_sigmas"] = json!(false);
        }
    }
    config
}

fn unet<'a>(family: Family, shape: &Shapes<'a>, names: &[&str]) -> Result<Value> {
    let of = |name: &str| shape(&format!("{UNET}{name}"));
    let has = |name: &str| of(name).is_some();
    let first = of("input_blocks.0.0.weight").context("it has no first layer")?;
    let (model, inputs) = (first[0], first.get(1).copied().unwrap_or_default());
    // The blocks in order, a stage after each halving. Of each layer, how many transformer blocks it has.
    let (mut widths, mut down) = (vec![model], vec![Vec::new()]);
    for block in 1.. {
        let start = format!("input_blocks.{block}");
        let stage = widths.len() - 1;
        if let Some(conv) = of(&format!("{start}.0.in_layers.2.weight")) {
            widths[stage] = conv[0];
            down[stage].push(depth(&format!("{UNET}{start}.1."), names));
        } else if has(&format!("{start}.0.op.weight")) {
            widths.push(widths[stage]);
            down.push(Vec::new());
        } else {
            break;
        }
    }
    // The same on the way up, a stage after each doubling.
    let mut up = vec![Vec::new()];
    for block in 0.. {
        let start = format!("output_blocks.{block}");
        if !has(&format!("{start}.0.in_layers.2.weight")) {
            break;
        }
        let layer = depth(&format!("{UNET}{start}.1."), names);
        up.last_mut().expect("there is a first").push(layer);
        if (1..=2).any(|part| has(&format!("{start}.{part}.conv.weight"))) {
            up.push(Vec::new());
        }
    }
    let kinds = |stages: &[Vec<Option<usize>>], side: &str| -> Vec<String> {
        let kind = |layers: &Vec<Option<usize>>| match layers.iter().any(Option::is_some) {
            true => format!("CrossAttn{side}Block2D"),
            false => format!("{side}Block2D"),
        };
        stages.iter().map(kind).collect()
    };
    let middle = depth(&format!("{UNET}middle_block.1."), names);
    let mut per_block: Vec<Value> = down.iter().map(|layers| depths(layers)).collect();
    let mut mirrored: Vec<Value> = up.iter().map(|layers| depths(layers)).collect();
    let plain = |layers: Option<&Vec<Option<usize>>>| {
        layers.is_some_and(|layers| layers.iter().all(Option::is_none))
    };
    if let (Some(middle), true, true) = (middle, plain(down.last()), plain(up.first())) {
        // The middle is as deep as the last stage, which has none itself.
        per_block[down.len() - 1] = json!(middle);
        mirrored[0] = json!(middle);
    }
    let cross = names.iter().find(|name| {
        name.starts_with(UNET) && name.ends_with("transformer_blocks.0.attn2.to_k.weight")
    });
    let cross = cross.and_then(|name| shape(name)?.get(1).copied());
    let linear = names
        .iter()
        .find(|name| name.starts_with(UNET) && name.ends_with(".proj_in.weight"));
    let linear = linear.and_then(|name| Some(shape(name)?.len() == 2)) == Some(true);
    let heads = match family {
        Family::Clip => json!(HEADS),
        _ => json!(widths.iter().map(|w| w.div_ceil(HEAD)).collect::<Vec<_>>()),
    };
    let outputs = of("out.2.weight").context("it has no last layer")?[0];
    let mut config = json!({
        "_class_name": "UNet2DConditionModel",
        "in_channels": inputs,
        "out_channels": outputs,
        "sample_size": match family { Family::Clip => 64, Family::OpenClip => 96, Family::Both => 128 },
        "block_out_channels": widths,
        "layers_per_block": down.iter().map(Vec::len).collect::<Vec<_>>(),
        "down_block_types": kinds(&down, "Down"),
        "up_block_types": kinds(&up, "Up"),
        "mid_block_type": match (middle, has("middle_block.0.in_layers.2.weight")) {
            (Some(_), _) => Some("UNetMidBlock2DCrossAttn"),
            (None, true) => Some("UNetMidBlock2D"),
            (None, false) => None,
        },
        "transformer_layers_per_block": per_block,
        "cross_attention_dim": cross,
        "attention_head_dim": heads,
        "use_linear_projection": linear,
    });
    if !per_block.iter().eq(mirrored.iter().rev()) || per_block.iter().any(Value::is_array) {
        config["reverse_transformer_layers_per_block"] = json!(mirrored);
    }
    if family == Family::OpenClip {
        config["upcast_attention"] = json!(true);
    }
    if let Some(inputs) = of("label_emb.0.0.weight").and_then(|shape| shape.get(1)) {
        // The pooled text and six numbers, each as a sinusoid.
        let text = projected(OPEN_CLIP_OF_TWO, shape).unwrap_or(0);
        config["addition_embed_type"] = json!("text_time");
        config["addition_time_embed_dim"] = json!(inputs.saturating_sub(text) / 6);
        config["projection_class_embeddings_input_dim"] = json!(inputs);
    }
    Ok(config)
}

/// How many transformer blocks the layers of a stage have: a number where all have as many, which is 1 where none has attention.
fn depths(layers: &[Option<usize>]) -> Value {
    let layers: Vec<usize> = layers.iter().map(|depth| depth.unwrap_or(1)).collect();
    match layers.iter().all(|depth| Some(depth) == layers.first()) {
        true => json!(layers.first().copied().unwrap_or(1)),
        false => json!(layers),
    }
}

/// How many transformer blocks stand under a prefix; None where there is no attention.
fn depth(prefix: &str, names: &[&str]) -> Option<usize> {
    let start = format!("{prefix}transformer_blocks.");
    let count = count(&start, names);
    (count > 0).then_some(count)
}

/// How many numbers follow a prefix, from 0 on.
fn count(start: &str, names: &[&str]) -> usize {
    let numbers: BTreeSet<usize> = names
        .iter()
        .filter_map(|name| name.strip_prefix(start)?.split('.').next()?.parse().ok())
        .collect();
    numbers.len()
}

fn vae<'a>(family: Family, shape: &Shapes<'a>) -> Option<Value> {
    let of = |name: &str| shape(&format!("{VAE}decoder.{name}"));
    let first = of("conv_in.weight")?;
    let widths: Vec<usize> = (0..)
        .map_while(|level| Some(of(&format!("up.{level}.block.0.conv1.weight"))?[0]))
        .collect();
    let blocks = (0..)
        .take_while(|block| of(&format!("up.0.block.{block}.conv1.weight")).is_some())
        .count();
    let mut config = json!({
        "_class_name": "AutoencoderKL",
        "latent_channels": first.get(1),
        "out_channels": of("conv_out.weight")?[0],
        "block_out_channels": widths,
        "layers_per_block": blocks.saturating_sub(1),
        "up_block_types": vec!["UpDecoderBlock2D"; widths.len()],
        "scaling_factor": 0.18215,
    });
    if family == Family::Both {
        config["scaling_factor"] = json!(0.13025);
        config["force_upcast"] = json!(true);
    }
    Some(config)
}

fn clip<'a>(prefix: &str, shape: &Shapes<'a>, names: &[&str]) -> Result<Value> {
    // Before transformers 4, and in some files, without `text_model.`
    let inner = |name: &str| {
        let own = shape(&format!("{prefix}text_model.{name}"));
        own.or_else(|| shape(&format!("{prefix}{name}")))
    };
    let layers = count(&format!("{prefix}text_model.encoder.layers."), names)
        .max(count(&format!("{prefix}encoder.layers."), names));
    tower(
        inner("embeddings.token_embedding.weight"),
        inner("embeddings.position_embedding.weight"),
        inner("encoder.layers.0.mlp.fc1.weight"),
        (layers, "quick_gelu"),
    )
}

/// The layers that Stable Diffusion 2 reads of so many: diffusers' tower ends before the last one. diffusers' own converter leaves that
/// one away, so that 23 are what is left of 24.
pub fn read_of_open_clip(layers: usize) -> usize {
    match layers {
        23 => 23,
        _ => layers.saturating_sub(1),
    }
}

fn open_clip<'a>(
    prefix: &str,
    read: impl Fn(usize) -> usize,
    shape: &Shapes<'a>,
    names: &[&str],
) -> Result<Value> {
    let of = |name: &str| shape(&format!("{prefix}{name}"));
    let layers = count(&format!("{prefix}transformer.resblocks."), names);
    let mut config = tower(
        of("token_embedding.weight"),
        of("positional_embedding"),
        of("transformer.resblocks.0.mlp.c_fc.weight"),
        (read(layers), "gelu"),
    )?;
    if let Some(width) = projected(prefix, shape) {
        config["projection_dim"] = json!(width);
    }
    Ok(config)
}

/// The width of a tower's pooled text. Its projection lies with the outputs last, and first in files that diffusers' scripts make.
fn projected(prefix: &str, shape: &Shapes<'_>) -> Option<usize> {
    let turned = || shape(&format!("{prefix}text_projection.weight"))?.first();
    let own = shape(&format!("{prefix}text_projection")).and_then(|shape| shape.get(1));
    own.or_else(turned).copied()
}

fn tower(
    tokens: Option<&[usize]>,
    positions: Option<&[usize]>,
    inner: Option<&[usize]>,
    (layers, act): (usize, &str),
) -> Result<Value> {
    let (Some(&[vocabulary, width]), Some(positions), Some(inner)) = (tokens, positions, inner)
    else {
        anyhow::bail!("its text tower lacks its embeddings or its layers");
    };
    Ok(json!({
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": inner[0],
        "num_hidden_layers": layers,
        "num_attention_heads": width.div_ceil(HEAD),
        "max_position_embeddings": positions[0],
        "hidden_act": act,
        "layer_norm_eps": 1e-5,
        "projection_dim": width,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    /// The UNet's tensors that tell its architecture: widths by stage, transformer blocks by layer and stage on both ways, and in the middle.
    fn shapes(
        widths: &[usize],
        (down, up): (&[[usize; 2]], &[[usize; 3]]),
        middle: usize,
        (cross, linear): (usize, bool),
    ) -> HashMap<String, Vec<usize>> {
        let mut shapes = HashMap::new();
        let mut put = |name: String, shape: &[usize]| {
            shapes.insert(format!("{UNET}{name}"), shape.to_vec());
        };
        put("input_blocks.0.0.weight".into(), &[widths[0], 4, 3, 3]);
        put("out.2.weight".into(), &[4, widths[0], 3, 3]);
        let mut attention = |start: String, width: usize, depth: usize| {
            let kernel: &[usize] = if linear { &[] } else { &[1, 1] };
            put(
                format!("{start}.proj_in.weight"),
                &[&[width, width], kernel].concat(),
            );
            for i in 0..depth {
                put(
                    format!("{start}.transformer_blocks.{i}.attn2.to_k.weight"),
                    &[width, cross],
                );
            }
        };
        let mut convs = Vec::new();
        let mut block = 1;
        for (stage, (&width, depths)) in widths.iter().zip(down).enumerate() {
            for &depth in depths {
                convs.push((format!("input_blocks.{block}.0.in_layers.2.weight"), width));
                if depth > 0 {
                    attention(format!("input_blocks.{block}.1"), width, depth);
                }
                block += 1;
            }
            if stage + 1 < widths.len() {
                convs.push((format!("input_blocks.{block}.0.op.weight"), width));
                block += 1;
            }
        }
        let mut block = 0;
        for (stage, (&width, depths)) in widths.iter().rev().zip(up).enumerate() {
            for (layer, &depth) in depths.iter().enumerate() {
                convs.push((format!("output_blocks.{block}.0.in_layers.2.weight"), width));
                if depth > 0 {
                    attention(format!("output_blocks.{block}.1"), width, depth);
                }
                if layer == 2 && stage + 1 < widths.len() {
                    let part = if depth > 0 { 2 } else { 1 };
                    convs.push((format!("output_blocks.{block}.{part}.conv.weight"), width));
                }
                block += 1;
            }
        }
        let last = widths[widths.len() - 1];
        convs.push(("middle_block.0.in_layers.2.weight".into(), last));
        if middle > 0 {
            attention("middle_block.1".into(), last, middle);
        }
        for (name, width) in convs {
            put(name, &[width, width, 3, 3]);
        }
        shapes
    }

    fn config(family: Family, shapes: &HashMap<String, Vec<usize>>) -> Map<String, Value> {
        let shape = |name: &str| shapes.get(name).map(Vec::as_slice);
        let names = || -> Vec<&str> { shapes.keys().map(String::as_str).collect() };
        of(family, "unet", &shape, &names).unwrap().unwrap()
    }

    // unet/config.json of the three published models.
    #[test]
    fn the_published_architectures_are_read_from_their_shapes() {
        let sd1 = config(
            Family::Clip,
            &shapes(
                &[320, 640, 1280, 1280],
                (
                    &[[1; 2], [1; 2], [1; 2], [0; 2]],
                    &[[0; 3], [1; 3], [1; 3], [1; 3]],
                ),
                1,
                (768, false),
            ),
        );
        assert_eq!(sd1["block_out_channels"], json!([320, 640, 1280, 1280]));
        assert_eq!(sd1["layers_per_block"], json!([2, 2, 2, 2]));
        assert_eq!(sd1["cross_attention_dim"], 768);
        assert_eq!(sd1["attention_head_dim"], 8);
        assert_eq!(sd1["use_linear_projection"], false);
        assert_eq!(
            sd1["down_block_types"],
            json!([
                "CrossAttnDownBlock2D",
                "CrossAttnDownBlock2D",
                "CrossAttnDownBlock2D",
                "DownBlock2D"
            ])
        );
        assert_eq!(
            sd1["up_block_types"],
            json!([
                "UpBlock2D",
                "CrossAttnUpBlock2D",
                "CrossAttnUpBlock2D",
                "CrossAttnUpBlock2D"
            ])
        );
        assert_eq!(sd1["sample_size"], 64);
        let sd2 = config(
            Family::OpenClip,
            &shapes(
                &[320, 640, 1280, 1280],
                (
                    &[[1; 2], [1; 2], [1; 2], [0; 2]],
                    &[[0; 3], [1; 3], [1; 3], [1; 3]],
                ),
                1,
                (1024, true),
            ),
        );
        assert_eq!(sd2["attention_head_dim"], json!([5, 10, 20, 20]));
        assert_eq!(sd2["use_linear_projection"], true);
        assert_eq!(sd2["sample_size"], 96);
        let mut xl = shapes(
            &[320, 640, 1280],
            (&[[0; 2], [2; 2], [10; 2]], &[[10; 3], [2; 3], [0; 3]]),
            10,
            (2048, true),
        );
        xl.insert(format!("{UNET}label_emb.0.0.weight"), vec![1280, 2816]);
        xl.insert(
            format!("{OPEN_CLIP_OF_TWO}text_projection"),
            vec![1280, 1280],
        );
        let told = config(Family::Both, &xl);
        // As diffusers' scripts write it.
        let projection = xl.remove(&format!("{OPEN_CLIP_OF_TWO}text_projection"));
        let turned = format!("{OPEN_CLIP_OF_TWO}text_projection.weight");
        xl.insert(turned, projection.expect("it is there"));
        assert_eq!(config(Family::Both, &xl), told);
        let xl = told;
        assert_eq!(xl.get("reverse_transformer_layers_per_block"), None);
        assert_eq!(xl["mid_block_type"], "UNetMidBlock2DCrossAttn");
        assert_eq!(xl["transformer_layers_per_block"], json!([1, 2, 10]));
        assert_eq!(xl["attention_head_dim"], json!([5, 10, 20]));
        assert_eq!(xl["addition_time_embed_dim"], 256);
        assert_eq!(xl["projection_class_embeddings_input_dim"], 2816);
        assert_eq!(
            xl["down_block_types"],
            json!([
                "DownBlock2D",
                "CrossAttnDownBlock2D",
                "CrossAttnDownBlock2D"
            ])
        );
    }

    // unet/config.json of segmind/SSD-1B.
    #[test]
    fn layers_of_one_stage_may_have_different_numbers_of_transformer_blocks() {
        let ssd = config(
            Family::Both,
            &shapes(
                &[320, 640, 1280],
                (&[[0, 0], [2, 2], [4, 4]], &[[4, 4, 10], [2, 1, 1], [0; 3]]),
                0,
                (2048, true),
            ),
        );
        assert_eq!(ssd["mid_block_type"], "UNetMidBlock2D");
        assert_eq!(ssd["transformer_layers_per_block"], json!([1, 2, 4]));
        assert_eq!(
            ssd["reverse_transformer_layers_per_block"],
            json!([[4, 4, 10], [2, 1, 1], 1])
        );
    }

    #[test]
    fn the_layer_that_is_never_read_may_be_left_away_already() {
        assert_eq!([24, 23, 3, 0].map(read_of_open_clip), [23, 23, 2, 0]);
    }
}
