//! Repositories, against a small hub on loopback. The client reads its settings from the environment, so each case runs
//! in a process of its own: this test binary again, with [`child`] alone.
use candle_core::DType;
use diffuse::engine::checkpoint::Checkpoint;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const FILES: [(&str, &[u8]); 5] = [
    ("config.json", b"{\"sample_size\": 8}"),
    ("scheduler_config.json", b"{}"),
    (
        "diffusion_pytorch_model.safetensors",
        b"\x02\0\0\0\0\0\0\0{}",
    ),
    ("diffusion_pytorch_model.bin", b"not wanted"),
    ("README.md", b"not wanted"),
];

/// Serves `owner/flat`; `owner/gated` is refused; all else is unknown. Returns the address and the paths asked for.
fn hub() -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let asked = Arc::new(Mutex::new(Vec::new()));
    let log = asked.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap())
                .lines()
                .map_while(Result::ok);
            let Some(first) = lines.next() else { continue };
            let path = first.split(' ').nth(1).unwrap().to_string();
            let range = lines.take_while(|line| !line.is_empty()).find_map(|line| {
                let value = line
                    .to_lowercase()
                    .strip_prefix("range: bytes=")?
                    .to_string();
                let (from, to) = value.split_once('-')?;
                Some((from.parse::<usize>().ok()?, to.parse::<usize>().ok()))
            });
            log.lock().unwrap().push(path.clone());
            let file = FILES.iter().find(|(name, _)| {
                path.starts_with("/owner/flat/resolve/") && path.ends_with(&format!("/{name}"))
            });
            let (status, headers, body) = if let Some((name, bytes)) = file {
                let (from, to) = range.unwrap_or((0, None));
                let to = to.unwrap_or(bytes.len() - 1).min(bytes.len() - 1);
                let headers = format!(
                    "x-repo-commit: {COMMIT}\r\netag: \"{name}-etag\"\r\ncontent-range: bytes {from}-{to}/{}\r\n",
                    bytes.len()
                );
                ("206 Partial Content", headers, bytes[from..=to].to_vec())
            } else if path.starts_with("/api/models/owner/flat/revision/")
                && !path.ends_with("/nosuch")
            {
                let names: Vec<_> = FILES
                    .iter()
                    .map(|(name, _)| serde_json::json!({ "rfilename": name }))
                    .collect();
                let info = serde_json::json!({ "sha": COMMIT, "siblings": names });
                (
                    "200 OK",
                    "content-type: application/json\r\n".into(),
                    info.to_string().into_bytes(),
                )
            } else if path.contains("gated") {
                ("401 Unauthorized", String::new(), Vec::new())
            } else {
                ("404 Not Found", String::new(), Vec::new())
            };
            let head = format!(
                "HTTP/1.1 {status}\r\n{headers}content-length: {}\r\nconnection: close\r\n\r\n",
                body.len()
            );
            stream
                .write_all(head.as_bytes())
                .and_then(|()| stream.write_all(&body))
                .ok();
        }
    });
    (address, asked)
}

/// Opens a model in a process with these settings; what it says.
fn open(model: &str, revision: &str, cache: &Path, endpoint: &str, offline: bool) -> String {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "hub::child", "--nocapture"])
        .env("CHILD_MODEL", model)
        .env("CHILD_REVISION", revision)
        .env("HF_HUB_CACHE", cache)
        .env("HF_HOME", cache)
        .env("HF_ENDPOINT", endpoint)
        .env("HF_HUB_OFFLINE", if offline { "1" } else { "0" })
        .env_remove("HF_TOKEN")
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let said = text
        .split("SAID ")
        .nth(1)
        .unwrap_or_else(|| panic!("{text}"));
    said.lines().next().unwrap().to_string()
}

#[test]
#[ignore = "runs inside of the others"]
fn child() {
    let (Ok(model), Ok(revision)) = (
        std::env::var("CHILD_MODEL"),
        std::env::var("CHILD_REVISION"),
    ) else {
        return;
    };
    let open = || {
        let checkpoint = Checkpoint::open(&model, &revision)?;
        let config = checkpoint.json("unet", "config.json")?;
        let weights = checkpoint.prepare_weights("unet", DType::F32)?;
        anyhow::Ok(format!(
            "{:?} {} {}",
            checkpoint.commit(),
            config["sample_size"],
            weights.places[0].display()
        ))
    };
    match open() {
        Ok(text) => println!("SAID {text}"),
        Err(err) => println!("SAID error: {err:#}"),
    }
}

#[test]
fn a_repository_is_fetched_once_and_only_what_is_needed() {
    let (address, asked) = hub();
    let cache = tempfile::tempdir().unwrap();
    let said = open("owner/flat", "main", cache.path(), &address, false);
    let file =
        format!("models--owner--flat/snapshots/{COMMIT}/diffusion_pytorch_model.safetensors");
    assert!(
        said.starts_with(&format!("Some({COMMIT:?}) 8 ")) && said.ends_with(&file),
        "{said}"
    );
    let paths = std::mem::take(&mut *asked.lock().unwrap());
    assert!(
        !paths
            .iter()
            .any(|p| p.ends_with(".bin") || p.ends_with(".md")),
        "{paths:?}"
    );
    let refs: Vec<_> = std::fs::read_dir(cache.path().join("models--owner--flat/refs"))
        .unwrap()
        .collect();
    assert_eq!(refs.len(), 1, "the branch alone");

    // The cache is enough: with the flag, by commit, and with the hub gone.
    assert_eq!(
        open("owner/flat", "main", cache.path(), &address, true),
        said
    );
    assert_eq!(
        open("owner/flat", COMMIT, cache.path(), &address, true),
        said
    );
    assert_eq!(
        open(
            "owner/flat",
            "main",
            cache.path(),
            "http://127.0.0.1:1",
            false
        ),
        said
    );
    assert_eq!(asked.lock().unwrap().len(), 0);
}

#[test]
fn what_the_hub_refuses_is_said_in_one_line_with_what_to_do() {
    let (address, _) = hub();
    let cache = tempfile::tempdir().unwrap();
    for (model, revision, endpoint, offline, part) in [
        (
            "owner/gated",
            "main",
            address.as_str(),
            false,
            "accept its licence at https://huggingface.co/owner/gated and set HF_TOKEN",
        ),
        (
            "owner/nosuch",
            "main",
            &address,
            false,
            "the hub has no owner/nosuch",
        ),
        (
            "owner/flat",
            "nosuch",
            &address,
            false,
            "revision \"nosuch\"",
        ),
        (
            "owner/flat",
            "main",
            &address,
            true,
            "HF_HUB_OFFLINE is set",
        ),
        (
            "owner/flat",
            "main",
            "http://127.0.0.1:1",
            false,
            "cannot be reached",
        ),
        (
            "runwayml/stable-diffusion-v1-5",
            "main",
            &address,
            true,
            "stable-diffusion-v1-5/stable-diffusion-v1-5 at main",
        ),
    ] {
        let said = open(model, revision, cache.path(), endpoint, offline);
        assert!(
            said.starts_with("error: ") && said.contains(part),
            "{model}: {said}"
        );
    }
}
