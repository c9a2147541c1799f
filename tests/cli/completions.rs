//! `completions/`, with the manual pages in `completions/man`, is generated from the flags and checked in; these tests keep the two equal.
use crate::support::Folder;
use clap::ValueHint;
use clap_complete::{Generator, Shell, generate};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

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
        let text = match shell {
            Shell::Elvish => elvish_values(&text),
            Shell::PowerShell => powershell_values(&text),
            Shell::Zsh => zsh_names(&text),
            _ => text,
        };
        (shell.file_name("diffuse"), text)
    };
    shells.map(render).into()
}

/// clap_complete's script for zsh ends the name of a value at a colon in it.
fn zsh_names(script: &str) -> String {
    let name = "FILE[:WEIGHT]";
    assert_eq!(script.matches(name).count(), 1, "--lora takes {name}");
    script.replace(name, "FILE[\\:WEIGHT]")
}

/// The flags that take a value of a list, and those that take a path.
fn values() -> (BTreeMap<String, Vec<String>>, Vec<String>) {
    let (mut lists, mut paths) = (BTreeMap::new(), BTreeSet::new());
    let mut command = diffuse::cli::command();
    command.build();
    for arg in command
        .get_subcommands()
        .flat_map(|sub| sub.get_arguments())
    {
        if !arg.get_action().takes_values() {
            continue;
        }
        let long = arg.get_long().map(|name| format!("--{name}"));
        let short = arg.get_short().map(|letter| format!("-{letter}"));
        let list: Vec<_> = arg
            .get_possible_values()
            .iter()
            .map(|value| value.get_name().to_owned())
            .collect();
        for flag in long.into_iter().chain(short) {
            match arg.get_value_hint() {
                _ if !list.is_empty() => drop(lists.insert(flag, list.clone())),
                ValueHint::FilePath | ValueHint::DirPath | ValueHint::AnyPath => {
                    paths.insert(flag);
                }
                _ => {}
            }
        }
    }
    (lists, paths.into_iter().collect())
}

/// clap_complete's script for elvish offers no values: these do.
fn elvish_values(script: &str) -> String {
    let (lists, paths) = values();
    let lists: String = lists
        .iter()
        .map(|(flag, values)| format!("        &{flag}= [{}]\n", values.join(" ")))
        .collect();
    let ending = format!(
        "    var values = [\n{lists}    ]
    var paths = [{}]
    if (and (> (count $words) 2) (has-key $values $words[-2])) {{
        all $values[$words[-2]]
    }} elif (and (> (count $words) 2) (has-value $paths $words[-2])) {{
        edit:complete-filename $words[-1]
    }} else {{
        $completions[$command]
    }}
}}\n",
        paths.join(" ")
    );
    let (before, after) = script
        .rsplit_once("    $completions[$command]\n")
        .expect("the script ends as it used to");
    assert_eq!(after.trim(), "}");
    before.to_owned() + &ending
}

/// clap_complete's script for PowerShell offers no values either. Where it offers nothing, PowerShell offers paths.
fn powershell_values(script: &str) -> String {
    let (lists, paths) = values();
    let quoted = |values: &[String]| {
        let quoted: Vec<_> = values.iter().map(|value| format!("'{value}'")).collect();
        format!("@({})", quoted.join(", "))
    };
    let none = paths.into_iter().map(|flag| (flag, Vec::new()));
    let table: String = lists
        .into_iter()
        .chain(none)
        .map(|(flag, values)| format!("        '{flag}' = {}\n", quoted(&values)))
        .collect();
    let start = format!(
        "    $values = @{{\n{table}    }}
    $at = $commandElements.Count - $(if ($wordToComplete) {{ 2 }} else {{ 1 }})
    $previous = if ($at -ge 1) {{ $commandElements[$at].Extent.Text }} else {{ '' }}
    if ($values.ContainsKey($previous)) {{
        return $values[$previous] | Where-Object {{ $_ -like \"$wordToComplete*\" }} |
            ForEach-Object {{ [CompletionResult]::new($_, $_, [CompletionResultType]::ParameterValue, $_) }}
    }}\n"
    );
    let line = "    $commandElements = $commandAst.CommandElements\n";
    assert_eq!(
        script.matches(line).count(),
        1,
        "the script begins as it used to"
    );
    script.replace(line, &format!("{line}{start}"))
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
        (format!("{name}.1"), line_by_line(&text))
    };
    let mut pages = BTreeMap::from([page(&command, "diffuse".into())]);
    for sub in command.get_subcommands() {
        let (name, text) = page(sub, format!("diffuse-{}", sub.get_name()));
        pages.insert(name, text);
    }
    pages
}

/// A page whose last sections, examples and the environment, stand as they are written, without the version that is left away.
fn line_by_line(page: &str) -> String {
    let page = page.strip_suffix(".SH VERSION\nv\n");
    let page = page.expect("it ends with the version");
    let (before, examples) = page
        .split_once(".SH EXTRA\nExamples:\n")
        .expect("it has examples");
    let mut text = format!("{before}.SH EXAMPLES\n.nf\n");
    for line in examples.lines().filter(|line| !line.is_empty()) {
        text += match line {
            "Environment:" => ".fi\n.SH ENVIRONMENT\n.nf",
            line => line.trim_start(),
        };
        text.push('\n');
    }
    text + ".fi\n"
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
            .envs([("MANWIDTH", "100"), ("LC_ALL", "C.UTF-8")])
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
            assert!(text.contains(value), "{name}: {value}");
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
            "autoload -U compinit; compinit -u -D; source \"$0\"",
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
            .env("LC_ALL", "C.UTF-8")
            .env_remove("BASH_ENV")
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

/// What is typed after `diffuse`, and the only completion: a scheduler, a dtype, a device, two paths and a flag.
const TYPED: [(&str, &str, &str); 8] = [
    ("ddpm --scheduler", "euler-", "euler-ancestral"),
    ("txt2img --dtype", "bf", "bf16"),
    ("ddpm --device", "cu", "cuda"),
    ("txt2img --from", "only-", "only-this.png"),
    ("txt2img --output", "only-", "only-this.png"),
    ("txt2img --lora", "only-", "only-this.png"),
    ("ddpm --model", "mod", "models/"),
    ("txt2img", "--guidance-r", "--guidance-rescale"),
];

fn folder_to_complete_in() -> Folder {
    let here = Folder::new();
    here.write("only-this.png", "");
    std::fs::create_dir(here.file("models")).expect("the folder is writable");
    here
}

/// What a shell prints; None where it is not installed.
fn said(mut command: Command) -> Option<String> {
    let shell = command.get_program().to_string_lossy().into_owned();
    let child = command
        .env("LC_ALL", "C.UTF-8")
        .env_remove("BASH_ENV")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let Ok(mut child) = child else {
        eprintln!("{shell} is not installed");
        return None;
    };
    let start = Instant::now();
    while child.try_wait().expect("it is a child").is_none() {
        std::thread::sleep(Duration::from_millis(20));
        if start.elapsed() > Duration::from_secs(120) {
            child.kill().expect("it is a child");
            panic!("{shell} waits for ever");
        }
    }
    let output = child.wait_with_output().expect("it has ended");
    let text = [output.stdout, output.stderr].concat();
    Some(String::from_utf8_lossy(&text).into_owned())
}

#[test]
fn bash_completes_values_from_their_first_letters() {
    let here = folder_to_complete_in();
    for (before, start, wanted) in TYPED {
        // Folders come from bash itself, which the script only asks for them.
        if wanted.ends_with('/') {
            continue;
        }
        let words: Vec<_> = before.split(' ').collect();
        let script = format!(
            "source \"$0\"; compopt() {{ echo $*; }}; COMP_WORDS=(diffuse {before} {start}); COMP_CWORD={}; _diffuse diffuse {start} {}; echo \"${{COMPREPLY[@]}}\"",
            words.len() + 1,
            words[words.len() - 1],
        );
        let mut bash = Command::new("bash");
        bash.args(["--norc", "-c", &script])
            .arg(folder().join("diffuse.bash"))
            .current_dir(here.path());
        let Some(text) = said(bash) else { return };
        // So that bash ends folders with a slash and quotes spaces.
        let text = match wanted.ends_with(".png") {
            true => text.strip_prefix("-o filenames\n").expect("it is asked"),
            false => &text,
        };
        assert_eq!(text.trim_end(), wanted, "{before} {start}");
    }
}

#[test]
fn zsh_completes_values_from_their_first_letters() {
    let here = folder_to_complete_in();
    // Completion needs zsh's line editor, and that a terminal: zpty is one.
    let typed = TYPED.map(|(before, start, wanted)| {
        // The slash of a folder comes in a style of its own.
        let wanted = wanted.trim_end_matches('/');
        format!(
            "zpty -n -w z $'diffuse {before} {start}\\t'; zpty -r z out '*{wanted}*'; print -r -- '{wanted}'; zpty -n -w z $'\\C-u'\n"
        )
    });
    let script = format!(
        "zmodload zsh/zpty; zpty z 'zsh -f -i'
         zpty -w z \"PS1=; stty cols 200 rows 100; setopt nobeep; fpath=($1 \\$fpath); autoload -U compinit; compinit -u -D; echo REA''DY\"
         zpty -r z out '*READY*'
         {}
         zpty -d z",
        typed.concat()
    );
    let mut zsh = Command::new("zsh");
    zsh.args(["-f", "-c", &script, "zsh"])
        .arg(folder())
        .current_dir(here.path());
    let Some(text) = said(zsh) else { return };
    let wanted = TYPED.map(|(_, _, wanted)| wanted.trim_end_matches('/'));
    assert_eq!(text.lines().collect::<Vec<_>>(), wanted);
}

#[test]
fn fish_completes_values_from_their_first_letters() {
    let here = folder_to_complete_in();
    for (before, start, wanted) in TYPED {
        let mut fish = Command::new("fish");
        let script = format!("source $argv[1]; complete -C 'diffuse {before} {start}'");
        fish.args(["--no-config", "-c", &script])
            .arg(folder().join("diffuse.fish"))
            .current_dir(here.path());
        let Some(text) = said(fish) else { return };
        // After a tab comes what it means.
        let found: Vec<_> = text
            .lines()
            .filter_map(|line| line.split('\t').next())
            .collect();
        assert_eq!(found, [wanted], "{before} {start}");
    }
}

#[test]
fn elvish_is_offered_values() {
    let here = folder_to_complete_in();
    let script = std::fs::read_to_string(folder().join("diffuse.elv")).expect("it is checked in");
    // Elvish has its editor at a terminal alone, so what the script takes of it is put in its place. The editor keeps what fits.
    let script = script
        .replace(
            "set edit:completion:arg-completer[diffuse] =",
            "var offered =",
        )
        .replace(
            "edit:complex-candidate $text &display=$text' '(spaces (- 14 (wcswidth $text)))$desc",
            "put $text",
        )
        .replace("edit:complete-filename", "files");
    let asked =
        TYPED.map(|(before, start, _)| format!("echo ($offered diffuse {before} '{start}')\n"));
    let files = "fn files {|word| put only-this.png models/ }";
    here.write(
        "script.elv",
        format!("{files}\n{script}\n{}", asked.concat()),
    );
    let mut elvish = Command::new("elvish");
    elvish
        .args(["-norc", "script.elv"])
        .env("HOME", here.path())
        .current_dir(here.path());
    let Some(text) = said(elvish) else { return };
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), TYPED.len(), "{text}");
    for (line, (before, start, wanted)) in lines.iter().zip(TYPED) {
        let fits: Vec<_> = line
            .split(' ')
            .filter(|word| word.starts_with(start))
            .collect();
        assert_eq!(fits, [wanted], "{before}: {line}");
    }
}
