//! The cache: what is downloaded and what is not, where it lies, and that it is enough afterwards.
use super::server::{COMMIT, DRAW, Fault, Hub, UNET};
#[cfg(unix)]
use super::server::{git_hash, sha256};
use crate::support::{Folder, Run};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// One step of `owner/words`, to `a.png`.
const WORDS: [&str; 8] = [
    "txt2img",
    "a cat",
    "--model",
    "owner/words",
    "--steps",
    "1",
    "-o",
    "a.png",
];

/// The names that were downloaded.
fn downloaded(asked: &[String]) -> BTreeSet<String> {
    let names = asked.iter().filter_map(|line| {
        let path = line.strip_prefix("GET ")?.split(' ').next()?;
        let name = path.split_once(&format!("/resolve/{COMMIT}/"))?.1;
        Some(name.to_owned())
    });
    names.collect()
}

#[track_caller]
fn drew(run: &Run) {
    assert_eq!(run.code, Some(0), "{run:?}");
}

#[test]
fn what_was_downloaded_once_needs_no_request() {
    let (hub, folder) = (Hub::new(), Folder::new());
    for model in ["owner/tiny", "owner/flat"] {
        hub.asked();
        let args = [
            "ddpm",
            "--model",
            model,
            "--steps",
            "1",
            "--seed",
            "0",
            "--overwrite",
            "-o",
            "a.png",
        ];
        drew(&hub.run(&folder, &args));
        let (first, asked) = (folder.read("a.png"), hub.asked());
        let lists = asked.iter().filter(|line| line.contains("/api/")).count();
        assert_eq!(lists, 1, "{asked:?}");
        let by_commit = [&args[..], &["--revision", COMMIT]].concat();
        let offline = [&args[..], &["--offline"]].concat();
        for args in [&args[..], &offline, &by_commit] {
            drew(&hub.run(&folder, args));
            assert_eq!(hub.asked(), [""; 0], "{args:?}");
        }
        let dead = folder
            .command(args)
            .output()
            .expect("the program starts")
            .into();
        drew(&dead);
        assert_eq!(folder.read("a.png").len(), first.len());
        assert_eq!(dead.stderr.matches("warning").count(), 0, "{}", dead.stderr);
    }
}

/// As huggingface_hub's `snapshot_download` leaves it, which notes no absent file.
#[test]
fn a_whole_model_in_the_cache_is_drawn_with_whatever_the_hub_answers() {
    let (hub, folder) = (Hub::new(), Folder::new());
    let args = [&WORDS[..], &["--overwrite"]].concat();
    drew(&hub.run(&folder, &args));
    let repository = folder.file(".hub/hub/models--owner--words");
    for status in [401, 403, 404, 503] {
        std::fs::remove_dir_all(repository.join(".no_exist")).expect("it was noted");
        hub.faults(&["/api/"], Fault::Status(status, Vec::new()), 100);
        let run = hub.run(&folder, &args);
        drew(&run);
        assert_eq!(
            run.stderr.matches("using what the cache has").count(),
            1,
            "{status}: {}",
            run.stderr
        );
        hub.behave();
        drew(&hub.run(&folder, &args));
    }
}

#[test]
fn only_what_is_needed_is_downloaded() {
    let (hub, folder) = (Hub::new(), Folder::new());
    let not_wanted = [
        "v1-5-pruned.ckpt",
        "v1-5-pruned.safetensors",
        "README.md",
        "safety_checker/config.json",
        "safety_checker/model.safetensors",
        "feature_extractor/preprocessor_config.json",
        "unet/diffusion_pytorch_model.bin",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "unet/diffusion_pytorch_model.non_ema.safetensors",
        "unet/diffusion_flax_model.msgpack",
        "unet/model.onnx",
        "vae/diffusion_pytorch_model.bin",
        "text_encoder/pytorch_model.bin",
    ];
    let files = not_wanted.map(|name| (name.to_owned(), b"{}".to_vec()));
    hub.publish("owner/words", BTreeMap::from(files));
    drew(&hub.run(&folder, &WORDS));
    let wanted = [
        "model_index.json",
        "scheduler/scheduler_config.json",
        "text_encoder/config.json",
        "text_encoder/model.safetensors",
        "tokenizer/tokenizer.json",
        "tokenizer/tokenizer_config.json",
        "unet/config.json",
        UNET,
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
    ];
    assert_eq!(downloaded(&hub.asked()), wanted.map(str::to_owned).into());
}

#[test]
fn a_dry_run_downloads_no_weights_and_tells_their_size() {
    let (hub, folder) = (Hub::new(), Folder::new());
    let run = hub.run(
        &folder,
        &["ddpm", "--model", "owner/tiny", "--dry-run", "--json"],
    );
    drew(&run);
    let size = hub.file("owner/tiny", UNET).len();
    let object = &run.objects()[0];
    assert_eq!(object["download"]["bytes"], size, "{object}");
    assert_eq!(object["commit"], COMMIT);
    assert!(!downloaded(&hub.asked()).contains(UNET));
}

/// Every file and link below a folder, and what is in it.
fn tree(folder: &Path, inside: &str) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    for entry in std::fs::read_dir(folder).expect("it can be read") {
        let path = entry.expect("it can be read").path();
        let name = format!(
            "{inside}{}",
            path.file_name().expect("it has one").to_string_lossy()
        );
        if let Ok(target) = std::fs::read_link(&path) {
            all.insert(name, format!("-> {}", target.display()));
        } else if path.is_dir() {
            all.extend(tree(&path, &format!("{name}/")));
        } else {
            let bytes = std::fs::read(&path).expect("it can be read");
            all.insert(
                name,
                String::from_utf8(bytes).unwrap_or_else(|_| "weights".to_owned()),
            );
        }
    }
    all
}

#[cfg(unix)]
#[test]
fn the_layout_is_that_of_huggingface_hub() {
    let (hub, folder) = (Hub::new(), Folder::new());
    drew(&hub.draw(&folder));
    let mut expected = BTreeMap::new();
    let repository = "models--owner--tiny";
    expected.insert(format!("{repository}/refs/main"), COMMIT.to_owned());
    for (name, up) in [
        ("model_index.json", "../../"),
        ("scheduler/scheduler_config.json", "../../../"),
        ("unet/config.json", "../../../"),
        (UNET, "../../../"),
    ] {
        let bytes = hub.file("owner/tiny", name);
        let etag = match name == UNET {
            true => sha256(&bytes),
            false => git_hash(&bytes),
        };
        let text = String::from_utf8(bytes).unwrap_or_else(|_| "weights".to_owned());
        expected.insert(format!("{repository}/blobs/{etag}"), text);
        expected.insert(
            format!("{repository}/snapshots/{COMMIT}/{name}"),
            format!("-> {up}blobs/{etag}"),
        );
        expected.insert(format!(".locks/{repository}/{etag}.lock"), String::new());
    }
    let mut found = tree(&folder.file(".hub/hub"), "");
    let absent: Vec<String> = found
        .keys()
        .filter(|name| name.contains("/.no_exist/"))
        .cloned()
        .collect();
    for name in absent {
        let file = name
            .split_once(&format!("{repository}/.no_exist/{COMMIT}/"))
            .expect("it is there")
            .1;
        assert_eq!(found.remove(&name).as_deref(), Some(""));
        assert!(!found.contains_key(&format!("{repository}/snapshots/{COMMIT}/{file}")));
    }
    assert_eq!(found, expected);
}

#[test]
fn a_branch_or_tag_has_its_own_ref_and_shares_the_files() {
    let (hub, folder) = (Hub::new(), Folder::new());
    drew(&hub.draw(&folder));
    hub.asked();
    let refs = folder.file(".hub/hub/models--owner--tiny/refs");
    for revision in ["v1", "refs/pr/1"] {
        let args = [&DRAW[..], &["--overwrite", "--revision", revision]].concat();
        drew(&hub.run(&folder, &args));
        assert_eq!(
            std::fs::read_to_string(refs.join(revision)).expect("it is there"),
            COMMIT
        );
        // The files are at the commit already.
        assert_eq!(downloaded(&hub.asked()), BTreeSet::new());
    }
}

#[test]
fn what_the_cache_lacks_offline_is_named_for_all_components() {
    let (hub, folder) = (Hub::new(), Folder::new());
    drew(&hub.run(
        &folder,
        &["txt2img", "a cat", "--model", "owner/words", "--dry-run"],
    ));
    let run = hub.run(
        &folder,
        &[
            "txt2img",
            "a cat",
            "--model",
            "owner/words",
            "--offline",
            "--steps",
            "1",
        ],
    );
    assert_eq!(run.code, Some(1));
    let expected = "owner/words has no weights of text_encoder, unet, vae in the cache, and the network is off (--offline)";
    assert!(run.stderr.contains(expected), "{}", run.stderr);
}

#[test]
fn a_cache_that_cannot_be_written_is_told() {
    let (hub, folder) = (Hub::new(), Folder::new());
    folder.write("file", "");
    let output = hub
        .command(&folder, &DRAW)
        .env("HF_HUB_CACHE", folder.file("file/in"))
        .output();
    let run: Run = output.expect("the program starts").into();
    assert_eq!(run.code, Some(1));
    assert!(
        run.stderr.contains("cannot be written; set HF_HUB_CACHE"),
        "{}",
        run.stderr
    );
}

/// The hash that a picture of the tiny model remembers of the UNet's weights.
#[cfg(unix)]
fn remembered(folder: &Folder, args: &[&str]) -> String {
    let args = [args, &["--overwrite", "-o", "a.png"]].concat();
    drew(&folder.run(&args));
    let texts = crate::support::texts(&folder.read("a.png"));
    let chunk: serde_json::Value = serde_json::from_str(&texts["diffuse"]).expect("it is JSON");
    let hash = &chunk["model"]["files"][UNET];
    hash.as_str().expect("it is a hash").to_owned()
}

#[cfg(unix)]
#[test]
fn a_name_is_taken_for_a_hash_only_where_the_hub_gave_it() {
    use std::os::unix::fs::symlink;
    let (hub, folder) = (Hub::new(), Folder::new());
    drew(&hub.draw(&folder));
    let hash = sha256(&hub.file("owner/tiny", UNET));
    let args = [&DRAW[..7], &["--offline"]].concat();
    assert_eq!(remembered(&folder, &args), hash);
    let repository = folder.file(".hub/hub/models--owner--tiny");
    let other = "0".repeat(64);
    let store = folder.file(".hub/store");
    std::fs::create_dir(&store).expect("the folder is writable");
    // The blob is kept in a store of other names.
    let blob = repository.join("blobs").join(&hash);
    std::fs::rename(&blob, store.join(&other)).expect("one disk");
    symlink(store.join(&other), &blob).expect("the folder is writable");
    assert_eq!(remembered(&folder, &args), hash);
    // The snapshot leads to the store itself.
    let pointer = repository.join("snapshots").join(COMMIT).join(UNET);
    std::fs::remove_file(&pointer).expect("it is there");
    symlink(store.join(&other), &pointer).expect("the folder is writable");
    assert_eq!(remembered(&folder, &args), hash);
    // The blob's name is no SHA-256, as for files that git LFS does not keep.
    let short = repository.join("blobs").join("0".repeat(40));
    std::fs::copy(store.join(&other), &short).expect("the folder is writable");
    std::fs::remove_file(&pointer).expect("it is there");
    symlink(&short, &pointer).expect("the folder is writable");
    assert_eq!(remembered(&folder, &args), hash);
}

/// By hand: `PYTHON=python3 cargo test --test cli -- --ignored python`, with a Python that has huggingface_hub.
#[test]
#[ignore = "needs Python's huggingface_hub: set PYTHON"]
fn python_and_this_program_share_the_cache() {
    let python = std::env::var("PYTHON").expect("PYTHON names a Python");
    let script = "
import sys
from huggingface_hub import hf_hub_download, try_to_load_from_cache, scan_cache_dir
offline = sys.argv[1] == 'offline'
names = ['model_index.json', 'scheduler/scheduler_config.json', 'unet/config.json', 'unet/diffusion_pytorch_model.safetensors']
for name in names:
    print(hf_hub_download('owner/tiny', name, local_files_only=offline))
if offline:
    info = scan_cache_dir()
    assert not info.warnings, info.warnings
    repo, = info.repos
    assert repo.repo_id == 'owner/tiny' and repo.nb_files == 4 and list(repo.refs) == ['main'], repo
";
    let call = |hub: &Hub, folder: &Folder, mode: &str| {
        let mut command = std::process::Command::new(&python);
        command
            .args(["-c", script, mode])
            .env("HF_HOME", folder.file(".hub"));
        command
            .env("HF_ENDPOINT", &hub.address)
            .env("HF_HUB_DISABLE_XET", "1")
            .env_remove("HF_HUB_CACHE");
        let output = command.output().expect("Python starts");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stdout)
    };
    // Ours for Python.
    let (hub, folder) = (Hub::new(), Folder::new());
    drew(&hub.draw(&folder));
    hub.asked();
    let ours = call(&hub, &folder, "offline");
    assert_eq!(ours.lines().count(), 4, "{ours}");
    call(&hub, &folder, "online");
    let asked = hub.asked();
    assert!(
        !asked.iter().any(|line| line.starts_with("GET /owner")),
        "{asked:?}"
    );
    let layout = tree(&folder.file(".hub/hub"), "");
    // Python's for us.
    let folder = Folder::new();
    call(&hub, &folder, "online");
    hub.asked();
    drew(&hub.run(&folder, &[&DRAW[..], &["--offline"]].concat()));
    assert_eq!(hub.asked(), [""; 0]);
    // And one is laid out as the other, but for what is known to be absent and a mark for backups.
    let mut theirs = tree(&folder.file(".hub/hub"), "");
    theirs.remove("CACHEDIR.TAG");
    let layout: BTreeMap<_, _> = layout
        .into_iter()
        .filter(|(name, _)| !name.contains("/.no_exist/") && name != "CACHEDIR.TAG")
        .collect();
    assert_eq!(theirs, layout);
}
