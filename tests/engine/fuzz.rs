//! Inputs from anyone, drawn at random: what is read from them is right or an error, and never a panic.
//!
//! A few of each in every run of the tests; `FUZZ_CASES=100000 cargo test --test engine fuzz` tries more. The readers of weights and
//! tokenizers are tried beside their other tests, `checkpoint::no_*`.
use diffuse::engine::checkpoint::Checkpoint;
use diffuse::engine::pipelines::ddpm::DdpmSystem;
use diffuse::engine::pipelines::txt2img::{Txt2ImgRequest, Txt2ImgSystem};
use diffuse::engine::pipelines::{Overrides, Sampling, System};
use diffuse::engine::png;
use diffuse::engine::progress::Progress;
use diffuse::engine::runtime::{DeviceChoice, Precision, Runtime};
use proptest::prelude::*;
use serde_json::{Value, json};
use std::path::Path;

/// How many inputs a property is tried on: `FUZZ_CASES`, or a few.
pub fn cases(few: u32) -> u32 {
    let asked = std::env::var("FUZZ_CASES").ok();
    asked.and_then(|n| n.parse().ok()).unwrap_or(few)
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        match entry.path().is_dir() {
            true => copy(&entry.path(), &to),
            false => drop(std::fs::copy(entry.path(), to).unwrap()),
        }
    }
}

fn sampling() -> Sampling {
    Sampling {
        steps: Some(2),
        scheduler: None,
        overrides: Overrides::default(),
    }
}

/// Reads, plans and loads the model of a folder, as far as that goes.
fn open(folder: &Path, prompt: &str) -> anyhow::Result<()> {
    let runtime = Runtime::new(DeviceChoice::Cpu, Precision::F32)?;
    let checkpoint = Checkpoint::open(folder.to_str().unwrap(), "main")?;
    if checkpoint.has("vae") {
        let system = Txt2ImgSystem::read(&checkpoint)?;
        let plan = system.plan(&Txt2ImgRequest {
            prompt: prompt.to_owned(),
            long_prompt: prompt.len() % 2 == 1,
            prompt_weights: prompt.len() % 3 == 1,
            sampling: sampling(),
            ..Txt2ImgRequest::default()
        })?;
        system.load(&checkpoint, &runtime, Some(&plan), &Progress::hidden())?;
    } else {
        let system = DdpmSystem::read(&checkpoint)?;
        let plan = system.plan(&sampling())?;
        system.load(&checkpoint, &runtime, Some(&plan), &Progress::hidden())?;
    }
    Ok(())
}

const CONFIGS: [(&str, &str); 8] = [
    ("tiny-ddpm", "model_index.json"),
    ("tiny-ddpm", "unet/config.json"),
    ("tiny-ddpm", "scheduler/scheduler_config.json"),
    ("tiny-sd", "model_index.json"),
    ("tiny-sd", "unet/config.json"),
    ("tiny-sd", "vae/config.json"),
    ("tiny-sd", "text_encoder/config.json"),
    ("tiny-sd", "tokenizer/tokenizer_config.json"),
];

/// Values that no config has, and a few that one may have.
fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        prop::sample::select(vec![
            0u64,
            1,
            2,
            3,
            7,
            8,
            16,
            32,
            33,
            64,
            65_535,
            65_536,
            1 << 31,
            1 << 32,
            1 << 62,
            u64::MAX
        ])
        .prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        prop::sample::select(vec![0.0, -0.0, 0.5, -1.0, 1e-300, 1e300, 1e38]).prop_map(Value::from),
        prop::sample::select(vec![
            "",
            "x",
            "NaN",
            "-Infinity",
            "DownBlock2D",
            "AttnDownBlock2D",
            "UpBlock2D",
            "silu",
            "gelu",
            "DDIMScheduler",
            "linear",
            "v_prediction",
            "trailing"
        ])
        .prop_map(Value::from),
    ];
    leaf.prop_recursive(2, 8, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            inner.prop_map(|value| json!({"content": value})),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(48), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_config_panics(edits in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), value()), 1..4)) {
        for asset in ["tiny-ddpm", "tiny-sd"] {
            let folder = tempfile::tempdir().unwrap();
            copy(&Path::new(env!("CARGO_MANIFEST_DIR")).join("assets").join(asset), folder.path());
            for (file, key, value) in &edits {
                let (_, file) = CONFIGS[file.index(CONFIGS.len())];
                let path = folder.path().join(file);
                let Ok(text) = std::fs::read(&path) else { continue };
                let mut config: Value = serde_json::from_slice(&text).unwrap();
                let keys: Vec<String> = config.as_object().unwrap().keys().cloned().collect();
                config[&keys[key.index(keys.len())]] = value.clone();
                std::fs::write(&path, config.to_string()).unwrap();
            }
            let _ = open(folder.path(), "a cat");
        }
    }

    #[test]
    fn no_damage_to_a_config_panics(
        config in prop::sample::select(CONFIGS.to_vec()),
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let (asset, file) = config;
        let folder = tempfile::tempdir().unwrap();
        copy(&Path::new(env!("CARGO_MANIFEST_DIR")).join("assets").join(asset), folder.path());
        let path = folder.path().join(file);
        let mut bytes = std::fs::read(&path).unwrap();
        for (at, byte) in edits {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        std::fs::write(&path, bytes).unwrap();
        let _ = open(folder.path(), "a cat");
    }

    #[test]
    fn no_chunks_of_a_picture_panic(
        chunks in prop::collection::vec((prop::sample::select(vec![*b"tEXt", *b"iTXt", *b"zTXt", *b"IHDR", *b"PLTE", *b"IDAT", *b"IEND", *b"acTL", *b"fcTL", *b"iCCP", *b"eXIf"]),
            prop::collection::vec(prop_oneof![3 => prop::sample::select(b"diffuse\0\x01x".to_vec()), 1 => any::<u8>()], 0..40), any::<bool>()), 0..6),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut bytes = b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR\0\0\0\x01\0\0\0\x01\x08\x02\0\0\0\x90\x77\x53\xde".to_vec();
        for (kind, data, lies) in chunks {
            let length = data.len() as u32 * if lies { 1000 } else { 1 };
            bytes.extend(length.to_be_bytes());
            bytes.extend(kind);
            bytes.extend(&data);
            bytes.extend(crc(&[&kind[..], &data].concat()).to_be_bytes());
        }
        bytes.truncate(bytes.len() - cut.index(20));
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.png");
        std::fs::write(&path, bytes).unwrap();
        let _ = png::read_text(&path, "diffuse");
        let _ = png::read_pixels(&path, &image::RgbImage::new(1, 1));
    }
}

/// The hash of a chunk: CRC-32 of ISO 3309, as the PNG specification gives it.
fn crc(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg())
        })
    })
}

#[test]
fn the_hash_of_chunks_is_that_of_the_specification() {
    assert_eq!(crc(b"IEND"), 0xae42_6082);
}
