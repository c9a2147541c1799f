//! A hub on loopback that speaks what a client needs, and misbehaves when it is told to.
//!
//! As on the real one, small files come at once under git's hash, and weights by a redirect to another host, under their
//! SHA-256, which stands in the redirect.
use crate::support::{Folder, Run, asset};
use sha1::Sha1;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
/// The one token that opens what is gated.
pub const TOKEN: &str = "hf_good";
pub const UNET: &str = "unet/diffusion_pytorch_model.safetensors";
/// The weights of `owner/words`, sorted.
pub const WEIGHTS: [&str; 3] = [
    "text_encoder/model.safetensors",
    UNET,
    "vae/diffusion_pytorch_model.safetensors",
];

/// What goes wrong with one answer.
#[derive(Clone, Debug)]
pub enum Fault {
    /// So many bytes of the body, then the connection ends.
    Cut(usize),
    /// So many bytes of the body, then silence.
    Stall(usize),
    /// The body comes in pieces of a thousand bytes, with as many milliseconds between.
    Slow(u64),
    /// This status, with these headers.
    Status(u16, Vec<(&'static str, String)>),
    /// One byte is another.
    Flip,
    /// As many bytes more.
    Long(usize),
    /// As many bytes less, and the answer is whole.
    Short(usize),
    /// The whole body, whatever part was asked for.
    IgnoreRange,
    /// A header has another value.
    Header(&'static str, String),
    /// A small file is on another host too, and its size is not told.
    Elsewhere,
}

#[derive(Default)]
struct State {
    /// The files of each repository.
    files: Mutex<BTreeMap<String, BTreeMap<String, Vec<u8>>>>,
    /// What the next answers do whose request contains all these texts.
    faults: Mutex<Vec<(Vec<String>, Fault, usize)>>,
    asked: Mutex<Vec<String>>,
    /// Bytes that were sent of each file.
    sent: Mutex<BTreeMap<String, usize>>,
    port: u16,
}

pub struct Hub {
    pub address: String,
    state: Arc<State>,
}

impl Hub {
    /// With `owner/tiny` and `owner/words` of the assets, `owner/flat` with the UNet at the root, and `owner/gated`.
    pub fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has ports");
        let port = listener.local_addr().expect("it is bound").port();
        let state = Arc::new(State {
            port,
            ..State::default()
        });
        let hub = Self {
            address: format!("http://127.0.0.1:{port}"),
            state: state.clone(),
        };
        let tiny = files_of(Path::new(&asset("tiny-ddpm")));
        let flat = tiny.iter().filter_map(|(name, bytes)| {
            let (_, name) = name.split_once('/')?;
            Some((name.to_owned(), bytes.clone()))
        });
        hub.publish("owner/flat", flat.collect());
        hub.publish("owner/gated", tiny.clone());
        hub.publish("owner/tiny", tiny);
        hub.publish("owner/words", files_of(Path::new(&asset("tiny-sd"))));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = state.clone();
                std::thread::spawn(move || state.answer(stream));
            }
        });
        hub
    }

    pub fn publish(&self, id: &str, files: BTreeMap<String, Vec<u8>>) {
        let mut all = self.state.files.lock().expect("no thread panics");
        all.entry(id.to_owned()).or_default().extend(files);
    }

    pub fn file(&self, id: &str, name: &str) -> Vec<u8> {
        self.state.files.lock().expect("no thread panics")[id][name].clone()
    }

    /// The next answer to a request that contains `parts` has this fault; after it, the next that was told.
    pub fn fault(&self, parts: &[&str], fault: Fault) {
        self.faults(parts, fault, 1);
    }

    pub fn faults(&self, parts: &[&str], fault: Fault, times: usize) {
        let parts = parts.iter().map(|part| (*part).to_owned()).collect();
        let mut faults = self.state.faults.lock().expect("no thread panics");
        faults.push((parts, fault, times));
    }

    pub fn behave(&self) {
        self.state.faults.lock().expect("no thread panics").clear();
    }

    /// The requests since the last call: `METHOD PATH range=START token=TOKEN`, the last two where they were sent.
    pub fn asked(&self) -> Vec<String> {
        std::mem::take(&mut *self.state.asked.lock().expect("no thread panics"))
    }

    /// Bytes that were sent of each file since the last call.
    pub fn sent(&self) -> BTreeMap<String, usize> {
        std::mem::take(&mut *self.state.sent.lock().expect("no thread panics"))
    }

    /// A command whose hub this is.
    pub fn command(&self, folder: &Folder, args: &[&str]) -> Command {
        let mut command = folder.command(args);
        command.env("HF_ENDPOINT", &self.address);
        // A machine that stands still for a while is no hub that is silent.
        command.env("HF_HUB_DOWNLOAD_TIMEOUT", "30");
        command
    }

    pub fn run(&self, folder: &Folder, args: &[&str]) -> Run {
        let output = self.command(folder, args).output();
        output.expect("the program starts").into()
    }

    /// One step of `owner/tiny`, to `a.png`.
    pub fn draw(&self, folder: &Folder) -> Run {
        self.run(folder, &DRAW)
    }
}

pub const DRAW: [&str; 9] = [
    "ddpm",
    "--model",
    "owner/tiny",
    "--steps",
    "1",
    "--seed",
    "0",
    "-o",
    "a.png",
];

/// Every file under a folder, by its name in it.
pub fn files_of(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(folder).expect("the folder is there") {
        let path = entry.expect("it can be read").path();
        let name = path.file_name().expect("it has one").to_string_lossy();
        if path.is_dir() {
            let inner = files_of(&path).into_iter();
            files.extend(inner.map(|(inside, bytes)| (format!("{name}/{inside}"), bytes)));
        } else {
            files.insert(
                name.into_owned(),
                std::fs::read(&path).expect("it can be read"),
            );
        }
    }
    files
}

pub fn sha256(bytes: &[u8]) -> String {
    format!("{:x}", Sha256::digest(bytes))
}

/// git's name of a file's bytes.
pub fn git_hash(bytes: &[u8]) -> String {
    let mut hash = Sha1::new_with_prefix(format!("blob {}\0", bytes.len()));
    hash.update(bytes);
    format!("{:x}", hash.finalize())
}

/// Whether git LFS keeps a file.
pub fn is_large(name: &str) -> bool {
    [".safetensors", ".bin", ".ckpt"]
        .iter()
        .any(|end| name.ends_with(end))
}

struct Answer {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
}

impl Answer {
    fn refused(status: u16, code: &str) -> Self {
        let headers = vec![("x-error-code", code.to_owned())];
        Self {
            status,
            headers,
            body: Vec::new(),
        }
    }
}

impl State {
    fn answer(&self, mut stream: TcpStream) {
        let Ok(clone) = stream.try_clone() else {
            return;
        };
        let mut lines = BufReader::new(clone).lines().map_while(Result::ok);
        let Some(first) = lines.next() else { return };
        let words: Vec<&str> = first.split(' ').collect();
        let (method, path) = (words[0], words[1]);
        let (mut range, mut token) = (None, None);
        for line in lines.take_while(|line| !line.is_empty()) {
            let (name, value) = line.split_once(": ").unwrap_or_default();
            match name.to_ascii_lowercase().as_str() {
                "range" => {
                    range = value
                        .strip_prefix("bytes=")
                        .and_then(|r| r.strip_suffix('-')?.parse().ok())
                }
                "authorization" => token = value.strip_prefix("Bearer ").map(str::to_owned),
                _ => {}
            }
        }
        let mut request = format!("{method} {path}");
        if let Some(start) = range {
            request += &format!(" range={start}");
        }
        if let Some(token) = &token {
            request += &format!(" token={token}");
        }
        self.asked
            .lock()
            .expect("no thread panics")
            .push(request.clone());
        let fault = self.next_fault(&request);
        let range = range.filter(|_| !matches!(fault, Some(Fault::IgnoreRange)));
        let mut answer = self.find(method, path, range, token.as_deref());
        match &fault {
            Some(Fault::Status(status, headers)) => {
                answer = Answer {
                    status: *status,
                    headers: headers.clone(),
                    body: Vec::new(),
                };
            }
            Some(Fault::Flip) => answer.body[0] ^= 1,
            Some(Fault::Long(more)) => answer.body.extend(vec![7; *more]),
            Some(Fault::Short(less)) => answer.body.truncate(answer.body.len() - less),
            Some(Fault::Elsewhere) => {
                let (id, rest) = path[1..].split_once("/resolve/").expect("a file's path");
                let (_, name) = rest.split_once('/').expect("a file's path");
                let location = format!("http://localhost:{}/cdn/{id}/-/{name}", self.port);
                answer.headers.retain(|(name, _)| *name != "content-length");
                answer.headers.push(("location", location));
                (answer.status, answer.body) = (302, Vec::new());
            }
            Some(Fault::Header(name, value)) => {
                answer.headers.retain(|(other, _)| other != name);
                answer.headers.push((name, value.clone()));
            }
            _ => {}
        }
        let mut head = format!("HTTP/1.1 {} Status\r\nconnection: close\r\n", answer.status);
        for (name, value) in &answer.headers {
            head += &format!("{name}: {value}\r\n");
        }
        if !answer
            .headers
            .iter()
            .any(|(name, _)| *name == "content-length")
        {
            head += &format!("content-length: {}\r\n", answer.body.len());
        }
        // A client that went away is no concern of the hub's.
        let _ = stream.write_all(format!("{head}\r\n").as_bytes());
        if method == "HEAD" {
            return;
        }
        let name = path.split_once("/-/").or_else(|| {
            let (_, rest) = path.split_once("/resolve/")?;
            rest.split_once('/')
        });
        if let Some((_, name)) = name.filter(|_| !answer.body.is_empty()) {
            let mut sent = self.sent.lock().expect("no thread panics");
            *sent.entry(name.to_owned()).or_default() += answer.body.len();
        }
        let _ = match fault {
            Some(Fault::Cut(n)) => stream.write_all(&answer.body[..n.min(answer.body.len())]),
            Some(Fault::Stall(n)) => {
                let _ = stream.write_all(&answer.body[..n.min(answer.body.len())]);
                std::thread::sleep(Duration::from_secs(5));
                Ok(())
            }
            Some(Fault::Slow(pause)) => answer.body.chunks(1000).try_for_each(|part| {
                std::thread::sleep(Duration::from_millis(pause));
                stream.write_all(part)
            }),
            _ => stream.write_all(&answer.body),
        };
    }

    fn next_fault(&self, request: &str) -> Option<Fault> {
        let mut faults = self.faults.lock().expect("no thread panics");
        let fits = |parts: &Vec<String>| parts.iter().all(|part| request.contains(part));
        let (_, fault, left) = faults
            .iter_mut()
            .find(|(parts, _, left)| *left > 0 && fits(parts))?;
        *left -= 1;
        Some(fault.clone())
    }

    fn find(&self, method: &str, path: &str, range: Option<usize>, token: Option<&str>) -> Answer {
        let files = self.files.lock().expect("no thread panics");
        let unknown = || match token {
            None => Answer::refused(401, "RepoNotFound"),
            Some(_) => Answer::refused(404, "RepoNotFound"),
        };
        if let Some(rest) = path.strip_prefix("/api/models/") {
            let (id, revision) = rest.split_once("/revision/").unwrap_or_default();
            let Some(files) = files.get(id) else {
                return unknown();
            };
            if !["main", "v1", "refs%2Fpr%2F1", COMMIT].contains(&revision) {
                return Answer::refused(404, "RevisionNotFound");
            }
            let names = files
                .keys()
                .map(|name| serde_json::json!({"rfilename": name}));
            let list = serde_json::json!({"sha": COMMIT, "siblings": names.collect::<Vec<_>>()});
            return Answer {
                status: 200,
                headers: Vec::new(),
                body: list.to_string().into(),
            };
        }
        if let Some(rest) = path.strip_prefix("/cdn/") {
            let (id, name) = rest.split_once("/-/").unwrap_or_default();
            return part(&files[id][name], Vec::new(), range);
        }
        let (id, rest) = path[1..].split_once("/resolve/").unwrap_or_default();
        let (revision, name) = rest.split_once('/').unwrap_or_default();
        let Some(files) = files.get(id) else {
            return unknown();
        };
        if id == "owner/gated" && token != Some(TOKEN) {
            return Answer::refused(if token.is_some() { 403 } else { 401 }, "GatedRepo");
        }
        let Some(bytes) = files
            .get(name)
            .filter(|_| [COMMIT, "main", "v1"].contains(&revision))
        else {
            return Answer::refused(404, "EntryNotFound");
        };
        let commit = ("x-repo-commit", COMMIT.to_owned());
        if !is_large(name) {
            let etag = ("etag", format!("\"{}\"", git_hash(bytes)));
            let mut answer = part(bytes, vec![commit, etag], range);
            if method == "HEAD" {
                answer
                    .headers
                    .push(("content-length", bytes.len().to_string()));
            }
            return answer;
        }
        let headers = vec![
            commit,
            ("x-linked-etag", format!("\"{}\"", sha256(bytes))),
            ("x-linked-size", bytes.len().to_string()),
            (
                "location",
                format!("http://localhost:{}/cdn/{id}/-/{name}", self.port),
            ),
        ];
        Answer {
            status: 302,
            headers,
            body: Vec::new(),
        }
    }
}

fn part(bytes: &[u8], mut headers: Vec<(&'static str, String)>, range: Option<usize>) -> Answer {
    let Some(start) = range else {
        return Answer {
            status: 200,
            headers,
            body: bytes.to_vec(),
        };
    };
    if start >= bytes.len() {
        return Answer {
            status: 416,
            headers,
            body: Vec::new(),
        };
    }
    headers.push((
        "content-range",
        format!("bytes {start}-{}/{}", bytes.len() - 1, bytes.len()),
    ));
    Answer {
        status: 206,
        headers,
        body: bytes[start..].to_vec(),
    }
}
