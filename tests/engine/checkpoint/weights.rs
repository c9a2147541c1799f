//! How tensors arrive: names, types, shapes, and headers that lie.
use super::support::{checkpoint, line, numbers, open, said, save};
use candle_core::{DType, Device, Tensor};
use diffuse::engine::checkpoint::{Checkpoint, Naming, Weights};

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
        ignore: &["encoder.*"],
        ..Naming::default()
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
fn a_name_with_a_line_break_makes_no_second_line() {
    let (_folder, checkpoint) = checkpoint(|unet| {
        save(
            &unet.join("diffusion_pytorch_model.safetensors"),
            &[("a\nb", numbers(&[2]).to_dtype(DType::I64).unwrap())],
        )
    });
    let weights = open(&checkpoint, Naming::default()).unwrap();
    let vb = weights.var_builder(DType::F32, &Device::Cpu);
    for (shape, name) in [(2, "a\nb"), (3, "a\nb"), (2, "c\nd")] {
        let text = line(&vb.get(shape, name).unwrap_err().into());
        assert!(text.contains(&name.replace('\n', " ")), "{text}");
    }
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
