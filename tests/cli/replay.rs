//! `--from IMAGE`: the same picture again, with changes, and from files that mean harm.
use crate::support::{Folder, Run, asset, copy, pixels};
use proptest::prelude::*;
use std::path::Path;
use std::process::Stdio;

fn picture(folder: &Folder, more: &[&str]) {
    let model = asset("tiny-sd");
    let args = [
        "txt2img", "a cat", "--model", &model, "--steps", "3", "-o", "a.png", "--device", "cpu",
    ];
    let run = folder.run([&args, more].concat());
    assert_eq!(run.code, Some(0), "{run:?}");
}

fn again(folder: &Folder, more: &[&str]) -> Run {
    folder.run(
        [
            &[
                "txt2img",
                "--from",
                "a.png",
                "-o",
                "b.png",
                "--overwrite",
                "--device",
                "cpu",
            ],
            more,
        ]
        .concat(),
    )
}

#[test]
fn a_picture_is_drawn_again_and_its_pixels_are_the_same() {
    let folder = Folder::new();
    picture(
        &folder,
        &[
            "--seed",
            "7",
            "--scheduler",
            "euler",
            "--width",
            "72",
            "--guidance-scale",
            "3",
            "--negative-prompt",
            "x",
        ],
    );
    let run = again(&folder, &[]);
    assert_eq!(run.code, Some(0), "{run:?}");
    assert!(
        run.stderr.contains("the pixels are those of a.png"),
        "{}",
        run.stderr
    );
    assert!(folder.read("a.png") == folder.read("b.png"));
    let run = again(&folder, &["--json"]);
    assert_eq!(run.objects()[0]["same_pixels"], true);
}

#[test]
fn picture_k_of_several_is_drawn_again_alone() {
    let folder = Folder::new();
    picture(&folder, &["--seed", "7", "-n", "3"]);
    let run = folder.run(["txt2img", "--from", "a-3.png", "-o", "b.png", "--json"]);
    assert_eq!(run.objects()[0]["seed"], 9, "{run:?}");
    assert_eq!(run.objects()[0]["same_pixels"], true, "{run:?}");
}

#[test]
fn other_flags_override_and_the_change_is_told() {
    let folder = Folder::new();
    picture(&folder, &["--seed", "7"]);
    for more in [
        &["--seed", "8"][..],
        &["--steps", "4"],
        &["--scheduler", "ddim", "--steps", "5"],
        &["a dog"],
    ] {
        let run = again(&folder, more);
        assert_eq!(run.code, Some(0), "{run:?}");
        assert!(
            run.stderr.contains("the pixels differ from those of a.png"),
            "{more:?}: {}",
            run.stderr
        );
    }
    for width in [56, 72] {
        let run = again(&folder, &["--width", &width.to_string(), "--json"]);
        assert_eq!(run.objects()[0]["same_pixels"], false);
        assert_eq!(pixels(&folder.read("b.png")).width(), width);
        let said = "the size differs from that of a.png";
        assert!(run.stderr.contains(said), "{}", run.stderr);
        assert!(!run.stderr.contains("warning"), "{}", run.stderr);
    }
}

#[test]
fn a_run_of_listed_steps_is_drawn_again_and_steps_replace_the_list() {
    for list in [
        "--timesteps=999,500,1",
        "--sigmas=9,1.5,0.25,0",
        "--timesteps=500",
    ] {
        let folder = Folder::new();
        let model = asset("tiny-sd");
        let first = [
            "txt2img", "a cat", "--model", &model, "-o", "a.png", "--seed=7",
        ];
        let more = [
            "--scheduler=euler",
            list,
            "--guidance-rescale=0.7",
            "--scheduler-option=timestep_spacing=trailing",
            "--scheduler-option=steps_offset=1",
        ];
        let run = folder.run([&first[..], &more].concat());
        assert_eq!(run.code, Some(0), "{run:?}");
        let run = again(&folder, &["--json"]);
        assert_eq!(run.code, Some(0), "{run:?}");
        assert_eq!(run.objects()[0]["same_pixels"], true, "{run:?}");
        for (length, steps) in [
            ("--steps=5", 5),
            ("--sigmas=9,4,2,1,0", 4),
            ("--timesteps=400", 1),
        ] {
            let run = again(&folder, &["--json", length]);
            assert_eq!(run.code, Some(0), "{run:?}");
            assert_eq!(run.objects()[0]["steps"], steps, "{run:?}");
            assert_eq!(run.objects()[0]["same_pixels"], false, "{run:?}");
        }
    }
}

#[test]
fn what_another_scheduler_has_no_use_for_is_left_out_and_named() {
    let folder = Folder::new();
    picture(
        &folder,
        &[
            "--scheduler=ddim",
            "--eta=0.5",
            "--scheduler-option=set_alpha_to_one=false",
            "--scheduler-option=timestep_spacing=trailing",
        ],
    );
    let run = again(&folder, &["--json", "--scheduler=euler"]);
    assert_eq!(run.code, Some(0), "{run:?}");
    let said = "euler has no use for what a.png sets: left out --eta, --scheduler-option set_alpha_to_one=false\n";
    assert!(run.stderr.contains(said), "{}", run.stderr);
    // What is left counts, and the new picture remembers no more than that.
    let chunk = &crate::support::texts(&folder.read("b.png"))["diffuse"];
    let chunk: serde_json::Value = serde_json::from_str(chunk).expect("JSON");
    assert_eq!(chunk["settings"]["eta"], serde_json::Value::Null);
    assert_eq!(
        chunk["settings"]["scheduler_option"],
        serde_json::json!(["timestep_spacing=trailing"])
    );
    assert_eq!(chunk["scheduler"]["config"]["timestep_spacing"], "trailing");
    // Its own scheduler, or one that takes all of it, drops nothing.
    for scheduler in ["--scheduler=ddim", "--seed=1"] {
        let run = again(&folder, &[scheduler]);
        assert!(!run.stderr.contains("left out"), "{}", run.stderr);
    }
}

#[test]
fn a_list_of_steps_that_another_scheduler_does_not_take_leaves_their_number() {
    let folder = Folder::new();
    let model = asset("tiny-sd");
    let first = ["txt2img", "a cat", "--model", &model, "-o", "a.png"];
    let run = folder.run([&first[..], &["--scheduler=euler", "--sigmas=9,4,1,0"]].concat());
    assert_eq!(run.code, Some(0), "{run:?}");
    for (more, steps) in [(&[][..], 3), (&["--steps=2"], 2)] {
        let run = again(&folder, &[&["--json", "--scheduler=unipc"], more].concat());
        assert_eq!(run.code, Some(0), "{run:?}");
        assert_eq!(run.objects()[0]["steps"], steps, "{run:?}");
        assert!(run.stderr.contains("left out --sigmas\n"), "{}", run.stderr);
    }
    // What was typed now is not dropped but refused.
    let run = again(&folder, &["--scheduler=unipc", "--sigmas=3,0"]);
    assert_eq!(run.code, Some(1), "{run:?}");
    assert!(
        run.stderr.contains("unipc takes no list of sigmas"),
        "{}",
        run.stderr
    );
}

#[test]
fn the_schedule_of_a_picture_is_printed() {
    let folder = Folder::new();
    picture(&folder, &["--scheduler=heun"]);
    let run = folder.run(["txt2img", "--from=a.png", "--print-schedule"]);
    assert_eq!(run.code, Some(0), "{run:?}");
    let line = run.stdout.lines().next().unwrap_or_default();
    assert!(
        line.starts_with("heun (HeunDiscreteScheduler): 3 steps, 5 UNet calls"),
        "{line}"
    );
    assert_eq!(folder.names(), ["a.png"]);
}

#[test]
fn another_model_is_noticed() {
    let folder = Folder::new();
    picture(&folder, &["--seed", "7"]);
    let chunk = crate::support::texts(&folder.read("a.png"))["diffuse"].clone();
    let hash = chunk
        .split("\"unet/config.json\":\"")
        .nth(1)
        .expect("it is hashed")[..64]
        .to_owned();
    let spoiled =
        chunk
            .replace(&hash, &"0".repeat(64))
            .replacen("\"sha256\":\"", "\"sha256\":\"0", 1);
    folder.write("a.png", png_with(&pixels(&folder.read("a.png")), &spoiled));
    let run = again(&folder, &[]);
    assert_eq!(run.code, Some(0), "{run:?}");
    assert!(
        run.stderr
            .contains("the model is not the one of a.png: unet/config.json differ"),
        "{}",
        run.stderr
    );
}

#[test]
fn a_picture_of_the_other_command_says_what_to_type() {
    let folder = Folder::new();
    let model = asset("tiny-ddpm");
    let run = folder.run(["ddpm", "--model", &model, "--steps", "2", "-o", "a.png"]);
    assert_eq!(run.code, Some(0), "{run:?}");
    let run = again(&folder, &[]);
    assert_eq!(run.code, Some(1));
    assert!(
        run.stderr.contains("type: diffuse ddpm --from a.png"),
        "{}",
        run.stderr
    );
    let run = folder.run(["ddpm", "--from", "a.png", "-o", "b.png", "--json"]);
    assert_eq!(run.objects()[0]["same_pixels"], true, "{run:?}");
}

/// A PNG whose chunk is `chunk`.
fn png_with(picture: &image::RgbImage, chunk: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, picture.width(), picture.height());
    encoder.set_color(png::ColorType::Rgb);
    encoder
        .add_itxt_chunk("diffuse".to_owned(), chunk.to_owned())
        .expect("it is a keyword");
    let mut writer = encoder.write_header().expect("it encodes");
    writer.write_image_data(picture).expect("it encodes");
    writer.finish().expect("it encodes");
    bytes
}

#[track_caller]
fn refused(folder: &Folder, part: &str) {
    let run = again(folder, &["-q"]);
    assert_eq!((run.code, run.stdout.as_str()), (Some(1), ""), "{run:?}");
    assert_eq!(run.stderr.lines().count(), 1, "{}", run.stderr);
    assert!(
        run.stderr.contains("a.png") && run.stderr.contains(part),
        "{part:?}: {}",
        run.stderr
    );
    assert!(!folder.names().contains(&"b.png".to_owned()));
}

#[test]
fn files_that_are_no_pictures_of_ours_are_one_line() {
    let folder = Folder::new();
    refused(&folder, "cannot be read");
    for bytes in [&b""[..], b"not a PNG", b"\x89PNG\r\n\x1a\n", &[0xff; 100]] {
        folder.write("a.png", bytes);
        refused(&folder, "is not a PNG that can be read");
    }
    let small = image::RgbImage::new(2, 2);
    let cases = [
        ("", "not JSON"),
        ("{", "not JSON"),
        ("[1]", "no command"),
        ("{\"command\": \"rm\"}", "no command"),
        (
            "{\"command\": \"txt2img\", \"settings\": {\"prompt\": 3}}",
            "give a text",
        ),
        (
            "{\"command\": \"txt2img\", \"settings\": {\"prompt\": \"x\", \"steps\": \"-1\"}}",
            "'--steps <N>'",
        ),
        (
            "{\"command\": \"txt2img\", \"settings\": {\"prompt\": \"x\", \"stepz\": 1}}",
            "'--stepz'",
        ),
        (
            "{\"command\": \"txt2img\", \"settings\": {\"prompt\": \"x\", \"-o\": 1}}",
            "no setting",
        ),
    ];
    for (chunk, part) in cases {
        folder.write("a.png", png_with(&small, chunk));
        refused(&folder, part);
    }
    folder.write("a.png", png_with(&small, &"[".repeat(100_000)));
    refused(&folder, "not JSON");
    folder.write("a.png", png_with(&small, &" ".repeat(2 << 20)));
    refused(&folder, "has settings of more than");
    folder.write("a.png", png_with(&small, &" ".repeat(9 << 20)));
    refused(&folder, "a.png");
    std::fs::remove_file(folder.file("a.png")).expect("it is there");
    std::fs::create_dir(folder.file("a.png")).expect("the folder is writable");
    refused(&folder, "is not a file");
}

#[test]
fn a_picture_cannot_choose_where_it_is_written() {
    let folder = Folder::new();
    let model = asset("tiny-sd");
    let chunk = serde_json::json!({"command": "txt2img", "settings": {
        "prompt": "x", "model": model, "steps": 1, "output": "evil.png", "overwrite": true, "parents": true, "grid": "evil2.png",
    }});
    folder.write(
        "a.png",
        png_with(&image::RgbImage::new(2, 2), &chunk.to_string()),
    );
    let run = folder.run(["txt2img", "--from", "a.png", "--seed", "1"]);
    assert_eq!(
        (run.code, run.stdout.as_str()),
        (Some(0), "x-1.png\n"),
        "{run:?}"
    );
    assert_eq!(folder.names(), ["a.png", "x-1.png"]);
}

#[test]
fn from_and_prompts_exclude_each_other_and_no_metadata_leaves_nothing_to_replay() {
    let folder = Folder::new();
    picture(&folder, &["--no-metadata"]);
    refused(&folder, "carries no settings");
    let both = again(&folder, &["--prompts", "-"]);
    assert_eq!(both.code, Some(2), "{both:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn any_chunk_ends_with_a_documented_exit_code_and_one_line(
        key in prop_oneof![Just("steps".to_owned()), Just("seed".to_owned()), Just("width".to_owned()), Just("prompt".to_owned()), any::<String>()],
        value in prop_oneof![any::<String>().prop_map(serde_json::Value::from), any::<i64>().prop_map(serde_json::Value::from), any::<f64>().prop_map(serde_json::Value::from)],
    ) {
        let folder = Folder::new();
        let mut settings = serde_json::json!({"prompt": "x", "model": "./no-model"});
        settings[key] = value;
        let chunk = serde_json::json!({"command": "txt2img", "settings": settings}).to_string();
        folder.write("a.png", png_with(&image::RgbImage::new(2, 2), &chunk));
        let run = again(&folder, &[]);
        prop_assert_eq!(run.code, Some(1), "{:?}", run);
        prop_assert_eq!(run.stderr.lines().count(), 1, "{:?}", run);
        prop_assert!(!run.stderr.contains("panicked"), "{:?}", run);
        let run = again(&folder, &["--dry-run", "--model", &asset("tiny-sd")]);
        prop_assert!(matches!(run.code, Some(0 | 1)), "{:?}", run);
        prop_assert!(!run.stderr.contains("panicked"), "{:?}", run);
    }
}

#[test]
fn a_picture_that_takes_the_place_of_its_own_model_is_compared_with_what_was_there() {
    let folder = Folder::new();
    picture(&folder, &["--seed", "7"]);
    let onto_itself = [
        "txt2img",
        "--from",
        "a.png",
        "-o",
        "a.png",
        "--overwrite",
        "--json",
    ];
    for (seed, same) in [("8", false), ("8", true)] {
        let run = folder.run([&onto_itself[..], &["--seed", seed]].concat());
        assert_eq!(run.objects()[0]["same_pixels"], same, "{run:?}");
    }
}

#[test]
fn a_picture_may_come_through_a_pipe() {
    use std::io::Write;
    let folder = Folder::new();
    picture(&folder, &["--seed", "7"]);
    let feed = |bytes: &[u8]| {
        let args = ["txt2img", "--from", "-", "-o", "b.png", "--device", "cpu"];
        let mut command = folder.command(args.iter().chain(&["--overwrite"]));
        let piped = command.stdin(Stdio::piped()).stderr(Stdio::piped());
        let mut child = piped.spawn().expect("it starts");
        let mut stdin = child.stdin.take().expect("it is piped");
        // It may have refused what came first.
        let _ = stdin.write_all(bytes);
        drop(stdin);
        Run::from(child.wait_with_output().expect("it ends"))
    };
    let run = feed(&folder.read("a.png"));
    assert_eq!(run.code, Some(0), "{run:?}");
    let said = "the pixels are those of the picture on stdin";
    assert!(run.stderr.contains(said), "{}", run.stderr);
    assert!(folder.read("a.png") == folder.read("b.png"));
    for no_picture in [&b""[..], b"mine"] {
        let run = feed(no_picture);
        assert_eq!(run.code, Some(1), "{run:?}");
        let said = "diffuse: the picture on stdin is not a PNG that can be read";
        assert!(run.stderr.starts_with(said), "{}", run.stderr);
    }
}

#[test]
fn a_model_that_has_moved_is_told_to_be_the_pictures() {
    let folder = Folder::new();
    copy(Path::new(&asset("tiny-sd")), &folder.file("m"));
    let first = ["txt2img", "a cat", "--model", "./m", "-o", "a.png"];
    let run = folder.run([&first[..], &["--steps=1", "--seed=7"]].concat());
    assert_eq!(run.code, Some(0), "{run:?}");
    std::fs::rename(folder.file("m"), folder.file("n")).expect("it is there");
    let run = again(&folder, &[]);
    assert_eq!(run.code, Some(1), "{run:?}");
    let said =
        "diffuse: the model that a.png names; --model gives another: \"./m\" is no folder here";
    assert!(run.stderr.starts_with(said), "{}", run.stderr);
    assert_eq!(again(&folder, &["--model", "./n"]).code, Some(0));
    let run = again(&folder, &["--model", "./o"]);
    assert!(
        run.stderr.starts_with("diffuse: \"./o\" is no folder"),
        "{}",
        run.stderr
    );
}

#[test]
fn what_was_made_beside_a_picture_is_told_from_one() {
    let folder = Folder::new();
    for film in ["film.png", "film.gif"] {
        let film = format!("--animate={film}");
        picture(
            &folder,
            &["--save-steps=1", &film, "--grid=all.png", "--overwrite"],
        );
    }
    for (name, what) in [
        ("all.png", "it is a contact sheet; give one of its pictures"),
        ("film.png", "it was made beside a picture"),
        ("film.gif", "it was made beside a picture"),
        ("a-step-001.png", "it was made beside a picture"),
    ] {
        let run = folder.run(["txt2img", "--from", name]);
        assert_eq!(run.code, Some(1), "{run:?}");
        let said = format!("diffuse: {name} carries no settings: {what}");
        assert!(run.stderr.starts_with(&said), "{}", run.stderr);
    }
}

#[test]
fn verbose_before_the_command_is_the_commands() {
    let folder = Folder::new();
    picture(&folder, &["--seed", "7"]);
    let words = [
        "-v", "txt2img", "--from", "a.png", "-o", "b.png", "--device", "cpu",
    ];
    let run = folder.run(words);
    assert_eq!(run.code, Some(0), "{run:?}");
    assert!(run.stderr.contains("load component"), "{}", run.stderr);
    let last = again(&folder, &["-v"]);
    assert_eq!(run.stderr.lines().count(), last.stderr.lines().count());
}

#[test]
fn an_empty_prompt_overrides_the_pictures_own() {
    let folder = Folder::new();
    picture(&folder, &["--seed", "7"]);
    let run = again(&folder, &["", "--json"]);
    assert_eq!(run.objects()[0]["same_pixels"], false, "{run:?}");
}
