//! `completions/`, with the manual pages in `completions/man`, is generated from the flags and checked in; these tests keep the two equal.
use clap_complete::{Generator, Shell, generate};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;

const FIX: &str = "to write them: cargo test --test cli -- --ignored write_completions";

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("completions")
}

/// File name and content for every shell.
fn rendered() -> BTreeMap<String, String> {
    let shells = [
        Shell::Bash,
        Shell::Zsh,
        Shell::Fish,
        Shell::Elvish,
        Shell::PowerShell,
    ];
    let render = |shell: Shell| {
        let mut bytes = Vec::new();
        generate(shell, &mut diffuse::cli::command(), "diffuse", &mut bytes);
        let text = String::from_utf8(bytes).expect("scripts are UTF-8");
        (shell.file_name("diffuse"), text)
    };
    shells.map(render).into()
}

/// The manual pages in the folder `man`.
fn pages() -> BTreeMap<String, String> {
    let mut command = diffuse::cli::command().disable_help_subcommand(true);
    command.build();
    let page = |command: &clap::Command, name: String| {
        // The version changes with every release and the pages with the flags alone.
        let man = clap_mangen::Man::new(command.clone().version("")).title(&name);
        let mut bytes = Vec::new();
        man.render(&mut bytes).expect("a vector takes all");
        let text = String::from_utf8(bytes).expect("pages are UTF-8");
        (format!("{name}.1"), text)
    };
    let mut pages = BTreeMap::from([page(&command, "diffuse".into())]);
    for sub in command.get_subcommands() {
        let (name, text) = page(sub, format!("diffuse-{}", sub.get_name()));
        pages.insert(name, text);
    }
    pages
}

#[test]
fn completions_are_current() {
    let rendered = rendered();
    let pages = pages();
    let man = pages
        .iter()
        .map(|(name, text)| (format!("man/{name}"), text));
    let scripts = rendered.iter().map(|(name, text)| (name.clone(), text));
    for (name, text) in scripts.chain(man) {
        match std::fs::read_to_string(folder().join(&name)) {
            Ok(found) => assert!(
                found == *text,
                "completions/{name} differs from the flags; {FIX}"
            ),
            Err(err) => panic!("completions/{name}: {err}; {FIX}"),
        }
    }
    for entry in std::fs::read_dir(folder()).expect("the folder is checked in") {
        let name = entry.expect("the entry can be read").file_name();
        let name = name.to_string_lossy();
        assert!(
            name == "man" || rendered.contains_key(&*name),
            "completions/{name} belongs to no shell; remove it"
        );
    }
}

#[test]
#[ignore = "writes completions/"]
fn write_completions() {
    std::fs::create_dir_all(folder()).expect("the folder can be made");
    for (name, text) in rendered() {
        std::fs::write(folder().join(name), text).expect("the script can be written");
    }
    std::fs::create_dir_all(folder().join("man")).expect("the folder can be made");
    for (name, text) in pages() {
        std::fs::write(folder().join("man").join(name), text).expect("the page can be written");
    }
}

#[test]
fn man_reads_the_pages_without_a_word() {
    for name in pages().keys() {
        let output = Command::new("man")
            .args(["--warnings", "-l"])
            .arg(folder().join("man").join(name))
            .env("MANWIDTH", "100")
            .output();
        let Ok(output) = output else {
            eprintln!("man is not installed");
            return;
        };
        let warnings = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            output.status.success() && warnings.is_empty(),
            "{name}: {warnings}"
        );
    }
}

#[test]
fn completions_offer_schedulers_devices_and_dtypes() {
    for (name, text) in rendered() {
        for value in ["euler-ancestral", "dpmpp-2m", "bf16", "cuda"] {
            // PowerShell and elvish complete flags alone.
            let flags_alone = name.ends_with(".ps1") || name.ends_with(".elv");
            assert!(flags_alone || text.contains(value), "{name}: {value}");
        }
    }
}

#[test]
fn shells_that_are_installed_read_their_completions_without_a_word() {
    let shells = [
        (
            "bash",
            vec!["--norc", "-u", "-e", "-c"],
            "source \"$0\"; complete -p diffuse >/dev/null",
            "diffuse.bash",
        ),
        (
            "zsh",
            vec!["-f", "-c"],
            "autoload -U compinit; compinit -D; source \"$0\"",
            "_diffuse",
        ),
        (
            "fish",
            vec!["--no-config", "-c"],
            "source $argv[1]",
            "diffuse.fish",
        ),
    ];
    for (shell, flags, script, file) in shells {
        let output = Command::new(shell)
            .args(flags)
            .arg(script)
            .arg(folder().join(file))
            .output();
        let Ok(output) = output else {
            eprintln!("{shell} is not installed");
            continue;
        };
        let text = [output.stdout, output.stderr].concat();
        assert!(
            output.status.success() && text.is_empty(),
            "{shell}: {}",
            String::from_utf8_lossy(&text)
        );
    }
}

#[test]
fn bash_completes_a_scheduler_from_its_first_letters() {
    let script = "source \"$0\"; COMP_WORDS=(diffuse ddpm --scheduler eu); COMP_CWORD=3; \
                  _diffuse diffuse eu --scheduler; echo \"${COMPREPLY[@]}\"";
    let output = Command::new("bash")
        .args(["--norc", "-c", script])
        .arg(folder().join("diffuse.bash"))
        .output();
    let Ok(output) = output else {
        eprintln!("bash is not installed");
        return;
    };
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "euler euler-ancestral\n"
    );
}
