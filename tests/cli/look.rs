//! What is made to look at, and the plan before anything is spent.
use crate::support::{Folder, Run, asset, copy, pixels};
use candle_core::{DType, Device};
use std::collections::HashMap;
use std::path::Path;

fn cat(folder: &Folder, more: &[&str]) -> Run {
    let model = asset("tiny-sd");
    let args = [
        "txt2img", "a cat", "--model", &model, "--steps", "5", "--seed", "7", "--device", "cpu",
    ];
    folder.run([&args, more].concat())
}

#[test]
fn every_nth_step_is_written_beside_the_picture() {
    let folder = Folder::new();
    let run = cat(
        &folder,
        &["-o", "a.png", "--save-steps", "2", "--scheduler", "ddim"],
    );
    assert_eq!(
        (run.code, run.stdout.as_str()),
        (Some(0), "a.png\n"),
        "{run:?}"
    );
    assert_eq!(
        folder.names(),
        ["a-step-002.png", "a-step-004.png", "a.png"]
    );
    for name in folder.names() {
        assert_eq!(pixels(&folder.read(&name)).dimensions(), (64, 64), "{name}");
    }
    // Looking changes nothing.
    cat(&folder, &["-o", "b.png", "--scheduler", "ddim"]);
    assert!(folder.read("a.png") == folder.read("b.png"));
}

#[test]
fn the_steps_of_pixel_models_are_their_samples() {
    let folder = Folder::new();
    let model = asset("tiny-ddpm");
    let run = folder.run([
        "ddpm",
        "--model",
        &model,
        "--steps",
        "4",
        "--seed",
        "1",
        "--scheduler",
        "ddim",
        "-o",
        "a.png",
        "--save-steps",
        "1",
        "-n",
        "2",
        "--batch-size",
        "2",
    ]);
    assert_eq!(run.code, Some(0), "{run:?}");
    let names = [
        "a-1-step-001.png",
        "a-1-step-002.png",
        "a-1-step-003.png",
        "a-1.png",
    ];
    assert_eq!(folder.names()[..4], names);
    assert_eq!(folder.names().len(), 8);
}

#[test]
fn an_animation_ends_with_the_picture() {
    let folder = Folder::new();
    let run = cat(
        &folder,
        &[
            "-o",
            "a.png",
            "--animate",
            "film.png",
            "--scheduler",
            "ddim",
        ],
    );
    assert_eq!(
        (run.code, run.stdout.as_str()),
        (Some(0), "a.png\n"),
        "{run:?}"
    );
    let film = folder.read("film.png");
    let mut reader = png::Decoder::new(std::io::Cursor::new(film))
        .read_info()
        .expect("it is a PNG");
    let frames = reader
        .info()
        .animation_control
        .expect("it is animated")
        .num_frames;
    assert_eq!(frames, 5);
    let mut bytes = vec![0; 64 * 64 * 3];
    for _ in 0..frames {
        reader.next_frame(&mut bytes).expect("a frame");
    }
    assert_eq!(&bytes, pixels(&folder.read("a.png")).as_raw());
    let taken = cat(&folder, &["-o", "b.png", "--animate", "film.png"]);
    assert!(
        taken.code == Some(1) && taken.stderr.contains("film.png exists"),
        "{taken:?}"
    );
}

/// The frames of a film, and how often it is shown; 0 is for ever.
fn apng(bytes: Vec<u8>) -> (u32, Vec<Vec<u8>>) {
    let mut reader = png::Decoder::new(std::io::Cursor::new(bytes))
        .read_info()
        .expect("it is a PNG");
    let control = reader.info().animation_control.expect("it is animated");
    let size = reader.output_buffer_size().expect("it fits");
    let frames = (0..control.num_frames).map(|_| {
        let mut bytes = vec![0; size];
        reader.next_frame(&mut bytes).expect("a frame");
        bytes
    });
    let frames = frames.collect();
    (control.num_plays, frames)
}

#[test]
fn each_of_several_pictures_has_its_animation() {
    let folder = Folder::new();
    let more = ["-n", "2", "--scheduler", "ddim", "-o", "x/a.png", "-p"];
    for (size, films) in [("1", "film.png"), ("2", "x/{seed}.apng")] {
        let more = [
            &more[..],
            &["--overwrite", "--batch-size", size, "--animate", films],
        ]
        .concat();
        let run = cat(&folder, &more);
        assert_eq!(run.code, Some(0), "{run:?}");
    }
    for (k, seed) in [(1, 7), (2, 8)] {
        let numbered = apng(folder.read(&format!("film-{k}.png")));
        assert_eq!((numbered.0, numbered.1.len()), (0, 5));
        // Drawn alone or together.
        assert_eq!(numbered, apng(folder.read(&format!("x/{seed}.apng"))));
        let last = numbered.1.last().expect("it has frames");
        assert_eq!(last, pixels(&folder.read(&format!("x/a-{k}.png"))).as_raw());
    }
    let taken = cat(&folder, &["-n", "2", "--animate", "film.png"]);
    assert!(
        taken.code == Some(1) && taken.stderr.contains("film-1.png exists"),
        "{taken:?}"
    );
    let no_folder = cat(&folder, &["--animate", "films/{seed}.gif"]);
    assert!(
        no_folder.code == Some(1)
            && no_folder
                .stderr
                .contains("--animate films/7.gif: make the folder films first"),
        "{no_folder:?}"
    );
}

#[test]
fn rows_have_animations_by_a_pattern_and_a_row_that_is_skipped_makes_none() {
    let folder = Folder::new();
    let model = asset("tiny-sd");
    let args = |films| {
        [
            "txt2img",
            "--model",
            &model,
            "--steps",
            "3",
            "--prompts",
            "-",
            "--animate",
            films,
        ]
    };
    let rows = "a cat\na dog\n";
    let run = folder.feed(args("{index}-{prompt}.gif"), rows);
    assert_eq!(run.code, Some(0), "{run:?}");
    let names = [
        "0001-a-cat.gif",
        "0001-a-cat.png",
        "0002-a-dog.gif",
        "0002-a-dog.png",
    ];
    assert_eq!(folder.names(), names);
    assert!(folder.read("0001-a-cat.gif").starts_with(b"GIF89a"));
    std::fs::remove_file(folder.file("0001-a-cat.gif")).expect("it is there");
    let again = folder.feed(args("{index}-{prompt}.gif"), rows);
    assert_eq!(
        (again.code, again.stdout.as_str()),
        (Some(0), ""),
        "{again:?}"
    );
    assert_eq!(folder.names(), names[1..]);
    let one_name = folder.feed(args("film.gif"), "a fox\na cow\n");
    assert_eq!(one_name.code, Some(3), "{one_name:?}");
    assert!(
        one_name.stderr.contains("line 2: film.gif is an earlier picture of this run; tell them apart, as in --animate {index}-{seed}.gif"),
        "{one_name:?}"
    );
}

#[test]
fn what_a_run_that_broke_off_left_beside_a_picture_is_made_anew() {
    for film in ["film.png", "film.gif"] {
        let folder = Folder::new();
        let run = || {
            cat(
                &folder,
                &["-o", "a.png", "--save-steps", "2", "--animate", film],
            )
        };
        assert_eq!(run().code, Some(0));
        let whole: Vec<_> = folder
            .names()
            .iter()
            .map(|name| folder.read(name))
            .collect();
        let names = folder.names();
        assert_eq!(names, ["a-step-002.png", "a-step-004.png", "a.png", film]);
        std::fs::remove_file(folder.file("a.png")).expect("it is there");
        let again = run();
        assert_eq!(again.code, Some(0), "{again:?}");
        let made: Vec<_> = names.iter().map(|name| folder.read(name)).collect();
        assert!(made == whole, "{film}");
        // Of another picture.
        let other = cat(&folder, &["-o", "b.png", "--animate", film]);
        assert_eq!(other.code, Some(1), "{other:?}");
        let said =
            format!("{film} exists; add --overwrite to replace it, or give another --animate");
        assert!(other.stderr.contains(&said), "{other:?}");
        assert_eq!(folder.names(), names);
    }
}

#[test]
fn steps_too_few_to_save_one_are_told() {
    let folder = Folder::new();
    for (every, names) in [
        ("4", &["a-step-004.png", "a.png"][..]),
        ("5", &["a-step-004.png", "a.png"]),
    ] {
        let steps = ["-o", "a.png", "--overwrite", "--scheduler", "ddim"];
        let run = cat(&folder, &[&steps[..], &["--save-steps", every]].concat());
        assert_eq!(run.code, Some(0), "{run:?}");
        assert_eq!(folder.names(), names);
        let said = "--save-steps 5 writes nothing: of 5 calls the last is the picture";
        assert_eq!(run.stderr.contains(said), every == "5", "{run:?}");
    }
}

#[test]
fn a_file_of_someone_else_is_not_replaced_by_a_step() {
    let folder = Folder::new();
    folder.write("a-step-002.png", "mine");
    let steps = ["-o", "a.png", "--save-steps", "2"];
    let run = cat(&folder, &steps);
    assert_eq!(run.code, Some(1), "{run:?}");
    let said = "a-step-002.png exists; add --overwrite to replace it";
    assert!(run.stderr.contains(said), "{run:?}");
    assert_eq!(folder.names(), ["a-step-002.png"]);
    assert_eq!(folder.read("a-step-002.png"), b"mine");
    let run = cat(&folder, &[&steps[..], &["--overwrite"]].concat());
    assert_eq!(run.code, Some(0), "{run:?}");
    assert_eq!(pixels(&folder.read("a-step-002.png")).width(), 64);
}

#[test]
fn a_picture_with_a_new_name_has_its_steps_beside_it() {
    let folder = Folder::new();
    for _ in 0..2 {
        let run = cat(&folder, &["--save-steps", "4", "--scheduler", "ddim"]);
        assert_eq!(run.code, Some(0), "{run:?}");
    }
    let names = [
        "a-cat-7-2-step-004.png",
        "a-cat-7-2.png",
        "a-cat-7-step-004.png",
        "a-cat-7.png",
    ];
    assert_eq!(folder.names(), names);
}

/// The rows with a contact sheet all.png.
fn sheet_of(folder: &Folder, rows: &str, more: &[&str]) -> Run {
    let model = asset("tiny-sd");
    let args = ["txt2img", "--model", &model, "--steps", "1"];
    let sheet = ["--prompts", "-", "--grid", "all.png"];
    folder.feed([&args[..], &sheet, more].concat(), rows)
}

#[test]
fn a_contact_sheet_has_the_pictures_that_were_there_too() {
    let folder = Folder::new();
    let run = sheet_of(&folder, "a cat\na dog\na fox\n", &["--overwrite"]);
    assert_eq!(run.code, Some(0), "{run:?}");
    let first = pixels(&folder.read("all.png"));
    // Two columns and two rows of 96 points with 8 between, captions below.
    assert_eq!(first.dimensions(), (2 * 104 + 8, 2 * 92 + 8));
    std::fs::remove_file(folder.file("all.png")).expect("it is there");
    let run = sheet_of(&folder, "a cat\na dog\na fox\n", &[]);
    assert_eq!((run.code, run.stdout.as_str()), (Some(0), ""), "{run:?}");
    assert!(pixels(&folder.read("all.png")) == first);
}

#[test]
fn show_is_refused_where_there_is_no_terminal() {
    let folder = Folder::new();
    let run = cat(&folder, &["--show"]);
    assert_eq!((run.code, run.stdout.as_str()), (Some(1), ""));
    assert!(
        run.stderr.contains("--show draws in a terminal"),
        "{}",
        run.stderr
    );
    assert_eq!(folder.names(), [""; 0]);
}

#[test]
fn a_dry_run_tells_the_price_and_writes_nothing() {
    let folder = Folder::new();
    let run = cat(
        &folder,
        &["-n", "2", "--dry-run", "-o", "new/{seed}.png", "--parents"],
    );
    assert_eq!(run.code, Some(0), "{run:?}");
    for part in [
        "download  nothing",
        "pictures  2",
        "new/7.png",
        "new/8.png",
        "of the UNet",
        "memory    about",
        "time      ",
    ] {
        assert!(run.stdout.contains(part), "{part:?}: {}", run.stdout);
    }
    let json = cat(
        &folder,
        &["-n", "2", "--dry-run", "--json", "--scheduler", "ddim"],
    );
    let plan = &json.objects()[0];
    assert_eq!(
        (plan["pictures"].as_u64(), plan["calls"].as_u64()),
        (Some(2), Some(10))
    );
    assert_eq!(plan["download"]["bytes"], 0);
    assert!(
        plan["memory"].as_u64() > Some(1 << 20) && plan["seconds"].as_f64() > Some(0.0),
        "{plan}"
    );
    assert_eq!(folder.names(), [""; 0]);
}

#[test]
fn a_dry_run_of_rows_reports_the_bad_ones() {
    let folder = Folder::new();
    let model = asset("tiny-sd");
    let args = [
        "txt2img",
        "--model",
        &model,
        "--steps",
        "2",
        "--prompts",
        "-",
        "--dry-run",
        "-q",
    ];
    let run = folder.feed(
        args,
        "a cat\n{\"steps\": 0}\n{\"prompt\": \"x\", \"num_images\": 3}\n",
    );
    assert!(run.stdout.contains("pictures  4"), "{run:?}");
    assert!(run.stderr.starts_with("diffuse: line 2: "), "{run:?}");
    assert_eq!(folder.names(), [""; 0]);
}

#[test]
fn the_price_is_known_without_the_weights() {
    let folder = Folder::new();
    for file in [
        "model_index.json",
        "unet/config.json",
        "scheduler/scheduler_config.json",
    ] {
        let to = folder.file("m").join(file);
        std::fs::create_dir_all(to.parent().expect("it has one")).expect("writable");
        std::fs::copy(format!("{}/{file}", asset("tiny-ddpm")), to).expect("it is there");
    }
    let weights = folder
        .file("m")
        .join("unet/diffusion_pytorch_model.safetensors");
    // No tensor is in this file: whoever reads it fails.
    std::fs::write(weights, vec![0; 1000]).expect("writable");
    let run = folder.run(["ddpm", "--model", "m", "--dry-run", "--json"]);
    assert_eq!(run.objects()[0]["weights"], 1000, "{run:?}");
    assert_eq!(folder.run(["ddpm", "--model", "m"]).code, Some(1));
}

// The peak is Linux's to tell, and each thread takes some.
#[cfg(target_os = "linux")]
#[test]
fn a_dry_run_foretells_about_the_memory_that_the_run_takes() {
    let (folder, model) = (Folder::new(), asset("tiny-sd"));
    let first = [
        "txt2img", "a cat", "--model", &model, "--steps", "1", "--json",
    ];
    let large = [
        "--guidance-scale=1",
        "--width=768",
        "--height=768",
        "--threads=2",
    ];
    let of = |key: &str, more: &[&str]| {
        let run = folder.run([&first[..], &large, more].concat());
        run.objects()[0][key].as_f64().expect("bytes")
    };
    let ratio = of("memory", &["--dry-run"]) / of("peak_memory", &["-o", "a.png"]);
    assert!((0.8..1.5).contains(&ratio), "{ratio}");
}

#[test]
fn the_memory_is_that_of_the_numbers_as_they_are_kept_whatever_the_files_hold() {
    let folder = Folder::new();
    copy(Path::new(&asset("tiny-sd")), &folder.file("m"));
    let memory = || {
        let first = ["txt2img", "a cat", "--model", "m", "--dry-run", "--json"];
        let run = folder.run(first);
        run.objects()[0]["memory"].as_u64().expect("bytes")
    };
    let full = memory();
    // Saved in 16 bits under the name of full precision, as many are.
    let file = folder.file("m/unet/diffusion_pytorch_model.safetensors");
    let tensors = candle_core::safetensors::load(&file, &Device::Cpu).expect("a fixture");
    let halves = tensors
        .into_iter()
        .map(|(name, x)| (name, x.to_dtype(DType::F16).expect("numbers")));
    let halves: HashMap<_, _> = halves.collect();
    candle_core::safetensors::save(&halves, &file).expect("written");
    let difference = memory().abs_diff(full);
    assert!(difference < 128 << 10, "{difference} of {full}");
}

#[test]
fn the_frames_of_a_batchs_animations_count_as_memory() {
    let (folder, model) = (Folder::new(), asset("tiny-sd"));
    let memory = |more: &[&str]| {
        let first = ["txt2img", "a cat", "--model", &model, "--dry-run", "--json"];
        let batch = ["--scheduler=ddim", "--steps=70", "-n=8", "--batch-size=8"];
        let run = folder.run([&first[..], &batch, more].concat());
        run.objects()[0]["memory"].as_u64().expect("bytes")
    };
    // Every second of 70 calls; an eighth is the allocator's.
    let frames = 8 * 35 * 64 * 64 * 3;
    let more = memory(&["--animate=film.png"]) - memory(&[]);
    assert!((frames..frames * 5 / 4).contains(&more), "{more} {frames}");
}

#[test]
fn a_contact_sheet_has_a_name_of_its_own_in_a_folder_that_is_there_or_made() {
    let folder = Folder::new();
    folder.write("mine.png", "mine");
    std::fs::create_dir(folder.file("album.png")).expect("the folder is writable");
    for (more, part) in [
        (
            &["-o", "a.png", "--grid", "./a.png"][..],
            "is the --grid of this run too",
        ),
        (
            &["--animate", "a.png", "--grid", "a.png"],
            "is the --grid of this run too; give another --animate",
        ),
        (&["--grid", "mine.png"], "mine.png exists; add --overwrite"),
        (&["--grid", "album.png"], "album.png is a folder"),
        (&["--grid", "none/a.png"], "or add --parents"),
    ] {
        let run = cat(&folder, more);
        assert_eq!((run.code, run.stdout.as_str()), (Some(1), ""), "{run:?}");
        assert!(run.stderr.contains(part), "{}", run.stderr);
        assert_eq!(folder.names(), ["album.png", "mine.png"]);
    }
    let run = cat(
        &folder,
        &["-p", "-o", "new/{seed}.png", "--grid", "new/sheet.png"],
    );
    assert_eq!(run.code, Some(0), "{run:?}");
    assert!(folder.file("new/sheet.png").exists());
}

#[test]
fn rows_that_are_drawn_in_a_second_run_come_onto_the_sheet_of_the_first() {
    let folder = Folder::new();
    let broken = sheet_of(&folder, "a cat\n{\n", &[]);
    assert_eq!(broken.code, Some(3), "{broken:?}");
    let width = |folder: &Folder| pixels(&folder.read("all.png")).width();
    assert_eq!(width(&folder), 104 + 8);
    let run = sheet_of(&folder, "a cat\na dog\n", &[]);
    assert_eq!(
        (run.code, run.stdout.as_str()),
        (Some(0), "0002-a-dog.png\n")
    );
    assert_eq!(width(&folder), 2 * 104 + 8);
    // What is no sheet of this program is not replaced.
    std::fs::copy(folder.file("0001-a-cat.png"), folder.file("all.png")).expect("a copy");
    assert_eq!(sheet_of(&folder, "a cat\na dog\n", &[]).code, Some(1));
}
