//! Configurations that ask for the impossible.
use super::support::{DDPM, TXT2IMG, model, refused, run, write};
use serde_json::{Value, json};

/// The model with keys of one of its files replaced.
#[track_caller]
fn spoiled(asset: &str, file: &str, keys: &[(&str, Value)]) -> String {
    let folder = model(asset);
    let path = folder.file("model").join(file);
    let mut config: Value =
        serde_json::from_slice(&std::fs::read(&path).expect("it is there")).expect("it is JSON");
    for (key, value) in keys {
        config[*key] = value.clone();
    }
    write(&folder, file, config.to_string());
    let args = if asset == "tiny-ddpm" {
        &DDPM[..]
    } else {
        &TXT2IMG
    };
    let said = refused(&folder, args);
    println!("{file} {keys:?}: {said}");
    said
}

#[test]
fn the_assets_are_drawn_in_the_room_that_spoiled_ones_have() {
    for (asset, args) in [("tiny-ddpm", &DDPM[..]), ("tiny-sd", &TXT2IMG)] {
        let run = run(&model(asset), args);
        assert_eq!(run.code, Some(0), "{run:?}");
    }
}

#[test]
fn a_unet_of_absurd_numbers_is_refused() {
    let huge = json!(1_000_000_000_000_000_000u64);
    let many = |value: Value, n: usize| Value::from(vec![value; n]);
    for asset in ["tiny-ddpm", "tiny-sd"] {
        let file = "unet/config.json";
        for value in [
            huge.clone(),
            json!(0),
            json!(-1),
            json!(1e300),
            json!("x"),
            json!([]),
            json!([1, 2, 3]),
        ] {
            for key in [
                "sample_size",
                "layers_per_block",
                "in_channels",
                "out_channels",
                "block_out_channels",
            ] {
                let part = spoiled(asset, file, &[(key, value.clone())]);
                assert!(part.contains("unet") || part.contains("channels"), "{part}");
            }
        }
        for value in [huge.clone(), json!(0), json!(7)] {
            let said = spoiled(asset, file, &[("norm_num_groups", value)]);
            assert!(said.contains("norm_num_groups"), "{said}");
        }
        for value in [huge.clone(), json!(0)] {
            let said = spoiled(asset, file, &[("attention_head_dim", value)]);
            assert!(said.contains("attention_head_dim"), "{said}");
            assert!(!said.contains("loading"), "after the weights: {said}");
        }
        // A trillion parameters.
        let wide = json!(1 << 16);
        let said = spoiled(
            asset,
            file,
            &[
                ("block_out_channels", many(wide, 2)),
                ("norm_num_groups", json!(1)),
            ],
        );
        assert!(said.contains("unet"), "{said}");
        for blocks in [17, 70, 10_000] {
            let (down, up) = match asset {
                "tiny-ddpm" => ("DownBlock2D", "UpBlock2D"),
                _ => ("CrossAttnDownBlock2D", "CrossAttnUpBlock2D"),
            };
            let said = spoiled(
                asset,
                file,
                &[
                    ("down_block_types", many(down.into(), blocks)),
                    ("up_block_types", many(up.into(), blocks)),
                    ("block_out_channels", many(json!(32), blocks)),
                    ("norm_num_groups", json!(1)),
                    ("attention_head_dim", json!(8)),
                ],
            );
            assert!(said.contains("the number of down_block_types"), "{said}");
        }
    }
    for key in ["cross_attention_dim", "transformer_layers_per_block"] {
        for value in [huge.clone(), json!(0)] {
            spoiled("tiny-sd", "unet/config.json", &[(key, value)]);
        }
    }
}

#[test]
fn a_vae_and_a_text_encoder_of_absurd_numbers_are_refused() {
    let huge = json!(1_000_000_000_000_000_000u64);
    for (file, keys) in [
        (
            "vae/config.json",
            &[
                "latent_channels",
                "layers_per_block",
                "norm_num_groups",
                "block_out_channels",
                "out_channels",
            ][..],
        ),
        (
            "text_encoder/config.json",
            &[
                "vocab_size",
                "hidden_size",
                "intermediate_size",
                "num_hidden_layers",
                "max_position_embeddings",
                "num_attention_heads",
            ],
        ),
    ] {
        for value in [huge.clone(), json!(0), json!(-1), json!(1e300), json!("x")] {
            for key in keys {
                spoiled("tiny-sd", file, &[(*key, value.clone())]);
            }
        }
    }
}

#[test]
fn a_scheduler_of_absurd_numbers_is_refused() {
    for (key, value) in [
        ("num_train_timesteps", json!(1_000_000_000_000u64)),
        ("num_train_timesteps", json!(0)),
        ("trained_betas", json!([0.1])),
        ("beta_start", json!("x")),
    ] {
        let said = spoiled(
            "tiny-ddpm",
            "scheduler/scheduler_config.json",
            &[(key, value)],
        );
        assert!(said.contains(key), "{said}");
    }
}

#[test]
fn json_of_absurd_depth_size_and_numbers_is_refused() {
    let megabytes = |text: &str, n: usize| text.repeat((n << 20) / text.len());
    for (asset, file) in [
        ("tiny-ddpm", "model_index.json"),
        ("tiny-ddpm", "unet/config.json"),
        ("tiny-ddpm", "scheduler/scheduler_config.json"),
        ("tiny-sd", "tokenizer/tokenizer.json"),
        ("tiny-sd", "tokenizer/tokenizer_config.json"),
    ] {
        let args = if asset == "tiny-ddpm" {
            &DDPM[..]
        } else {
            &TXT2IMG
        };
        for text in [
            megabytes("[", 3),
            megabytes("{\"a\":", 3),
            format!("{{\"a\":[{}0]}}", megabytes("0,", 3)),
            format!("{{\"a\":[{}0]}}", megabytes("NaN,", 3)),
            format!("{{\"a\":[{}0]}}", megabytes("[],", 3)),
            megabytes("[", 9),
            "{\"a\": 1e999999999}".to_owned(),
            format!("{{\"a\": {}}}", megabytes("9", 1)),
            "\u{feff}".to_owned(),
            "{\"a\": \"\\ud800\"}".to_owned(),
        ] {
            let folder = model(asset);
            write(&folder, file, text);
            // A file of optional settings may be anything that is JSON.
            if file == "tokenizer/tokenizer_config.json" || file == "model_index.json" {
                let run = run(&folder, args);
                assert!(matches!(run.code, Some(0 | 1)), "{run:?}");
            } else {
                refused(&folder, args);
            }
        }
        // A thousand keys, each of which might be the wrong one.
        let keys: Vec<String> = (0..999)
            .map(|i| format!("\"k{i}\": [{}0]", "0,".repeat(1500)))
            .collect();
        let folder = model(asset);
        write(
            &folder,
            file,
            format!("{{\"sample_size\": \"x\", {}}}", keys.join(",")),
        );
        let run = run(&folder, args);
        assert!(matches!(run.code, Some(0 | 1)), "{run:?}");
    }
}
