//! What the environment says: where the cache is, whose token, by which proxy.
use super::server::{DRAW, Hub, TOKEN};
use crate::support::{Folder, Run};
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What names the user's own folder.
const HOME: &str = if cfg!(windows) { "USERPROFILE" } else { "HOME" };

fn run(mut command: Command) -> Run {
    command.output().expect("the program starts").into()
}

#[track_caller]
fn drew(run: &Run) {
    assert_eq!(run.code, Some(0), "{run:?}");
}

#[test]
fn the_cache_is_where_the_variables_say() {
    let hub = Hub::new();
    for (name, value, found) in [
        ("HF_HUB_CACHE", "mine", "mine/models--owner--tiny"),
        ("HUGGINGFACE_HUB_CACHE", "old", "old/models--owner--tiny"),
        ("HF_HOME", "home", "home/hub/models--owner--tiny"),
        (
            "XDG_CACHE_HOME",
            "xdg",
            "xdg/huggingface/hub/models--owner--tiny",
        ),
        (
            HOME,
            "user",
            "user/.cache/huggingface/hub/models--owner--tiny",
        ),
    ] {
        let folder = Folder::new();
        let mut command = hub.command(&folder, &DRAW);
        for other in ["HF_HOME", "XDG_CACHE_HOME"] {
            command.env_remove(other);
        }
        let output = command
            .env(HOME, folder.path())
            .env(name, folder.file(value))
            .output();
        drew(&output.expect("the program starts").into());
        assert!(
            folder.file(found).join("refs/main").is_file(),
            "{name}: {:?}",
            folder.names()
        );
    }
    // As a unit of systemd or a file of variables may have them, where no shell replaces anything.
    for value in ["~/here", "$WHERE/here", "${WHERE}/here"] {
        let folder = Folder::new();
        let mut command = hub.command(&folder, &DRAW);
        let output = command
            .env("HF_HOME", value)
            .env(HOME, folder.path())
            .env("WHERE", folder.path())
            .output();
        drew(&output.expect("the program starts").into());
        assert!(
            folder.file("here/hub/models--owner--tiny").is_dir(),
            "{value}: {:?}",
            folder.names()
        );
    }
}

/// `owner/gated`, with what `set` does to the environment; the requests that were made.
#[track_caller]
fn asked_with(set: impl FnOnce(&Folder, &mut Command)) -> (Run, Vec<String>) {
    let (hub, folder) = (Hub::new(), Folder::new());
    let mut args = DRAW;
    args[2] = "owner/gated";
    let mut command = hub.command(&folder, &args);
    set(&folder, &mut command);
    (run(command), hub.asked())
}

/// The token is sent to the hub with each request, and to no other host.
#[track_caller]
fn opens(set: impl FnOnce(&Folder, &mut Command)) {
    let (run, asked) = asked_with(set);
    drew(&run);
    let with_token = format!(" token={TOKEN}");
    for line in &asked {
        let elsewhere = line.contains("/cdn/");
        assert_eq!(line.ends_with(&with_token), !elsewhere, "{line}");
    }
    assert!(asked.iter().any(|line| line.contains("/cdn/")), "{asked:?}");
}

#[test]
fn the_token_goes_to_the_hub_and_not_to_where_it_sends_us() {
    opens(|_, command| {
        command.env("HF_TOKEN", TOKEN);
    });
}

#[test]
fn the_token_may_stand_in_a_file() {
    let write = |folder: &Folder, name: &str| {
        let path = folder.file(name);
        std::fs::create_dir_all(path.parent().expect("it is in a folder"))
            .expect("the folder is writable");
        std::fs::write(&path, format!("{TOKEN}\n")).expect("the folder is writable");
        path
    };
    opens(|folder, _| drop(write(folder, ".hub/token")));
    opens(|folder, command| {
        let path = write(folder, "secrets/token");
        command.env("HF_TOKEN_PATH", path);
    });
    opens(|folder, command| {
        write(folder, "secrets/token");
        command
            .env("HF_TOKEN_PATH", "~/secrets/token")
            .env(HOME, folder.path());
    });
    // The variable goes before the file, and the path before the usual place.
    opens(|folder, command| {
        folder.write("other", "hf_other");
        command
            .env("HF_TOKEN_PATH", folder.file("other"))
            .env("HF_TOKEN", format!(" {TOKEN}\n"));
    });
    opens(|folder, command| {
        write(folder, "mine");
        std::fs::create_dir(folder.file(".hub")).expect("the folder is writable");
        folder.write(".hub/token", "hf_other");
        command.env("HF_TOKEN_PATH", folder.file("mine"));
    });
}

#[test]
fn no_token_is_sent_where_none_is_or_none_is_wanted() {
    let none: [fn(&Folder, &mut Command); 3] = [
        |_, _| (),
        |folder, command| {
            folder.write("empty", " \n");
            command.env("HF_TOKEN_PATH", folder.file("empty"));
        },
        |_, command| {
            command
                .env("HF_TOKEN", TOKEN)
                .env("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1");
        },
    ];
    for set in none {
        let (run, asked) = asked_with(set);
        assert_eq!(run.code, Some(1), "{run:?}");
        assert!(run.stderr.contains("owner/gated is gated"), "{run:?}");
        assert!(
            !asked.iter().any(|line| line.contains("token=")),
            "{asked:?}"
        );
    }
}

/// A proxy that leads every connection to `target`, and counts them.
struct Proxy {
    address: String,
    used: Arc<AtomicUsize>,
}

impl Proxy {
    fn new(target: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has ports");
        let address = format!("http://{}", listener.local_addr().expect("it is bound"));
        let target = target.trim_start_matches("http://").to_owned();
        let used = Arc::new(AtomicUsize::new(0));
        let count = used.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let (target, count) = (target.clone(), count.clone());
                std::thread::spawn(move || lead(client, &target, &count));
            }
        });
        Self { address, used }
    }

    fn used(&self) -> usize {
        self.used.swap(0, Ordering::SeqCst)
    }
}

fn lead(mut client: TcpStream, target: &str, count: &AtomicUsize) {
    let clone = client.try_clone().expect("it can be");
    let mut lines = BufReader::new(clone).lines().map_while(Result::ok);
    let first = lines.next().unwrap_or_default();
    assert!(first.starts_with("CONNECT "), "{first}");
    count.fetch_add(1, Ordering::SeqCst);
    while lines.next().is_some_and(|line| !line.is_empty()) {}
    let mut server = TcpStream::connect(target).expect("the hub is there");
    client
        .write_all(b"HTTP/1.1 200 OK\r\n\r\n")
        .expect("the client waits");
    let clones = (client.try_clone(), server.try_clone());
    let (mut from, mut to) = (clones.0.expect("it can be"), clones.1.expect("it can be"));
    std::thread::spawn(move || std::io::copy(&mut from, &mut to));
    let _ = std::io::copy(&mut server, &mut client);
}

const DRY: [&str; 4] = ["ddpm", "--model", "owner/tiny", "--dry-run"];

#[test]
fn a_proxy_of_the_environment_is_used() {
    let (hub, folder) = (Hub::new(), Folder::new());
    let proxy = Proxy::new(&hub.address);
    for (name, args) in [
        // With the weights, which come by a redirect to another host.
        ("ALL_PROXY", &DRAW[..]),
        ("HTTPS_PROXY", &DRY),
        ("https_proxy", &DRY),
        ("HTTP_PROXY", &DRY),
        ("http_proxy", &DRY),
    ] {
        // A name that nothing but the proxy can reach.
        let mut command = hub.command(&folder, args);
        command
            .env("HF_ENDPOINT", "http://hub.invalid")
            .env("HF_HUB_CACHE", folder.file(name))
            .env(name, &proxy.address);
        let run = run(command);
        assert_eq!(run.code, Some(0), "{name}: {run:?}");
        assert!(proxy.used() > 0, "{name}");
    }
}

#[test]
fn hosts_of_no_proxy_are_asked_without_one() {
    let (hub, folder) = (Hub::new(), Folder::new());
    let proxy = Proxy::new(&hub.address);
    for (number, (list, through)) in [
        ("127.0.0.1", false),
        ("x.example,127.0.0.1", false),
        ("*", false),
        ("x.example", true),
        ("", true),
    ]
    .into_iter()
    .enumerate()
    {
        let mut command = hub.command(&folder, &DRY);
        command
            .env("HTTP_PROXY", &proxy.address)
            .env("NO_PROXY", list)
            .env("HF_HUB_CACHE", folder.file(&format!("cache {number}")));
        drew(&run(command));
        assert_eq!(proxy.used() > 0, through, "{list:?}");
    }
}

#[test]
fn a_proxy_that_is_dead_is_a_hub_that_cannot_be_reached() {
    let (hub, folder) = (Hub::new(), Folder::new());
    let mut command = hub.command(&folder, &DRY);
    command.env("HTTPS_PROXY", "http://127.0.0.1:1");
    let run = run(command);
    assert_eq!(run.code, Some(1), "{run:?}");
    let said = "the hub cannot be reached";
    assert!(run.stderr.contains(said), "{}", run.stderr);
    assert!(
        hub.asked().is_empty(),
        "the hub was asked without the proxy"
    );
}
