//! Checkpoints: what is found, how tensors arrive, and what is refused.
use candle_core::{DType, Device, Tensor};
use diffuse::engine::checkpoint::{Checkpoint, Naming, Weights, json};
use diffuse::engine::models::tokenizer::{ClipTokenizer, Encoded, Overflow};
use proptest::prelude::*;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

/// A checkpoint folder with one component, `unet`, and what `fill` puts there.
fn checkpoint(fill: impl FnOnce(&Path)) -> (tempfile::TempDir, Checkpoint) {
    let folder = tempfile::tempdir().unwrap();
    let unet = folder.path().join("unet");
    std::fs::create_dir(&unet).unwrap();
    std::fs::write(unet.join("config.json"), r#"{"sample_size": 32}"#).unwrap();
    fill(&unet);
    let checkpoint = Checkpoint::open(folder.path().to_str().unwrap(), "main").unwrap();
    (folder, checkpoint)
}

fn save(path: &Path, tensors: &[(&str, Tensor)]) {
    let tensors: HashMap<&str, Tensor> = tensors.iter().cloned().collect();
    candle_core::safetensors::save(&tensors, path).unwrap();
}

fn numbers(shape: &[usize]) -> Tensor {
    let count: usize = shape.iter().product();
    Tensor::arange(0f32, count as f32, &Device::Cpu)
        .unwrap()
        .reshape(shape)
        .unwrap()
}

fn open(checkpoint: &Checkpoint, naming: Naming) -> anyhow::Result<Weights> {
    Weights::open(&checkpoint.prepare_weights("unet", DType::F32)?, naming)
}

/// The whole chain of an error on one line, as the program prints it.
fn said<T>(result: anyhow::Result<T>) -> String {
    let text = format!("{:#}", result.err().expect("this must be refused"));
    assert!(!text.contains('\n'), "{text}");
    text
}

#[test]
fn old_attention_names_and_1x1_convolutions_load_as_todays() {
    let (_folder, checkpoint) = checkpoint(|unet| {
        save(
            &unet.join("diffusion_pytorch_model.safetensors"),
            &[
                ("mid.attentions.0.query.weight", numbers(&[4, 4, 1, 1])),
                ("mid.attentions.0.proj_attn.bias", numbers(&[4])),
                ("conv.weight", numbers(&[2, 3])),
                ("encoder.conv.weight", numbers(&[9])),
            ],
        )
    });
    let naming = Naming {
        strip: "",
        ignore: &["encoder.*"],
    };
    let weights = open(&checkpoint, naming).unwrap();
    let vb = weights.var_builder(DType::F32, &Device::Cpu);
    let attention = vb.pp("mid.attentions.0");
    let query = attention.get((4, 4), "to_q.weight").unwrap();
    assert_eq!(query.to_vec2::<f32>().unwrap()[3], [12.0, 13.0, 14.0, 15.0]);
    assert!(attention.contains_tensor("to_out.0.bias"));
    assert!(
        said(weights.finish()).contains("2 tensors"),
        "two were not asked for yet"
    );
    attention.get(4, "to_out.0.bias").unwrap();
    vb.get((2, 3, 1, 1), "conv.weight").unwrap();
    weights.finish().unwrap();
}

#[test]
fn every_pair_of_float_types_converts() {
    let values = numbers(&[3, 7]);
    for stored in [DType::F64, DType::F32, DType::F16, DType::BF16] {
        let (_folder, checkpoint) = checkpoint(|unet| {
            let tensor = values.to_dtype(stored).unwrap();
            save(
                &unet.join("diffusion_pytorch_model.safetensors"),
                &[("w", tensor)],
            )
        });
        for wanted in [DType::F64, DType::F32, DType::F16, DType::BF16] {
            let weights = open(&checkpoint, Naming::default()).unwrap();
            let got = weights
                .var_builder(wanted, &Device::Cpu)
                .get((3, 7), "w")
                .unwrap();
            assert_eq!(got.dtype(), wanted);
            let got = got.to_dtype(DType::F32).unwrap().to_vec2::<f32>().unwrap();
            assert_eq!(
                got,
                values.to_vec2::<f32>().unwrap(),
                "{stored:?} to {wanted:?}"
            );
        }
    }
}

#[test]
fn a_wrong_shape_and_a_missing_tensor_are_named() {
    let (_folder, checkpoint) = checkpoint(|unet| {
        save(
            &unet.join("diffusion_pytorch_model.safetensors"),
            &[("conv_in.weight", numbers(&[8, 9]))],
        )
    });
    let weights = open(&checkpoint, Naming::default()).unwrap();
    let vb = weights.var_builder(DType::F32, &Device::Cpu);
    let shape = vb.get((8, 4), "conv_in.weight").unwrap_err().to_string();
    assert!(
        shape.contains("unet: tensor conv_in.weight: expected [8, 4], found [8, 9]"),
        "{shape}"
    );
    let missing = vb.get(3, "conv_out.bias").unwrap_err().to_string();
    assert!(
        missing.contains("tensor conv_out.bias is missing from"),
        "{missing}"
    );
    assert!(said(weights.finish()).contains("conv_in.weight"));
}

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
    assert!(said(none.prepare_weights("unet", DType::F32)).contains("has no weights for unet"));
}

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
    assert!(checkpoint.has("unet") && checkpoint.has("scheduler") && !checkpoint.has("vae"));
    let scheduler = checkpoint
        .json("scheduler", "scheduler_config.json")
        .unwrap();
    assert_eq!(scheduler["lambda_min_clipped"], "-Infinity");
    checkpoint.prepare_weights("unet", DType::F32).unwrap();
}

#[test]
fn the_index_names_class_version_and_components() {
    let (folder, _) = checkpoint(|_| ());
    let index = r#"{"_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.6.0",
        "unet": ["diffusers", "UNet2DConditionModel"], "safety_checker": [null, null], "requires_safety_checker": false}"#;
    std::fs::write(folder.path().join("model_index.json"), index).unwrap();
    let checkpoint = Checkpoint::open(folder.path().to_str().unwrap(), "main").unwrap();
    assert_eq!(checkpoint.pipeline_class(), Some("StableDiffusionPipeline"));
    assert_eq!(checkpoint.version(), Some("0.6.0"));
    assert_eq!(checkpoint.components(), ["unet"]);
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

/// A file with the header given and `data` bytes after it.
fn raw_safetensors(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    bytes
}

#[test]
fn headers_that_lie_are_refused() {
    let entry = |shape: &str, from: u64, to: u64| {
        format!(r#"{{"dtype":"F32","shape":{shape},"data_offsets":[{from},{to}]}}"#)
    };
    let one = entry("[2]", 0, 8);
    let huge = entry("[4611686018427387904,8]", 0, 8);
    let cases = [
        (
            raw_safetensors(&format!(r#"{{"a":{one},"a":{one}}}"#), 8),
            "stands twice",
        ),
        (
            raw_safetensors(&format!(r#"{{"a":{one},"b":{}}}"#, entry("[2]", 4, 12)), 12),
            "bad header",
        ),
        (
            raw_safetensors(&format!(r#"{{"a":{}}}"#, entry("[3]", 0, 8)), 8),
            "bad header",
        ),
        (
            raw_safetensors(&format!(r#"{{"a":{huge}}}"#), 8),
            "bad header",
        ),
        (
            raw_safetensors(&format!(r#"{{"a":{one}}}"#), 4),
            "truncated",
        ),
        (
            raw_safetensors(&format!(r#"{{"a":{one}}}"#), 12),
            "should hold 8 bytes",
        ),
        (raw_safetensors(&"[".repeat(100_000), 0), "bad header"),
        (u64::MAX.to_le_bytes().to_vec(), "claims a header"),
        (vec![1, 2, 3], "only 3 bytes"),
        (vec![], "only 0 bytes"),
    ];
    for (bytes, part) in cases {
        let (_folder, checkpoint) = checkpoint(|unet| {
            std::fs::write(unet.join("diffusion_pytorch_model.safetensors"), &bytes).unwrap();
        });
        let text = said(open(&checkpoint, Naming::default()));
        assert!(text.contains(part), "{text} should say {part}");
    }
}

/// A checkpoint with these bytes as `diffusion_pytorch_model.bin`.
fn of_bin(bytes: &[u8]) -> (tempfile::TempDir, Checkpoint) {
    checkpoint(|unet| std::fs::write(unet.join("diffusion_pytorch_model.bin"), bytes).unwrap())
}

fn bin(name: &str) -> Vec<u8> {
    std::fs::read(fixtures().join("bin").join(name)).unwrap()
}

const NO_IDS: Naming = Naming {
    strip: "",
    ignore: &["position_ids"],
};

#[test]
fn torchs_files_load_in_both_formats_whatever_their_strides() {
    for name in ["zip.bin", "stream.bin"] {
        let (_folder, checkpoint) = of_bin(&bin(name));
        let weights = open(&checkpoint, NO_IDS).unwrap();
        let vb = weights.var_builder(DType::F32, &Device::Cpu);
        let get = |name: &str, shape: &[usize]| vb.get(shape, name).unwrap();
        let same = |a: Tensor, b: Tensor| {
            let flat = |t: Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            assert_eq!(flat(a), flat(b), "{name}");
        };
        same(get("f32", &[2, 3, 4]), numbers(&[24]));
        same(get("f16", &[4, 6]), numbers(&[24]));
        same(get("bf16", &[4, 6]), numbers(&[24]));
        same(get("f64", &[24]), numbers(&[24]));
        same(get("transposed", &[6, 4]), numbers(&[4, 6]).t().unwrap());
        same(
            get("part", &[2, 3]),
            numbers(&[4, 6])
                .narrow(0, 1, 2)
                .unwrap()
                .narrow(1, 2, 3)
                .unwrap(),
        );
        same(get("shared", &[6]), numbers(&[24]).narrow(0, 6, 6).unwrap());
        same(get("channels_last", &[1, 2, 3, 4]), numbers(&[24]));
        same(get("parameter", &[3]), numbers(&[3]).ones_like().unwrap());
        same(get("scalar", &[]), numbers(&[6]).narrow(0, 5, 1).unwrap());
        assert_eq!(get("empty", &[0, 3]).elem_count(), 0);
        weights.finish().unwrap();
    }
}

/// `torch.save`'s zip archive around a pickle.
fn archive(pickle: &[u8], storage: &[u8]) -> Vec<u8> {
    use std::io::Write;
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    let stored =
        zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    for (name, bytes) in [("a/data.pkl", pickle), ("a/data/0", storage)] {
        zip.start_file(name, stored).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

/// The pickle of `{"w": tensor}` with the numbers given.
fn pickle_of(count: i32, offset: i32, size: i32, stride: i32) -> Vec<u8> {
    let mut out = b"\x80\x02}X\x01\0\0\0wctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuJ".to_vec();
    out.extend(count.to_le_bytes());
    out.extend(b"tQJ");
    out.extend(offset.to_le_bytes());
    out.push(b'J');
    out.extend(size.to_le_bytes());
    out.extend(b"\x85J");
    out.extend(stride.to_le_bytes());
    out.extend(b"\x85\x89NtRs.");
    out
}

#[test]
fn pickles_that_run_code_or_lie_are_refused() {
    let (_folder, fine) = of_bin(&archive(&pickle_of(2, 0, 2, 1), &[0; 8]));
    assert_eq!(open(&fine, NO_IDS).unwrap().shape("w"), Some(&[2][..]));
    let deep = [
        b"\x80\x02".to_vec(),
        vec![b']'; 200_000],
        vec![b'a'; 199_999],
        b".".to_vec(),
    ]
    .concat();
    let tuples = [b"\x80\x02N".to_vec(), vec![0x85; 200_000], b".".to_vec()].concat();
    let many = [b"\x80\x02".to_vec(), vec![b']'; 3_000_000]].concat();
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (
            bin("calls_print.bin"),
            "print, which is not a tensor: refused",
        ),
        (
            archive(b"\x80\x02cbuiltins\neval\n.", b""),
            "contains builtins.eval, which is not a tensor: refused",
        ),
        (
            archive(b"\x80\x04\x8c\x02os\x8c\x06system\x93.", b""),
            "contains os.system",
        ),
        (
            archive(&pickle_of(3, 0, 2, 1), &[0; 8]),
            "claims 3 numbers but has 8 bytes",
        ),
        (
            archive(&pickle_of(2, 1, 2, 1), &[0; 8]),
            "does not lie inside its storage",
        ),
        (
            archive(&pickle_of(2, 0, i32::MAX, 0), &[0; 8]),
            "does not lie inside its storage",
        ),
        (archive(&pickle_of(2, -1, 2, 1), &[0; 8]), "negative"),
        (
            archive(&pickle_of(2, 0, 2, i32::MAX), &[0; 8]),
            "does not lie inside its storage",
        ),
        (archive(b"\x80\x02K\x01.", b""), "no dictionary of tensors"),
        (archive(b"\x80\x02}K\x01", b""), "ends too early"),
        (archive(b"\x80\x02X\xff\xff\xff\xff", b""), "ends too early"),
        (archive(b"\x80\x02t.", b""), "a mark is missing"),
        (archive(b"\x80\x02i", b""), "instruction 0x69"),
        (archive(&deep, b""), "no dictionary of tensors"),
        (archive(&tuples, b""), "no dictionary of tensors"),
        (archive(&many, b""), "refused"),
        (bin("zip.bin")[..2000].to_vec(), "bad zip archive"),
        (bin("stream.bin")[..2000].to_vec(), "truncated"),
        (
            b"<html>not found</html>".to_vec(),
            "not a file of torch.save",
        ),
        (vec![], "not a file of torch.save"),
    ];
    for (bytes, part) in cases {
        let start = std::time::Instant::now();
        let (_folder, checkpoint) = of_bin(&bytes);
        let text = said(open(&checkpoint, NO_IDS));
        assert!(text.contains(part), "{text} should say {part}");
        assert!(
            start.elapsed().as_secs() < 5,
            "{text} took {:?}",
            start.elapsed()
        );
    }
}

/// Opens what may be anything and reads what it claims to hold.
fn try_all(name: &str, bytes: &[u8]) {
    let (_folder, checkpoint) = checkpoint(|unet| std::fs::write(unet.join(name), bytes).unwrap());
    let Ok(weights) = open(&checkpoint, NO_IDS) else {
        return;
    };
    let vb = weights.var_builder(DType::F32, &Device::Cpu);
    for name in weights.names() {
        let _ = vb.get_unchecked(name);
    }
}

/// The files to damage: each format once.
fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("w.safetensors");
    save(
        &path,
        &[("a.weight", numbers(&[4, 4])), ("b", numbers(&[3]))],
    );
    let index =
        br#"{"metadata": {"total_size": 8}, "weight_map": {"w": "a.safetensors"}}"#.to_vec();
    vec![
        (
            "diffusion_pytorch_model.safetensors",
            std::fs::read(path).unwrap(),
        ),
        ("diffusion_pytorch_model.bin", bin("zip.bin")),
        ("diffusion_pytorch_model.bin", bin("stream.bin")),
        (
            "diffusion_pytorch_model.bin",
            archive(&pickle_of(2, 0, 2, 1), &[0; 8]),
        ),
        ("diffusion_pytorch_model.safetensors.index.json", index),
    ]
}

/// A checkpoint whose tokenizer is a copy of a fixture.
fn tokenizer_of(fixture: &Path) -> (tempfile::TempDir, Checkpoint) {
    let (folder, checkpoint) = checkpoint(|_| ());
    let tokenizer = folder.path().join("tokenizer");
    std::fs::create_dir(&tokenizer).unwrap();
    for file in std::fs::read_dir(fixture).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), tokenizer.join(file.file_name())).unwrap();
    }
    (folder, checkpoint)
}

fn encode(tokenizer: &ClipTokenizer, prompt: &str, length: usize) -> Encoded {
    let pieces = [(prompt.to_owned(), 1.0)];
    tokenizer.encode(&pieces, length, Overflow::Cut).unwrap()
}

/// Compares with a file that `export_tokenizer.py` wrote.
fn ids_agree(fixture: &Path, cases: &serde_json::Value) {
    let (_folder, checkpoint) = tokenizer_of(fixture);
    let tokenizer = ClipTokenizer::load(&checkpoint, "tokenizer").unwrap();
    assert_eq!(tokenizer.max_length(), Some(77));
    for case in cases.as_array().unwrap() {
        let prompt = case["prompt"].as_str().unwrap();
        let ours = encode(&tokenizer, prompt, 77);
        let ids: Vec<u32> = serde_json::from_value(case["ids"].clone()).unwrap();
        assert_eq!(ours.chunks, [ids], "{}: {prompt:?}", fixture.display());
        assert_eq!(
            ours.tokens as u64,
            case["tokens"].as_u64().unwrap(),
            "{prompt:?}"
        );
        assert_eq!(ours.lost.as_deref(), case["lost"].as_str(), "{prompt:?}");
    }
}

#[test]
fn ids_are_those_of_transformers_by_either_kind_of_file() {
    let folder = fixtures().join("tokenizer");
    let expected = std::fs::read_to_string(folder.join("expected.json")).unwrap();
    let expected: serde_json::Value = serde_json::from_str(&expected).unwrap();
    let cases = expected["cases"].as_object().unwrap();
    assert_eq!(cases.len(), 5);
    for (name, cases) in cases {
        ids_agree(&folder.join(name), cases);
    }
}

#[test]
#[ignore = "needs a vocabulary that is not in the repository: set TOKENIZER_DIR and TOKENIZER_IDS (see export_tokenizer.py)"]
fn ids_are_those_of_transformers_on_another_vocabulary() {
    let folder = std::env::var("TOKENIZER_DIR").unwrap();
    let ids = std::fs::read_to_string(std::env::var("TOKENIZER_IDS").unwrap()).unwrap();
    let expected: serde_json::Value = serde_json::from_str(&ids).unwrap();
    ids_agree(Path::new(&folder), &expected["cases"]["other"]);
}

#[test]
fn a_vocabulary_without_its_special_tokens_is_refused() {
    let (folder, checkpoint) = tokenizer_of(&fixtures().join("tokenizer/end-two-files"));
    let tokenizer = folder.path().join("tokenizer");
    std::fs::write(
        tokenizer.join("tokenizer_config.json"),
        r#"{"pad_token": "<pad>"}"#,
    )
    .unwrap();
    assert!(
        said(ClipTokenizer::load(&checkpoint, "tokenizer").map(|_| ()))
            .contains("\"<pad>\", the pad_token")
    );
    std::fs::write(tokenizer.join("vocab.json"), r#"{"a": 0, "a</w>": -1}"#).unwrap();
    assert!(said(ClipTokenizer::load(&checkpoint, "tokenizer").map(|_| ())).contains("vocab.json"));
    std::fs::remove_file(tokenizer.join("vocab.json")).unwrap();
    assert!(
        said(ClipTokenizer::load(&checkpoint, "tokenizer").map(|_| ()))
            .contains("no tokenizer/vocab.json")
    );
}

#[test]
fn an_absurd_length_is_no_length() {
    let (folder, checkpoint) = tokenizer_of(&fixtures().join("tokenizer/end-two-files"));
    let config = r#"{"model_max_length": 1000000000000000019884624838656}"#;
    std::fs::write(
        folder.path().join("tokenizer/tokenizer_config.json"),
        config,
    )
    .unwrap();
    assert_eq!(
        ClipTokenizer::load(&checkpoint, "tokenizer")
            .unwrap()
            .max_length(),
        None
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: crate::fuzz::cases(64), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_prompt_gives_exactly_77_ids(prompts in proptest::collection::vec(any::<String>(), 20), length in 2usize..100) {
        let (_folder, checkpoint) = tokenizer_of(&fixtures().join("tokenizer/exclamation-one-file"));
        let tokenizer = ClipTokenizer::load(&checkpoint, "tokenizer").unwrap();
        for prompt in prompts {
            let encoded = encode(&tokenizer, &prompt, 77);
            prop_assert_eq!(encoded.chunks[0].len(), 77);
            prop_assert!(encoded.chunks[0].iter().all(|&id| (id as usize) < tokenizer.vocabulary()));
            prop_assert_eq!(encoded.lost.is_some(), encoded.tokens > 77);
            prop_assert_eq!(encode(&tokenizer, &prompt, length).chunks[0].len(), length);
        }
    }

    #[test]
    fn no_damage_to_a_weight_file_panics(
        edits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in any::<prop::sample::Index>(),
        shorten in any::<bool>(),
        near in any::<bool>(),
    ) {
        for (name, mut bytes) in seeds() {
            // Half of the damage goes to the first bytes, where the headers are.
            let reach = if near { bytes.len().min(400) } else { bytes.len() };
            for (at, value) in &edits {
                bytes[at.index(reach)] = *value;
            }
            if shorten {
                bytes.truncate(cut.index(bytes.len()));
            }
            try_all(name, &bytes);
        }
    }

    #[test]
    fn no_pickle_panics(ops in proptest::collection::vec(
        prop_oneof![
            Just(b"]".to_vec()), Just(b"}".to_vec()), Just(b"(".to_vec()), Just(b"t".to_vec()), Just(b"a".to_vec()),
            Just(b"e".to_vec()), Just(b"u".to_vec()), Just(b"s".to_vec()), Just(b"R".to_vec()), Just(b"Q".to_vec()),
            Just(b"b".to_vec()), Just(b"0".to_vec()), Just(b"1".to_vec()), Just(b"2".to_vec()), Just(b"\x85".to_vec()),
            Just(b"\x86".to_vec()), Just(b"K\x01".to_vec()), Just(b"q\0".to_vec()), Just(b"h\0".to_vec()), Just(b"N".to_vec()),
            Just(b"ccollections\nOrderedDict\n".to_vec()), Just(b"ctorch._utils\n_rebuild_tensor_v2\n".to_vec()),
            Just(b"ctorch\nFloatStorage\n".to_vec()), Just(b"X\x07\0\0\0storage".to_vec()), Just(b"X\x01\0\0\x000".to_vec()),
            Just(b".".to_vec()), any::<u8>().prop_map(|b| vec![b]),
        ], 0..60)) {
        try_all("diffusion_pytorch_model.bin", &archive(&ops.concat(), &[0; 64]));
        // The damaged end of a good one reaches further.
        let mut good = pickle_of(2, 0, 2, 1);
        good.truncate(good.len() - 1);
        good.extend(ops.concat());
        try_all("diffusion_pytorch_model.bin", &archive(&good, &[0; 64]));
    }

    #[test]
    fn no_damage_to_a_tokenizer_panics(edits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4)) {
        for (fixture, file) in [("end-two-files", "vocab.json"), ("end-two-files", "merges.txt"), ("end-one-file", "tokenizer.json")] {
            let (folder, checkpoint) = tokenizer_of(&fixtures().join("tokenizer").join(fixture));
            let path = folder.path().join("tokenizer").join(file);
            let mut bytes = std::fs::read(&path).unwrap();
            for (at, value) in &edits {
                let at = at.index(bytes.len());
                bytes[at] = *value;
            }
            std::fs::write(&path, bytes).unwrap();
            if let Ok(tokenizer) = ClipTokenizer::load(&checkpoint, "tokenizer") {
                let pieces = [("a photo of a cat, naïve 🐱!".to_owned(), 1.0)];
                let _ = tokenizer.encode(&pieces, 77, Overflow::Cut);
            }
        }
    }

    #[test]
    fn no_bytes_panic_the_json_reader(bytes in proptest::collection::vec(any::<u8>(), 0..200), text in "[\\[\\]{}:,\"\\\\aN0-9eE. -]{0,60}|-Infinity|NaN") {
        let _ = json::parse_object(&bytes);
        let _ = json::parse_object(text.as_bytes());
    }
}

#[test]
#[ignore = "a measurement: set WEIGHTS_MODEL to a large checkpoint's folder"]
fn loading_a_large_component_is_timed() {
    let checkpoint = Checkpoint::open(&std::env::var("WEIGHTS_MODEL").unwrap(), "main").unwrap();
    for dtype in [DType::F32, DType::F32, DType::F16] {
        let start = std::time::Instant::now();
        let files = checkpoint.prepare_weights("unet", DType::F32).unwrap();
        let weights = Weights::open(&files, Naming::default()).unwrap();
        let headers = start.elapsed();
        let vb = weights.var_builder(dtype, &Device::Cpu);
        let tensors: Vec<Tensor> = weights
            .names()
            .map(|name| vb.get_unchecked_dtype(name, dtype).unwrap())
            .collect();
        weights.finish().unwrap();
        let count: usize = tensors.iter().map(Tensor::elem_count).sum();
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let peak = status
            .lines()
            .find(|l| l.starts_with("VmHWM"))
            .unwrap_or_default();
        println!(
            "{dtype:?}: {count} numbers, headers {headers:?}, all {:?}, {peak}",
            start.elapsed()
        );
    }
}
