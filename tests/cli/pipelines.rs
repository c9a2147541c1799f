//! The pictures of both commands against those of the diffusers library, pixel by pixel.
use crate::support::{Folder, asset, copy, fixture, levels_apart};
use candle_core::{Device, Tensor};
use serde_json::{Map, Value};
use std::path::Path;

/// f32 on the CPU may differ from diffusers by this much of 255.
const BOUND: u8 = 1;

/// The case's command line and `place`, on a copy of its checkpoint with its edits.
pub fn draw(case: &Value, place: &[&str]) -> image::RgbImage {
    let text = |key: &str| {
        case[key]
            .as_str()
            .unwrap_or_else(|| panic!("{key} of {case}"))
    };
    let folder = Folder::new();
    let checkpoint = match case["checkpoint"].as_str() {
        Some(name) => fixture("families").join(name),
        None => asset(text("asset")).into(),
    };
    copy(&checkpoint, &folder.file("model"));
    let edits = case["edits"].as_object().expect("edits by file");
    if edits
        .get("unet/config.json")
        .is_some_and(|changes| changes.get("out_channels").is_some())
    {
        double_the_last_layer(&folder.file("model/unet/diffusion_pytorch_model.safetensors"));
    }
    for (file, changes) in edits {
        edit(
            &folder.file("model").join(file),
            changes.as_object().expect("changes by key"),
        );
    }
    let args = [text("command"), "--model=model", "--output=out.png"];
    let mut args: Vec<String> = args.iter().chain(place).map(|&arg| arg.into()).collect();
    for (key, value) in case["args"].as_object().expect("arguments by name") {
        // A list is a flag that is given several times.
        for value in value.as_array().unwrap_or(&vec![value.clone()]) {
            let value = value
                .as_str()
                .map_or_else(|| value.to_string(), str::to_string);
            let flag = format!("--{}", key.replace('_', "-"));
            args.push(match (key.as_str(), value.as_str()) {
                ("prompt", _) => value,
                (_, "true") => flag,
                _ => format!("{flag}={value}"),
            });
        }
    }
    let run = folder.run(&args);
    assert_eq!(
        (run.code, run.stdout.as_str()),
        (Some(0), "out.png\n"),
        "{args:?}: {}",
        run.stderr
    );
    image::open(folder.file("out.png"))
        .expect("the picture opens")
        .into_rgb8()
}

/// Makes a network that predicts a variance too, as the exporter does.
fn double_the_last_layer(weights: &Path) {
    let mut tensors = candle_core::safetensors::load(weights, &Device::Cpu).expect("weights");
    for name in ["conv_out.weight", "conv_out.bias"] {
        let layer = &tensors[name];
        let twice = Tensor::cat(&[layer, layer], 0).expect("equal shapes");
        tensors.insert(name.to_owned(), twice);
    }
    candle_core::safetensors::save(&tensors, weights).expect("written");
}

/// Sets keys of a JSON file; null removes one.
fn edit(path: &Path, changes: &Map<String, Value>) {
    let mut config: Map<String, Value> =
        serde_json::from_slice(&std::fs::read(path).expect("a configuration")).expect("JSON");
    for (key, value) in changes {
        match value {
            Value::Null => drop(config.remove(key)),
            value => drop(config.insert(key.clone(), value.clone())),
        }
    }
    std::fs::write(path, serde_json::to_vec(&config).expect("JSON")).expect("written");
}

/// The cases of a folder of fixtures.
pub fn cases(set: &str) -> Vec<Value> {
    let list: Value =
        serde_json::from_slice(&std::fs::read(fixture(set).join("cases.json")).unwrap()).unwrap();
    list["cases"].as_array().unwrap().clone()
}

/// Draws every case of a folder of fixtures and names those whose pictures are not diffusers'.
fn compare(set: &str, at_least: usize) {
    let cases = cases(set);
    assert!(cases.len() >= at_least, "{} cases", cases.len());
    let mut wrong = Vec::new();
    for case in &cases {
        let name = case["name"].as_str().unwrap();
        let ours = draw(case, &["--device=cpu"]);
        let largest = levels_apart(&ours, &fixture(set).join(format!("{name}.png")));
        if largest > BOUND {
            wrong.push(format!("{name}: {largest}"));
        }
    }
    assert!(
        wrong.is_empty(),
        "pictures that differ: {}",
        wrong.join(", ")
    );
}

#[test]
fn every_picture_is_that_of_diffusers_within_one_level() {
    compare("pipelines", 60);
}

#[test]
fn pictures_of_every_kind_of_unet_pipeline_are_those_of_diffusers_within_one_level() {
    compare("families", 31);
}
