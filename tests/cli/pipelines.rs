//! The pictures of both commands against those of the diffusers library, pixel by pixel.
use crate::support::{Folder, fixture};
use serde_json::Value;

/// f32 on the CPU may differ from diffusers by this much of 255.
const BOUND: u8 = 1;

/// The case's command line, on a copy of its checkpoint with its edits.
fn draw(case: &Value, folder: &Folder) -> image::RgbImage {
    let text = |key: &str| case[key].as_str().unwrap_or_else(|| panic!("{key} of {case}"));
    let model = folder.checkpoint(text("asset"));
    for (file, changes) in case["edits"].as_object().unwrap() {
        folder.edit_json(&model.join(file), changes);
    }
    let mut command = folder.diffuse();
    command.arg(text("command")).arg("--model").arg(&model).args(["-o", "out.png", "--device", "cpu"]);
    for (key, value) in case["args"].as_object().unwrap() {
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_string);
        match key.as_str() {
            "prompt" => command.arg(value),
            key => command.arg(format!("--{}", key.replace('_', "-"))).arg(value),
        };
    }
    folder.succeed(&mut command);
    image::open(folder.path().join("out.png")).unwrap().into_rgb8()
}

#[test]
fn every_picture_is_that_of_diffusers_within_one_level() {
    let list: Value = serde_json::from_slice(&std::fs::read(fixture("pipelines/cases.json")).unwrap()).unwrap();
    let cases = list["cases"].as_array().unwrap();
    assert!(cases.len() >= 25, "{} cases", cases.len());
    let mut wrong = Vec::new();
    for case in cases {
        let name = case["name"].as_str().unwrap();
        let ours = draw(case, &Folder::new(name));
        let theirs = image::open(fixture(&format!("pipelines/{name}.png"))).unwrap().into_rgb8();
        assert_eq!(ours.dimensions(), theirs.dimensions(), "{name}");
        let largest = ours.iter().zip(theirs.iter()).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
        if largest > BOUND {
            wrong.push(format!("{name}: {largest}"));
        }
    }
    assert!(wrong.is_empty(), "pictures that differ: {}", wrong.join(", "));
}
