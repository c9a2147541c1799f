//! Files of `torch.save`.
use super::support::{checkpoint, fixtures, numbers, open, said};
use candle_core::{DType, Device, Tensor};
use diffuse::engine::checkpoint::{Checkpoint, Naming};

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
    layers: None,
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

#[test]
fn what_a_training_writes_beside_the_weights_is_left_aside() {
    let (_folder, checkpoint) = of_bin(&bin("training.bin"));
    let weights = open(&checkpoint, NO_IDS).unwrap();
    let vb = weights.var_builder(DType::F32, &Device::Cpu);
    for name in ["w", "marked", "parameter"] {
        let w = vb.get(2, name).unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(w, [1., 1.], "{name}");
    }
    weights.finish().unwrap();

    // Settings of omegaconf, made and filled; a Lightning callback.
    let pickle = [
        b"\x80\x02}(X\x01\0\0\0hcomegaconf.dictconfig\nDictConfig\n)\x81}X\x01\0\0\0sccollections\nOrderedDict\n)Rsb".to_vec(),
        b"X\x01\0\0\0c}cpytorch_lightning.callbacks.model_checkpoint\nModelCheckpoint\nK\x01s".to_vec(),
        pickle_of(2, 0, 2, 1)[3..].strip_suffix(b"s.").unwrap().to_vec(),
        b"u.".to_vec(),
    ]
    .concat();
    let (_folder, checkpoint) = of_bin(&archive(&pickle, &[0; 8]));
    assert_eq!(
        open(&checkpoint, NO_IDS).unwrap().shape("w"),
        Some(&[2][..])
    );
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
        (
            archive(b"\x80\x02}X\x01\0\0\0wK\x01s.", b""),
            "no dictionary of tensors",
        ),
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
            start.elapsed().as_secs() < 60,
            "{text} took {:?}",
            start.elapsed()
        );
    }
}
