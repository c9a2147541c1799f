//! The help, word for word, and what every flag must have.
use crate::support::Folder;
use std::path::PathBuf;

const PAGES: [(&str, &[&str]); 4] = [
    ("diffuse", &["--help"]),
    ("txt2img-short", &["txt2img", "-h"]),
    ("ddpm", &["ddpm", "--help"]),
    ("txt2img", &["txt2img", "--help"]),
];

fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("tests/cli/help/{name}.txt"))
}

#[test]
fn the_help_is_the_text_that_was_agreed() {
    for (name, args) in PAGES {
        let run = Folder::new().run(args);
        let wanted = std::fs::read_to_string(golden(name)).expect("the page is checked in");
        assert_eq!(
            run.stdout, wanted,
            "if this is meant: cargo test --test cli -- --ignored write_help"
        );
        assert_eq!((run.code, run.stderr.as_str()), (Some(0), ""));
    }
}

#[test]
#[ignore = "writes tests/cli/help/"]
fn write_help() {
    std::fs::create_dir_all(golden("x").parent().expect("a page is in a folder"))
        .expect("the folder can be made");
    for (name, args) in PAGES {
        std::fs::write(golden(name), Folder::new().run(args).stdout)
            .expect("the page can be written");
    }
}

#[test]
fn every_flag_has_help_and_names_its_value() {
    let mut command = diffuse::cli::command();
    command.build();
    command.clone().debug_assert();
    for sub in command.get_subcommands() {
        for arg in sub.get_arguments() {
            assert!(
                arg.get_help().is_some(),
                "{} {}",
                sub.get_name(),
                arg.get_id()
            );
        }
    }
}

#[test]
fn the_defaults_are_those_of_the_readme() {
    let command = diffuse::cli::command();
    let default = |sub: &str, flag: &str| {
        let sub = command
            .find_subcommand(sub)
            .expect("both commands are there");
        let arg = sub.get_arguments().find(|arg| arg.get_long() == Some(flag));
        arg.expect("the flag is there").get_default_values()[0]
            .to_string_lossy()
            .into_owned()
    };
    assert_eq!(default("ddpm", "model"), "google/ddpm-cat-256");
    assert_eq!(
        default("txt2img", "model"),
        "stable-diffusion-v1-5/stable-diffusion-v1-5"
    );
    for sub in ["ddpm", "txt2img"] {
        assert_eq!(default(sub, "num-images"), "1");
        assert_eq!(default(sub, "device"), "auto");
        assert_eq!(default(sub, "dtype"), "auto");
        assert_eq!(default(sub, "revision"), "main");
    }
}

#[test]
fn the_version_is_the_manifests() {
    let run = Folder::new().run(["--version"]);
    assert_eq!(
        run.stdout,
        format!("diffuse {}\n", env!("CARGO_PKG_VERSION"))
    );
}

#[test]
fn the_long_version_says_what_was_built_and_what_was_found() {
    for args in [&["--version", "--verbose"][..], &["-v", "-V"], &["-Vv"]] {
        let run = Folder::new().run(args);
        assert_eq!((run.code, run.stderr.as_str()), (Some(0), ""), "{args:?}");
        let keys = run.stdout.lines().map(|line| line.split(' ').next());
        let keys: Vec<_> = keys.flatten().collect();
        let wanted = [
            "diffuse", "features", "platform", "kernels", "memory", "cuda",
        ];
        assert_eq!(keys, wanted, "{}", run.stdout);
    }
}

#[test]
fn colour_follows_the_usual_variables() {
    let coloured = |variables: &[(&str, &str)]| {
        let folder = Folder::new();
        let model = crate::support::asset("tiny-ddpm");
        let mut command = folder.command([
            "ddpm", "--model", &model, "--steps", "1", "-o", "a.png", "-v",
        ]);
        command
            .envs(variables.iter().copied())
            .env("RUST_LOG", "debug");
        let run = command.output().expect("the program starts");
        assert!(run.status.success(), "{run:?}");
        run.stderr.contains(&b'\x1b')
    };
    assert!(!coloured(&[]), "there is no colour in a pipe");
    assert!(coloured(&[("CLICOLOR_FORCE", "1")]));
    assert!(!coloured(&[("CLICOLOR_FORCE", "0")]));
    assert!(!coloured(&[("CLICOLOR_FORCE", "1"), ("NO_COLOR", "1")]));
    assert!(!coloured(&[("CLICOLOR", "1")]));
}

#[test]
fn the_environment_gives_model_and_device_and_flags_go_before_it() {
    let folder = Folder::new();
    let (model, other) = (crate::support::asset("tiny-ddpm"), "./no-model");
    let run = |args: &[&str], model: &str, device: &str| -> crate::support::Run {
        let mut command = folder.command(args);
        command
            .env("DIFFUSE_MODEL", model)
            .env("DIFFUSE_DEVICE", device);
        command.output().expect("the program starts").into()
    };
    let drawn = run(&["ddpm", "--steps", "1"], &model, "cpu");
    assert_eq!(drawn.code, Some(0), "{drawn:?}");
    let refused = run(&["ddpm", "--steps", "1", "--model", other], &model, "cpu");
    assert!(refused.stderr.contains(other), "{refused:?}");
    let refused = run(&["ddpm", "--steps", "1"], &model, "gpu");
    assert_eq!(refused.code, Some(2), "{refused:?}");
    assert!(refused.stderr.contains("DIFFUSE_DEVICE"), "{refused:?}");
    let refused = run(&["ddpm", "--steps", "1", "--device", "tpu"], &model, "gpu");
    assert!(!refused.stderr.contains("DIFFUSE_DEVICE"), "{refused:?}");

    // Empty is as not set.
    let drawn = run(&["ddpm", "--steps", "1", "-v"], &model, "");
    assert_eq!(drawn.code, Some(0), "{drawn:?}");
    let refused = run(&["ddpm", "--offline"], "", "cpu");
    assert!(
        refused.stderr.contains("google/ddpm-cat-256"),
        "{refused:?}"
    );
}

#[test]
fn the_flags_of_the_model_are_together_in_the_help() {
    let folder = Folder::new();
    for command in ["ddpm", "txt2img"] {
        let help = folder.run([command, "-h"]).stdout;
        let (_, options) = help.split_once("\nOptions:\n").expect("a list");
        let (options, _) = options.split_once("\n\n").expect("an end");
        for flag in ["--model", "--revision", "--offline"] {
            assert!(options.contains(flag), "{flag}: {help}");
        }
    }
}

#[test]
fn no_arguments_show_the_help_and_are_a_usage_error() {
    let run = Folder::new().run([""; 0]);
    assert_eq!((run.code, run.stdout.as_str()), (Some(2), ""));
    assert!(
        run.stderr.contains("Usage: diffuse [OPTIONS] <COMMAND>"),
        "{}",
        run.stderr
    );
}
