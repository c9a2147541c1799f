//! Many rows, one load: what is drawn, skipped and refused.
use crate::support::{Folder, Run, asset, pixels};
use std::io::{BufRead, BufReader, Write};
use std::process::Stdio;

pub fn args<'a>(model: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let first = [
        "txt2img", "--model", model, "--steps", "2", "--device", "cpu",
    ];
    [&first, more].concat()
}

#[track_caller]
pub fn feeds(folder: &Folder, rows: &str, code: i32, more: &[&str]) -> Run {
    let model = asset("tiny-sd");
    let run = folder.feed(args(&model, &[&["--prompts", "-"], more].concat()), rows);
    assert_eq!(run.code, Some(code), "{run:?}");
    run
}

#[test]
fn a_line_is_a_prompt_or_an_object_of_settings() {
    let folder = Folder::new();
    let rows = "a cat\n\n{\"prompt\": \"a dog\", \"seed\": 7, \"steps\": 3, \"output\": \"dog.png\", \"width\": 72}\r\n  a fox  \n";
    let run = feeds(&folder, rows, 0, &[]);
    assert_eq!(run.stdout, "0001-a-cat.png\ndog.png\n0003-a-fox.png\n");
    // A row is what the command line with its flags is; one without a seed has its number.
    let model = asset("tiny-sd");
    for (name, prompt, more) in [
        ("0001-a-cat.png", "a cat", &["--seed", "1"][..]),
        (
            "dog.png",
            "a dog",
            &["--seed", "7", "--steps", "3", "--width", "72"],
        ),
        ("0003-a-fox.png", "a fox", &["--seed", "3"]),
    ] {
        let alone = folder.run(args(
            &model,
            &[&[prompt, "-o", "alone.png", "--overwrite"], more].concat(),
        ));
        assert_eq!(alone.code, Some(0), "{alone:?}");
        assert!(folder.read(name) == folder.read("alone.png"), "{name}");
    }
}

#[test]
fn a_row_says_how_long_its_run_is_in_its_own_way() {
    let folder = Folder::new();
    let rows = [
        r#"{"prompt": "a cat", "timesteps": [999, 500, 1], "output": "a.png"}"#,
        r#"{"prompt": "a cat", "sigmas": "9,4,2,1,0", "output": "b.png"}"#,
        r#"{"prompt": "a cat", "steps": 5, "output": "c.png"}"#,
        r#"{"prompt": "a cat", "output": "d.png"}"#,
    ];
    // The command line says 2 steps.
    let more = ["--scheduler=euler", "--json"];
    let run = feeds(&folder, &rows.join("\n"), 0, &more);
    let steps: Vec<_> = run
        .objects()
        .iter()
        .map(|row| row["steps"].clone())
        .collect();
    assert_eq!(steps, [3, 4, 5, 2], "{run:?}");
    let two = r#"{"prompt": "a cat", "steps": 5, "sigmas": "9,0"}"#;
    let run = feeds(&folder, two, 1, &more);
    assert!(run.stderr.contains("cannot be used with"), "{}", run.stderr);
}

#[test]
fn a_row_is_done_before_the_next_line_is_needed() {
    let folder = Folder::new();
    let model = asset("tiny-sd");
    let mut child = folder
        .command(args(&model, &["--prompts", "-", "-q"]))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let mut stdin = child.stdin.take().expect("it is piped");
    let mut stdout = BufReader::new(child.stdout.take().expect("it is piped"));
    for name in ["0001-a-cat.png\n", "0002-a-cat.png\n"] {
        stdin.write_all(b"a cat\n").expect("it reads");
        let mut line = String::new();
        stdout.read_line(&mut line).expect("a path comes");
        assert_eq!(line, name);
    }
    drop(stdin);
    assert!(child.wait().expect("it ends").success());
}

#[test]
fn the_batch_size_changes_no_pixel_on_the_cpu() {
    let rows = "a cat\n{\"prompt\": \"a dog\", \"negative_prompt\": \"cats\"}\na fox\n{\"prompt\": \"a cow\", \"steps\": 3}\na hen\n";
    let schedulers = [
        "ddim",
        "euler-ancestral",
        "unipc",
        "pndm",
        "heun",
        "dpm-sde",
        "dpmpp-2m-sde",
        "sa-solver",
        "lcm",
    ];
    for scheduler in schedulers {
        let folder = Folder::new();
        for size in ["1", "2", "3", "5"] {
            let more = ["--batch-size", size, "--scheduler", scheduler, "-p"];
            // What is measured for each picture must not be measured over the batch.
            let more = [&more[..], &["--guidance-rescale", "0.7", "-o"]].concat();
            let output = format!("{size}/{{index}}.png");
            feeds(&folder, rows, 0, &[&more[..], &[&output]].concat());
        }
        for row in 1..=5 {
            let alone = folder.read(&format!("1/{row:04}.png"));
            for size in ["2", "3", "5"] {
                assert!(
                    alone == folder.read(&format!("{size}/{row:04}.png")),
                    "{scheduler} {size} {row}"
                );
            }
        }
    }
}

#[test]
fn pictures_of_one_row_share_batches_too() {
    for (command, model) in [("ddpm", "tiny-ddpm"), ("txt2img", "tiny-sd")] {
        let folder = Folder::new();
        let model = asset(model);
        for size in ["1", "2", "4"] {
            let mut args = vec![
                command, "--model", &model, "--steps", "2", "--seed", "9", "-n", "3", "-p",
            ];
            let output = format!("{size}/x.png");
            args.extend(["--scheduler", "ddpm", "--batch-size", size, "-o", &output]);
            args.extend((command == "txt2img").then_some("a cat"));
            let run = folder.run(&args);
            assert_eq!(run.code, Some(0), "{run:?}");
        }
        for k in 1..=3 {
            let alone = folder.read(&format!("1/x-{k}.png"));
            assert!(
                alone == folder.read(&format!("2/x-{k}.png")),
                "{command} {k}"
            );
            assert!(
                alone == folder.read(&format!("4/x-{k}.png")),
                "{command} {k}"
            );
        }
    }
}

#[test]
fn a_bad_row_is_reported_with_its_line_and_stops_no_other() {
    let folder = Folder::new();
    let rows = [
        "a cat",
        "",
        "{\"prompt\": \"x\", \"steps\": 0}",
        "{\"prompt\": \"x\", \"stepz\": 3}",
        "{\"prompt\": ",
        "{\"seed\": 3}",
        "{\"prompt\": \"x\", \"model\": \"y\"}",
        "{\"prompt\": \"x\", \"width\": 513}",
        "{\"prompt\": \"x\", \"output\": \"no/x.png\"}",
        "{\"prompt\": \"x\", \"steps\": 5000}",
        "{\"prompt\": \"x\", \"output\": \"-\"}",
        "a dog",
    ];
    let run = feeds(&folder, &rows.join("\n"), 3, &["-q"]);
    assert_eq!(run.stdout, "0001-a-cat.png\n0011-a-dog.png\n");
    let lines: Vec<_> = run.stderr.lines().collect();
    let wanted = [
        ("line 3: ", "give a whole number of 1 or more"),
        ("line 4: ", "'--steps'"),
        ("line 5: ", "no JSON object"),
        ("line 6: ", "it has no \"prompt\""),
        ("line 7: ", "give --model on the command line"),
        ("line 8: ", "try 512 or 520"),
        ("line 9: ", "make the folder no first"),
        ("line 10: ", "5000 steps"),
        ("line 11: ", "a row cannot go to stdout"),
    ];
    assert_eq!(lines.len(), wanted.len(), "{}", run.stderr);
    for (line, (start, part)) in lines.iter().zip(wanted) {
        assert!(
            line.starts_with(&format!("diffuse: {start}")) && line.contains(part),
            "{line}"
        );
    }
}

#[test]
fn the_exit_code_tells_all_some_or_none() {
    let folder = Folder::new();
    feeds(&folder, "a cat\n", 0, &[]);
    feeds(&folder, "a dog\n{\n", 3, &["--dry-run"]);
    feeds(&folder, "a dog\n{\n", 3, &[]);
    feeds(&folder, "{\n{\n", 1, &[]);
    let none = feeds(&folder, "\n \u{a0}\n\u{feff}\n", 0, &[]);
    assert!(none.stderr.contains("there is no row"), "{none:?}");
    let run = feeds(&folder, "{\na cow\n", 3, &["--json"]);
    let objects = run.objects();
    assert_eq!(objects[0]["line"], 1);
    assert!(objects[0]["error"].is_string(), "{objects:?}");
    assert_eq!(objects[1]["path"], "0002-a-cow.png");
}

#[test]
fn an_object_may_go_over_several_lines_and_a_list_is_refused() {
    let folder = Folder::new();
    // As jq prints them.
    let rows =
        "{\n  \"prompt\": \"a cat\",\n  \"seed\": 7\n}\n{\n  \"prompt\": \"a dog\"\n}\na fox\n";
    let run = feeds(&folder, rows, 0, &["--json"]);
    let told: Vec<_> = run.objects();
    let told: Vec<_> = told.iter().map(|row| (&row["row"], &row["line"])).collect();
    assert_eq!(
        format!("{told:?}"),
        "[(Number(1), Number(1)), (Number(2), Number(5)), (Number(3), Number(8))]"
    );
    assert_eq!(
        folder.names(),
        ["0001-a-cat.png", "0002-a-dog.png", "0003-a-fox.png"]
    );
    for list in [
        "[\n{\"prompt\": \"a cow\"}\n]\n",
        "[{\"prompt\": \"a cow\"}]\na cow\n",
    ] {
        let run = feeds(&folder, list, 1, &[]);
        let said = "line 1: it begins a list; give the objects without it, as jq '.[]' does";
        assert!(run.stderr.contains(said), "{}", run.stderr);
        assert_eq!(run.stderr.matches("line ").count(), 1, "{}", run.stderr);
    }
    assert_eq!(folder.names().len(), 3);
}

#[test]
fn a_picture_that_was_drawn_with_other_settings_is_not_skipped_in_silence() {
    let folder = Folder::new();
    let output = ["-o", "{prompt}.png"];
    feeds(&folder, "a cat\n", 0, &output);
    let before = folder.read("a-cat.png");
    let again = feeds(&folder, "a cat\n", 0, &output);
    assert!(
        again.stderr.contains("a-cat.png exists: skipped"),
        "{}",
        again.stderr
    );
    // Another row of another shard has its name.
    let other = feeds(
        &folder,
        "a dog\na cat\n",
        0,
        &[&output[..], &["--shard", "2/2", "--steps", "3"]].concat(),
    );
    let said = "warning: a-cat.png exists and was drawn with other settings (seed, steps): skipped";
    assert!(other.stderr.contains(said), "{}", other.stderr);
    assert_eq!(folder.read("a-cat.png"), before);
    // Who left the settings out has none to compare.
    feeds(
        &folder,
        "a cow\n",
        0,
        &["-o", "{prompt}.png", "--no-metadata"],
    );
    let silent = feeds(
        &folder,
        "a cow\n",
        0,
        &["-o", "{prompt}.png", "--seed", "9"],
    );
    assert!(
        silent.stderr.contains("a-cow.png exists: skipped"),
        "{}",
        silent.stderr
    );
}

#[test]
fn a_row_whose_picture_exists_is_skipped_and_a_second_run_finishes_the_first() {
    let folder = Folder::new();
    let rows = "a cat\n{\"prompt\": \"a dog\", \"num_images\": 2}\na fox\n";
    folder.write("0002-a-dog-1.png", "here already");
    let run = feeds(&folder, rows, 0, &[]);
    assert_eq!(
        run.stdout,
        "0001-a-cat.png\n0002-a-dog-2.png\n0003-a-fox.png\n"
    );
    assert_eq!(folder.read("0002-a-dog-1.png"), b"here already");
    assert!(
        run.stderr.contains("0002-a-dog-1.png exists: skipped"),
        "{}",
        run.stderr
    );
    let again = feeds(&folder, rows, 0, &["--json"]);
    assert_eq!(again.objects().len(), 4);
    assert!(
        again
            .objects()
            .iter()
            .all(|object| object["skipped"] == true)
    );
    let redrawn = feeds(&folder, rows, 0, &["--overwrite"]);
    assert_eq!(redrawn.stdout.lines().count(), 4);
    assert!(pixels(&folder.read("0002-a-dog-1.png")).width() == 64);
}

#[test]
fn a_run_that_was_killed_is_finished_by_running_it_again() {
    let whole = Folder::new();
    let rows: String = (1..=6).map(|k| format!("cat {k}\n")).collect();
    feeds(&whole, &rows, 0, &[]);
    let broken = Folder::new();
    broken.write("rows.txt", &rows);
    let model = asset("tiny-sd");
    let mut command = broken.command(args(&model, &["--prompts", "-", "-q"]));
    let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = piped.spawn().expect("the program starts");
    // More rows are to come when it is killed.
    let few: String = rows.lines().take(2).map(|row| format!("{row}\n")).collect();
    let stdin = child.stdin.as_mut().expect("it is piped");
    stdin.write_all(few.as_bytes()).expect("it reads");
    let mut paths = BufReader::new(child.stdout.take().expect("it is piped")).lines();
    for k in 1..=2 {
        let path = paths.next().expect("a path comes").expect("it is a text");
        assert_eq!(path, format!("{k:04}-cat-{k}.png"));
    }
    child.kill().expect("it waits");
    child.wait().expect("it ends");
    let run = broken.run(args(&model, &["--prompts", "rows.txt"]));
    assert_eq!(run.code, Some(0), "{run:?}");
    assert_eq!(run.stdout.lines().count(), 4, "{run:?}");
    for k in 1..=6 {
        let name = format!("{k:04}-cat-{k}.png");
        assert!(whole.read(&name) == broken.read(&name), "{name}");
    }
}

#[test]
fn a_model_without_prompts_takes_objects() {
    let folder = Folder::new();
    let model = asset("tiny-ddpm");
    let run = folder.feed(
        [
            "ddpm",
            "--model",
            &model,
            "--steps",
            "2",
            "--prompts",
            "-",
            "-q",
        ],
        "{\"seed\": 7}\na cat\n{\"steps\": 3}\n",
    );
    assert_eq!(
        (run.code, run.stdout.as_str()),
        (Some(3), "0001-tiny-ddpm.png\n0003-tiny-ddpm.png\n")
    );
    assert!(
        run.stderr.contains("line 2: ddpm takes no prompt"),
        "{}",
        run.stderr
    );
}

#[test]
fn two_rows_that_want_one_name_are_told_how_to_differ() {
    let run = feeds(&Folder::new(), "a cat\na dog\n", 3, &["-o", "x.png", "-q"]);
    assert_eq!(run.stdout, "x.png\n");
    assert!(
        run.stderr.contains("line 2: ") && run.stderr.contains("{index}"),
        "{}",
        run.stderr
    );
}

#[test]
fn shards_files_and_lines_that_cannot_be_are_refused() {
    let model = asset("tiny-sd");
    for shard in ["0/3", "4/3", "3", "a/b", "1/0", ""] {
        let folder = Folder::new();
        let run = folder.feed(
            args(&model, &["--prompts", "-", "--shard", shard]),
            "a cat\n",
        );
        assert_eq!(run.code, Some(2), "{shard}: {run:?}");
        assert!(run.stderr.contains("'--shard <I/N>'"), "{}", run.stderr);
    }
    let folder = Folder::new();
    for (file, part) in [("none.txt", "none.txt"), (".", "it is a folder")] {
        let run = folder.run(args(&model, &["--prompts", file]));
        assert_eq!(run.code, Some(1), "{run:?}");
        assert!(
            run.stderr.contains(part) && run.stderr.lines().count() == 1,
            "{}",
            run.stderr
        );
    }
    let endless = "x".repeat(2 << 20);
    let run = feeds(&folder, &format!("a cat\n{endless}\n"), 3, &["-q"]);
    assert!(
        run.stderr.contains("line 2: it is longer than"),
        "{}",
        run.stderr
    );
    folder.write("bad.txt", b"\xff\n\xef\xbb\xbfa cow\n");
    let run = folder.run(args(&model, &["--prompts", "bad.txt", "-q"]));
    assert_eq!(
        (run.code, run.stdout.as_str()),
        (Some(3), "0002-a-cow.png\n")
    );
    assert!(
        run.stderr.contains("line 1: it is not UTF-8"),
        "{}",
        run.stderr
    );
    let both = folder.run(args(&model, &["a cat", "--prompts", "bad.txt"]));
    assert_eq!(both.code, Some(2), "{both:?}");
}

#[test]
fn two_spellings_of_a_path_are_one_name() {
    let folder = Folder::new();
    std::fs::create_dir(folder.file("b")).expect("the folder is writable");
    let row = |path| format!("{{\"prompt\": \"a cat\", \"output\": \"{path}\"}}\n");
    let rows = ["a.png", "./a.png", "b/../a.png"].map(row).concat();
    let run = feeds(&folder, &rows, 3, &["-q", "--overwrite"]);
    assert_eq!(run.stdout, "a.png\n");
    assert_eq!(run.stderr.matches("is an earlier picture").count(), 2);
}

#[test]
fn a_file_in_utf_16_is_refused_with_the_remedy() {
    let (folder, model) = (Folder::new(), asset("tiny-sd"));
    let words = "a cat\r\na dog\r\n".encode_utf16();
    let bytes: Vec<u8> = words.flat_map(u16::to_le_bytes).collect();
    for (start, said) in [(&b"\xff\xfe"[..], 1), (b"", 3)] {
        folder.write("rows.txt", [start, &bytes].concat());
        let run = folder.run(args(&model, &["--prompts", "rows.txt", "-q"]));
        assert_eq!((run.code, run.stdout.as_str()), (Some(1), ""), "{run:?}");
        assert_eq!(run.stderr.lines().count(), said, "{run:?}");
        assert!(run.stderr.contains("UTF-16") && run.stderr.contains("as UTF-8"));
    }
}

#[cfg(target_os = "linux")]
#[test]
fn what_fails_after_the_drawing_is_not_drawn_again() {
    let (folder, model) = (Folder::new(), asset("tiny-sd"));
    let full = std::fs::File::options().write(true).open("/dev/full");
    let more = ["a cat", "-n", "2", "--batch-size", "2", "-o", "a.png"];
    let mut command = folder.command(args(&model, &more));
    command.stdout(full.expect("Linux has it"));
    let run = Run::from(command.output().expect("the program starts"));
    assert_eq!(run.code, Some(1), "{run:?}");
    assert!(!run.stderr.contains("one by one"), "{run:?}");
    assert_eq!(folder.names(), ["a-1.png"]);
}

#[test]
fn a_row_may_turn_off_a_flag_of_the_command_line() {
    let folder = Folder::new();
    folder.write("keep.png", "precious");
    let row = r#"{"prompt": "a cat", "overwrite": false, "output": "keep.png"}"#;
    feeds(&folder, row, 0, &["--overwrite"]);
    assert_eq!(folder.read("keep.png"), b"precious");
    let run = feeds(&folder, r#"{"prompt": "a cat", "steps": false}"#, 1, &[]);
    assert!(
        run.stderr.contains("\"steps\" is false, which only a flag"),
        "{run:?}"
    );
}
