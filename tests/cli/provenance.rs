//! What a picture says of its making, and what `--json` says of it.
use crate::support::{Folder, asset, pixels, texts};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

fn cat(folder: &Folder, more: &[&str]) -> crate::support::Run {
    let model = asset("tiny-sd");
    let args = [
        "txt2img", "a cat", "--model", &model, "--steps", "3", "--device", "cpu",
    ];
    let run = folder.run([&args, more].concat());
    assert_eq!(run.code, Some(0), "{more:?}: {run:?}");
    run
}

fn chunk(png: &[u8]) -> Value {
    serde_json::from_str(&texts(png)["diffuse"]).expect("the chunk is JSON")
}

fn sha256(bytes: &[u8]) -> String {
    let digest = Sha256::digest(bytes);
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn a_picture_carries_all_that_made_it() {
    let folder = Folder::new();
    cat(
        &folder,
        &[
            "--seed",
            "7",
            "--scheduler",
            "euler-ancestral",
            "--negative-prompt",
            "dogs",
            "-o",
            "a.png",
        ],
    );
    let png = folder.read("a.png");
    let chunk = chunk(&png);
    assert_eq!(
        chunk["program"],
        json!({"name": "diffuse", "version": env!("CARGO_PKG_VERSION")})
    );
    assert_eq!(chunk["command"], "txt2img");
    let settings = json!({
        "prompt": "a cat", "model": asset("tiny-sd"), "guidance_scale": 7.5, "negative_prompt": "dogs",
        "guidance_rescale": 0, "steps": 3, "scheduler": "euler-ancestral", "dtype": "f32", "seed": 7, "width": 64, "height": 64,
    });
    assert_eq!(chunk["settings"], settings);
    assert_eq!(
        chunk["scheduler"]["class"],
        "EulerAncestralDiscreteScheduler"
    );
    assert_eq!(
        chunk["scheduler"]["config"]["beta_schedule"],
        "scaled_linear"
    );
    assert_eq!(
        (&chunk["seed"], &chunk["steps"], &chunk["calls"]),
        (&json!(7), &json!(3), &json!(3))
    );
    assert_eq!(
        (&chunk["width"], &chunk["height"]),
        (&json!(64), &json!(64))
    );
    assert_eq!(
        (&chunk["dtype"], &chunk["device"]),
        (&json!("f32"), &json!("cpu"))
    );
    assert_eq!(chunk["pixels"], sha256(pixels(&png).as_raw()));
    let weights = "unet/diffusion_pytorch_model.safetensors";
    let bytes = std::fs::read(format!("{}/{weights}", asset("tiny-sd"))).expect("the weights");
    assert_eq!(chunk["model"]["files"][weights], sha256(&bytes));
    assert_eq!(chunk["model"]["id"], asset("tiny-sd"));
    for file in [
        "vae/config.json",
        "text_encoder/model.safetensors",
        "tokenizer/tokenizer_config.json",
        "scheduler/scheduler_config.json",
    ] {
        assert_eq!(
            chunk["model"]["files"][file].as_str().map(str::len),
            Some(64),
            "{file}"
        );
    }
}

#[test]
fn the_parameters_are_written_as_automatic1111_writes_them() {
    let folder = Folder::new();
    cat(
        &folder,
        &[
            "--seed",
            "7",
            "--scheduler",
            "euler-ancestral",
            "--negative-prompt",
            "dogs",
            "-o",
            "a.png",
        ],
    );
    let text = &texts(&folder.read("a.png"))["parameters"];
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines[..2], ["a cat", "Negative prompt: dogs"]);
    let start = "Steps: 3, Sampler: Euler a, CFG scale: 7.5, Seed: 7, Size: 64x64, Model hash: ";
    assert!(lines[2].starts_with(start), "{text}");
    assert!(
        lines[2].ends_with(concat!(
            ", Model: tiny-sd, Version: diffuse ",
            env!("CARGO_PKG_VERSION")
        )),
        "{text}"
    );
    assert_eq!(lines.len(), 3);
}

#[test]
fn samplers_have_the_names_that_automatic1111_gives_them() {
    let folder = Folder::new();
    let karras = "--scheduler-option=use_karras_sigmas=true";
    for (scheduler, more, name) in [
        ("kdpm2-ancestral", "--seed=1", "DPM2 a"),
        (
            "dpmpp-2m-sde",
            karras,
            "DPM++ 2M SDE, Schedule type: Karras",
        ),
        ("dpm-sde", karras, "DPM++ SDE, Schedule type: Karras"),
        ("deis", "--seed=1", "DEISMultistep"),
    ] {
        let output = format!("{scheduler}.png");
        cat(&folder, &["--scheduler", scheduler, more, "-o", &output]);
        let text = &texts(&folder.read(&output))["parameters"];
        let start = format!("Steps: 3, Sampler: {name}, CFG scale: 7.5, ");
        assert!(text.contains(&start), "{text}");
    }
}

#[test]
fn words_beyond_the_limit_are_recorded() {
    let folder = Folder::new();
    let model = asset("tiny-sd");
    let long = "cat ".repeat(400);
    let run = folder.run([
        "txt2img", &long, "--model", &model, "--steps", "1", "-o", "a.png",
    ]);
    assert_eq!(run.code, Some(0), "{run:?}");
    let lost = chunk(&folder.read("a.png"))["lost"]["prompt"].clone();
    assert!(
        lost.as_str().is_some_and(|words| words.contains("cat")),
        "{lost}"
    );
    cat(&folder, &["-o", "b.png"]);
    assert_eq!(chunk(&folder.read("b.png"))["lost"], json!({}));
}

#[test]
fn without_metadata_a_picture_is_its_pixels_alone() {
    let folder = Folder::new();
    cat(&folder, &["--seed", "7", "-o", "a.png"]);
    cat(&folder, &["--seed", "7", "-o", "b.png", "--no-metadata"]);
    let (a, b) = (folder.read("a.png"), folder.read("b.png"));
    assert_eq!(texts(&b).len(), 0);
    assert!(pixels(&a) == pixels(&b));
    assert!(
        !b.windows(4)
            .any(|chunk| chunk == b"tEXt" || chunk == b"iTXt")
    );
}

#[test]
fn json_has_an_object_for_each_picture() {
    let folder = Folder::new();
    let run = cat(
        &folder,
        &["--seed", "7", "-n", "2", "-o", "a.png", "--json"],
    );
    let objects = run.objects();
    assert_eq!(objects.len(), 2);
    for (k, object) in objects.iter().enumerate() {
        let name = format!("a-{}.png", k + 1);
        assert_eq!(object["path"], name);
        assert_eq!(object["seed"], 7 + k);
        assert_eq!(object["prompt"], "a cat");
        assert_eq!(
            object["pixels"],
            sha256(pixels(&folder.read(&name)).as_raw())
        );
        for phase in ["load", "text", "denoise", "decode", "write"] {
            assert!(
                object["seconds"][phase].as_f64().is_some_and(|s| s >= 0.0),
                "{phase}: {object}"
            );
        }
        assert!(
            object["seconds"]["denoise"].as_f64() > Some(0.0),
            "{object}"
        );
        #[cfg(target_os = "linux")]
        assert!(object["peak_memory"].as_u64() > Some(1 << 20), "{object}");
    }
    assert!(objects[0]["seconds"]["load"].as_f64() > Some(0.0));
    assert_eq!(
        objects[1]["seconds"]["load"], 0.0,
        "the model is loaded once"
    );
}

#[test]
fn an_unconditional_picture_has_no_prompt() {
    let folder = Folder::new();
    let model = asset("tiny-ddpm");
    let run = folder.run([
        "ddpm", "--model", &model, "--steps", "2", "--seed", "1", "-o", "a.png",
    ]);
    assert_eq!(run.code, Some(0), "{run:?}");
    let png = folder.read("a.png");
    assert!(texts(&png)["parameters"].starts_with("Steps: 2, Sampler: "));
    assert_eq!(chunk(&png)["settings"]["prompt"], Value::Null);
}
