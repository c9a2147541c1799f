//! What is made to look at, and the plan before anything is spent.
use crate::support::{Folder, Run, asset, pixels};

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
    let several = cat(&folder, &["-n", "2", "--animate", "film2.png"]);
    assert_eq!(several.code, Some(1), "{several:?}");
    let taken = cat(&folder, &["-o", "b.png", "--animate", "film.png"]);
    assert!(
        taken.code == Some(1) && taken.stderr.contains("film.png exists"),
        "{taken:?}"
    );
}

#[test]
fn a_contact_sheet_has_the_pictures_that_were_there_too() {
    let folder = Folder::new();
    let model = asset("tiny-sd");
    let args = [
        "txt2img",
        "--model",
        &model,
        "--steps",
        "1",
        "--prompts",
        "-",
        "--grid",
        "all.png",
        "--overwrite",
    ];
    let run = folder.feed(args, "a cat\na dog\na fox\n");
    assert_eq!(run.code, Some(0), "{run:?}");
    let first = pixels(&folder.read("all.png"));
    // Two columns and two rows of 96 points with 8 between, captions below.
    assert_eq!(first.dimensions(), (2 * 104 + 8, 2 * 92 + 8));
    std::fs::remove_file(folder.file("all.png")).expect("it is there");
    let run = folder.feed(&args[..args.len() - 1], "a cat\na dog\na fox\n");
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
