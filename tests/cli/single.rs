//! Whole models in one file of the original layout. The pictures are those of diffusers' `from_single_file`.
use crate::support::{self, Folder, Run, asset, copy, levels_apart, pixels, texts};
use candle_core::{DType, Device, Tensor};
use serde_json::Value;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

fn fixture(name: &str) -> PathBuf {
    support::fixture("single").join(name)
}

/// A folder with the file and, for those that are no published model, its configurations and tokenizers in `config`.
fn folder(file: &str) -> Folder {
    let folder = Folder::new();
    folder.write(file, std::fs::read(fixture(file)).expect("a fixture"));
    let name = file.split_once('.').expect("an extension").0;
    let tokenizer = PathBuf::from(asset("tiny-sd")).join("tokenizer");
    if fixture(name).is_dir() {
        copy(&fixture(name), &folder.file("config"));
        copy(&tokenizer, &folder.file("config/tokenizer"));
        if name.starts_with("xl") {
            copy(&tokenizer, &folder.file("config/tokenizer_2"));
        }
    } else {
        copy(Path::new(&asset("tiny-sd")), &folder.file("config"));
    }
    folder
}

fn draw(folder: &Folder, file: &str, more: &[&str]) -> Run {
    let common = [
        "txt2img",
        "a cat riding a horse",
        "--device=cpu",
        "--steps=3",
        "--seed=9",
        "--model",
        file,
    ];
    folder.run([&common[..], more].concat())
}

/// The picture is that of diffusers within 1 of 255.
fn same_as_diffusers(file: &str, more: &[&str]) -> Folder {
    let folder = folder(file);
    let run = draw(
        &folder,
        file,
        &[&["--config=config", "-o=out.png"], more].concat(),
    );
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    let name = file.split_once('.').expect("an extension").0;
    let ours = pixels(&folder.read("out.png"));
    let largest = levels_apart(&ours, &fixture(&format!("{name}.png")));
    assert!(largest <= 1, "{file}: {largest}");
    folder
}

#[test]
fn a_file_of_stable_diffusion_1_is_drawn_as_diffusers_draws_it() {
    let folder = same_as_diffusers("sd1.safetensors", &[]);
    let json: Value = serde_json::from_str(&texts(&folder.read("out.png"))["diffuse"]).unwrap();
    assert_eq!(json["settings"]["config"], "config");
    let hash = &json["model"]["files"]["sd1.safetensors"];
    assert_eq!(hash.as_str().map(str::len), Some(64), "{json}");
    let again = folder.run(["txt2img", "--device=cpu", "--from=out.png", "-o=b.png"]);
    assert!(
        again.stderr.contains("the pixels are those of out.png"),
        "{}",
        again.stderr
    );
}

#[test]
fn a_pickle_of_stable_diffusion_2_is_drawn_as_diffusers_draws_it() {
    same_as_diffusers("sd2.ckpt", &[]);
}

#[test]
fn a_file_of_two_text_encoders_is_drawn_as_diffusers_draws_it() {
    same_as_diffusers("xl.safetensors", &[]);
}

#[test]
fn a_file_whose_layers_differ_inside_of_a_block_is_drawn_as_diffusers_draws_it() {
    same_as_diffusers("xl-pruned.safetensors", &[]);
}

#[test]
fn a_file_of_playground_is_drawn_as_diffusers_draws_it() {
    let folder = same_as_diffusers("xl-playground.safetensors", &[]);
    // The file alone tells the same scheduler.
    for name in ["tokenizer", "tokenizer_2"] {
        copy(&folder.file("config").join(name), &folder.file(name));
    }
    let schedule = |more: &[&str]| {
        let run = draw(
            &folder,
            "xl-playground.safetensors",
            &[&["--print-schedule"], more].concat(),
        );
        assert_eq!(run.code, Some(0), "{}", run.stderr);
        run.stdout
    };
    let alone = schedule(&[]);
    assert!(alone.contains("EDMDPMSolverMultistepScheduler"), "{alone}");
    let alone = alone.replace("default of the class", "file");
    assert_eq!(alone, schedule(&["--config=config"]));
}

#[test]
fn a_file_with_half_of_playgrounds_moments_is_refused() {
    let folder = folder("xl-playground.safetensors");
    let mut tensors =
        candle_core::safetensors::load(folder.file("xl-playground.safetensors"), &Device::Cpu)
            .expect("a fixture");
    tensors.remove("edm_std").expect("it is there");
    candle_core::safetensors::save(&tensors, folder.file("half.safetensors")).expect("written");
    let run = draw(&folder, "half.safetensors", &["--config=config"]);
    assert_eq!(run.code, Some(1), "{}", run.stderr);
    let said = "half.safetensors: tensor edm_std: it is missing";
    assert!(run.stderr.contains(said), "{}", run.stderr);
}

#[test]
fn the_tokenizer_may_lie_beside_the_file_and_the_shapes_tell_the_rest() {
    let folder = folder("sd1.safetensors");
    copy(&folder.file("config/tokenizer"), &folder.file("tokenizer"));
    // Heads of 4 channels and 4 groups are known to no shape; what the shapes and the family tell is shown before weights are read.
    let run = draw(&folder, "sd1.safetensors", &["--dry-run", "--json"]);
    let said = format!("{}{}", run.stdout, run.stderr);
    assert!(
        said.contains("norm_num_groups = 32 does not divide"),
        "{said}"
    );
    let run = draw(&folder, "sd1.safetensors", &["--print-schedule"]);
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    assert!(
        run.stdout.contains("PNDM") || run.stdout.contains("pndm"),
        "{}",
        run.stdout
    );
    std::fs::remove_dir_all(folder.file("tokenizer")).expect("it was copied");
}

#[test]
fn files_of_other_architectures_are_refused_by_name() {
    let folder = Folder::new();
    for (name, shape, said) in [
        (
            "model.diffusion_model.double_blocks.0.img_attn.norm.key_norm.scale",
            &[2][..],
            "it is Flux",
        ),
        (
            "model.diffusion_model.joint_blocks.0.x.weight",
            &[2],
            "it is Stable Diffusion 3",
        ),
        (
            "model.diffusion_model.input_blocks.0.0.weight",
            &[8, 9, 3, 3],
            "reads 9 channels (an inpainting model)",
        ),
        (
            "model.diffusion_model.input_blocks.0.0.weight",
            &[8, 4, 3, 3],
            "no text tower",
        ),
        (
            "lora_unet_x.lora_up.weight",
            &[2],
            "it is a LoRA, which goes behind --lora",
        ),
        (
            "down_blocks.0.x",
            &[2],
            "one network in the diffusers layout",
        ),
        ("x", &[2], "no UNet of the original layout"),
    ] {
        let tensor = Tensor::zeros(shape, DType::F32, &Device::Cpu).expect("small");
        let tensors = HashMap::from([(name.to_owned(), tensor)]);
        candle_core::safetensors::save(&tensors, folder.file("m.safetensors")).expect("written");
        let run = draw(&folder, "m.safetensors", &[]);
        assert_eq!(run.code, Some(1), "{}", run.stderr);
        assert!(run.stderr.contains(said), "{}", run.stderr);
        assert_eq!(run.stderr.lines().count(), 1, "{}", run.stderr);
    }
}

#[test]
fn a_configuration_beside_a_folder_is_refused() {
    let folder = Folder::new();
    let model = asset("tiny-sd");
    let run = draw(&folder, &model, &["--config=owner/name"]);
    assert_eq!(run.code, Some(1), "{}", run.stderr);
    assert!(
        run.stderr
            .contains("--config owner/name is for a model that is one file"),
        "{}",
        run.stderr
    );
}
