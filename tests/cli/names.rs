//! Where pictures go: files, folders, patterns and stdout.
use crate::support::{Folder, Run, asset, pixels};
use std::path::{Path, PathBuf};

fn ddpm(folder: &Folder, more: &[&str]) -> Run {
    let model = asset("tiny-ddpm");
    let args = [
        "ddpm", "--model", &model, "--steps", "2", "--seed", "7", "--device", "cpu",
    ];
    folder.run([&args, more].concat())
}

#[test]
fn a_folder_gets_made_up_names_and_is_made_on_request() {
    let folder = Folder::new();
    let refused = ddpm(&folder, &["-o", "a/b/"]);
    assert_eq!(refused.code, Some(1));
    let run = ddpm(&folder, &["-o", "a/b/", "--parents"]);
    let path = |run: &Run| PathBuf::from(run.stdout.strip_suffix('\n').expect("a line"));
    assert_eq!(run.code, Some(0));
    assert_eq!(path(&run), Path::new("a/b/tiny-ddpm-7.png"));
    // A folder that exists needs no slash at its end.
    let run = ddpm(&folder, &["-o", "a/b"]);
    assert_eq!(path(&run), Path::new("a/b/tiny-ddpm-7-2.png"));
}

#[test]
fn a_run_that_draws_nothing_makes_no_folder() {
    let folder = Folder::new();
    let (model, wrong) = (asset("tiny-ddpm"), "./no-model");
    for (model, more) in [
        (wrong, &["-o", "a/b/c.png"][..]),
        (wrong, &["--grid", "a/sheet.png"]),
        (wrong, &["--animate", "a/film.gif"]),
        (&model, &["-o", "a/b/", "--width", "7"]),
    ] {
        let args = [&["ddpm", "--model", model, "--parents"], more].concat();
        assert_ne!(folder.run(&args).code, Some(0), "{args:?}");
        assert_eq!(folder.names(), Vec::<String>::new(), "{args:?}");
    }
    // What cannot become a folder is told at once.
    std::fs::write(folder.path().join("file"), "").unwrap();
    let run = ddpm(&folder, &["-o", "file/b/c.png", "--parents"]);
    assert_eq!(run.code, Some(1), "{run:?}");
    assert!(run.stderr.contains("file/b"), "{run:?}");
}

#[test]
fn a_pattern_is_filled_for_each_picture() {
    let folder = Folder::new();
    let run = ddpm(
        &folder,
        &[
            "-o",
            "{model}/{index}-{seed}-{scheduler}-{steps}.png",
            "-p",
            "-n",
            "2",
            "--scheduler",
            "ddim",
        ],
    );
    assert_eq!(
        (run.code, run.stdout.as_str()),
        (
            Some(0),
            "tiny-ddpm/0001-7-ddim-2.png\ntiny-ddpm/0002-8-ddim-2.png\n"
        ),
        "{}",
        run.stderr
    );
    // Pictures that a pattern does not tell apart are numbered.
    let run = ddpm(&folder, &["-o", "{steps}.png", "-n", "2"]);
    assert_eq!(run.stdout, "2-1.png\n2-2.png\n");
    let again = ddpm(&folder, &["-o", "{steps}.png", "-n", "2"]);
    assert_eq!(again.code, Some(1));
    assert!(again.stderr.contains("2-1.png exists"), "{}", again.stderr);
}

#[test]
fn prompts_are_safe_in_names() {
    let folder = Folder::new();
    let model = asset("tiny-sd");
    let run = folder.run([
        "txt2img",
        "../../etc/passwd\0x".trim_end_matches("\0x"),
        "--model",
        &model,
        "--steps",
        "1",
        "-o",
        "{prompt}.png",
    ]);
    assert_eq!(
        (run.code, run.stdout.as_str()),
        (Some(0), "etc-passwd.png\n"),
        "{}",
        run.stderr
    );
}

#[test]
fn an_unknown_field_is_refused_with_the_known_ones() {
    let run = ddpm(&Folder::new(), &["-o", "{sead}.png"]);
    assert_eq!(run.code, Some(2));
    for part in [
        "{sead}",
        "{index} {seed} {prompt} {model} {scheduler} {steps}",
    ] {
        assert!(run.stderr.contains(part), "{}", run.stderr);
    }
}

#[test]
fn a_dash_writes_the_png_to_stdout_and_nothing_else() {
    let folder = Folder::new();
    let model = asset("tiny-ddpm");
    let args = ["ddpm", "--model", &model, "--steps", "2", "--seed", "7"];
    let piped = folder
        .command([&args[..], &["-o", "-"]].concat())
        .output()
        .expect("it starts");
    assert!(piped.status.success());
    assert_eq!(ddpm(&folder, &["-o", "a.png"]).code, Some(0));
    assert!(pixels(&piped.stdout) == pixels(&folder.read("a.png")));
    assert!(piped.stdout == folder.read("a.png"));
    for more in [&["-n", "2"][..], &["--json"], &["--prompts", "-"]] {
        let run = ddpm(&folder, &[&["-o", "-"], more].concat());
        assert!(matches!(run.code, Some(1 | 2)), "{more:?}: {run:?}");
        assert_eq!(run.stdout, "");
    }
}
