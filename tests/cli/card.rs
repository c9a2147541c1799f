//! Pictures that a card draws against those of the CPU.
//!
//! `tests/gpu/run` runs what is ignored here, which needs a card. `CARD=cpu` puts the CPU in its place: that tries the tests and no card.
use crate::pipelines::{cases, draw};
use crate::support::{Folder, asset, differences, largest_difference, pixels};
use image::RgbImage;
use serde_json::{Value, json};
use std::sync::Mutex;

/// f32 on a card may differ from f32 on the CPU by this much of 255.
const BOUND: u8 = 2;
/// Pictures drawn at a time, each by a process of its own.
const AT_ONCE: usize = 8;

/// `--device`
fn card() -> String {
    let name = std::env::var("CARD").unwrap_or_else(|_| "cuda".to_owned());
    format!("--device={name}")
}

/// Draws every case on both and names those whose pictures are too far apart.
fn compare(cases: &[Value]) {
    let (card, wrong) = (card(), Mutex::new(vec![]));
    let compare = |case: &Value| {
        let name = case["name"].as_str().expect("a name");
        let ours = draw(case, &[&card, "--dtype=f32"]);
        let off = largest_difference(&ours, &draw(case, &["--device=cpu"]));
        if off > BOUND {
            wrong.lock().unwrap().push(format!("{name}: {off}"));
        }
    };
    std::thread::scope(|scope| {
        for share in cases.chunks(cases.len().div_ceil(AT_ONCE)) {
            scope.spawn(move || share.iter().for_each(compare));
        }
    });
    let wrong = wrong.into_inner().unwrap().join(", ");
    println!("{} pictures, bound {BOUND} of 255", cases.len());
    assert!(wrong.is_empty(), "pictures that differ: {wrong}");
}

#[test]
#[ignore = "needs a CUDA card"]
fn pictures_of_the_fixtures_in_f32_are_those_of_the_cpu() {
    compare(&[cases("pipelines"), cases("families")].concat());
}

#[test]
#[ignore = "needs a CUDA card"]
fn pictures_of_the_demo_in_f32_are_those_of_the_cpu() {
    let mut cases = cases("demo");
    for case in &mut cases {
        case["asset"] = format!("demo/{}", case["command"].as_str().expect("a command")).into();
        case["edits"] = json!({});
    }
    compare(&cases);
}

/// Pictures of one process, by the demo's weights.
fn demo(command: &str, dtype: &str, more: &[&str]) -> Vec<RgbImage> {
    let (folder, model, device) = (Folder::new(), asset(&format!("demo/{command}")), card());
    let prompt: &[&str] = match command {
        "txt2img" => &["two yellow stars at night"],
        _ => &[],
    };
    let fixed = [
        "--steps=20",
        "--output={index}.png",
        "--model",
        &model,
        "--dtype",
        dtype,
        &device,
    ];
    let run = folder.run([&[command], prompt, &fixed, more].concat());
    assert_eq!(run.code, Some(0), "{run:?}");
    let names = run.stdout.lines();
    names.map(|name| pixels(&folder.read(name))).collect()
}

const COMMANDS: [&str; 2] = ["txt2img", "ddpm"];

#[test]
#[ignore = "needs a CUDA card"]
fn a_seed_is_the_same_picture_from_run_to_run() {
    for command in COMMANDS {
        for dtype in ["f32", "f16", "bf16"] {
            let draw = || demo(command, dtype, &["--seed=3", "-n=2"]);
            assert!(draw() == draw(), "{command} in {dtype}");
        }
    }
}

/// Other sizes of batch may take other kernels, which add up in another order.
#[test]
#[ignore = "needs a CUDA card"]
fn picture_k_of_a_batch_is_close_to_that_seed_alone() {
    for command in COMMANDS {
        for (dtype, most, mean) in [("f32", BOUND, 0.5), ("f16", 255, 1.0), ("bf16", 255, 4.0)] {
            let batch = demo(command, dtype, &["--seed=3", "-n=4", "--batch-size=4"]);
            assert_eq!(batch.len(), 4);
            for (k, picture) in batch.iter().enumerate() {
                let alone = demo(command, dtype, &[&format!("--seed={}", 3 + k)]);
                let off = largest_difference(picture, &alone[0]);
                let sum: f64 = differences(picture, &alone[0]).map(f64::from).sum();
                let off_mean = sum / picture.len() as f64;
                let what = format!("{command} in {dtype}, picture {k}");
                println!("{what}: at most {off} of 255, {off_mean:.3} in the mean");
                assert!(off <= most && off_mean <= mean, "{what}");
            }
        }
    }
}

/// Of a card that gives out no block as large as the decoder's largest map is: `tests/gpu/stand_in/run` has such a one.
#[test]
#[ignore = "needs the stand-in for a card, with STAND_IN_BLOCK=140000"]
fn without_room_for_a_whole_map_the_decoder_draws_the_same_in_bands() {
    let (folder, model) = (Folder::new(), asset("tiny-sd"));
    let draw = |device: &str| {
        let name = format!("{device}.png");
        let fixed = ["txt2img", "a cat", "--steps=1", "--seed=1", "-vv"];
        let size = ["--width=32", "--height=192", "--dtype=f32"];
        let place = ["--device", device, "--output", &name, "--model", &model];
        let run = folder.run([&fixed[..], &size, &place].concat());
        assert_eq!(run.code, Some(0), "{run:?}");
        (pixels(&folder.read(&name)), run.stderr)
    };
    let (bands, log) = draw("cuda");
    assert!(log.contains("the decoder works in bands"), "{log}");
    let off = largest_difference(&bands, &draw("cpu").0);
    assert!(off <= BOUND, "{off} of 255");
}
