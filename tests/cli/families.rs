//! What the kinds of UNet pipeline have of their own on the command line; their pictures are compared in `pipelines`.
use crate::support::{Folder, Run, asset, copy, fixture, pixels, texts};
use serde_json::{Value, json};

fn model(name: &str) -> String {
    let path = fixture("families").join(name);
    path.to_str().expect("a plain path").to_owned()
}

fn draw(folder: &Folder, name: &str, more: &[&str]) -> Run {
    let model = model(name);
    let args = [
        "txt2img", "--model", &model, "--seed", "1", "--device", "cpu",
    ];
    folder.run([&args, more].concat())
}

fn settings(folder: &Folder, name: &str) -> Value {
    let chunk: Value = serde_json::from_str(&texts(&folder.read(name))["diffuse"]).expect("JSON");
    chunk["settings"].clone()
}

#[test]
fn steps_and_guidance_are_those_of_the_pipeline_unless_given() {
    let folder = Folder::new();
    for (name, steps, scale) in [
        ("xl", 50, json!(5)),
        ("v2", 50, json!(7.5)),
        ("lcm", 4, json!(8.5)),
    ] {
        let output = format!("{name}.png");
        let run = draw(&folder, name, &["a cat", "-o", &output]);
        assert_eq!(run.code, Some(0), "{run:?}");
        let found = settings(&folder, &output);
        assert_eq!(
            (&found["steps"], &found["guidance_scale"]),
            (&json!(steps), &scale),
            "{name}"
        );
        let run = draw(&folder, name, &["--print-schedule", "--json"]);
        let report: Value = serde_json::from_str(&run.stdout).expect("JSON");
        assert_eq!(report["steps"], steps, "{name}");
    }
}

#[test]
fn a_picture_of_two_text_encoders_is_drawn_again_from_itself() {
    let folder = Folder::new();
    for (name, more) in [
        ("zeros", &["a cat"][..]),
        ("empty", &["a cat", "--negative-prompt="]),
        (
            "sizes",
            &[
                "a cat",
                "--original-size=640x480",
                "--crop=3,5",
                "--target-size=512x256",
            ],
        ),
        (
            "texts",
            &[
                "a (cat:1.3)",
                "--prompt-weights",
                "--long-prompt",
                "--clip-skip=1",
            ],
        ),
    ] {
        let output = format!("{name}.png");
        let run = draw(
            &folder,
            "xl",
            &[more, &["--steps=2", "-o", &output]].concat(),
        );
        assert_eq!(run.code, Some(0), "{run:?}");
        let run = folder.run([
            "txt2img",
            "--from",
            &output,
            "-o",
            "b.png",
            "--overwrite",
            "--json",
        ]);
        assert_eq!(run.code, Some(0), "{run:?}");
        assert_eq!(run.objects()[0]["same_pixels"], true, "{name}: {run:?}");
        assert!(folder.read(&output) == folder.read("b.png"), "{name}");
    }
}

#[test]
fn the_batch_size_changes_no_pixel_of_any_kind_on_the_cpu() {
    let long = "the sun and the moon ".repeat(20);
    let rows =
        format!("a cat\n{{\"prompt\": \"a dog\", \"negative_prompt\": \"cats\"}}\n{long}\na hen\n");
    for name in ["xl", "xl-uneven", "v2", "lcm", "distilled"] {
        let folder = Folder::new();
        let model = model(name);
        for size in ["1", "2", "4"] {
            let output = format!("{size}/{{index}}.png");
            let args = [
                "txt2img",
                "--model",
                &model,
                "--prompts",
                "-",
                "--steps=2",
                "--long-prompt",
                "-p",
                "--batch-size",
                size,
                "-o",
                &output,
            ];
            let run = folder.feed(args, &rows);
            assert_eq!(run.code, Some(0), "{name}: {run:?}");
        }
        for row in 1..=4 {
            let alone = folder.read(&format!("1/{row:04}.png"));
            for size in ["2", "4"] {
                assert!(
                    alone == folder.read(&format!("{size}/{row:04}.png")),
                    "{name} {size} {row}"
                );
            }
        }
    }
}

#[test]
fn what_a_model_cannot_do_is_refused_in_a_line() {
    let folder = Folder::new();
    for (name, flag, said) in [
        (
            "v2",
            "--original-size=64x64",
            "--original-size: this model's UNet is told no sizes",
        ),
        (
            "xl",
            "--clip-skip=2",
            "--clip-skip 2: text_encoder_2 has 2 layers; 0 to 1 are accepted",
        ),
        ("xl", "--crop=1x2", "give top and left"),
        ("xl", "--target-size=0x8", "give width and height"),
    ] {
        let run = draw(&folder, name, &["a cat", flag, "-o", "a.png"]);
        assert_ne!(run.code, Some(0), "{flag}");
        assert!(run.stderr.contains(said), "{flag}: {}", run.stderr);
        assert_eq!(folder.names(), [""; 0]);
    }
}

/// An asset in `model`, with changed JSON.
fn changed(file: &str, key: &str, value: Value) -> Folder {
    let folder = Folder::new();
    copy(asset("tiny-sd").as_ref(), &folder.file("model"));
    let path = folder.file("model").join(file);
    let bytes = std::fs::read(&path).expect("a configuration");
    let mut config: Value = serde_json::from_slice(&bytes).expect("JSON");
    config[key] = value;
    std::fs::write(path, config.to_string()).expect("written");
    folder
}

/// One line that has `said`, and no picture.
#[track_caller]
fn refused(folder: &Folder, command: &str, said: &str) {
    let prompt: &[&str] = if command == "txt2img" {
        &["a cat"]
    } else {
        &[]
    };
    let args = [&[command][..], prompt, &["--model=model", "-o=a.png"]].concat();
    let run = folder.run(args);
    assert_eq!(run.code, Some(1), "{run:?}");
    assert!(run.stderr.contains(said), "{}", run.stderr);
    assert_eq!(run.stderr.lines().count(), 1, "{}", run.stderr);
    assert_eq!(folder.names(), ["model"]);
}

/// The picture of two steps of a model, and the run.
#[track_caller]
fn two_steps(folder: &Folder, model: &str, more: &[&str]) -> (image::RgbImage, Run) {
    let args = [
        "txt2img",
        "a cat",
        "--model",
        model,
        "--steps=2",
        "--seed=1",
        "--device=cpu",
        "-o=a.png",
        "--overwrite",
    ];
    let run = folder.run([&args, more].concat());
    assert_eq!(run.code, Some(0), "{run:?}");
    (pixels(&folder.read("a.png")), run)
}

// What people do to their copy of a model for "clip skip 2". transformers leaves the layer out, too.
#[test]
fn a_text_encoder_has_as_many_layers_as_its_configuration_says() {
    let folder = changed("text_encoder/config.json", "num_hidden_layers", json!(1));
    let whole = asset("tiny-sd");
    // The negative prompt is read without the skip, so there is to be none.
    let (shorter, run) = two_steps(&folder, "model", &["--guidance-scale=1"]);
    let said = "text_encoder: num_hidden_layers = 1 in its config.json, and the file has more: 16 tensors are left out";
    assert!(run.stderr.contains(said), "{}", run.stderr);
    let skip = ["--guidance-scale=1", "--clip-skip=1"];
    assert_eq!(shorter, two_steps(&folder, &whole, &skip).0);
    assert_ne!(shorter, two_steps(&folder, &whole, &skip[..1]).0);
}

#[test]
fn an_index_of_flax_classes_is_read_as_that_of_their_twins_in_torch() {
    let folder = changed(
        "unet/config.json",
        "_class_name",
        json!("FlaxUNet2DConditionModel"),
    );
    let index = folder.file("model").join("model_index.json");
    let text = std::fs::read_to_string(&index).expect("an index");
    let mut flax = text.clone();
    for class in [
        "StableDiffusionPipeline",
        "PNDMScheduler",
        "CLIPTextModel",
        "UNet2DConditionModel",
        "AutoencoderKL",
    ] {
        let quoted = format!("\"{class}\"");
        assert!(flax.contains(&quoted), "{class}");
        flax = flax.replace(&quoted, &format!("\"Flax{class}\""));
    }
    std::fs::write(&index, flax).expect("written");
    let (flax, _) = two_steps(&folder, "model", &[]);
    assert_eq!(flax, two_steps(&folder, &asset("tiny-sd"), &[]).0);
}

#[test]
fn other_pipelines_are_refused_by_their_names() {
    for name in [
        "FluxPipeline",
        "StableDiffusion3Pipeline",
        "PixArtAlphaPipeline",
        "PixArtSigmaPipeline",
        "StableDiffusionInpaintPipeline",
        "StableDiffusionImg2ImgPipeline",
        "StableDiffusionInstructPix2PixPipeline",
        "StableDiffusionControlNetPipeline",
        // The refiner.
        "StableDiffusionXLImg2ImgPipeline",
    ] {
        let folder = changed("model_index.json", "_class_name", json!(name));
        let said = format!("model_index.json names {name}, which is not supported");
        refused(&folder, "txt2img", &said);
    }
    let own = json!(["pipeline", "StableDiffusionPipeline"]);
    let folder = changed("model_index.json", "_class_name", own);
    let said = r#"a pipeline of its own code, ["pipeline","StableDiffusionPipeline"]"#;
    refused(&folder, "txt2img", said);
}

#[test]
fn unets_that_read_a_picture_beside_the_noise_are_refused() {
    for (channels, said) in [
        (
            9,
            "the UNet reads 9 and writes 4 channels and the VAE has 4 latent channels: txt2img needs three equal numbers (9 are read by inpainting models",
        ),
        (
            8,
            "(8 are read by models that edit pictures, which are not supported)",
        ),
    ] {
        let folder = changed("unet/config.json", "in_channels", json!(channels));
        refused(&folder, "txt2img", said);
    }
}

#[test]
fn of_two_keys_that_are_wrong_the_first_is_named_with_its_own_complaint() {
    let folder = Folder::new();
    copy(asset("tiny-sd").as_ref(), &folder.file("model"));
    let config = r#"{
        "block_out_channels": [32, 32], "norm_num_groups": null, "norm_eps": 1e-5, "up_block_types": ["SkipUpBlock2D", "UpBlock2D"]
    }"#;
    folder.write("model/unet/config.json", config);
    let said = "model/unet/config.json: norm_num_groups = null: invalid type: null, expected a whole number";
    refused(&folder, "txt2img", said);
}

#[test]
fn a_network_alone_is_refused_by_its_name() {
    for name in [
        "ControlNetModel",
        "FluxTransformer2DModel",
        "PixArtTransformer2DModel",
        "AutoencoderKL",
    ] {
        let folder = Folder::new();
        std::fs::create_dir(folder.file("model")).expect("a new folder");
        let config = json!({"_class_name": name, "in_channels": 4}).to_string();
        folder.write("model/config.json", config);
        for command in ["txt2img", "ddpm"] {
            let said = format!(
                "model is {name} alone, which draws nothing by itself: give the folder of a whole model"
            );
            refused(&folder, command, &said);
        }
    }
}

#[test]
fn what_a_model_with_its_guidance_inside_does_not_read_is_said() {
    let folder = Folder::new();
    let flags = ["--negative-prompt=dog", "--guidance-rescale=0.7"];
    let run = draw(
        &folder,
        "lcm",
        &[&["a cat", "-o", "a.png"], &flags[..]].concat(),
    );
    assert_eq!(run.code, Some(0), "{run:?}");
    for said in ["the negative prompt is not read", "it is not rescaled"] {
        assert!(run.stderr.contains(said), "{}", run.stderr);
    }
}

#[test]
fn components_of_other_classes_are_refused_by_their_names() {
    for (component, library, class) in [
        ("text_encoder", "transformers", "BertModel"),
        ("tokenizer", "transformers", "GPT2Tokenizer"),
        ("unet", "diffusers", "UNet3DConditionModel"),
    ] {
        let folder = changed("model_index.json", component, json!([library, class]));
        let said =
            format!("model_index.json names {class} for {component}, which is not supported");
        refused(&folder, "txt2img", &said);
    }
    let folder = changed("model_index.json", "_class_name", json!("LDMPipeline"));
    let said = "model_index.json names LDMPipeline, which is not supported (accepted: DDPMPipeline";
    refused(&folder, "ddpm", said);
}

#[test]
fn a_text_encoder_that_is_to_see_no_padding_is_refused() {
    let folder = changed(
        "text_encoder/config.json",
        "use_attention_mask",
        json!(true),
    );
    refused(
        &folder,
        "txt2img",
        "use_attention_mask = true is not supported",
    );
}

#[test]
fn the_configuration_of_whole_clip_has_that_of_its_text_tower_inside() {
    let folder = Folder::new();
    copy(asset("tiny-sd").as_ref(), &folder.file("model"));
    let path = folder.file("model/text_encoder/config.json");
    let text = std::fs::read_to_string(&path).expect("a configuration");
    let draw = |name: &str| {
        let args = [
            "txt2img",
            "a cat",
            "--model=model",
            "--steps=1",
            "--seed=1",
            "-o",
            name,
        ];
        let run = folder.run(args);
        assert_eq!(run.code, Some(0), "{run:?}");
        folder.read(name)
    };
    let before = pixels(&draw("a.png"));
    let tower: Value = serde_json::from_str(&text).expect("JSON");
    let whole = json!({"model_type": "clip", "projection_dim": 9, "text_config": tower});
    std::fs::write(path, whole.to_string()).expect("written");
    assert!(pixels(&draw("b.png")) == before);
}
