//! What a dry run says of downloads, against a small hub on loopback.
use crate::support::{Folder, Run, asset};
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

const COMMIT: &str = "89abcdef0123456789abcdef0123456789abcdef";

/// Serves the folder `files` as `owner/model` to whoever asks.
struct Hub {
    address: String,
    /// Bytes that were sent of each file.
    sent: Arc<Mutex<BTreeMap<String, usize>>>,
}

impl Hub {
    fn of(files: PathBuf) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let address = format!("http://{}", listener.local_addr().expect("it is bound"));
        let sent = Arc::new(Mutex::new(BTreeMap::new()));
        let counter = sent.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (files, counter) = (files.clone(), counter.clone());
                // A client that goes away is its own affair.
                std::thread::spawn(move || answer(stream, &files, &counter).ok());
            }
        });
        Self { address, sent }
    }

    fn run(&self, folder: &Folder, args: &[&str]) -> Run {
        let first = ["txt2img", "a cat", "--model", "owner/model", "--steps", "1"];
        let mut command = folder.command([&first, args].concat());
        command
            .env("HF_ENDPOINT", &self.address)
            .env_remove("HF_HUB_OFFLINE");
        command.output().expect("the program starts").into()
    }

    fn sent(&self) -> BTreeMap<String, usize> {
        std::mem::take(&mut *self.sent.lock().expect("no thread of the hub panics"))
    }
}

/// Answers one request: a file or a part of it, or the list of all.
fn answer(
    mut stream: TcpStream,
    files: &Path,
    sent: &Mutex<BTreeMap<String, usize>>,
) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let first = lines.next().transpose()?.unwrap_or_default();
    let mut words = first.split(' ');
    let (method, path) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
    let mut range = None;
    for line in lines {
        let line = line?.to_lowercase();
        if line.is_empty() {
            break;
        }
        if let Some(part) = line.strip_prefix("range: bytes=") {
            range = part
                .split_once('-')
                .map(|(from, to)| (from.parse().unwrap_or(0), to.parse().ok()));
        }
    }
    let name = path.strip_prefix("/owner/model/resolve/");
    let name = name.and_then(|rest| Some(rest.split_once('/')?.1));
    let found = name.and_then(|name| Some((name, std::fs::read(files.join(name)).ok()?)));
    let (status, headers, body) = if let Some((name, bytes)) = found {
        let (from, to) = range.unwrap_or((0, None));
        let to = to.unwrap_or(usize::MAX).min(bytes.len().saturating_sub(1));
        let part = bytes.get(from..=to).unwrap_or_default().to_vec();
        let headers = format!(
            "x-repo-commit: {COMMIT}\r\netag: \"{}\"\r\naccept-ranges: bytes\r\ncontent-range: bytes {from}-{to}/{}\r\n",
            name.replace('/', "-"),
            bytes.len()
        );
        if method == "GET" {
            let mut sent = sent.lock().expect("no thread of the hub panics");
            *sent.entry(name.to_owned()).or_default() += part.len();
        }
        let status = match range {
            Some(_) => "206 Partial Content",
            None => "200 OK",
        };
        (status, headers, part)
    } else if path.starts_with("/api/models/owner/model") {
        let mut names = Vec::new();
        list(files, "", &mut names);
        let siblings: Vec<_> = names
            .iter()
            .map(|(name, size)| serde_json::json!({"rfilename": name, "size": size}))
            .collect();
        let info = serde_json::json!({"sha": COMMIT, "siblings": siblings});
        let headers = "content-type: application/json\r\n".to_owned();
        ("200 OK", headers, info.to_string().into_bytes())
    } else {
        ("404 Not Found", String::new(), Vec::new())
    };
    let head = format!(
        "HTTP/1.1 {status}\r\n{headers}content-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes())?;
    match method {
        "HEAD" => Ok(()),
        _ => stream.write_all(&body),
    }
}

/// The files under `folder` with their sizes.
fn list(folder: &Path, prefix: &str, names: &mut Vec<(String, u64)>) {
    for entry in std::fs::read_dir(folder).expect("the asset is there") {
        let entry = entry.expect("an entry");
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        match entry.metadata().expect("it is there") {
            found if found.is_dir() => list(&entry.path(), &format!("{name}/"), names),
            found => names.push((name, found.len())),
        }
    }
}

const WEIGHTS: [&str; 3] = [
    "text_encoder/model.safetensors",
    "unet/diffusion_pytorch_model.safetensors",
    "vae/diffusion_pytorch_model.safetensors",
];

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
    let hub = Hub::of(asset("tiny-sd").into());
    let folder = Folder::new();
    let plan = hub.run(&folder, &["--dry-run", "--json", "-q"]);
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
    let run = hub.run(&folder, &["-q", "-o", "a.png"]);
    assert_eq!(run.code, Some(0), "{run:?}");
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
    let text = hub.run(&folder, &["--dry-run"]);
    assert!(text.stdout.contains("download  nothing\n"), "{text:?}");
    let snapshot = folder.file(&format!(".hub/hub/models--owner--model/snapshots/{COMMIT}"));
    std::fs::remove_file(snapshot.join(WEIGHTS[2])).expect("it was downloaded");
    let plan = &hub.run(&folder, &["--dry-run", "--json"]).objects()[0];
    assert_eq!(listed(plan), wanted[2..], "{plan}");
    assert_eq!(plan["weights"], total);
}

#[test]
fn a_dry_run_says_the_downloads_in_words() {
    let hub = Hub::of(asset("tiny-sd").into());
    let run = hub.run(&Folder::new(), &["--dry-run"]);
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
            .contains(&format!("model     owner/model at {COMMIT}\n")),
        "{run:?}"
    );
}
