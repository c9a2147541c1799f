//! What takes part in a checkpoint and comes from elsewhere: VAEs and LoRAs. The pictures are those of diffusers with the same parts.
use crate::support::{self, Folder, Run, asset, levels_apart, pixels, texts};
use serde_json::Value;

/// f32 on the CPU may differ from diffusers by this much of 255.
const BOUND: u8 = 1;

pub fn fixture(name: &str) -> String {
    let path = support::fixture("parts").join(name);
    path.to_str().expect("a plain path").to_owned()
}

/// A picture of tiny-sd with more flags.
fn draw(folder: &Folder, more: &[&str]) -> Run {
    draw_with(folder, &asset("tiny-sd"), more)
}

fn draw_with(folder: &Folder, model: &str, more: &[&str]) -> Run {
    let mut args = vec!["txt2img", "--device=cpu", "--model", model];
    args.extend(more);
    folder.run(args)
}

fn cases() -> Value {
    serde_json::from_slice(&std::fs::read(fixture("cases.json")).expect("the list")).expect("JSON")
}

#[test]
fn pictures_with_parts_from_elsewhere_are_those_of_diffusers() {
    let list = cases();
    let (mut wrong, mut two_towers) = (Vec::new(), 0);
    for case in list["cases"].as_array().expect("cases") {
        let (name, folder) = (case["name"].as_str().expect("a name"), Folder::new());
        let mut args = vec![list["prompt"].as_str().expect("a prompt").to_owned()];
        for (key, value) in case["args"].as_object().expect("arguments by name") {
            for value in value.as_array().unwrap_or(&vec![value.clone()]) {
                let text = value
                    .as_str()
                    .map_or_else(|| value.to_string(), str::to_owned);
                let text = match text.strip_prefix("@/") {
                    Some(inside) => fixture(inside),
                    None => text,
                };
                args.push(format!("--{}={text}", key.replace('_', "-")));
            }
        }
        args.push("--output=out.png".to_owned());
        // The checkpoint with two text encoders, or tiny-sd.
        let model = match case["checkpoint"].as_str() {
            Some(name) => support::fixture("families").join(name),
            None => asset("tiny-sd").into(),
        };
        two_towers += usize::from(case.get("checkpoint").is_some());
        let run = draw_with(
            &folder,
            model.to_str().expect("a plain path"),
            &args.iter().map(String::as_str).collect::<Vec<_>>(),
        );
        assert_eq!(run.code, Some(0), "{name}: {}", run.stderr);
        let ours = pixels(&folder.read("out.png"));
        let largest = levels_apart(&ours, fixture(&format!("{name}.png")).as_ref());
        if largest > BOUND {
            wrong.push(format!("{name}: {largest}"));
        }
    }
    assert!(
        wrong.is_empty(),
        "pictures that differ: {}",
        wrong.join(", ")
    );
    assert!(two_towers >= 5, "{two_towers} cases with two text encoders");
}

#[test]
fn a_picture_remembers_its_vae_and_is_drawn_again_with_it() {
    let folder = Folder::new();
    let vae = fixture("tiny-vae");
    let more = ["a cat", "--steps=2", "--seed=1", "-o=a.png", "--vae", &vae];
    let run = draw(&folder, &more);
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    let json: Value = serde_json::from_str(&texts(&folder.read("a.png"))["diffuse"]).unwrap();
    assert_eq!(json["settings"]["vae"], vae);
    let file = format!("{vae}/diffusion_pytorch_model.safetensors");
    assert_eq!(
        json["model"]["files"][&file].as_str().map(str::len),
        Some(64),
        "{json}"
    );
    assert!(
        json["model"]["files"].get("vae/config.json").is_none(),
        "the model's own VAE is not read"
    );
    let again = folder.run(["txt2img", "--device=cpu", "--from=a.png", "-o=b.png"]);
    assert_eq!(again.code, Some(0), "{}", again.stderr);
    assert!(
        again.stderr.contains("the pixels are those of a.png"),
        "{}",
        again.stderr
    );
}

#[test]
fn previews_are_drawn_by_the_tiny_vae_that_is_given() {
    let folder = Folder::new();
    let vae = fixture("tiny-vae");
    let common = ["a cat", "--steps=3", "--seed=1", "--save-steps=2"];
    let with = |more: &[&str]| {
        let run = draw(&folder, &[&common[..], more].concat());
        assert_eq!(run.code, Some(0), "{}", run.stderr);
    };
    with(&["-o=whole.png", "--vae", &vae]);
    with(&["-o=preview.png", "--preview-vae", &vae]);
    with(&["-o=plain.png"]);
    // The steps are equal, the preview's decoder too, and only the last picture's is another.
    let pixels = |name: &str| crate::support::pixels(&folder.read(name));
    assert_eq!(pixels("whole-step-002.png"), pixels("preview-step-002.png"));
    assert_ne!(pixels("plain-step-002.png"), pixels("preview-step-002.png"));
    // No pixel of the picture depends on the preview, so its file does not tell of it.
    assert_eq!(folder.read("plain.png"), folder.read("preview.png"));
    assert_ne!(pixels("plain.png"), pixels("whole.png"));
}

#[test]
fn a_vae_that_cannot_serve_is_refused_in_one_line() {
    let folder = Folder::new();
    for (vae, said) in [
        (
            "nowhere",
            "--vae: \"nowhere\" is no folder here and no hub id",
        ),
        (".", "has no vae/config.json and no config.json"),
    ] {
        let run = draw(&folder, &["a cat", "--steps=2", "--vae", vae]);
        assert_eq!(run.code, Some(1), "{}", run.stderr);
        assert!(run.stderr.contains(said), "{}", run.stderr);
        assert_eq!(run.stderr.lines().count(), 1, "{}", run.stderr);
    }
    std::fs::create_dir(folder.file("odd")).expect("a new folder");
    folder.write("odd/config.json", r#"{"_class_name": "VQModel"}"#);
    let run = draw(&folder, &["a cat", "--vae=odd"]);
    assert!(
        run.stderr
            .contains("VQModel is not supported (accepted: AutoencoderKL, AutoencoderTiny)"),
        "{}",
        run.stderr
    );
    folder.write(
        "odd/config.json",
        r#"{"_class_name": "AutoencoderTiny", "latent_channels": 16}"#,
    );
    let run = draw(&folder, &["a cat", "--vae=odd"]);
    assert!(
        run.stderr
            .contains("the UNet reads 4 and writes 4 channels and the VAE has 16 latent channels"),
        "{}",
        run.stderr
    );
}

#[test]
fn rows_share_the_parts_of_the_command_line() {
    let folder = Folder::new();
    folder.write("rows", r#"{"prompt": "a cat", "vae": "x"}"#);
    let run = draw(&folder, &["--prompts=rows", "--steps=2"]);
    assert!(
        run.stderr
            .contains("\"vae\" is the same for all rows; give --vae on the command line"),
        "{}",
        run.stderr
    );
}
