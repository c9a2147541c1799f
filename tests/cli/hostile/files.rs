//! Weights, archives, tokenizers and pictures that lie.
use super::support::{DDPM, TXT2IMG, UNET, model, refused, write};
use crate::support::Folder;
use std::io::Write;

const BIN: &str = "unet/diffusion_pytorch_model.bin";

/// The tiny model with another file of weights.
#[track_caller]
fn weights(name: &str, bytes: impl AsRef<[u8]>) -> String {
    let folder = model("tiny-ddpm");
    std::fs::remove_file(folder.file("model").join(UNET)).expect("it is there");
    write(&folder, name, bytes);
    let said = refused(&folder, &DDPM);
    println!("{said}");
    said
}

fn safetensors(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    bytes
}

#[test]
fn headers_that_lie_are_refused() {
    let entry = |shape: &str, from: u64, to: u64| {
        format!(r#"{{"dtype":"F32","shape":{shape},"data_offsets":[{from},{to}]}}"#)
    };
    let one = entry("[2]", 0, 8);
    for header in [
        format!(r#"{{"a":{one},"a":{one}}}"#),
        format!(r#"{{"a":{one},"b":{}}}"#, entry("[2]", 4, 12)),
        format!(r#"{{"a":{}}}"#, entry("[3]", 0, 8)),
        format!(r#"{{"a":{}}}"#, entry("[4611686018427387904,4]", 0, 8)),
        format!(
            r#"{{"a":{}}}"#,
            entry("[1000000000000]", 0, 4_000_000_000_000)
        ),
        format!(r#"{{"a":{}}}"#, entry("[2]", 8, 0)),
        format!(r#"{{"a":{}}}"#, entry("[-2]", 0, 8)),
        "[".repeat(10_000_000),
        "{\"a\":".repeat(3_000_000),
        " ".repeat(15 << 20),
        format!(
            "{{{}}}",
            (0..300_000)
                .map(|i| format!(r#""{i}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#))
                .collect::<Vec<_>>()
                .join(",")
        ),
    ] {
        weights(UNET, safetensors(&header, 8));
    }
    for bytes in [
        vec![],
        vec![1, 2, 3],
        u64::MAX.to_le_bytes().to_vec(),
        (1u64 << 40).to_le_bytes().to_vec(),
        vec![b'<'; 1 << 20],
    ] {
        weights(UNET, bytes);
    }
}

#[test]
fn an_index_cannot_lead_elsewhere() {
    for name in [
        "../secret",
        "/etc/passwd",
        "a/b",
        "..",
        ".",
        "",
        "a\\b",
        "C:a",
        "a\0b",
    ] {
        let index = serde_json::json!({"weight_map": {"w": name}}).to_string();
        let said = weights("unet/diffusion_pytorch_model.safetensors.index.json", index);
        assert!(
            said.contains("is not the name of a file beside it"),
            "{said}"
        );
    }
    let many = format!(
        "{{\"weight_map\": {{{}\"w\": \"a\"}}}}",
        (0..200_000)
            .map(|i| format!("\"{i}\":\"f{i}\","))
            .collect::<String>()
    );
    weights("unet/diffusion_pytorch_model.safetensors.index.json", many);
    // A part that is not there, and one that is the index itself.
    for name in [
        "nosuch.safetensors",
        "diffusion_pytorch_model.safetensors.index.json",
    ] {
        let index = serde_json::json!({"weight_map": {"w": name}}).to_string();
        weights("unet/diffusion_pytorch_model.safetensors.index.json", index);
    }
}

/// `torch.save`'s archive around a pickle.
fn archive(pickle: &[u8]) -> Vec<u8> {
    zipped(
        &[("a/data.pkl", pickle), ("a/data/0", &[0; 8])],
        zip::CompressionMethod::Stored,
    )
}

fn zipped(files: &[(&str, &[u8])], method: zip::CompressionMethod) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    let options = zip::write::SimpleFileOptions::default().compression_method(method);
    for (name, bytes) in files {
        zip.start_file(*name, options).expect("it is in memory");
        zip.write_all(bytes).expect("it is in memory");
    }
    zip.finish().expect("it is in memory").into_inner()
}

/// A text of a pickle.
fn text(text: &str) -> Vec<u8> {
    [
        b"X".to_vec(),
        (text.len() as u32).to_le_bytes().to_vec(),
        text.into(),
    ]
    .concat()
}

#[test]
fn pickles_that_would_run_code_are_refused_by_name() {
    for (pickle, name) in [
        (
            &b"\x80\x02cos\nsystem\nX\x02\0\0\0id\x85R."[..],
            "os.system",
        ),
        (b"\x80\x02cbuiltins\neval\n.", "builtins.eval"),
        (b"\x80\x04\x8c\x05posix\x8c\x06system\x93.", "posix.system"),
        (b"\x80\x02ctorch.hub\nload\n.", "torch.hub.load"),
        (b"\x80\x02ctorch\nload\n.", "torch.load"),
        (b"\x80\x02c__builtin__\nexec\n.", "__builtin__.exec"),
    ] {
        let said = weights(BIN, archive(pickle));
        assert!(
            said.contains(&format!("contains {name}, which is not a tensor: refused")),
            "{said}"
        );
    }
}

#[test]
fn pickles_that_nest_or_copy_without_end_are_refused() {
    let lists = [vec![b']'; 200_000], vec![b'a'; 199_999]].concat();
    let tuples = [vec![b'N'], vec![0x85; 200_000]].concat();
    // A list of 200 000 pairs, made into a dictionary again and again.
    let mut copies = b"ccollections\nOrderedDict\nq\x000](".to_vec();
    copies.extend(b"NN\x86".repeat(200_000));
    copies.extend(b"eq\x010");
    copies.extend(b"h\0h\x01\x85R0".repeat(300_000));
    // One name of two megabytes for many tensors and storages.
    let long = text(&"x".repeat(2 << 20));
    let mut storages = b"(".to_vec();
    storages.extend(
        [
            text("storage"),
            b"ctorch\nFloatStorage\n".to_vec(),
            long.clone(),
            text("cpu"),
            b"K\x02tq\x000".to_vec(),
        ]
        .concat(),
    );
    storages.extend(b"h\0Q0".repeat(200_000));
    let mut names = [long, b"q\x000}".to_vec()].concat();
    names.extend(b"h\0Ns".repeat(200_000));
    for program in [
        lists,
        tuples,
        copies,
        storages,
        names,
        vec![b']'; 3_000_000],
        vec![b'('; 3_000_000],
        vec![b'2'; 3_000_000],
    ] {
        weights(
            BIN,
            archive(&[b"\x80\x02".to_vec(), program, b".".to_vec()].concat()),
        );
    }
    for claim in [
        &b"\x80\x02X\xff\xff\xff\xff."[..],
        b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\x7f.",
        b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\xff.",
    ] {
        weights(BIN, archive(claim));
    }
}

#[test]
fn archives_that_are_bombs_or_climb_are_refused() {
    for name in ["../a/data.pkl", "/a/data.pkl", "a/../../data.pkl"] {
        weights(
            BIN,
            zipped(&[(name, b"\x80\x02}.")], zip::CompressionMethod::Stored),
        );
    }
    weights(
        BIN,
        zipped(
            &[("a/data.pkl", &vec![b'N'; 5 << 20])],
            zip::CompressionMethod::Stored,
        ),
    );
    let many: Vec<String> = (0..50_000).map(|i| format!("a/{i}")).collect();
    let many: Vec<(&str, &[u8])> = many.iter().map(|name| (name.as_str(), &b""[..])).collect();
    weights(BIN, zipped(&many, zip::CompressionMethod::Stored));
    // The directory says that the pickle is compressed, and has four gigabytes.
    let mut bomb = archive(b"\x80\x02}.");
    let central = bomb
        .windows(4)
        .position(|w| w == b"PK\x01\x02")
        .expect("it has a directory");
    bomb[central + 10] = 8;
    bomb[central + 24..central + 28].copy_from_slice(&0xffff_fff0u32.to_le_bytes());
    weights(BIN, bomb);
    let mut torn = archive(b"\x80\x02}.");
    torn.truncate(torn.len() - 10);
    weights(BIN, torn);
}

#[test]
fn tokenizers_without_what_they_need_are_refused() {
    let small = r#"{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}"#;
    for text in [
        small.to_owned(),
        r#"{"model": {"type": "Unigram"}}"#.to_owned(),
        r#"{"model": {"type": "BPE", "vocab": {}, "merges": [["a", "b"]]}}"#.to_owned(),
        r#"{"model": {"type": "BPE", "vocab": {"a": 1e99}, "merges": []}}"#.to_owned(),
        r#"{"model": {"type": "BPE", "vocab": {"a": 99999999999}, "merges": []}}"#.to_owned(),
        "{}".to_owned(),
        "null".to_owned(),
    ] {
        let folder = model("tiny-sd");
        write(&folder, "tokenizer/tokenizer.json", text);
        println!("{}", refused(&folder, &TXT2IMG));
    }
    let folder = model("tiny-sd");
    write(
        &folder,
        "tokenizer/tokenizer_config.json",
        r#"{"bos_token": "<none>"}"#,
    );
    let said = refused(&folder, &TXT2IMG);
    assert!(
        said.contains("the vocabulary lacks \"<none>\", the bos_token"),
        "{said}"
    );
}

#[cfg(unix)]
#[test]
fn files_that_are_none_are_refused_and_never_waited_for() {
    for (name, target) in [
        ("unet/config.json", "/dev/zero"),
        (UNET, "/dev/zero"),
        (UNET, "/"),
        ("model_index.json", "/dev/stdin"),
    ] {
        let folder = model("tiny-ddpm");
        let path = folder.file("model").join(name);
        std::fs::remove_file(&path).expect("it is there");
        std::os::unix::fs::symlink(target, path).expect("the folder is writable");
        println!("{}", refused(&folder, &DDPM));
    }
}

#[test]
fn a_row_without_end_is_refused() {
    let folder = model("tiny-sd");
    let rows = std::fs::File::create(folder.file("rows")).expect("the folder is writable");
    rows.set_len(300 << 20).expect("there is room for a hole");
    let args = ["txt2img", "--model", "model", "--prompts", "rows"];
    let said = refused(&folder, &args);
    assert!(said.contains("is longer than 1048576 bytes"), "{said}");
}

#[test]
fn pictures_that_lie_are_refused() {
    let chunk = |kind: &[u8], data: &[u8]| {
        let mut bytes = (data.len() as u32).to_be_bytes().to_vec();
        bytes.extend(kind);
        bytes.extend(data);
        // The hash is wrong, which readers of texts may overlook.
        bytes.extend([0; 4]);
        bytes
    };
    let signature = b"\x89PNG\r\n\x1a\n".to_vec();
    let ihdr = |side: u32| {
        let side = side.to_be_bytes();
        chunk(b"IHDR", &[&side[..], &side, &[8, 2, 0, 0, 0]].concat())
    };
    let given = |bytes: Vec<u8>| {
        let folder = Folder::new();
        folder.write("evil.png", bytes);
        let args = ["txt2img", "--from", "evil.png", "--threads", "1"];
        println!("{}", refused(&folder, &args));
    };
    for bytes in [
        vec![],
        signature.clone(),
        [&signature[..], &ihdr(u32::MAX)].concat(),
        [&signature[..], &ihdr(1 << 30)].concat(),
        [
            &signature[..],
            &ihdr(8),
            &u32::MAX.to_be_bytes(),
            b"tEXt",
            b"diffuse\0{}",
        ]
        .concat(),
        b"GIF89a".to_vec(),
        vec![0; 1 << 20],
    ] {
        given(bytes);
    }
    // A true picture whose settings are absurd.
    let many: String = (0..60_000).map(|i| format!("\"k{i}\":1,")).collect();
    let options: String = (0..100_000).map(|i| format!("\"k={i}\",")).collect();
    for settings in [
        format!("{{{many}\"z\":1}}"),
        format!("{{\"scheduler_option\":[{options}\"z=1\"]}}"),
        "[".repeat(1000),
        "{\"model\": \"../../../etc\"}".to_owned(),
        "{\"output\": \"/tmp/evil.png\", \"model\": \"./nosuch\"}".to_owned(),
        "{\"--version\": true}".to_owned(),
        "{\"prompt\": {\"a\": 1}}".to_owned(),
    ] {
        let mut file = Vec::new();
        let mut encoder = png::Encoder::new(&mut file, 1, 1);
        encoder.set_color(png::ColorType::Rgb);
        let text = format!("{{\"command\": \"txt2img\", \"settings\": {settings}}}");
        encoder
            .add_text_chunk("diffuse".into(), text)
            .expect("it is a text");
        let mut writer = encoder.write_header().expect("it is in memory");
        writer.write_image_data(&[0; 3]).expect("it is in memory");
        writer.finish().expect("it is in memory");
        given(file);
    }
}
