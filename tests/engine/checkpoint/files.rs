//! What a checkpoint is: its files, its configurations, and what is none.
use super::support::{checkpoint, numbers, said, save};
use candle_core::DType;
use diffuse::engine::checkpoint::{Checkpoint, json};

#[test]
fn a_flat_repository_is_its_own_unet() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    std::fs::write(root.join("config.json"), r#"{"sample_size": 256}"#).unwrap();
    std::fs::write(
        root.join("scheduler_config.json"),
        r#"{"lambda_min_clipped": -Infinity}"#,
    )
    .unwrap();
    save(
        &root.join("diffusion_pytorch_model.safetensors"),
        &[("w", numbers(&[2]))],
    );
    let checkpoint = Checkpoint::open(root.to_str().unwrap(), "main").unwrap();
    let vae = checkpoint.file("vae", "config.json").unwrap();
    assert!(vae.is_none(), "{vae:?}");
    let scheduler = checkpoint
        .json("scheduler", "scheduler_config.json")
        .unwrap();
    assert_eq!(scheduler["lambda_min_clipped"], "-Infinity");
    checkpoint.prepare_weights("unet", DType::F32).unwrap();
}

#[test]
fn the_index_names_the_classes() {
    let (folder, _) = checkpoint(|_| ());
    let index = r#"{"_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.6.0",
        "unet": ["diffusers", "UNet2DConditionModel"], "safety_checker": [null, null], "requires_safety_checker": false}"#;
    std::fs::write(folder.path().join("model_index.json"), index).unwrap();
    let checkpoint = Checkpoint::open(folder.path().to_str().unwrap(), "main").unwrap();
    assert_eq!(checkpoint.pipeline_class(), Some("StableDiffusionPipeline"));
    let class = |component| checkpoint.component_class(component);
    assert_eq!(class("unet"), Some("UNet2DConditionModel"));
    assert_eq!((class("safety_checker"), class("vae")), (None, None));
}

#[test]
fn what_is_no_checkpoint_is_refused_with_what_was_looked_for() {
    let folder = tempfile::tempdir().unwrap();
    let empty = said(Checkpoint::open(folder.path().to_str().unwrap(), "main"));
    assert!(empty.contains("no model_index.json"), "{empty}");
    let file = folder.path().join("model.ckpt");
    std::fs::write(&file, "x").unwrap();
    assert!(
        said(Checkpoint::open(file.to_str().unwrap(), "main")).contains("not a file of torch.save")
    );
    for name in [
        "./nowhere",
        "/no/such/folder",
        "justaname",
        "a/b/c",
        "",
        "../x/y",
        // Windows takes it for the current folder, whether there is an a or not.
        #[cfg(unix)]
        "a/..",
        "ow ner/name",
    ] {
        assert!(
            said(Checkpoint::open(name, "main")).contains("no folder here and no hub id"),
            "{name}"
        );
    }
    assert!(said(Checkpoint::open("owner/name", "../../x")).contains("revision"));
}

#[test]
fn a_wrong_config_names_its_file_and_key() {
    #[derive(Debug, serde::Deserialize)]
    struct Config {
        #[allow(dead_code)]
        sample_size: usize,
    }
    let (folder, checkpoint) = checkpoint(|_| ());
    checkpoint.config::<Config>("unet").unwrap();
    let config = folder.path().join("unet/config.json");
    for (text, part) in [
        (r#"{"a": 1, "sample_size": "x"}"#, r#"sample_size = "x""#),
        (r#"{"a": 1}"#, "missing field `sample_size`"),
        (r#"{"a": "#, "not valid JSON"),
        ("[1]", "not a JSON object"),
        ("", "not valid JSON"),
    ] {
        std::fs::write(&config, text).unwrap();
        let text = said(checkpoint.config::<Config>("unet"));
        assert!(
            text.contains(part) && text.contains("unet/config.json"),
            "{text}"
        );
    }
    std::fs::write(&config, "[".repeat(3_000_000)).unwrap();
    said(checkpoint.config::<Config>("unet"));
}

#[test]
fn bare_numbers_of_python_are_read_outside_of_strings_alone() {
    let map = json::parse_object(
        br#"{"a": -Infinity, "b": [Infinity, NaN], "c": "a \" NaN", "d": "\\"}"#,
    )
    .unwrap();
    assert_eq!(map["a"], "-Infinity");
    assert_eq!(map["b"], serde_json::json!(["Infinity", "NaN"]));
    assert_eq!(map["c"], "a \" NaN");
    assert_eq!(map["d"], "\\");
}
