//! The help, word for word, and what every flag must have.
use crate::support::Folder;
use std::path::PathBuf;

const PAGES: [(&str, &[&str]); 3] = [
    ("diffuse", &["--help"]),
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
    assert_eq!(default("txt2img", "guidance-scale"), "7.5");
    for sub in ["ddpm", "txt2img"] {
        assert_eq!(default(sub, "steps"), "50");
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
fn no_arguments_show_the_help_and_are_a_usage_error() {
    let run = Folder::new().run([""; 0]);
    assert_eq!((run.code, run.stdout.as_str()), (Some(2), ""));
    assert!(
        run.stderr.contains("Usage: diffuse <COMMAND>"),
        "{}",
        run.stderr
    );
}
