//! Which files of a checkpoint are read, and what is said of them.
use crate::support::{Folder, Run, asset, copy, fixture, pixels};
use candle_core::{DType, Device};
use std::path::{Path, PathBuf};

/// The files of weights of a checkpoint's components, without their extension.
const UNET: &str = "unet/diffusion_pytorch_model";
const VAE: &str = "vae/diffusion_pytorch_model";
const TEXT: &str = "text_encoder/model";

fn model(of: &Path) -> Folder {
    let folder = Folder::new();
    copy(of, &folder.file("model"));
    folder
}

fn draw(folder: &Folder, more: &[&str]) -> Run {
    let common = [
        "txt2img",
        "a cat",
        "--model=model",
        "--steps=2",
        "--seed=1",
        "--device=cpu",
        "--overwrite",
        "-o=a.png",
    ];
    folder.run([&common[..], more].concat())
}

/// Writes a file of weights once more, in 16 bits, as its variant.
fn halve(folder: &Folder, stem: &str) -> PathBuf {
    let full = folder.file(&format!("model/{stem}.safetensors"));
    let mut tensors = candle_core::safetensors::load(&full, &Device::Cpu).expect("weights");
    for tensor in tensors.values_mut() {
        if tensor.dtype() == DType::F32 {
            *tensor = tensor.to_dtype(DType::F16).expect("small");
        }
    }
    let half = folder.file(&format!("model/{stem}.fp16.safetensors"));
    candle_core::safetensors::save(&tensors, half).expect("written");
    full
}

/// How often the run says that files are not in its precision.
fn said(run: &Run, text: &str) -> usize {
    assert_eq!(run.code, Some(0), "{run:?}");
    run.stderr.matches(text).count()
}

#[test]
fn a_cast_of_full_files_is_said_in_one_line() {
    for model_of in [
        PathBuf::from(asset("tiny-sd")),
        fixture("families").join("xl"),
    ] {
        let folder = model(&model_of);
        for dtype in ["f16", "bf16"] {
            let run = draw(&folder, &["--dtype", dtype]);
            let line =
                format!("model has no fp16 files: the full ones are read and cast to {dtype}\n");
            assert_eq!(said(&run, &line), 1, "{}", run.stderr);
        }
        assert_eq!(said(&draw(&folder, &[]), "fp16"), 0);
    }
}

#[test]
fn fp16_files_are_read_where_16_bits_are_asked_for_and_the_full_ones_otherwise() {
    let folder = model(Path::new(&asset("tiny-sd")));
    let full: Vec<PathBuf> = [UNET, VAE, TEXT]
        .iter()
        .map(|stem| halve(&folder, stem))
        .collect();
    let sizes = |more: &[&str]| {
        let run = draw(&folder, &[&["--dry-run", "--json"], more].concat());
        assert_eq!(run.code, Some(0), "{run:?}");
        run.objects()[0]["weights"].as_u64().expect("bytes")
    };
    let whole: u64 = full
        .iter()
        .map(|path| path.metadata().expect("a file").len())
        .sum();
    assert_eq!(sizes(&[]), whole);
    assert!(sizes(&["--dtype=f16"]) < whole * 6 / 10);
    assert_eq!(said(&draw(&folder, &["--dtype=f16"]), "fp16 files"), 0);
    assert_eq!(said(&draw(&folder, &["--dtype=bf16"]), "fp16 files"), 0);
    // The picture in f32 is that of the full files, until they are gone.
    assert_eq!(said(&draw(&folder, &[]), "fp16 files"), 0);
    let of_full = pixels(&folder.read("a.png"));
    full.iter()
        .for_each(|path| std::fs::remove_file(path).expect("it was there"));
    let run = draw(&folder, &[]);
    let line = "model has fp16 files alone: they are read as f32\n";
    assert_eq!(said(&run, line), 1, "{}", run.stderr);
    let of_half = pixels(&folder.read("a.png"));
    assert_ne!(of_full, of_half);
}

#[test]
fn the_price_has_both_text_encoders() {
    let folder = model(&fixture("families").join("xl"));
    let bytes = |stem: &str| {
        let file = folder.file(&format!("model/{stem}.safetensors"));
        file.metadata().expect("a file").len()
    };
    let towers = bytes(TEXT) + bytes("text_encoder_2/model");
    let all = towers + bytes(UNET) + bytes(VAE);
    let price = |more: &[&str]| {
        let run = draw(&folder, &[&["--dry-run", "--json"], more].concat());
        assert_eq!(run.code, Some(0), "{run:?}");
        let price = &run.objects()[0];
        let number = |key: &str| price[key].as_u64().expect("a number");
        (number("weights"), number("memory"))
    };
    let lone = price(&["-n=2"]);
    assert_eq!(lone.0, all);
    // Where all pictures are one batch, the UNet is gone when the decoder's maps come.
    assert!(price(&[]).1 < lone.1);
    assert!(price(&["-n=2", "--batch-size=2"]).1 < lone.1);
    // For rows the text encoders stay, both of them, and with an eighth of their size the allocator may keep what it freed.
    let kept = |bytes: u64| bytes + bytes / 8 - 1..=bytes + bytes / 8 + 1;
    folder.write("rows", "a cat\n");
    let rows = |more: &[&str]| {
        let first = [
            "txt2img",
            "--model=model",
            "--prompts=rows",
            "--steps=2",
            "--device=cpu",
        ];
        let run = folder.run([&first[..], &["--dry-run", "--json"], more].concat());
        assert_eq!(run.code, Some(0), "{run:?}");
        run.objects()[0]["memory"].as_u64().expect("a number")
    };
    assert!(kept(towers).contains(&(rows(&[]) - lone.1)));
    // In 16 bits they take half of their file.
    let half = ["--dtype=f16"];
    let halves = bytes(TEXT) / 2 + bytes("text_encoder_2/model") / 2;
    assert!(kept(halves).contains(&(rows(&half) - price(&["--dtype=f16", "-n=2"]).1)));
}
