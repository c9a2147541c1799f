//! Rows split over processes and machines.
use crate::batches::{args, feeds};
use crate::support::{Folder, Run, asset};
use std::process::Stdio;

#[test]
fn a_sheet_of_a_shard_is_refused_and_one_of_all_is_made_afterwards() {
    let folder = Folder::new();
    let sheet = ["--grid", "all.png"];
    let refused = feeds(
        &folder,
        "a cat\na dog\n",
        2,
        &[&sheet[..], &["--shard", "1/2"]].concat(),
    );
    let said = "--grid makes one sheet of all pictures, and --shard draws a part of them";
    assert!(refused.stderr.contains(said), "{}", refused.stderr);
    for shard in ["1/2", "2/2"] {
        feeds(&folder, "a cat\na dog\n", 0, &["--shard", shard]);
    }
    let run = feeds(&folder, "a cat\na dog\n", 0, &sheet);
    assert_eq!(run.stdout, "");
    assert_eq!(
        folder.names(),
        ["0001-a-cat.png", "0002-a-dog.png", "all.png"]
    );
}

#[test]
fn shards_in_processes_of_their_own_make_the_files_of_one_run() {
    let rows: String = (1..=7).map(|k| format!("cat {k}\n\n")).collect();
    let (one, many) = (Folder::new(), Folder::new());
    feeds(&one, &rows, 0, &[]);
    many.write("rows.txt", &rows);
    let model = asset("tiny-sd");
    let children: Vec<_> = (1..=3)
        .map(|k| {
            let shard = format!("{k}/3");
            let args = args(&model, &["--prompts", "rows.txt", "-q", "--shard", &shard]);
            many.command(args)
                .stdout(Stdio::piped())
                .spawn()
                .expect("it starts")
        })
        .collect();
    let counts: Vec<_> = children
        .into_iter()
        .map(|child| Run::from(child.wait_with_output().expect("it ends")))
        .map(|run| run.stdout.lines().count())
        .collect();
    assert_eq!(counts, [3, 2, 2]);
    let pictures: Vec<_> = many
        .names()
        .into_iter()
        .filter(|name| name != "rows.txt")
        .collect();
    assert_eq!(pictures, one.names());
    for name in pictures {
        assert!(one.read(&name) == many.read(&name), "{name}");
    }
}

/// The commands in quotes of the README that draw the shard of a machine.
#[cfg(unix)]
fn shard_lines() -> Vec<String> {
    let readme = include_str!("../../README.md");
    let quoted = readme
        .split('\'')
        .filter(|text| text.starts_with("diffuse txt2img --prompts") && text.contains("--shard"));
    quoted.map(str::to_owned).collect()
}

#[test]
#[cfg(unix)]
fn the_lines_of_the_readme_for_several_machines_make_the_files_of_one_run() {
    let lines = shard_lines();
    assert_eq!(lines.len(), 3, "{lines:?}");
    let rows: String = ["a cat", "a dog", "a fox", "a cow", "a hen"]
        .iter()
        .map(|prompt| format!("{{\"prompt\": {prompt:?}, \"steps\": 1}}\n\n"))
        .collect();
    let rows = rows + "{\"prompt\": \"a pig\", \"steps\": 1, \"num_images\": 2}\n";
    let folder = Folder::new();
    folder.write("prompts.txt", &rows);
    let model = asset("tiny-sd");
    let mut one = folder.command(["txt2img", "--prompts", "prompts.txt", "-p", "-o", "out/"]);
    let status = one
        .env("DIFFUSE_MODEL", &model)
        .output()
        .expect("it starts")
        .status;
    assert!(status.success());
    let files = |folder: &Folder| -> Vec<(std::ffi::OsString, Vec<u8>)> {
        let entries = folder.file("out").read_dir().expect("a folder");
        let mut files: Vec<_> = entries
            .map(|entry| entry.expect("an entry"))
            .map(|entry| {
                (
                    entry.file_name(),
                    std::fs::read(entry.path()).expect("a file"),
                )
            })
            .collect();
        files.sort();
        files
    };
    let wanted = files(&folder);
    assert_eq!(wanted.len(), 7);
    for line in lines {
        let folder = Folder::new();
        folder.write("prompts.txt", &rows);
        // The program is `diffuse` on the path, and this machine has no cards and no volume.
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_diffuse"), folder.file("diffuse"))
            .expect("a link");
        let path = format!(
            "{}:{}",
            folder.path().display(),
            std::env::var("PATH").expect("it is set")
        );
        let line = line.replace("--device cuda:{1}", "").replace("/data/", "");
        let of = if line.contains("/4") { 4 } else { 8 };
        let processes: Vec<_> = (1..=of)
            .map(|k| {
                // As GNU parallel fills it in.
                let line = line.replace("{#}", &k.to_string());
                let mut shell = std::process::Command::new("sh");
                shell.args(["-c", &line]).current_dir(folder.path());
                shell.env("PATH", &path).env("DIFFUSE_MODEL", &model);
                shell.env("SLURM_ARRAY_TASK_ID", k.to_string());
                shell.env("JOB_COMPLETION_INDEX", (k - 1).to_string());
                shell
                    .env("HF_HUB_OFFLINE", "1")
                    .env_remove("DIFFUSE_DEVICE");
                shell.stdout(Stdio::piped()).stderr(Stdio::piped());
                shell.spawn().expect("the shell starts")
            })
            .collect();
        for process in processes {
            let output = process.wait_with_output().expect("it ends");
            assert!(output.status.success(), "{line}: {output:?}");
        }
        assert!(files(&folder) == wanted, "{line}");
    }
}
