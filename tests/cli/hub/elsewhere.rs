//! VAEs, LoRAs and configurations of the hub that complete a model: their revisions, and one download for all.
use super::server::{COMMIT, Fault, Hub, files_of};
use crate::parts::fixture;
use crate::support::{self, Folder, Run, texts};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;

/// With `owner/vae`, a tiny one, and `owner/lora` with two files.
fn hub() -> Hub {
    let hub = Hub::new();
    hub.publish("owner/vae", files_of(Path::new(&fixture("tiny-vae"))));
    let read = |name: &str| std::fs::read(fixture(name)).expect("a fixture");
    let loras = [
        ("pytorch_lora_weights.safetensors", "peft.safetensors"),
        ("other.safetensors", "old.safetensors"),
    ];
    let loras = loras.map(|(name, file)| (name.to_owned(), read(file)));
    hub.publish("owner/lora", BTreeMap::from(loras));
    hub.asked();
    hub
}

const COMMON: [&str; 8] = [
    "txt2img",
    "a cat",
    "--model",
    "owner/words",
    "--steps=2",
    "--seed=1",
    "--device=cpu",
    "--overwrite",
];

fn draw(hub: &Hub, folder: &Folder, more: &[&str]) -> Run {
    hub.run(folder, &[&COMMON[..], more].concat())
}

#[track_caller]
fn drew(run: &Run) {
    assert_eq!(run.code, Some(0), "{run:?}");
}

/// The revisions whose lists of files were asked for.
fn revisions(asked: &[String]) -> Vec<String> {
    let lists = asked.iter().filter_map(|line| {
        let line = line.strip_prefix("GET /api/models/")?;
        Some(line.split([' ', '?']).next()?.to_owned())
    });
    lists.collect()
}

#[test]
fn a_revision_stands_behind_an_at() {
    let (hub, folder) = (hub(), Folder::new());
    drew(&draw(&hub, &folder, &["-o=plain.png"]));
    hub.asked();
    let more = [
        "--vae=owner/vae@v1",
        "--lora=owner/lora@v1/other.safetensors:0.5",
        "--lora=owner/lora@refs/pr/1",
        "-o=a.png",
    ];
    drew(&draw(&hub, &folder, &more));
    assert_eq!(
        revisions(&hub.asked()),
        [
            "owner/vae/revision/v1",
            "owner/lora/revision/v1",
            "owner/lora/revision/refs%2Fpr%2F1"
        ]
    );
    // A picture remembers the commits, so that it is drawn again when the branch has moved on.
    let chunk: Value = serde_json::from_str(&texts(&folder.read("a.png"))["diffuse"]).unwrap();
    assert_eq!(chunk["settings"]["vae"], format!("owner/vae@{COMMIT}"));
    assert_eq!(
        chunk["settings"]["lora"],
        json!([
            format!("owner/lora@{COMMIT}/other.safetensors:0.5"),
            format!("owner/lora@{COMMIT}/pytorch_lora_weights.safetensors"),
        ])
    );
    assert_eq!(chunk["model"]["commits"]["owner/vae"], COMMIT);
    let args = [
        "txt2img",
        "--from=a.png",
        "-o=b.png",
        "--offline",
        "--device=cpu",
    ];
    let again = hub.run(&folder, &args);
    drew(&again);
    assert!(
        again.stderr.contains("the pixels are those of a.png"),
        "{}",
        again.stderr
    );
    assert!(!again.stderr.contains("warning"), "{}", again.stderr);
    assert_eq!(hub.asked(), [""; 0]);
    assert_ne!(folder.read("plain.png"), folder.read("a.png"));
}

#[test]
fn the_address_of_a_page_or_a_file_stands_for_its_id() {
    let (hub, folder) = (hub(), Folder::new());
    let more = [
        "--vae=https://huggingface.co/owner/vae/tree/v1",
        "--lora=https://huggingface.co/owner/lora/blob/main/other.safetensors:0.5",
        "--lora=https://huggingface.co/owner/lora/tree/refs%2Fpr%2F1",
        "-o=a.png",
    ];
    drew(&draw(&hub, &folder, &more));
    let plain = [
        "--vae=owner/vae@v1",
        "--lora=owner/lora/other.safetensors:0.5",
        "--lora=owner/lora@refs/pr/1",
        "-o=b.png",
    ];
    drew(&draw(&hub, &folder, &plain));
    let said = |name: &str| texts(&folder.read(name))["diffuse"].clone();
    assert_eq!(said("a.png"), said("b.png"));
    assert_eq!(folder.read("a.png"), folder.read("b.png"));
    let model = ["--model", "https://huggingface.co/owner/words"];
    let more = ["--steps=2", "--seed=1", "--device=cpu", "-o=c.png"];
    let args = [&["txt2img", "a cat"], &model[..], &more].concat();
    drew(&hub.run(&folder, &args));
    drew(&draw(&hub, &folder, &["-o=d.png"]));
    assert_eq!(folder.read("c.png"), folder.read("d.png"));
    // A folder of that name goes before it, as any does.
    std::fs::create_dir_all(folder.file("hf.co/owner/words")).expect("a new folder");
    let run = hub.run(&folder, &["txt2img", "a cat", "--model=hf.co/owner/words"]);
    let said = "hf.co/owner/words is no model in the diffusers layout";
    assert!(run.stderr.contains(said), "{}", run.stderr);
}

#[test]
fn a_revision_that_is_not_there_is_named_with_its_flag() {
    let (hub, folder) = (hub(), Folder::new());
    for (flag, said) in [
        (
            "--vae=owner/vae@nosuch",
            "--vae: owner/vae has no revision \"nosuch\"",
        ),
        (
            "--preview-vae=owner/vae@nosuch",
            "--preview-vae: owner/vae has no revision \"nosuch\"",
        ),
        (
            "--lora=owner/lora@nosuch:0.5",
            "--lora: owner/lora has no revision \"nosuch\"",
        ),
        ("--vae=owner/vae@", "--vae: revision \"\" is no branch"),
        (
            "--lora=owner/lora@v1/nosuch.safetensors",
            "--lora: owner/lora has no file nosuch.safetensors",
        ),
        (
            "--lora=owner/nosuch@v1",
            "--lora: the hub has no owner/nosuch",
        ),
        (
            "--model=owner/words@v1",
            "for a revision of owner/words type --model owner/words --revision v1",
        ),
    ] {
        let run = match flag.starts_with("--model") {
            true => hub.run(&folder, &["txt2img", "a cat", flag]),
            false => draw(&hub, &folder, &[flag]),
        };
        assert_eq!(run.code, Some(1), "{flag}: {run:?}");
        assert!(run.stderr.contains(said), "{flag}: {}", run.stderr);
        assert_eq!(run.stderr.lines().count(), 1, "{flag}: {}", run.stderr);
    }
}

#[test]
fn a_folder_with_an_at_in_its_name_is_a_folder() {
    let (hub, folder) = (hub(), Folder::new());
    let place = folder.file("owner/vae@v1");
    std::fs::create_dir(folder.file("owner")).expect("a new folder");
    support::copy(Path::new(&fixture("tiny-vae")), &place);
    let run = draw(&hub, &folder, &["--vae=owner/vae@v1", "-o=a.png"]);
    drew(&run);
    assert!(
        !hub.asked().iter().any(|line| line.contains("owner/vae")),
        "the folder goes first"
    );
}

const ALL: [&str; 3] = [
    "--preview-vae=owner/vae",
    "--lora=owner/lora",
    "--lora=owner/lora/other.safetensors",
];

#[test]
fn all_that_a_run_takes_is_told_by_a_dry_run_and_comes_in_one_download() {
    let (hub, folder) = (hub(), Folder::new());
    let plan = draw(
        &hub,
        &folder,
        &[&ALL[..], &["--dry-run", "--json"]].concat(),
    );
    drew(&plan);
    let plan = &plan.objects()[0];
    let files = plan["download"]["files"].as_array().expect("a list");
    let mut names: Vec<_> = files
        .iter()
        .map(|file| file["name"].as_str().expect("a name"))
        .collect();
    names.sort();
    assert_eq!(
        names,
        [
            "owner/lora/other.safetensors",
            "owner/lora/pytorch_lora_weights.safetensors",
            "owner/vae/diffusion_pytorch_model.safetensors",
            "text_encoder/model.safetensors",
            "unet/diffusion_pytorch_model.safetensors",
            "vae/diffusion_pytorch_model.safetensors",
        ]
    );
    hub.asked();
    hub.sent();
    drew(&draw(
        &hub,
        &folder,
        &[&ALL[..], &["-o=a.png", "--save-steps=1"]].concat(),
    ));
    // The sizes of all are known, and with them whether the disk has room, before the first byte of any comes.
    let asked = hub.asked();
    let place = |part: &str| asked.iter().rposition(|line| line.contains(part));
    let first = asked.iter().position(|line| line.contains("/cdn/"));
    for file in [
        "owner/lora/resolve",
        "owner/vae/resolve",
        "unet/diffusion_pytorch_model.safetensors",
    ] {
        let heads = asked
            .iter()
            .rposition(|line| line.starts_with("HEAD") && line.contains(file));
        assert!(heads.is_some() && heads < first, "{file}: {asked:?}");
    }
    assert!(place("/cdn/owner/lora/-/other.safetensors").is_some());
    // And what came is what was told.
    let total = plan["download"]["bytes"].as_u64().expect("bytes");
    let sent = hub.sent().into_iter();
    let weights: usize = sent
        .filter(|(name, _)| name.ends_with(".safetensors"))
        .map(|(_, bytes)| bytes)
        .sum();
    assert_eq!(weights as u64, total);
    let again = draw(
        &hub,
        &folder,
        &[&ALL[..], &["--dry-run", "--json"]].concat(),
    );
    assert_eq!(again.objects()[0]["download"]["bytes"], 0);
}

#[test]
fn the_disk_is_to_have_room_for_all_together() {
    let (hub, folder) = (hub(), Folder::new());
    hub.fault(
        &["HEAD", "owner/lora/resolve"],
        Fault::Header("x-linked-size", "8000000000000000000".to_owned()),
    );
    let run = draw(&hub, &folder, &[&ALL[..], &["-o=a.png"]].concat());
    assert_eq!(run.code, Some(1), "{run:?}");
    assert!(
        run.stderr.contains("the download takes 8.00 EB"),
        "{}",
        run.stderr
    );
    assert!(
        !hub.asked().iter().any(|line| line.contains("/cdn/")),
        "nothing was downloaded"
    );
}

#[test]
fn one_repository_may_be_two_parts_of_a_run() {
    let (hub, folder) = (hub(), Folder::new());
    let twice = [
        "--vae=owner/vae",
        "--preview-vae=owner/vae",
        "--lora=owner/lora:0.5",
        "--lora=owner/lora:0.25",
        "-o=a.png",
    ];
    let plan = draw(
        &hub,
        &folder,
        &[&twice[..], &["--dry-run", "--json"]].concat(),
    );
    let files = &plan.objects()[0]["download"]["files"];
    assert_eq!(files.as_array().map(Vec::len), Some(4), "{files}");
    hub.asked();
    let run = draw(&hub, &folder, &twice);
    drew(&run);
    assert!(!run.stderr.contains("waiting for it"), "{}", run.stderr);
    let gets = hub.asked();
    for part in ["/cdn/owner/vae/", "/cdn/owner/lora/"] {
        let gets = gets.iter().filter(|line| line.contains(part));
        assert_eq!(gets.count(), 1, "{part}");
    }
}
