//! What goes wrong, and the one line that says so.
use crate::support::{Folder, asset, copy};
use proptest::prelude::*;
use std::path::Path;

/// Runs `args`; the exit code is `code`, stdout is empty and stderr one line that holds every one of `parts`.
#[track_caller]
fn fails_in(folder: &Folder, args: &[&str], code: i32, parts: &[&str]) {
    let run = folder.run(args);
    assert_eq!(run.code, Some(code), "{args:?}: {run:?}");
    assert_eq!(run.stdout, "", "{args:?}");
    assert_eq!(run.stderr.lines().count(), 1, "{args:?}: {}", run.stderr);
    assert!(
        run.stderr.starts_with("diffuse: "),
        "{args:?}: {}",
        run.stderr
    );
    for part in parts {
        assert!(
            run.stderr.contains(part),
            "{args:?}: {part:?} is not in {}",
            run.stderr
        );
    }
}

#[track_caller]
fn fails(args: &[&str], code: i32, parts: &[&str]) {
    let folder = Folder::new();
    fails_in(&folder, args, code, parts);
    assert_eq!(folder.names(), [""; 0], "nothing is left behind");
}

#[test]
fn steps_below_one_are_refused() {
    for steps in ["0", "-1", "1.5", "many", ""] {
        let given = format!("'{steps}' for '--steps <N>': give a whole number of 1 or more");
        fails(
            &["ddpm", "--steps", steps],
            2,
            &[&given, "diffuse ddpm --help"],
        );
    }
}

#[test]
fn seeds_outside_64_bits_are_refused() {
    for seed in ["-1", "18446744073709551616", "0x7", "one"] {
        let given = format!(
            "'{seed}' for '--seed <N>': give a whole number from 0 to 18446744073709551615"
        );
        fails(&["ddpm", "--seed", seed], 2, &[&given]);
    }
}

#[test]
fn numbers_of_pictures_and_threads_have_limits() {
    for images in ["0", "-2", "100001"] {
        let given =
            format!("'{images}' for '--num-images <N>': give a whole number from 1 to 100000");
        fails(&["ddpm", "-n", images], 2, &[&given]);
    }
    for threads in ["0", "1025"] {
        let given = format!("'{threads}' for '--threads <N>': give a whole number from 1 to 1024");
        fails(&["ddpm", "--threads", threads], 2, &[&given]);
    }
}

#[test]
fn sides_that_are_no_multiple_of_8_are_refused_with_the_nearest() {
    fails(
        &["txt2img", "a cat", "--width", "513"],
        2,
        &["'513' for '--width <PIXELS>': not a multiple of 8; try 512 or 520"],
    );
    fails(
        &["txt2img", "a cat", "--height", "9"],
        2,
        &["'9' for '--height <PIXELS>'", "try 8 or 16"],
    );
    for side in ["0", "7", "-8", "65544", "8.5", "wide"] {
        let given =
            format!("'{side}' for '--width <PIXELS>': give a multiple of 8 from 8 to 65536");
        fails(&["txt2img", "a cat", "--width", side], 2, &[&given]);
    }
}

#[test]
fn guidance_that_is_no_number_is_refused() {
    for scale in ["nan", "inf", "-inf", "strong", "1e999"] {
        let given = format!("'{scale}' for '--guidance-scale <SCALE>': give a finite number");
        // With "=", for "-inf" looks like a flag.
        let flag = format!("--guidance-scale={scale}");
        fails(&["txt2img", "a cat", &flag], 2, &[&given]);
    }
}

#[test]
fn unknown_names_are_refused_with_the_known_ones() {
    fails(
        &["ddpm", "--scheduler", "eular"],
        2,
        &[
            "'eular'",
            "ddpm, ddim, pndm, unipc, euler, euler-ancestral, heun, lms",
            "a similar value exists: 'euler'",
        ],
    );
    fails(
        &["txt2img", "a cat", "--scheduler", "DPM++ 2M Karras"],
        2,
        &[
            "'DPM++ 2M Karras'",
            "tip: here that is --scheduler dpmpp-2m --scheduler-option use_karras_sigmas=true",
        ],
    );
    fails(
        &["ddpm", "--dtype", "f64"],
        2,
        &["'f64'", "auto, f32, f16, bf16"],
    );
    for device in ["gpu", "cuda:", "cuda:x", "cuda:-1", ""] {
        fails(
            &["ddpm", "--device", device],
            2,
            &[&format!("'{device}'"), "--device", "cuda:N"],
        );
    }
    fails(
        &["ddpm", "--step", "5"],
        2,
        &["'--step'", "a similar argument exists: '--steps'"],
    );
    fails(
        &["dppm"],
        2,
        &["'dppm'", "a similar subcommand exists: 'ddpm'"],
    );
}

#[test]
fn a_missing_prompt_a_second_prompt_and_an_empty_model_are_usage_errors() {
    fails(&["txt2img"], 2, &["<PROMPT>", "diffuse txt2img --help"]);
    fails(&["txt2img", "a", "cat"], 2, &["unexpected argument 'cat'"]);
    fails(&["ddpm", "a cat"], 2, &["unexpected argument 'a cat'"]);
    fails(
        &["ddpm", "--model", ""],
        2,
        &["a value is required for '--model <MODEL>'"],
    );
}

#[test]
fn quiet_and_verbose_exclude_each_other() {
    fails(
        &["ddpm", "--quiet", "-v"],
        2,
        &["'--quiet' cannot be used with '--verbose...'"],
    );
}

#[test]
fn an_output_that_is_no_png_is_refused() {
    for name in ["cat.jpg", "cat", "cat.", ".png", ""] {
        fails(&["ddpm", "-o", name], 2, &["'--output <PATH>'"]);
    }
    fails(
        &["ddpm", "-o", "cat.jpg"],
        2,
        &["give a name that ends in .png"],
    );
}

#[test]
fn an_output_folder_must_exist() {
    fails(
        &["ddpm", "-o", "no/cat.png"],
        1,
        &[
            "--output no/cat.png",
            "make the folder no first, or add --parents",
        ],
    );
    fails(
        &["ddpm", "-o", "no/"],
        1,
        &["make the folder no first, or add --parents"],
    );
    let folder = Folder::new();
    std::fs::write(folder.file("file"), "").expect("the folder is writable");
    // Some systems tell "not a folder" for what is below a file, others find nothing.
    fails_in(
        &folder,
        &["ddpm", "-o", "file/cat.png"],
        1,
        &["--output file/cat.png", "file is not a folder"],
    );
}

#[cfg(target_os = "linux")]
#[test]
fn an_output_folder_must_be_writable() {
    // Nobody can write there, not even root.
    fails(
        &["ddpm", "-o", "/proc/cat.png"],
        1,
        &["the folder /proc cannot be written"],
    );
    let folder = Folder::new();
    let run = folder
        .command(["ddpm"])
        .current_dir("/proc")
        .output()
        .expect("the program starts");
    let stderr = String::from_utf8_lossy(&run.stderr).into_owned();
    assert_eq!(run.status.code(), Some(1));
    assert!(
        stderr.contains("without --output the picture goes to the current folder"),
        "{stderr}"
    );
}

#[test]
fn an_output_that_exists_is_refused_before_the_model_is_looked_for() {
    let folder = Folder::new();
    for name in ["cat.png", "dog-2.png"] {
        std::fs::write(folder.file(name), "mine").expect("the folder is writable");
    }
    let args = ["ddpm", "--model", "./no-model", "-o"];
    fails_in(
        &folder,
        &[&args[..], &["cat.png"]].concat(),
        1,
        &["cat.png exists; add --overwrite"],
    );
    fails_in(
        &folder,
        &[&args[..], &["dog.png", "-n", "3"]].concat(),
        1,
        &["dog-2.png exists; add --overwrite"],
    );
    assert_eq!(
        std::fs::read(folder.file("cat.png")).expect("it is still there"),
        b"mine"
    );
    // With leave to overwrite, the model is the next thing that is missing.
    fails_in(
        &folder,
        &[&args[..], &["cat.png", "--overwrite"]].concat(),
        1,
        &["./no-model"],
    );
    fails_in(
        &folder,
        &[&args[..], &["dog.png"]].concat(),
        1,
        &["./no-model"],
    );
    assert_eq!(folder.names(), ["cat.png", "dog-2.png"]);
}

#[test]
fn folders_and_devices_are_never_replaced() {
    let folder = Folder::new();
    std::fs::create_dir(folder.file("album.png")).expect("the folder is writable");
    fails_in(
        &folder,
        &["ddpm", "-o", "album.png", "--overwrite"],
        1,
        &["album.png is a folder", "album.png/picture.png"],
    );
}

#[test]
fn an_unknown_model_is_named() {
    fails(&["ddpm", "--model", "./no-model"], 1, &["./no-model"]);
    fails(
        &["txt2img", "a cat", "--model", "/no/model"],
        1,
        &["/no/model"],
    );
}

#[cfg(not(feature = "cuda"))]
#[test]
fn a_build_without_cuda_says_so() {
    for device in ["cuda", "cuda:3"] {
        fails(&["ddpm", "--device", device], 1, &["CUDA", "--device cpu"]);
    }
}

#[test]
fn line_breaks_and_escapes_in_arguments_stay_one_plain_line() {
    fails(
        &["ddpm", "--scheduler", "a\n\nb\x1b[31m"],
        2,
        &["possible values"],
    );
    fails(&["ddpm", "--model", "./no\nmodel\x1b[31m"], 1, &["./no"]);
    let run = Folder::new().run(["ddpm", "--model", "./\x1b[31m"]);
    assert!(!run.stderr.contains('\x1b'), "{:?}", run.stderr);
}

#[cfg(unix)]
#[test]
fn arguments_that_are_no_utf_8_are_usage_errors_or_paths() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    let bad = OsStr::from_bytes(b"\xff\xfe");
    for flag in ["--model", "--scheduler", "--seed", "--device", "-o"] {
        let run = Folder::new().run([OsStr::new("ddpm"), OsStr::new(flag), bad]);
        assert_eq!(run.code, Some(2), "{flag}: {run:?}");
    }
}

fn word() -> impl Strategy<Value = String> {
    let known = prop::sample::select(vec![
        "ddpm",
        "txt2img",
        "help",
        "--steps",
        "--seed",
        "-n",
        "--num-images",
        "--scheduler",
        "--output",
        "-o",
        "--overwrite",
        "--device",
        "--dtype",
        "--revision",
        "--quiet",
        "-q",
        "-v",
        "-vv",
        "--threads",
        "--width",
        "--height",
        "--guidance-scale",
        "--guidance-rescale",
        "--negative-prompt",
        "--prompts",
        "--batch-size",
        "--shard",
        "1/2",
        "--json",
        "--parents",
        "--no-metadata",
        "--scheduler-option",
        "--timesteps",
        "--sigmas",
        "--eta",
        "--print-schedule",
        "999,500,1",
        "timestep_spacing=trailing",
        "--help",
        "--version",
        "--",
        "-",
        "=",
        "--steps=",
        "--seed=-1",
        "0",
        "1",
        "8",
        "-1",
        "1e9",
        "nan",
        "99999999999999999999",
        "cpu",
        "cuda:1",
        "euler",
        "f16",
        "a.png",
        "no/a.png",
        "",
    ]);
    prop_oneof![
        4 => known.prop_map(str::to_owned),
        1 => any::<String>().prop_map(|text| text.replace('\0', "")),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: crate::support::cases(96), failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn any_arguments_end_with_a_documented_exit_code(
        command in prop::sample::select(vec![vec!["ddpm"], vec!["txt2img", "a cat"], vec!["txt2img"], vec![]]),
        words in prop::collection::vec(word(), 0..6),
    ) {
        let mut args: Vec<String> = command.iter().map(|&word| word.to_owned()).collect();
        if !args.is_empty() {
            // A model that is not there ends every run that would otherwise begin.
            args.extend(["--model".to_owned(), "./no-model".to_owned()]);
        }
        args.extend(words);
        let folder = Folder::new();
        let run = folder.run(&args);
        prop_assert!(matches!(run.code, Some(0..=2)), "{:?}: {:?}", args, run);
        prop_assert!(!run.stderr.contains("panicked"), "{:?}: {:?}", args, run);
        prop_assert!(run.code == Some(0) || !run.stderr.is_empty(), "{:?}", args);
        prop_assert_eq!(folder.names(), Vec::<String>::new(), "{:?}", args);
    }
}

#[test]
fn words_that_do_not_go_together_cannot_be_meant() {
    for args in [
        &["ddpm", "--json", "-o", "-"][..],
        &["ddpm", "--save-steps", "1", "-o", "-"],
        &["txt2img", "a cat", "--prompts", "rows.txt"],
    ] {
        let run = Folder::new().run(args);
        assert_eq!(run.code, Some(2), "{run:?}");
        assert_eq!(run.stderr.lines().count(), 1, "{run:?}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_word_that_is_not_utf8_is_named() {
    use std::os::unix::ffi::OsStrExt;
    let name = std::ffi::OsStr::from_bytes(b"caf\xe9.png");
    let run = Folder::new().run(["txt2img".as_ref(), "a cat".as_ref(), "-o".as_ref(), name]);
    assert_eq!(run.code, Some(2), "{run:?}");
    let said = r#""caf\xE9.png" is not UTF-8; write names and prompts in UTF-8"#;
    assert!(run.stderr.contains(said), "{}", run.stderr);
}

#[test]
fn a_git_lfs_pointer_is_told_from_a_file() {
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n";
    for file in [
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
    ] {
        let folder = Folder::new();
        copy(Path::new(&asset("tiny-ddpm")), &folder.file("model"));
        folder.write(&format!("model/{file}"), pointer);
        let run = folder.run(["ddpm", "--model", "model", "--steps", "1"]);
        assert_eq!(run.code, Some(1), "{run:?}");
        let said = format!("model/{file} is a Git LFS pointer");
        assert!(run.stderr.contains(&said), "{}", run.stderr);
    }
}

#[test]
fn missing_weights_are_told_before_any_are_read_with_what_lies_in_their_place() {
    let folder = Folder::new();
    copy(Path::new(&asset("tiny-sd")), &folder.file("model"));
    // The text tower, which is read first, is broken.
    folder.write("model/text_encoder/model.safetensors", "no tensors");
    let unet = folder.file("model/unet");
    let flax = unet.join("diffusion_flax_model.msgpack");
    std::fs::rename(unet.join("diffusion_pytorch_model.safetensors"), flax).expect("a free name");
    let run = folder.run(["txt2img", "a cat", "--model", "model", "--steps", "1"]);
    assert_eq!(run.code, Some(1), "{run:?}");
    let last = run.stderr.lines().last().unwrap_or_default();
    assert!(
        last.starts_with("diffuse: model has no weights for unet: "),
        "{last}"
    );
    assert!(
        last.ends_with("; there is diffusion_flax_model.msgpack"),
        "{last}"
    );
}

#[test]
fn a_folder_of_the_hubs_cache_is_told_where_its_model_is() {
    let folder = Folder::new();
    let snapshot = "models--o--n/snapshots/0123";
    std::fs::create_dir_all(folder.file("models--o--n/snapshots")).expect("a new folder");
    copy(Path::new(&asset("tiny-ddpm")), &folder.file(snapshot));
    for given in ["models--o--n", "models--o--n/snapshots"] {
        let run = folder.run(["ddpm", "--model", given]);
        let said = format!("it is a folder of the hub's cache, with a model in {snapshot}");
        assert!(run.stderr.contains(&said), "{}", run.stderr);
    }
}

#[test]
fn a_prompt_without_quotes_is_told_of_them() {
    fails(
        &["-v", "txt2img", "a", "fox"],
        2,
        &["put quotes around a prompt", "(see diffuse txt2img --help)"],
    );
    fails(
        &["txt2img", "a", "fox"],
        2,
        &["'fox'", "put quotes around a prompt of several words"],
    );
}

#[test]
fn a_file_that_is_missing_is_called_so() {
    for more in [&[][..], &["--config", "a/b"]] {
        let args = [
            &["txt2img", "a cat", "--model", "models/sd15.safetensors"],
            more,
        ]
        .concat();
        fails(&args, 1, &["there is no file models/sd15.safetensors"]);
    }
}

#[test]
fn the_address_of_a_model_in_one_file_is_told_how_it_is_opened() {
    let address = "https://huggingface.co/o/n/blob/main/sd15.safetensors";
    let parts = [address, "download it and give its path"];
    fails(&["txt2img", "a cat", "--model", address], 1, &parts);
}

#[cfg(target_os = "linux")]
#[test]
fn a_limit_on_memory_is_seen_before_the_drawing() {
    let folder = Folder::new();
    let args = [
        "txt2img",
        "a cat",
        "--model",
        "demo",
        "--width",
        "4096",
        "--height",
        "4096",
        "--threads",
        "1",
    ];
    let run = folder.run_after("ulimit -v 4000000", args);
    assert_eq!(run.code, Some(1), "{run:?}");
    assert!(run.stderr.contains("of memory and"), "{run:?}");
    assert_eq!(folder.names(), [""; 0]);
}

#[cfg(target_os = "linux")]
#[test]
fn a_limit_on_the_size_of_files_is_told_and_leaves_nothing() {
    let folder = Folder::new();
    let args = [
        "txt2img", "a cat", "--model", "demo", "--steps", "1", "-o", "a.png",
    ];
    // Blocks of 512 bytes.
    let run = folder.run_after("ulimit -f 4", args);
    assert_eq!(run.code, Some(1), "{run:?}");
    assert!(run.stderr.contains("a.png: File too large"), "{run:?}");
    assert_eq!(folder.names(), [""; 0]);
}

#[test]
fn a_word_that_begins_with_a_dash_is_told_how_it_is_given() {
    let folder = Folder::new();
    for args in [&["txt2img", "x", "-o", "-x.png"][..], &["txt2img", "-fox"]] {
        let run = folder.run(args);
        assert_eq!(run.code, Some(2), "{run:?}");
        assert!(
            run.stderr.contains("--flag=VALUE") && !run.stderr.contains("'-- -"),
            "{run:?}"
        );
    }
    // This is a flag that there is not.
    let run = folder.run(["txt2img", "--sampler", "euler"]);
    let said = "diffuse: unexpected argument '--sampler' found (see diffuse txt2img --help)\n";
    assert_eq!(run.stderr, said);
}
