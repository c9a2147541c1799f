//! What a dry run says of downloads, against the hub on loopback.
use crate::hub::server::{COMMIT, Hub, WEIGHTS};
use crate::support::{Folder, Run, asset};
use serde_json::Value;
use std::path::PathBuf;

/// One step of `owner/words`, which is tiny-sd.
fn run(hub: &Hub, folder: &Folder, args: &[&str]) -> Run {
    let first = ["txt2img", "a cat", "--model", "owner/words", "--steps", "1"];
    hub.run(folder, &[&first, args].concat())
}

fn size(name: &str) -> u64 {
    let path = PathBuf::from(asset("tiny-sd")).join(name);
    std::fs::metadata(path).expect("the asset is there").len()
}

/// `(name, bytes)` of the files in a plan, sorted.
fn listed(plan: &Value) -> Vec<(String, u64)> {
    let files = plan["download"]["files"].as_array().expect("a list");
    let mut listed: Vec<_> = files
        .iter()
        .map(|file| {
            let name = file["name"].as_str().expect("a name").to_owned();
            (name, file["bytes"].as_u64().expect("bytes"))
        })
        .collect();
    listed.sort();
    listed
}

#[test]
fn a_dry_run_lists_the_files_that_a_run_would_fetch_and_fetches_none_of_them() {
    let hub = Hub::new();
    let folder = Folder::new();
    let plan = run(&hub, &folder, &["--dry-run", "--json", "-q"]);
    assert_eq!(plan.code, Some(0), "{plan:?}");
    let plan = &plan.objects()[0];
    let wanted = WEIGHTS.map(|name| (name.to_owned(), size(name)));
    assert_eq!(listed(plan), wanted, "{plan}");
    let total: u64 = wanted.iter().map(|(_, bytes)| bytes).sum();
    assert_eq!(plan["download"]["bytes"], total);
    assert_eq!(plan["weights"], total);
    assert_eq!(plan["commit"], COMMIT);
    let sent = hub.sent();
    for name in WEIGHTS {
        // A byte may be asked for, to learn the size.
        assert!(sent.get(name).is_none_or(|bytes| *bytes <= 1), "{sent:?}");
    }
    assert!(sent.contains_key("unet/config.json"), "{sent:?}");

    // The run fetches exactly what was listed.
    let drawn = run(&hub, &folder, &["-q", "-o", "a.png"]);
    assert_eq!(drawn.code, Some(0), "{drawn:?}");
    let sent = hub.sent();
    for (name, bytes) in &wanted {
        let sent = sent.get(name).copied().unwrap_or_default() as u64;
        assert!(
            (*bytes..=bytes + 2).contains(&sent),
            "{name}: {sent} of {bytes}"
        );
    }
    let fetched = sent
        .keys()
        .filter(|name| name.ends_with(".safetensors") || name.ends_with(".bin"));
    assert_eq!(
        fetched.collect::<Vec<_>>(),
        WEIGHTS.iter().collect::<Vec<_>>()
    );

    // Then nothing is left, and after a loss the rest.
    let text = run(&hub, &folder, &["--dry-run"]);
    assert!(text.stdout.contains("download  nothing\n"), "{text:?}");
    let snapshot = folder.file(&format!(".hub/hub/models--owner--words/snapshots/{COMMIT}"));
    std::fs::remove_file(snapshot.join(WEIGHTS[2])).expect("it was downloaded");
    let plan = &run(&hub, &folder, &["--dry-run", "--json"]).objects()[0];
    assert_eq!(listed(plan), wanted[2..], "{plan}");
    assert_eq!(plan["weights"], total);
}

#[test]
fn a_dry_run_says_the_downloads_in_words() {
    let hub = Hub::new();
    let run = run(&hub, &Folder::new(), &["--dry-run"]);
    assert_eq!(run.code, Some(0), "{run:?}");
    assert!(run.stdout.contains("\ndownload  3 files, "), "{run:?}");
    for name in WEIGHTS {
        assert!(
            run.stdout.contains(&format!("\n          {name} (")),
            "{run:?}"
        );
    }
    assert!(
        run.stdout
            .contains(&format!("model     owner/words at {COMMIT}\n")),
        "{run:?}"
    );
}
