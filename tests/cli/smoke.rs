//! Both commands, argv to PNG, on the small checkpoints that come with the program. No test reaches the network:
//! see `support`.
use crate::support::{Folder, Run, asset, copy};
use clap::ValueEnum;
use diffuse::engine::schedulers::SchedulerKind;
use std::fs;
use std::path::Path;
use std::process::Stdio;

/// `diffuse ddpm` or `diffuse txt2img` on its small checkpoint in 3 steps.
fn args<'a>(command: &'a str, more: &[&'a str]) -> Vec<String> {
    let (prompt, model) = match command {
        "txt2img" => (&["a cat"][..], asset("tiny-sd")),
        _ => (&[][..], asset("tiny-ddpm")),
    };
    let mut args: Vec<String> = vec![command.into()];
    args.extend(prompt.iter().map(|&word| word.into()));
    args.extend(["--model".into(), model, "--steps".into(), "3".into()]);
    args.extend(["--device".into(), "cpu".into()]);
    args.extend(more.iter().map(|&word| word.into()));
    args
}

#[track_caller]
fn works(folder: &Folder, command: &str, more: &[&str]) -> Run {
    let run = folder.run(args(command, more));
    assert_eq!(run.code, Some(0), "{command} {more:?}: {run:?}");
    run
}

fn bytes(folder: &Folder, name: &str) -> Vec<u8> {
    fs::read(folder.file(name))
        .unwrap_or_else(|err| panic!("{name}: {err}; there are {:?}", folder.names()))
}

const COMMANDS: [&str; 2] = ["ddpm", "txt2img"];

#[test]
fn a_seed_draws_the_same_picture_again_and_another_seed_another() {
    for command in COMMANDS {
        let folder = Folder::new();
        for (seed, name) in [("7", "a.png"), ("7", "b.png"), ("8", "c.png")] {
            let run = works(&folder, command, &["--seed", seed, "-o", name]);
            assert_eq!(
                run.stdout,
                format!("{name}\n"),
                "stdout carries the path alone"
            );
        }
        assert!(
            bytes(&folder, "a.png") == bytes(&folder, "b.png"),
            "{command}"
        );
        assert!(
            bytes(&folder, "a.png") != bytes(&folder, "c.png"),
            "{command}"
        );
    }
}

#[test]
fn picture_k_of_several_equals_the_picture_of_its_own_seed() {
    for command in COMMANDS {
        for seed in [41, u64::MAX] {
            let folder = Folder::new();
            let text = seed.to_string();
            let run = works(
                &folder,
                command,
                &["--seed", &text, "-n", "3", "-o", "all.png"],
            );
            assert_eq!(run.stdout, "all-1.png\nall-2.png\nall-3.png\n");
            for k in 0..3u64 {
                let alone = seed.wrapping_add(k).to_string();
                works(
                    &folder,
                    command,
                    &["--seed", &alone, "-o", "one.png", "--overwrite"],
                );
                assert!(
                    bytes(&folder, "one.png") == bytes(&folder, &format!("all-{}.png", k + 1)),
                    "{command} {seed} {k}"
                );
            }
        }
    }
}

#[test]
fn the_number_of_threads_changes_no_pixel() {
    for command in COMMANDS {
        let folder = Folder::new();
        for (threads, name) in [("1", "a.png"), ("3", "b.png")] {
            works(
                &folder,
                command,
                &["--seed", "1", "--threads", threads, "-o", name],
            );
        }
        assert!(
            bytes(&folder, "a.png") == bytes(&folder, "b.png"),
            "{command}"
        );
    }
}

#[test]
fn width_and_height_are_the_pictures() {
    let folder = Folder::new();
    works(
        &folder,
        "txt2img",
        &["--width", "72", "--height", "56", "-o", "a.png"],
    );
    let size = image::image_dimensions(folder.file("a.png")).expect("it is a PNG");
    assert_eq!(size, (72, 56));
}

#[test]
fn every_scheduler_draws_with_both_commands() {
    let kinds: Vec<&str> = SchedulerKind::value_variants()
        .iter()
        .filter(|kind| !kind.has_own_range())
        .map(|kind| kind.name())
        .collect();
    for command in COMMANDS {
        let folder = Folder::new();
        for kind in &kinds {
            let name = format!("{kind}.png");
            // PNDM of an unconditional model needs 4 steps or more.
            works(
                &folder,
                command,
                &[
                    "--steps",
                    "5",
                    "--seed",
                    "1",
                    "--scheduler",
                    kind,
                    "-o",
                    &name,
                ],
            );
        }
        assert_eq!(folder.names().len(), kinds.len());
    }
}

#[test]
fn names_are_made_of_prompt_or_model_and_seed_and_never_collide() {
    let folder = Folder::new();
    for name in ["a-cat-7.png", "a-cat-7-2.png", "a-cat-7-3.png"] {
        assert_eq!(
            works(&folder, "txt2img", &["--seed", "7"]).stdout,
            format!("{name}\n")
        );
    }
    assert_eq!(
        works(&folder, "ddpm", &["--seed", "7"]).stdout,
        "tiny-ddpm-7.png\n"
    );
    let several = works(&folder, "ddpm", &["--seed", "8", "-n", "2"]);
    assert_eq!(several.stdout, "tiny-ddpm-8.png\ntiny-ddpm-9.png\n");
    assert_eq!(folder.names().len(), 6);
}

#[test]
fn two_processes_that_want_one_name_both_keep_their_picture() {
    let folder = Folder::new();
    let spawn = || {
        folder
            .command(args("ddpm", &["--seed", "7", "-q"]))
            .stdout(Stdio::piped())
            .spawn()
    };
    let all: Vec<_> = (0..3)
        .map(|_| spawn().expect("the program starts"))
        .collect();
    let mut names: Vec<String> = all
        .into_iter()
        .map(|child| Run::from(child.wait_with_output().expect("it ends")).stdout)
        .collect();
    names.sort();
    assert_eq!(
        names,
        [
            "tiny-ddpm-7-2.png\n",
            "tiny-ddpm-7-3.png\n",
            "tiny-ddpm-7.png\n"
        ]
    );
}

#[test]
fn a_drawn_seed_is_reported_and_repeats_the_picture() {
    let folder = Folder::new();
    let run = works(&folder, "ddpm", &[]);
    let seed = run
        .stdout
        .strip_prefix("tiny-ddpm-")
        .and_then(|name| name.strip_suffix(".png\n"));
    let seed = seed.expect("the name ends in the seed");
    assert!(seed.parse::<u32>().is_ok(), "{seed} is below 2^32");
    assert!(
        run.stderr.contains(&format!("seed {seed}")),
        "{}",
        run.stderr
    );
    works(&folder, "ddpm", &["--seed", seed, "-o", "again.png"]);
    assert!(bytes(&folder, "again.png") == bytes(&folder, run.stdout.trim_end()));
}

#[test]
fn the_log_line_has_what_repeats_the_run_and_there_is_no_bar_in_a_pipe() {
    let run = works(
        &Folder::new(),
        "txt2img",
        &["--seed", "7", "--scheduler", "ddim"],
    );
    for part in ["tiny-sd", "seed 7", "ddim", "3 steps", "f32", "cpu"] {
        assert!(
            run.stderr.contains(part),
            "{part:?} is not in {}",
            run.stderr
        );
    }
    assert!(!run.stderr.contains(['\r', '\x1b']), "{:?}", run.stderr);
}

#[test]
fn quiet_is_silent_and_rust_log_and_verbose_say_more() {
    for command in COMMANDS {
        let folder = Folder::new();
        let quiet = folder
            .command(args(command, &["--quiet"]))
            .env("RUST_LOG", "trace")
            .output();
        let quiet: Run = quiet.expect("the program starts").into();
        assert_eq!((quiet.code, quiet.stderr.as_str()), (Some(0), ""));
        let usual = works(&folder, command, &[]).stderr.len();
        assert!(works(&folder, command, &["-v"]).stderr.len() > usual);
        let silenced = folder
            .command(args(command, &[]))
            .env("RUST_LOG", "error")
            .output();
        assert_eq!(Run::from(silenced.expect("the program starts")).stderr, "");
        let wrong = folder
            .command(args(command, &[]))
            .env("RUST_LOG", "diffuse=loud")
            .output();
        assert!(
            Run::from(wrong.expect("the program starts"))
                .stderr
                .contains("RUST_LOG")
        );
    }
}

#[test]
fn a_revision_of_a_model_that_is_here_is_said_to_be_of_no_use() {
    let folder = Folder::new();
    let model = asset("tiny-ddpm");
    for (model, name) in [(model.as_str(), "a.png"), ("demo", "b.png")] {
        let flags = ["--model", model, "--revision=v2", "--steps=1", "-o", name];
        let run = folder.run([&["ddpm"], &flags[..]].concat());
        assert_eq!(run.code, Some(0), "{run:?}");
        let said = format!("{model} is not on the hub: --revision v2 is not used");
        assert!(run.stderr.contains(&said), "{}", run.stderr);
    }
}

#[test]
fn overwrite_replaces_what_is_there_and_nothing_else() {
    let folder = Folder::new();
    fs::write(folder.file("a.png"), "old").expect("the folder is writable");
    works(&folder, "ddpm", &["-o", "a.png", "--overwrite"]);
    assert!(image::open(folder.file("a.png")).is_ok());
    assert_eq!(folder.names(), ["a.png"]);
}

#[test]
fn a_reader_that_goes_away_stops_no_picture() {
    let folder = Folder::new();
    let mut child = folder
        .command(args("ddpm", &["-n", "2", "-o", "a.png", "-q"]))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    drop(child.stdout.take());
    let run = Run::from(child.wait_with_output().expect("it ends"));
    assert_eq!((run.code, run.stderr.as_str()), (Some(0), ""));
    assert_eq!(folder.names(), ["a-1.png", "a-2.png"]);
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_stdout_is_a_failure() {
    let folder = Folder::new();
    let full = fs::OpenOptions::new()
        .write(true)
        .open("/dev/full")
        .expect("Linux has it");
    let output = folder
        .command(args("ddpm", &["-o", "a.png"]))
        .stdout(full)
        .output();
    let run = Run::from(output.expect("the program starts"));
    assert_eq!(run.code, Some(1));
    assert!(run.stderr.contains("writing to stdout"), "{}", run.stderr);
}

/// A copy of a small checkpoint that a test may spoil.
fn copied(name: &str, folder: &Folder) {
    copy(Path::new(&asset(name)), &folder.file("m"));
}

/// The command fails with exit code 1 and one line that has all `parts`, and writes nothing.
#[track_caller]
fn refuses(folder: &Folder, args: &[&str], parts: &[&str]) {
    let run = folder.run([args, &["--model", "m", "-q"]].concat());
    assert_eq!((run.code, run.stdout.as_str()), (Some(1), ""), "{run:?}");
    assert_eq!(run.stderr.lines().count(), 1, "{}", run.stderr);
    for part in parts {
        assert!(
            run.stderr.contains(part),
            "{part:?} is not in {}",
            run.stderr
        );
    }
    assert_eq!(folder.names(), ["m"]);
}

const WEIGHTS: &str = "diffusion_pytorch_model.safetensors";

#[test]
fn spoiled_weights_are_named() {
    type Spoil = fn(&mut Vec<u8>);
    let spoils: [Spoil; 5] = [
        |bytes| bytes.truncate(bytes.len() / 2),
        |bytes| bytes.truncate(5),
        Vec::clear,
        |bytes| bytes[..8].fill(0xff),
        |bytes| bytes[8] = b'#',
    ];
    for spoil in spoils {
        let folder = Folder::new();
        copied("tiny-ddpm", &folder);
        let file = folder.file("m").join("unet").join(WEIGHTS);
        let mut bytes = fs::read(&file).expect("the weights are there");
        spoil(&mut bytes);
        fs::write(&file, bytes).expect("the copy is writable");
        refuses(&folder, &["ddpm"], &[WEIGHTS]);
    }
}

#[test]
fn weights_that_are_no_numbers_end_in_an_error_and_not_in_a_black_picture() {
    let folder = Folder::new();
    copied("tiny-ddpm", &folder);
    let file = folder.file("m").join("unet").join(WEIGHTS);
    let mut bytes = fs::read(&file).expect("the weights are there");
    let header = u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes")) as usize;
    // All bits set is a NaN in every width of float.
    bytes[8 + header..].fill(0xff);
    fs::write(&file, bytes).expect("the copy is writable");
    refuses(&folder, &["ddpm", "--steps", "2"], &["finite"]);
}

#[test]
fn missing_and_broken_files_are_named() {
    for (command, model, file) in [
        ("ddpm", "tiny-ddpm", "unet/config.json"),
        ("ddpm", "tiny-ddpm", "scheduler/scheduler_config.json"),
        ("txt2img", "tiny-sd", "unet/config.json"),
        ("txt2img", "tiny-sd", "vae/config.json"),
        ("txt2img", "tiny-sd", "text_encoder/config.json"),
        ("txt2img", "tiny-sd", "scheduler/scheduler_config.json"),
    ] {
        let args: &[&str] = if command == "ddpm" {
            &["ddpm"]
        } else {
            &["txt2img", "a cat"]
        };
        let name = Path::new(file)
            .file_name()
            .and_then(|name| name.to_str())
            .expect("it has a name");
        let folder = Folder::new();
        copied(model, &folder);
        for broken in [
            "",
            "{",
            "[]",
            "{\"layers_per_block\": \"two\", \"beta_start\": \"low\", \"hidden_size\": {}}",
        ] {
            fs::write(folder.file("m").join(file), broken).expect("the copy is writable");
            refuses(&folder, args, &[name]);
        }
        fs::remove_file(folder.file("m").join(file)).expect("it was there");
        refuses(
            &folder,
            args,
            &[file.split('/').next().expect("it has a component")],
        );
    }
}

#[test]
fn more_steps_than_the_training_had_are_refused() {
    let folder = Folder::new();
    copied("tiny-ddpm", &folder);
    for steps in ["1001", "4294967295"] {
        refuses(&folder, &["ddpm", "--steps", steps], &[steps, "1000"]);
    }
}

// Elsewhere nothing tells what is free.
#[cfg(target_os = "linux")]
#[test]
fn a_size_beyond_the_memory_is_refused_at_once() {
    let folder = Folder::new();
    copied("tiny-sd", &folder);
    let args = [
        "txt2img", "a cat", "--model", "m", "-q", "--width", "65536", "--height", "65536",
    ];
    // However much this machine has.
    let run = folder.run_after("ulimit -v 8000000", args);
    assert_eq!((run.code, run.stdout.as_str()), (Some(1), ""), "{run:?}");
    assert!(run.stderr.contains("65536"), "{run:?}");
    assert_eq!(run.stderr.lines().count(), 1, "{run:?}");
    assert_eq!(folder.names(), ["m"]);
}

#[test]
fn a_model_of_the_other_command_is_refused() {
    let folder = Folder::new();
    copied("tiny-ddpm", &folder);
    refuses(&folder, &["txt2img", "a cat"], &[]);
    let folder = Folder::new();
    copied("tiny-sd", &folder);
    refuses(&folder, &["ddpm"], &["diffuse txt2img"]);
}

#[test]
fn any_prompt_draws_a_picture() {
    let long = "a very long prompt ".repeat(60);
    for (k, prompt) in ["", " ", "🦊 雪 ñ", "../../x", "a\nb\tc", "(((((", &long]
        .into_iter()
        .enumerate()
    {
        let folder = Folder::new();
        let model = asset("tiny-sd");
        let run = folder.run([
            "txt2img", prompt, "--model", &model, "--steps", "1", "--seed", "1",
        ]);
        assert_eq!(run.code, Some(0), "{k}: {run:?}");
        assert_eq!(folder.names(), [run.stdout.trim_end()], "{k}");
    }
}
