//! `--lora`: what fits, what fits in part, what does not, and what a picture remembers. Parity is in `parts`.
use crate::parts::fixture;
use crate::support::{Folder, Run, asset, pixels, texts};
use candle_core::{Device, Tensor};
use serde_json::Value;
use std::collections::HashMap;

/// A picture of tiny-sd with more flags.
fn draw(folder: &Folder, more: &[&str]) -> Run {
    let model = asset("tiny-sd");
    let common = [
        "txt2img",
        "a cat",
        "--device=cpu",
        "--steps=2",
        "--seed=3",
        "--model",
        &model,
    ];
    folder.run([&common[..], more].concat())
}

fn drawn(folder: &Folder, more: &[&str]) -> image::RgbImage {
    let run = draw(folder, &[&["-o=out.png", "--overwrite"], more].concat());
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    pixels(&folder.read("out.png"))
}

/// A file with the two matrices of each module, `(outputs, inputs)` or with a kernel behind, of rank 2.
fn write(folder: &Folder, file: &str, style: (&str, &str), modules: &[(&str, &[usize])]) {
    let mut tensors = HashMap::new();
    let numbers = |shape: &[usize]| {
        let count: usize = shape.iter().product();
        let values: Vec<f32> = (0..count).map(|i| (i as f32).sin() * 0.3).collect();
        Tensor::from_vec(values, shape, &Device::Cpu).expect("as many as the shape has")
    };
    for (name, shape) in modules {
        let ones = vec![1; shape.len() - 2];
        let down = [&[2], &shape[1..]].concat();
        let up = [&[shape[0], 2], &ones[..]].concat();
        tensors.insert(format!("{name}.{}.weight", style.0), numbers(&down));
        tensors.insert(format!("{name}.{}.weight", style.1), numbers(&up));
    }
    candle_core::safetensors::save(&tensors, folder.file(file)).expect("written");
}

const PEFT: (&str, &str) = ("lora_A", "lora_B");
const KOHYA: (&str, &str) = ("lora_down", "lora_up");
const TO_Q: &str = "unet.up_blocks.1.attentions.1.transformer_blocks.0.attn1.to_q";

#[test]
fn a_lora_of_weight_zero_changes_nothing() {
    let folder = Folder::new();
    let plain = drawn(&folder, &[]);
    let lora = fixture("kohya.safetensors");
    assert_eq!(plain, drawn(&folder, &["--lora", &format!("{lora}:0")]));
    assert_ne!(plain, drawn(&folder, &["--lora", &lora]));
}

#[test]
fn weights_add_up_and_may_be_below_zero() {
    let folder = Folder::new();
    let lora = fixture("kohya.safetensors");
    let with = |weights: &[f64]| {
        let loras: Vec<String> = weights
            .iter()
            .map(|w| format!("--lora={lora}:{w}"))
            .collect();
        drawn(
            &folder,
            &loras.iter().map(String::as_str).collect::<Vec<_>>(),
        )
    };
    let apart = |a: &image::RgbImage, b: &image::RgbImage| {
        let pairs = a.iter().zip(b.iter());
        pairs.map(|(a, b)| a.abs_diff(*b)).max().expect("pixels")
    };
    let (once, below) = (with(&[1.0]), with(&[-1.0]));
    assert!(apart(&once, &with(&[0.25, 0.75])) <= 1, "twice is the sum");
    assert!(apart(&drawn(&folder, &[]), &with(&[0.7, -0.7])) <= 1);
    assert!(apart(&once, &below) > 1);
}

#[test]
fn a_colon_may_belong_to_the_name() {
    let folder = Folder::new();
    let bytes = std::fs::read(fixture("kohya.safetensors")).expect("a fixture");
    let wanted = [1.0, 0.5].map(|weight| {
        let lora = format!("--lora={}:{weight}", fixture("kohya.safetensors"));
        drawn(&folder, &[&lora])
    });
    // As on Windows, and as a weight looks.
    for name in ["C:\\style.safetensors", "style:0.3"] {
        folder.write(name, &bytes);
        assert_eq!(wanted[0], drawn(&folder, &["--lora", name]), "{name}");
        let half = format!("{name}:0.5");
        assert_eq!(wanted[1], drawn(&folder, &["--lora", &half]), "{name}");
    }
}

#[test]
fn a_lora_for_more_text_encoders_or_wider_ones_does_not_pass_for_one_that_fits() {
    let folder = Folder::new();
    // An XL LoRA on a model with one tower: the first tower has other widths there.
    let names = [
        "lora_te1_text_model_encoder_layers_0_mlp_fc1",
        "lora_te2_text_model_encoder_layers_0_mlp_fc1",
    ];
    let shapes: [&[usize]; 2] = [&[3072, 768], &[5120, 1280]];
    let modules: Vec<_> = names.into_iter().zip(shapes).collect();
    write(&folder, "xl.safetensors", KOHYA, &modules);
    let run = draw(&folder, &["--lora=xl.safetensors"]);
    assert_eq!(run.code, Some(1), "{}", run.stderr);
    assert!(
        run.stderr.contains("was made for another architecture: it changes text_encoder.text_model_encoder_layers_0_mlp_fc1 as [3072, 768], and the model has [37, 20] there"),
        "{}",
        run.stderr
    );
}

#[test]
fn a_lora_with_the_original_names_of_blocks_is_that_with_todays() {
    let folder = Folder::new();
    let shapes: [&[usize]; 4] = [&[20, 20], &[20, 12, 1, 1], &[20, 20, 3, 3], &[20, 40, 3, 3]];
    let files = [
        (
            "todays",
            PEFT,
            [
                TO_Q,
                "unet.down_blocks.1.resnets.0.conv_shortcut",
                "unet.up_blocks.0.upsamplers.0.conv",
                "unet.up_blocks.0.resnets.0.conv1",
            ],
        ),
        (
            "original",
            KOHYA,
            [
                "lora_unet_output_blocks_3_1_transformer_blocks_0_attn1_to_q",
                "lora_unet_input_blocks_3_0_skip_connection",
                "lora_unet_output_blocks_1_1_conv",
                "lora_unet_output_blocks_0_0_in_layers_2",
            ],
        ),
    ];
    let pictures = files.map(|(file, style, names)| {
        let modules: Vec<_> = names.into_iter().zip(shapes).collect();
        write(&folder, file, style, &modules);
        drawn(&folder, &["--lora", file])
    });
    assert_eq!(pictures[0], pictures[1]);
    assert_ne!(pictures[0], drawn(&folder, &[]));
}

#[test]
fn each_module_has_its_own_alpha_and_rank() {
    let folder = Folder::new();
    let names = [
        "lora_unet_up_blocks_1_attentions_1_transformer_blocks_0_attn1_to_q",
        "lora_unet_conv_in",
        "lora_te_text_model_encoder_layers_0_mlp_fc1",
    ];
    let shapes: [&[usize]; 3] = [&[20, 20], &[12, 4, 3, 3], &[37, 20]];
    let modules: Vec<_> = names.into_iter().zip(shapes).collect();
    write(&folder, "plain", KOHYA, &modules);
    let plain =
        candle_core::safetensors::load(folder.file("plain"), &Device::Cpu).expect("it was written");
    // Of rank 2: halves, doubles and leaves.
    let (mut alphas, mut scaled) = (plain.clone(), plain);
    for (name, alpha) in names.into_iter().zip([1.0, 4.0, 2.0]) {
        let number = Tensor::new(alpha as f32, &Device::Cpu).expect("small");
        alphas.insert(format!("{name}.alpha"), number);
        let up = scaled
            .get_mut(&format!("{name}.lora_up.weight"))
            .expect("it was written");
        *up = (&*up * (alpha / 2.0)).expect("small");
    }
    for (file, tensors) in [("alphas", &alphas), ("scaled", &scaled)] {
        candle_core::safetensors::save(tensors, folder.file(file)).expect("written");
    }
    let (a, b) = (
        drawn(&folder, &["--lora=alphas"]),
        drawn(&folder, &["--lora=scaled"]),
    );
    assert_eq!(a, b);
    assert_ne!(a, drawn(&folder, &["--lora=plain"]));
}

#[test]
fn a_lora_for_another_architecture_is_refused_with_both_shapes() {
    let folder = Folder::new();
    write(&folder, "x.safetensors", PEFT, &[(TO_Q, &[20, 320])]);
    let run = draw(&folder, &["--lora=x.safetensors"]);
    assert_eq!(run.code, Some(1), "{}", run.stderr);
    let last = run.stderr.lines().last().expect("a message");
    assert!(
        last.contains(&format!(
            "the LoRA x.safetensors: was made for another architecture: it changes {TO_Q} as [20, 320], and the model has [20, 20] there"
        )),
        "{last}"
    );
    assert_eq!(folder.names(), ["x.safetensors"]);
}

#[test]
fn what_does_not_fit_is_listed_and_nothing_that_fits_is_an_error() {
    let folder = Folder::new();
    let nowhere = "lora_te2_text_model_encoder_layers_0_mlp_fc1";
    let modules: [(&str, &[usize]); 2] =
        [("lora_unet_conv_in", &[12, 4, 3, 3]), (nowhere, &[20, 20])];
    write(&folder, "part.safetensors", KOHYA, &modules);
    write(&folder, "none.safetensors", KOHYA, &modules[1..]);
    let run = draw(&folder, &["--lora=part.safetensors", "-o=out.png"]);
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    assert!(
        run.stderr.contains("part.safetensors: 1 of its 2 modules has no place in this model: text_encoder_2.text_model_encoder_layers_0_mlp_fc1"),
        "{}",
        run.stderr
    );
    let run = draw(&folder, &["--lora=none.safetensors"]);
    assert_eq!(run.code, Some(1), "{}", run.stderr);
    assert!(
        run.stderr.contains("the LoRA none.safetensors: changes nothing of this model: none of its 1 modules is there"),
        "{}",
        run.stderr
    );
}

#[test]
fn files_that_are_no_loras_are_refused_by_what_they_are() {
    let folder = Folder::new();
    let tensors = |name: &str| {
        let one = Tensor::zeros(2, candle_core::DType::F32, &Device::Cpu).expect("small");
        HashMap::from([(name.to_owned(), one)])
    };
    for (name, said) in [
        (
            "lora_unet_conv_in.hada_w1_a",
            "holds LoHa, which is not supported",
        ),
        (
            "lora_unet_conv_in.lokr_w1",
            "holds LoKr, which is not supported",
        ),
        (
            "lora_unet_conv_in.dora_scale",
            "holds DoRA, which is not supported",
        ),
        (
            "unet.conv_in.lora_magnitude_vector",
            "holds DoRA, which is not supported",
        ),
        (
            "lora_unet_conv_in.lora_mid.weight",
            "holds LoRA in three matrices (lora_mid), which is not supported",
        ),
        (
            "lora_unet_conv_in.oft_blocks",
            "holds OFT, which is not supported",
        ),
        (
            "lora_unet_conv_in.diff",
            "holds differences of whole weights, which is not supported",
        ),
        (
            "unet.conv_in.lora_A.weight",
            "has one matrix of two for unet.conv_in",
        ),
        ("conv_in.weight", "changes nothing of this model"),
    ] {
        candle_core::safetensors::save(&tensors(name), folder.file("x")).expect("written");
        let run = draw(&folder, &["--lora=x"]);
        assert_eq!(run.code, Some(1), "{}", run.stderr);
        assert!(run.stderr.contains(said), "{}", run.stderr);
    }
    folder.write("x", "no tensors");
    let run = draw(&folder, &["--lora=x"]);
    assert!(
        run.stderr.contains("the LoRA x: ") && run.stderr.contains("not a safetensors file"),
        "{}",
        run.stderr
    );
    for (lora, code, said) in [
        (
            "nowhere.safetensors",
            1,
            "--lora: \"nowhere.safetensors\" is no file here and no hub id",
        ),
        (
            "loras/nowhere.safetensors",
            1,
            "--lora: \"loras/nowhere.safetensors\" is no file here and no hub id",
        ),
        ("x:inf", 2, "give a finite weight"),
        ("x:nan", 2, "give a finite weight"),
        (
            "x:much",
            2,
            "\"much\" is no number: give the weight as in x:0.8",
        ),
        ("x:", 2, "\"\" is no number: give the weight as in x:0.8"),
        (":0.5", 2, "give a file or owner/name before the colon"),
        ("", 2, "give a file or owner/name"),
        (
            "C:\\loras\\x.safetensors:0.5",
            1,
            // As it was typed, but that `Run` has slashes on Windows.
            match cfg!(windows) {
                true => "--lora: \"C:/loras/x.safetensors\" is no file here and no hub id",
                false => "--lora: \"C:\\loras\\x.safetensors\" is no file here and no hub id",
            },
        ),
        ("nowhere/at/all.safetensors:2", 1, "nowhere/at"),
    ] {
        let run = draw(&folder, &["--lora", lora]);
        assert_eq!(run.code, Some(code), "{}", run.stderr);
        assert!(run.stderr.contains(said), "{}", run.stderr);
    }
}

#[test]
fn a_picture_remembers_its_loras_and_is_drawn_again_with_them() {
    let folder = Folder::new();
    let names = ["peft.safetensors", "old.safetensors"];
    for name in names {
        folder.write(name, std::fs::read(fixture(name)).expect("a fixture"));
    }
    let run = draw(
        &folder,
        &[
            "-o=a.png",
            "--lora=peft.safetensors:0.5",
            "--lora=old.safetensors",
        ],
    );
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    let json: Value = serde_json::from_str(&texts(&folder.read("a.png"))["diffuse"]).unwrap();
    assert_eq!(
        json["settings"]["lora"],
        serde_json::json!(["peft.safetensors:0.5", "old.safetensors"])
    );
    let loras = json["model"]["loras"].as_array().expect("a list");
    assert_eq!(loras.len(), 2);
    assert_eq!(loras[0]["weight"], 0.5);
    assert_eq!(
        loras[0]["sha256"],
        json["model"]["files"]["peft.safetensors"]
    );
    assert_eq!(loras[0]["sha256"].as_str().map(str::len), Some(64));
    let again = |more: &[&str]| {
        let common = [
            "txt2img",
            "--device=cpu",
            "--from=a.png",
            "-o=b.png",
            "--overwrite",
        ];
        folder.run([&common[..], more].concat())
    };
    let run = again(&[]);
    assert!(
        run.stderr.contains("the pixels are those of a.png"),
        "{}",
        run.stderr
    );
    // The command line's LoRAs take the place of the picture's.
    let run = again(&["--lora=old.safetensors"]);
    assert!(
        run.stderr.contains("the pixels differ from those of a.png"),
        "{}",
        run.stderr
    );
    assert_eq!(
        pixels(&folder.read("b.png")),
        drawn(&folder, &["--lora=old.safetensors"])
    );
}

#[test]
fn the_price_has_the_loras_and_rows_share_them() {
    let folder = Folder::new();
    let weights = |more: &[&str]| {
        let run = draw(&folder, &[&["--dry-run", "--json"], more].concat());
        assert_eq!(run.code, Some(0), "{}", run.stderr);
        run.objects()[0]["weights"].as_u64().expect("bytes")
    };
    let lora = fixture("peft.safetensors");
    let bytes = std::fs::metadata(&lora).expect("a fixture").len();
    assert_eq!(weights(&["--lora", &lora]) - weights(&[]), bytes);
    folder.write("rows", r#"{"prompt": "a cat", "lora": "x"}"#);
    let model = asset("tiny-sd");
    let run = folder.run(["txt2img", "--model", &model, "--prompts=rows"]);
    assert!(
        run.stderr
            .contains("\"lora\" is the same for all rows; give --lora on the command line"),
        "{}",
        run.stderr
    );
}

/// The tensors of a file of [`write`].
fn tensors(folder: &Folder, file: &str) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(folder.file(file), &Device::Cpu).expect("it was written")
}

#[test]
fn a_file_with_both_names_of_a_block_changes_it_once() {
    let folder = Folder::new();
    let names = [
        "lora_unet_up_blocks_1_attentions_1_transformer_blocks_0_attn1_to_q",
        "lora_unet_output_blocks_3_1_transformer_blocks_0_attn1_to_q",
    ];
    let modules = names.map(|name| (name, &[20, 20][..]));
    write(&folder, "both", KOHYA, &modules);
    write(&folder, "one", KOHYA, &modules[..1]);
    assert_eq!(
        drawn(&folder, &["--lora=both"]),
        drawn(&folder, &["--lora=one"])
    );
}

#[test]
fn two_spellings_of_a_module_in_one_file_are_refused() {
    let folder = Folder::new();
    let flat = "lora_unet_up_blocks_1_attentions_1_transformer_blocks_0_attn1_to_q";
    for (name, style) in [(TO_Q, KOHYA), (flat, KOHYA)] {
        write(&folder, "a", PEFT, &[(TO_Q, &[20, 20])]);
        write(&folder, "b", style, &[(name, &[20, 20])]);
        let all: HashMap<_, _> = tensors(&folder, "a")
            .into_iter()
            .chain(tensors(&folder, "b"))
            .collect();
        candle_core::safetensors::save(&all, folder.file("both")).expect("written");
        let run = draw(&folder, &["--lora=both"]);
        assert_eq!(run.code, Some(1), "{run:?}");
        assert!(
            run.stderr.contains("a second time, in another spelling"),
            "{run:?}"
        );
    }
}

#[test]
fn an_alpha_may_be_a_whole_number() {
    let folder = Folder::new();
    write(&folder, "plain", PEFT, &[(TO_Q, &[20, 20])]);
    let pictures = [
        Tensor::new(-4f32, &Device::Cpu),
        Tensor::new(-4i64, &Device::Cpu),
    ]
    .map(|alpha| {
        let mut all = tensors(&folder, "plain");
        all.insert(format!("{TO_Q}.alpha"), alpha.expect("small"));
        candle_core::safetensors::save(&all, folder.file("alpha")).expect("written");
        drawn(&folder, &["--lora=alpha"])
    });
    assert_eq!(pictures[0], pictures[1]);
    assert_ne!(pictures[0], drawn(&folder, &["--lora=plain"]));
}

#[test]
fn a_folder_of_peft_has_its_scale_beside_it() {
    let folder = Folder::new();
    let name = TO_Q.replace("unet.", "base_model.model.");
    write(
        &folder,
        "adapter_model.safetensors",
        PEFT,
        &[(&name, &[20, 20])],
    );
    write(&folder, "plain", PEFT, &[(TO_Q, &[20, 20])]);
    let run = draw(&folder, &["--lora=adapter_model.safetensors"]);
    assert_eq!(run.code, Some(1), "{run:?}");
    assert!(run.stderr.contains("adapter_config.json"), "{run:?}");
    folder.write("adapter_config.json", r#"{"r": 2, "lora_alpha": 6}"#);
    let scaled = drawn(&folder, &["--lora=adapter_model.safetensors"]);
    assert_eq!(scaled, drawn(&folder, &["--lora=plain:3"]));
}
