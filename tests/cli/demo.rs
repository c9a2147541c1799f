//! `--model demo`: the trained checkpoints inside of the program. What is drawn is judged by coarse colours, which need no eye:
//! a picture of 64x64 pixels becomes 8x8 means.
use crate::support::{Folder, Run, asset, fixture, levels_apart, pixels, texts};
use image::RgbImage;
use serde_json::{Value, json};

/// f32 on the CPU may differ from diffusers by this much of 255.
const BOUND: u8 = 1;

#[track_caller]
fn draws(folder: &Folder, args: &[&str]) -> Run {
    let run = folder.run(args);
    assert_eq!(run.code, Some(0), "{args:?}: {run:?}");
    run
}

/// The pictures of rows, in one process. `more` is what all rows share.
#[track_caller]
fn rows(command: &str, rows: &[Value], more: &[&str]) -> Vec<RgbImage> {
    let folder = Folder::new();
    let lines: String = rows.iter().map(|row| format!("{row}\n")).collect();
    let args = [
        command,
        "--model",
        "demo",
        "--device=cpu",
        "--prompts=-",
        "-o",
        "{index}.png",
        "-q",
    ];
    let run = folder.feed([&args[..], more].concat(), &lines);
    assert_eq!(run.code, Some(0), "{run:?}");
    (1..=rows.len())
        .map(|k| pixels(&folder.read(&format!("{k:04}.png"))))
        .collect()
}

/// Means of blocks of 8x8 pixels.
fn coarse(picture: &RgbImage) -> Vec<[f64; 3]> {
    let (width, height) = (picture.width() / 8, picture.height() / 8);
    let mut means = vec![[0.0; 3]; (width * height) as usize];
    for (x, y, pixel) in picture.enumerate_pixels() {
        let mean = &mut means[(y / 8 * width + x / 8) as usize];
        (0..3).for_each(|c| mean[c] += f64::from(pixel[c]) / 64.0);
    }
    means
}

/// Between two colours, in levels of 255.
fn apart(a: [f64; 3], b: [f64; 3]) -> f64 {
    let squares = (0..3).map(|c| (a[c] - b[c]).powi(2));
    (squares.sum::<f64>() / 3.0).sqrt()
}

/// Between two pictures: the mean over their blocks.
fn distance(a: &RgbImage, b: &RgbImage) -> f64 {
    let (a, b) = (coarse(a), coarse(b));
    assert_eq!(a.len(), b.len());
    a.iter().zip(&b).map(|(a, b)| apart(*a, *b)).sum::<f64>() / a.len() as f64
}

fn mean(values: impl IntoIterator<Item = f64>) -> f64 {
    let values: Vec<_> = values.into_iter().collect();
    values.iter().sum::<f64>() / values.len() as f64
}

/// Scenes that no two coarse pictures confuse: other places, other colours.
const SCENES: [&str; 3] = [
    "a red heart in space",
    "a green tree in the desert",
    "a yellow star at sea",
];

#[test]
fn the_program_draws_what_its_folder_draws_bit_for_bit() {
    let folder = Folder::new();
    for (command, more) in [
        ("txt2img", &["an astronaut riding a horse"][..]),
        ("ddpm", &[]),
    ] {
        let model = asset(&format!("demo/{command}"));
        for (model, name) in [("demo", "program.png"), (&*model, "folder.png")] {
            let args = [
                command,
                "--model",
                model,
                "--steps=3",
                "--seed=7",
                "--no-metadata",
                "--overwrite",
                "-o",
                name,
            ];
            draws(&folder, &[&args[..], more].concat());
        }
        assert!(
            folder.read("program.png") == folder.read("folder.png"),
            "{command}"
        );
    }
}

#[test]
fn the_pictures_are_those_of_diffusers_within_one_level() {
    let fixtures = fixture("demo");
    let list = std::fs::read(fixtures.join("cases.json")).expect("export_demo.py wrote it");
    let list: Value = serde_json::from_slice(&list).expect("JSON");
    let cases = list["cases"].as_array().expect("a list of cases");
    assert!(cases.len() >= 10, "{} cases", cases.len());
    let mut wrong = Vec::new();
    for command in ["txt2img", "ddpm"] {
        let cases: Vec<_> = cases.iter().filter(|c| c["command"] == command).collect();
        let args: Vec<_> = cases.iter().map(|case| case["args"].clone()).collect();
        for (case, ours) in cases.iter().zip(rows(command, &args, &[])) {
            let name = case["name"].as_str().expect("a name");
            let largest = levels_apart(&ours, &fixtures.join(format!("{name}.png")));
            if largest > BOUND {
                wrong.push(format!("{name}: {largest}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join(", "));
}

#[test]
fn a_picture_says_that_the_demo_drew_it_and_is_drawn_again_from_that() {
    let folder = Folder::new();
    let args = [
        "txt2img",
        "a red circle",
        "--model",
        "demo",
        "--steps=2",
        "--seed=1",
        "-o",
        "a.png",
    ];
    draws(&folder, &args);
    let chunk: Value =
        serde_json::from_str(&texts(&folder.read("a.png"))["diffuse"]).expect("JSON");
    assert_eq!(chunk["model"]["id"], "demo");
    assert_eq!(chunk["settings"]["model"], "demo");
    // As sha256sum gives them.
    let file = format!("{}/unet/config.json", asset("demo/txt2img"));
    let hash = diffuse::engine::checkpoint::hex(&<sha2::Sha256 as sha2::Digest>::digest(
        std::fs::read(file).expect("it is there"),
    ));
    assert_eq!(chunk["model"]["files"]["unet/config.json"], hash.as_str());
    let again = folder.run(["txt2img", "--from", "a.png", "-o", "b.png", "--json"]);
    assert_eq!(again.objects()[0]["same_pixels"], true, "{again:?}");
    let dry = draws(&folder, &["ddpm", "--model=demo", "--steps=2", "--dry-run"]);
    assert!(dry.stdout.contains("download  nothing"), "{dry:?}");
}

#[test]
fn the_name_is_the_program_and_a_path_is_the_folder() {
    let folder = Folder::new();
    std::fs::create_dir_all(folder.file("demo/unet")).expect("writable");
    let args = |model| {
        [
            "ddpm",
            "--model",
            model,
            "--steps=2",
            "--seed=1",
            "-o",
            "a.png",
            "--overwrite",
        ]
    };
    // A folder of this name that is no model is nobody's concern.
    let run = draws(&folder, &args("demo"));
    assert!(!run.stderr.contains("./demo"), "{run:?}");
    folder.write("demo/unet/config.json", "{}");
    let run = draws(&folder, &args("demo"));
    assert!(run.stderr.contains("type ./demo for the folder"), "{run:?}");
    let run = folder.run(args("./demo"));
    assert_eq!(run.code, Some(1), "{run:?}");
    assert!(
        run.stderr
            .contains("unet/config.json: sample_size is missing"),
        "{run:?}"
    );
    // The environment says it as well.
    let output = folder
        .command(["ddpm", "--steps=2", "-o", "b.png"])
        .env("DIFFUSE_MODEL", "demo")
        .output()
        .expect("it starts");
    assert!(output.status.success());
}

#[test]
fn the_demo_is_not_taken_in_place_of_a_model_that_was_asked_for() {
    let folder = Folder::new();
    for model in ["owner/model", "Demo", "demos", "no/such/folder"] {
        let run = folder.run(["ddpm", "--model", model, "--steps=1"]);
        assert_eq!((run.code, run.stdout.as_str()), (Some(1), ""), "{run:?}");
    }
    assert_eq!(folder.names(), [""; 0]);
}

#[test]
fn every_scheduler_draws_the_scene_of_its_prompt() {
    // Lists: of samplers that follow one path without noise, and of those that add some.
    let help = include_str!("help/txt2img.txt").replace(['\n', ','], " ");
    let names: Vec<_> = help
        .split("Sampler [default: the one that the model names]")
        .nth(1)
        .and_then(|rest| rest.split("[possible values:").nth(1)?.split(']').next())
        .expect("the help lists them")
        .split_whitespace()
        .filter(|name| !name.starts_with("edm-") && *name != "ipndm")
        .collect();
    assert!(names.len() >= 18, "{names:?}");
    let row = |prompt: &str, scheduler: &str, seed: u64| json!({"prompt": prompt, "scheduler": scheduler, "steps": 40, "seed": seed});
    // What the scenes look like: means over two seeds of the plainest sampler at many steps.
    let mut all: Vec<_> = SCENES
        .iter()
        .flat_map(|scene| {
            [11, 12].map(
                |seed| json!({"prompt": scene, "scheduler": "ddim", "steps": 100, "seed": seed}),
            )
        })
        .collect();
    for name in &names {
        all.extend(SCENES.iter().map(|scene| row(scene, name, 7)));
    }
    let pictures = rows("txt2img", &all, &[]);
    let (models, drawn) = pictures.split_at(2 * SCENES.len());
    let mut wrong = Vec::new();
    for (name, three) in names.iter().zip(drawn.chunks(SCENES.len())) {
        for (k, picture) in three.iter().enumerate() {
            let to: Vec<_> = models
                .chunks(2)
                .map(|of| mean(of.iter().map(|model| distance(model, picture))))
                .collect();
            let nearest = (0..to.len()).min_by(|a, b| to[*a].total_cmp(&to[*b]));
            if nearest != Some(k) {
                wrong.push(format!("{name} draws {:?} as {to:.0?}", SCENES[k]));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("; "));
}

#[test]
fn samplers_without_noise_come_to_one_picture_with_many_steps() {
    let names = ["ddim", "euler", "heun", "dpmpp-2m", "unipc", "pndm"];
    let (scene, other) = (SCENES[0], SCENES[1]);
    let mut all: Vec<_> = names
        .iter()
        .map(|name| json!({"prompt": scene, "scheduler": name, "steps": 100, "seed": 3}))
        .collect();
    // The measures: another noise, another scene.
    all.push(json!({"prompt": scene, "scheduler": "ddim", "steps": 100, "seed": 4}));
    all.push(json!({"prompt": other, "scheduler": "ddim", "steps": 100, "seed": 3}));
    let pictures = rows("txt2img", &all, &[]);
    let to_other_scene = distance(&pictures[0], &pictures[7]);
    for (name, picture) in names.iter().zip(&pictures) {
        let off = distance(&pictures[0], picture);
        assert!(
            off < to_other_scene / 4.0,
            "{name}: {off} of {to_other_scene}"
        );
    }
}

#[test]
fn more_steps_do_not_make_a_picture_worse() {
    // Worse is farther from where the path of this noise ends, as 300 steps find it.
    let counts = [300, 100, 25, 6];
    let mut all = Vec::new();
    for scene in SCENES {
        all.extend(
            counts.map(|n| json!({"prompt": scene, "scheduler": "ddim", "steps": n, "seed": 5})),
        );
    }
    let pictures = rows("txt2img", &all, &[]);
    let off: Vec<_> = (1..counts.len())
        .map(|k| {
            mean(
                pictures
                    .chunks(counts.len())
                    .map(|of| distance(&of[0], &of[k])),
            )
        })
        .collect();
    assert!(
        off[0] < off[1] && off[1] < off[2],
        "{:?}: {off:?}",
        &counts[1..]
    );
}

#[test]
fn other_seeds_give_other_pictures_of_the_same_scene() {
    let seeds = [1, 2, 3, 4];
    let row = |scene: &str, seed: u64| json!({"prompt": scene, "scheduler": "unipc", "steps": 25, "seed": seed});
    let mut all: Vec<_> = seeds.iter().map(|seed| row(SCENES[0], *seed)).collect();
    all.push(row(SCENES[1], 1));
    let pictures = rows("txt2img", &all, &[]);
    let to_other_scene = distance(&pictures[0], &pictures[4]);
    for i in 0..4 {
        for j in 0..i {
            let (a, b) = (&pictures[i], &pictures[j]);
            let differ = a.iter().zip(b.iter()).filter(|(a, b)| a.abs_diff(**b) > 8);
            let share = differ.count() as f64 / a.len() as f64;
            assert!(share > 0.01, "seeds {i} and {j}: {share}");
            assert!(distance(a, b) < to_other_scene, "seeds {i} and {j}");
        }
    }
    // Cats of any colour anywhere.
    let cats = rows(
        "ddpm",
        &seeds.map(|seed| json!({"seed": seed, "steps": 30, "scheduler": "ddim"})),
        &[],
    );
    for i in 0..4 {
        for j in 0..i {
            assert!(distance(&cats[i], &cats[j]) > 4.0, "cats {i} and {j}");
        }
    }
}

#[test]
fn a_thing_has_the_colour_that_it_is_told() {
    // As the world paints them: assets/demo/world.py.
    let colours = [
        ("red", [222.0, 45.0, 48.0]),
        ("yellow", [252.0, 220.0, 50.0]),
        ("green", [40.0, 150.0, 70.0]),
        ("blue", [45.0, 95.0, 225.0]),
        ("purple", [145.0, 65.0, 190.0]),
        ("white", [252.0, 252.0, 252.0]),
    ];
    let things = ["circle", "square"];
    let mut all = Vec::new();
    for (name, _) in colours {
        for thing in things {
            all.push(json!({"prompt": format!("a {name} {thing}"), "scheduler": "unipc", "steps": 25, "seed": 1}));
        }
    }
    let pictures = rows("txt2img", &all, &[]);
    let right = pictures.iter().enumerate().filter(|(k, picture)| {
        // The middle 16x16 pixels lie inside of either thing.
        let blocks = coarse(picture);
        let middle = [27, 28, 35, 36].map(|block| blocks[block]);
        let seen = [0, 1, 2].map(|c| mean(middle.map(|block| block[c])));
        let nearest = colours
            .iter()
            .min_by(|a, b| apart(a.1, seen).total_cmp(&apart(b.1, seen)));
        nearest.map(|(name, _)| *name) == Some(colours[k / things.len()].0)
    });
    let (right, of) = (right.count(), pictures.len());
    // The bar of assets/demo/README.md for things in their colours.
    assert!(right * 10 >= of * 9, "{right} of {of}");
}
