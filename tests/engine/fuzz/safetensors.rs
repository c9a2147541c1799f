//! Files of safetensors and what names them: headers that are almost right.
use super::harness::{Edit, Model, Reached, draw, edit, fixture, fuzz};
use candle_core::{DType, Device};
use diffuse::engine::checkpoint::{Checkpoint, Naming, Network, Weights};
use proptest::prelude::*;
use proptest::sample::Index;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

const TEXTS: [&str; 14] = [
    "",
    "x",
    "F32",
    "F16",
    "BF16",
    "F64",
    "F8_E4M3",
    "I64",
    "U8",
    "BOOL",
    "F4",
    "C64",
    "pt",
    "{\"unet.use_dora\": true, \"unet.r\": 3, \"unet.lora_alpha\": 0, \"unet.use_rslora\": true}",
];

const NAMES: [&str; 20] = [
    "__metadata__",
    "dtype",
    "shape",
    "data_offsets",
    "lora_adapter_metadata",
    "w",
    "",
    "a\nb",
    "conv_in.weight",
    "conv_in.bias",
    "mid_block.attentions.0.query.weight",
    "mid_block.attentions.0.to_q.weight",
    "mid_block.attentions.0.proj_attn.weight",
    "text_model.embeddings.position_ids",
    "unet.conv_in.lora_A.weight",
    "unet.conv_in.lora.down.weight",
    "lora_unet_conv_in.lora_down.weight",
    "lora_unet_conv_in.alpha",
    "lora_te_text_model_encoder_layers_0_mlp_fc1.hada_w1_a",
    "first_stage_model.decoder.conv_in.weight",
];

/// A header and the bytes after it.
fn parts(file: &[u8]) -> (Map<String, Value>, &[u8]) {
    let (size, rest) = file.split_first_chunk::<8>().unwrap();
    let (header, data) = rest.split_at(u64::from_le_bytes(*size) as usize);
    (serde_json::from_slice(header).unwrap(), data)
}

/// What is done to a file.
#[derive(Clone, Debug)]
enum Damage {
    Header(Edit),
    /// A tensor's shape turns round, or its numbers become as many of another type: fine for a reader, and not for a model.
    Turn(Index),
    Type(Index, &'static str),
    /// Two tensors change their names.
    Swap(Index, Index),
    Rename(Index, &'static str),
    /// A tensor is described twice.
    Double(Index),
    /// A number without axes has a tensor's name.
    Number(Index),
    /// Bytes at the end, more or less.
    Length(i16),
    /// The header's length, more or less.
    Claim(i64),
    /// A byte of the header.
    Byte(Index, u8),
    /// Numbers that are none.
    Nan(Index),
}

fn damage() -> impl Strategy<Value = Damage> {
    let at = any::<Index>;
    prop_oneof![
        4 => edit(&TEXTS, &NAMES).prop_map(Damage::Header),
        2 => at().prop_map(Damage::Turn),
        2 => (at(), prop::sample::select(vec!["F16", "BF16", "F64", "I64", "U8", "F8_E5M2"])).prop_map(|(at, to)| Damage::Type(at, to)),
        2 => (at(), at()).prop_map(|(a, b)| Damage::Swap(a, b)),
        2 => (at(), prop::sample::select(NAMES.to_vec())).prop_map(|(at, name)| Damage::Rename(at, name)),
        1 => at().prop_map(Damage::Double),
        2 => at().prop_map(Damage::Number),
        1 => any::<i16>().prop_map(Damage::Length),
        1 => prop_oneof![(-9i64..9), any::<i64>()].prop_map(Damage::Claim),
        1 => (at(), any::<u8>()).prop_map(|(at, byte)| Damage::Byte(at, byte)),
        2 => at().prop_map(Damage::Nan),
    ]
}

fn damages() -> impl Strategy<Value = Vec<Damage>> {
    prop::collection::vec(damage(), 1..4)
}

/// The file with the damage done.
fn damaged(file: &[u8], damages: &[Damage]) -> Vec<u8> {
    let (header, data) = parts(file);
    let mut root = Value::Object(header);
    let mut data = data.to_vec();
    let (mut claim, mut bytes, mut double) = (0, Vec::new(), String::new());
    for damage in damages {
        let Value::Object(header) = &mut root else {
            break;
        };
        if header.is_empty() {
            break;
        }
        let key = |at: &Index| header.keys().nth(at.index(header.len())).unwrap().clone();
        match damage {
            Damage::Header(edit) => edit.apply(&mut root),
            Damage::Turn(at) => {
                let key = key(at);
                if let Some(Value::Array(shape)) = header[&key].get_mut("shape") {
                    shape.reverse();
                }
            }
            Damage::Type(at, to) => {
                let key = key(at);
                if header[&key].get("dtype").is_some() {
                    let from = header[&key]["data_offsets"][0].as_u64();
                    let end = header[&key]["data_offsets"][1].as_u64();
                    let bytes = end.zip(from).and_then(|(end, from)| end.checked_sub(from));
                    let size = match *to {
                        "F64" | "I64" => 8,
                        "U8" | "F8_E5M2" => 1,
                        _ => 2,
                    };
                    header[&key]["dtype"] = (*to).into();
                    header[&key]["shape"] = json!([bytes.unwrap_or(0) / size]);
                }
            }
            Damage::Swap(a, b) => {
                let (a, b) = (key(a), key(b));
                let first = header[&a].clone();
                header[&a] = header[&b].clone();
                header[&b] = first;
            }
            Damage::Rename(at, name) => {
                let value = header.shift_remove(&key(at)).unwrap();
                header.insert((*name).to_owned(), value);
            }
            Damage::Double(at) => {
                let key = key(at);
                double = format!(",{}:{}", json!(key), header[&key]);
            }
            Damage::Number(at) => {
                let key = key(at);
                let end = data.len();
                let number = json!({"dtype": "F32", "shape": [], "data_offsets": [end, end + 4]});
                let whole = header.insert(key, number).unwrap();
                header.insert("the rest".to_owned(), whole);
                data.extend([0; 4]);
            }
            Damage::Length(by) => {
                let length = data.len().saturating_add_signed(isize::from(*by) / 64);
                data.resize(length, 7);
            }
            Damage::Claim(by) => claim = *by,
            Damage::Byte(at, byte) => bytes.push((*at, *byte)),
            Damage::Nan(at) => {
                let at = at.index(data.len().max(1)) & !3;
                if let Some(number) = data.get_mut(at..at + 4) {
                    number.fill(0xff);
                }
            }
        }
    }
    let mut text = root.to_string();
    if !double.is_empty() && text.ends_with('}') && text.len() > 2 {
        text.insert_str(text.len() - 1, &double);
    }
    let mut text = text.into_bytes();
    for (at, byte) in bytes {
        let at = at.index(text.len());
        text[at] = byte;
    }
    let size = (text.len() as u64).wrapping_add_signed(claim);
    [&size.to_le_bytes()[..], &text, &data].concat()
}

const WEIGHTS: &str = "unet/diffusion_pytorch_model.safetensors";

/// Opens a component's weights and reads every tensor.
pub fn read_all(checkpoint: &Checkpoint) -> Reached {
    let naming = Naming {
        ignore: &["position_ids"],
        ..Naming::default()
    };
    let files = checkpoint.prepare_weights("unet", DType::F32)?;
    let weights = Weights::open(&files, naming)?;
    let vb = weights.var_builder(DType::F32, &Device::Cpu);
    for name in weights.names() {
        vb.get_unchecked(name)?;
    }
    Ok(match weights.names().next() {
        Some(_) => "all tensors read",
        None => "no tensors",
    })
}

/// A small file: tensors of each type.
fn small() -> Vec<u8> {
    let mut header = Map::new();
    let mut end = 0;
    for (name, dtype, shape, size) in [
        ("a.weight", "F32", vec![4, 4], 64),
        ("b", "F16", vec![3], 6),
        ("c.query.weight", "BF16", vec![2, 5], 20),
        ("d", "F64", vec![], 8),
        ("e", "F32", vec![0, 3], 0),
        ("position_ids", "I64", vec![1, 2], 16),
    ] {
        let entry = json!({"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]});
        header.insert(name.to_owned(), entry);
        end += size;
    }
    let text = Value::Object(header).to_string();
    let size = text.len() as u64;
    [&size.to_le_bytes()[..], text.as_bytes(), &vec![60; end]].concat()
}

#[test]
fn no_damage_to_a_header_panics() {
    let (small, config) = (small(), br#"{"sample_size": 32}"#.to_vec());
    let model = Model::new(BTreeMap::from([("unet/config.json".to_owned(), config)]));
    fuzz(256, damages(), "all tensors read", |damages| {
        model.spoil(WEIGHTS, damaged(&small, damages));
        read_all(&model.open()?)
    });
}

#[test]
fn no_damage_to_a_models_weights_panics() {
    let model = Model::of("assets/tiny-ddpm");
    fuzz(96, damages(), "drawn", |damages| {
        model.spoil(WEIGHTS, damaged(model.file(WEIGHTS), damages));
        draw(&model.open()?, "")
    });
}

#[test]
fn no_damage_to_a_lora_panics() {
    let model = Model::of("assets/tiny-sd");
    let loras = ["kohya", "old", "peft", "settings"];
    let loras = loras.map(|name| fixture(&format!("parts/{name}.safetensors")));
    let inputs = (0..loras.len(), damages(), -9.0..9.0);
    fuzz(48, inputs, "drawn", |(lora, damages, weight)| {
        model.spoil("lora.safetensors", damaged(&loras[*lora], damages));
        let mut checkpoint = model.open()?;
        let path = model.path().join("lora.safetensors");
        checkpoint.add_lora(path.to_str().unwrap(), *weight)?;
        draw(&checkpoint, "a cat")
    });
}

#[test]
fn no_damage_to_a_file_with_everything_panics() {
    let configs = [
        ("sd1.safetensors", "assets/tiny-sd"),
        ("xl.safetensors", "tests/fixtures/single/xl"),
    ];
    let models =
        configs.map(|(file, folder)| (fixture(&format!("single/{file}")), Model::of(folder)));
    let tokenizer = Model::of("assets/tiny-sd");
    let inputs = (0..models.len(), damages());
    fuzz(32, inputs, "drawn", |(at, damages)| {
        let (whole, model) = &models[*at];
        for component in ["tokenizer", "tokenizer_2"] {
            std::fs::create_dir_all(model.path().join(component)).unwrap();
            for file in ["tokenizer.json", "tokenizer_config.json"] {
                model.spoil(
                    &format!("{component}/{file}"),
                    tokenizer.file(&format!("tokenizer/{file}")),
                );
            }
        }
        model.spoil("all.safetensors", damaged(whole, damages));
        let file = model.path().join("all.safetensors");
        let (file, config) = (file.to_str().unwrap(), model.path().to_str());
        let network = Network::Forbidden;
        draw(
            &Checkpoint::open_with(network, file, "main", config)?,
            "a cat",
        )
    });
}

#[test]
fn no_damage_to_a_file_that_tells_its_own_configurations_panics() {
    let names = ["sd1", "xl-pruned", "xl-playground"];
    let files = names.map(|name| fixture(&format!("single/{name}.safetensors")));
    let model = Model::new(BTreeMap::new());
    for component in ["tokenizer", "tokenizer_2"] {
        std::fs::create_dir(model.path().join(component)).unwrap();
    }
    let inputs = (0..files.len(), damages());
    fuzz(128, inputs, "all configurations told", |(at, damages)| {
        model.spoil("all.safetensors", damaged(&files[*at], damages));
        let file = model.path().join("all.safetensors");
        let file = file.to_str().unwrap();
        let checkpoint = Checkpoint::open_with(Network::Forbidden, file, "main", None)?;
        for component in ["unet", "vae", "text_encoder", "text_encoder_2"] {
            if checkpoint.component_class(component).is_some() {
                checkpoint.json(component, "config.json")?;
                let files = checkpoint.prepare_weights(component, DType::F32)?;
                Weights::open(&files, Naming::default())?;
            }
        }
        Ok("all configurations told")
    });
}

const PARTS: [&str; 14] = [
    "a.safetensors",
    "b.safetensors",
    "none.safetensors",
    "config.json",
    "../unet/a.safetensors",
    "/etc/passwd",
    "..",
    "",
    "a\\b",
    "C:a",
    "a\0b",
    ".a",
    "a.safetensors/",
    "diffusion_pytorch_model.safetensors.index.json",
];
const INDEX_NAMES: [&str; 6] = ["metadata", "weight_map", "w", "", "a.weight", "total_size"];

#[test]
fn no_index_panics() {
    let config = br#"{"sample_size": 32}"#.to_vec();
    let file = |name: &str, bytes: Vec<u8>| (format!("unet/{name}"), bytes);
    let model = Model::new(BTreeMap::from([
        file("config.json", config),
        file("a.safetensors", small()),
        file("b.safetensors", damaged(&small(), &[])),
    ]));
    let whole = json!({"metadata": {"total_size": 114}, "weight_map": {"a.weight": "a.safetensors", "d": "a.safetensors", "b": "a.safetensors"}});
    let inputs = prop::collection::vec(edit(&PARTS, &INDEX_NAMES), 1..4);
    fuzz(128, inputs, "all tensors read", |edits| {
        let mut index = whole.clone();
        edits.iter().for_each(|edit| edit.apply(&mut index));
        let name = "unet/diffusion_pytorch_model.safetensors.index.json";
        model.spoil(name, index.to_string());
        read_all(&model.open()?)
    });
}
