//! Which files hold the weights: one or several, of which precision.
use super::support::{checkpoint, numbers, open, said, save};
use candle_core::DType;
use diffuse::engine::checkpoint::{Naming, Weights};
use std::path::Path;

#[test]
fn sharded_weights_load_and_an_index_cannot_point_elsewhere() {
    for (name, fine) in [
        ("a.safetensors", true),
        ("../a.safetensors", false),
        ("/etc/passwd", false),
        ("x/a", false),
    ] {
        let (_folder, checkpoint) = checkpoint(|unet| {
            save(&unet.join("a.safetensors"), &[("w", numbers(&[2]))]);
            let index = format!(r#"{{"weight_map": {{"w": "{name}"}}}}"#);
            std::fs::write(
                unet.join("diffusion_pytorch_model.safetensors.index.json"),
                index,
            )
            .unwrap();
        });
        match fine {
            true => assert_eq!(
                open(&checkpoint, Naming::default()).unwrap().shape("w"),
                Some(&[2][..])
            ),
            false => assert!(
                said(open(&checkpoint, Naming::default()))
                    .contains("not the name of a file beside it")
            ),
        }
    }
}

/// A network in two parts of one precision, with both spellings of the parts' names and of the index's.
#[test]
fn sharded_weights_of_16_bits_load_in_every_spelling() {
    let parts = [
        "diffusion_pytorch_model.fp16-0000K-of-00002.safetensors",
        "diffusion_pytorch_model-0000K-of-00002.fp16.safetensors",
    ];
    let indices = [
        "diffusion_pytorch_model.safetensors.index.fp16.json",
        "diffusion_pytorch_model.fp16.safetensors.index.json",
    ];
    for part in parts {
        for index in indices {
            let (_folder, checkpoint) = checkpoint(|unet| {
                let name = |k: &str| part.replace('K', k);
                save(&unet.join(name("1")), &[("a", numbers(&[2]))]);
                save(&unet.join(name("2")), &[("b", numbers(&[3]))]);
                let map = format!(
                    r#"{{"metadata": {{"total_size": 20}}, "weight_map": {{"a": "{}", "b": "{}"}}}}"#,
                    name("1"),
                    name("2")
                );
                std::fs::write(unet.join(index), map).unwrap();
                // The full precision and training's copy lie beside them.
                for other in ["", ".non_ema"] {
                    let name = format!("diffusion_pytorch_model{other}.safetensors");
                    save(&unet.join(name), &[("a", numbers(&[7]))]);
                }
            });
            let half = checkpoint.prepare_weights("unet", DType::BF16).unwrap();
            assert!(half.half && half.places.len() == 2, "{part} {index}");
            let weights = Weights::open(&half, Naming::default()).unwrap();
            assert_eq!(weights.shape("a"), Some(&[2][..]));
            assert_eq!(weights.shape("b"), Some(&[3][..]));
            let wanted = checkpoint.wanted_weights("unet", DType::F16).unwrap();
            assert_eq!(wanted.len(), 2);
            let full = checkpoint.prepare_weights("unet", DType::F32).unwrap();
            assert!(!full.half && full.places.len() == 1, "{part} {index}");
        }
    }
}

#[test]
fn a_part_that_is_missing_is_named() {
    let (_folder, checkpoint) = checkpoint(|unet| {
        save(&unet.join("x-1.safetensors"), &[("a", numbers(&[2]))]);
        let map = r#"{"weight_map": {"a": "x-1.safetensors", "b": "x-2.safetensors"}}"#;
        std::fs::write(
            unet.join("diffusion_pytorch_model.safetensors.index.json"),
            map,
        )
        .unwrap();
    });
    let said = said(checkpoint.prepare_weights("unet", DType::F32));
    assert!(said.contains("x-2.safetensors is missing: "), "{said}");
}

#[test]
fn the_file_of_the_wanted_precision_is_chosen() {
    let both = |unet: &Path| {
        for name in [
            "diffusion_pytorch_model.safetensors",
            "diffusion_pytorch_model.fp16.safetensors",
        ] {
            save(&unet.join(name), &[("w", numbers(&[2]))]);
        }
        save(
            &unet.join("diffusion_pytorch_model.non_ema.safetensors"),
            &[("w", numbers(&[2]))],
        );
    };
    let (_folder, two) = checkpoint(both);
    assert!(!two.prepare_weights("unet", DType::F32).unwrap().half);
    assert!(two.prepare_weights("unet", DType::F16).unwrap().half);
    let (_folder, one) = checkpoint(|unet| {
        save(
            &unet.join("diffusion_pytorch_model.fp16.safetensors"),
            &[("w", numbers(&[2]))],
        );
    });
    assert!(one.prepare_weights("unet", DType::F32).unwrap().half);
    let (_folder, none) = checkpoint(|unet| {
        save(
            &unet.join("diffusion_pytorch_model.non_ema.safetensors"),
            &[("w", numbers(&[2]))],
        );
    });
    let message = said(none.prepare_weights("unet", DType::F32));
    assert!(message.contains("has no weights for unet"), "{message}");
    let there = "; there is diffusion_pytorch_model.non_ema.safetensors";
    assert!(message.ends_with(there), "{message}");
}
