//! Networks that break and hubs that lie: what is in the cache afterwards is right, or not there.
use super::server::{COMMIT, DRAW, Fault, Hub, UNET, git_hash, sha256};
use crate::support::{Folder, Run};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

fn repository(folder: &Folder) -> PathBuf {
    folder.file(".hub/hub/models--owner--tiny")
}

/// Every blob that has its name is what the name says; the number of those that are not whole.
#[track_caller]
fn check_cache(folder: &Folder, hub: &Hub) -> usize {
    let mut partial = 0;
    let snapshot = repository(folder).join("snapshots").join(COMMIT);
    if snapshot.is_dir() {
        for (name, bytes) in super::server::files_of(&snapshot) {
            assert_eq!(bytes, hub.file("owner/tiny", &name), "{name}");
        }
    }
    let refs = repository(folder).join("refs");
    if refs.is_dir() {
        for (name, bytes) in super::server::files_of(&refs) {
            assert_eq!((name.as_str(), &bytes[..]), ("main", COMMIT.as_bytes()));
        }
    }
    let Ok(blobs) = std::fs::read_dir(repository(folder).join("blobs")) else {
        return 0;
    };
    for blob in blobs {
        let path = blob.expect("it can be read").path();
        let name = path
            .file_name()
            .expect("it has one")
            .to_string_lossy()
            .into_owned();
        if name.ends_with(".incomplete") {
            partial += 1;
        } else if name.len() == 64 {
            let bytes = std::fs::read(&path).expect("it can be read");
            assert_eq!(sha256(&bytes), name);
        }
    }
    partial
}

#[track_caller]
fn drew(run: &Run) {
    assert_eq!(
        (run.code, run.stdout.as_str()),
        (Some(0), "a.png\n"),
        "{run:?}"
    );
}

/// The run fails in one line with these parts, and the cache has nothing wrong.
#[track_caller]
fn fails(folder: &Folder, hub: &Hub, parts: &[&str]) {
    let run = hub.draw(folder);
    assert_eq!((run.code, run.stdout.as_str()), (Some(1), ""), "{run:?}");
    let errors: Vec<&str> = run
        .stderr
        .lines()
        .filter(|line| line.starts_with("diffuse: "))
        .collect();
    assert_eq!(errors.len(), 1, "{}", run.stderr);
    for part in parts {
        assert!(errors[0].contains(part), "{part:?} is not in {}", errors[0]);
    }
    check_cache(folder, hub);
}

/// The starts of the ranges that were asked for.
fn starts(asked: &[String]) -> Vec<usize> {
    let ranges = asked.iter().filter(|line| line.starts_with("GET /cdn/"));
    ranges
        .map(|line| {
            line.split_once(" range=")
                .map_or(0, |(_, start)| start.parse().expect("a number"))
        })
        .collect()
}

#[test]
fn a_download_that_is_cut_goes_on_where_it_ended() {
    let (hub, folder) = (Hub::new(), Folder::new());
    let length = hub.file("owner/tiny", UNET).len();
    let cuts = [0, 1, 999, 100_000, 1];
    for cut in cuts {
        hub.fault(&["GET /cdn/", UNET], Fault::Cut(cut));
    }
    drew(&hub.draw(&folder));
    assert_eq!(starts(&hub.asked()), [0, 0, 1, 1000, 101_000, 101_001]);
    assert!(length > 101_001);
    assert_eq!(check_cache(&folder, &hub), 0, "nothing is left over");
}

#[test]
fn a_cut_in_the_redirect_or_in_a_small_file_is_no_more() {
    let (hub, folder) = (Hub::new(), Folder::new());
    hub.fault(&["GET /owner/", UNET], Fault::Cut(0));
    hub.fault(&["GET /owner/", "unet/config.json"], Fault::Cut(10));
    hub.fault(
        &["HEAD /owner/", "scheduler_config.json"],
        Fault::Status(503, Vec::new()),
    );
    hub.fault(&["/api/"], Fault::Status(500, Vec::new()));
    drew(&hub.draw(&folder));
    assert_eq!(check_cache(&folder, &hub), 0);
}

#[test]
fn a_run_goes_on_with_what_an_earlier_one_left() {
    let (hub, folder) = (Hub::new(), Folder::new());
    hub.fault(&["GET /cdn/", UNET], Fault::Cut(50_000));
    hub.faults(&["GET /cdn/", UNET], Fault::Cut(0), 10);
    fails(
        &folder,
        &hub,
        &[
            "downloading unet/diffusion_pytorch_model.safetensors of owner/tiny",
            "cannot be reached",
        ],
    );
    assert_eq!(check_cache(&folder, &hub), 1, "what came is kept");
    hub.behave();
    hub.asked();
    drew(&hub.draw(&folder));
    assert_eq!(starts(&hub.asked()), [50_000]);
    assert_eq!(check_cache(&folder, &hub), 0);
}

#[test]
fn a_hub_that_knows_no_ranges_sends_all_of_it_again() {
    let (hub, folder) = (Hub::new(), Folder::new());
    hub.fault(&["GET /cdn/", UNET], Fault::Cut(50_000));
    hub.fault(&["GET /cdn/", UNET], Fault::IgnoreRange);
    drew(&hub.draw(&folder));
    assert_eq!(starts(&hub.asked()), [0, 50_000]);
    check_cache(&folder, &hub);
}

#[test]
fn silence_is_a_cut() {
    let (hub, folder) = (Hub::new(), Folder::new());
    hub.fault(&["GET /cdn/", UNET], Fault::Stall(1000));
    let start = Instant::now();
    let mut command = hub.command(&folder, &DRAW);
    let output = command.env("HF_HUB_DOWNLOAD_TIMEOUT", "2").output();
    drew(&output.expect("the program starts").into());
    assert_eq!(starts(&hub.asked()), [0, 1000]);
    assert!(start.elapsed() < Duration::from_secs(60));
}

#[test]
fn a_hub_that_asks_to_wait_is_given_the_time() {
    let (hub, folder) = (Hub::new(), Folder::new());
    let wait = vec![("retry-after", "2".to_owned())];
    hub.fault(&["GET /owner/", UNET], Fault::Status(429, wait.clone()));
    hub.fault(
        &["HEAD /owner/", "model_index.json"],
        Fault::Status(429, wait),
    );
    let start = Instant::now();
    drew(&hub.draw(&folder));
    assert!(
        start.elapsed() >= Duration::from_secs(4),
        "{:?}",
        start.elapsed()
    );
    // An hour is too long.
    let (hub, folder) = (Hub::new(), Folder::new());
    let hour = vec![("retry-after", "3600".to_owned())];
    hub.fault(&["HEAD /owner/", UNET], Fault::Status(429, hour));
    fails(
        &folder,
        &hub,
        &["asks to wait 3600 s (too many requests)", "set HF_TOKEN"],
    );
}

#[test]
fn wrong_bytes_are_never_seen() {
    let (hub, folder) = (Hub::new(), Folder::new());
    hub.fault(&["GET /cdn/", UNET], Fault::Flip);
    fails(
        &folder,
        &hub,
        &[
            "it came as ",
            &sha256(&hub.file("owner/tiny", UNET)),
            "nothing of it is kept",
        ],
    );
    assert_eq!(
        check_cache(&folder, &hub),
        0,
        "a wrong file is not gone on with"
    );
    let (hub, folder) = (Hub::new(), Folder::new());
    hub.fault(&["GET /owner/", "unet/config.json"], Fault::Flip);
    fails(
        &folder,
        &hub,
        &["downloading unet/config.json", "it came as "],
    );
    // The next run begins anew.
    drew(&hub.draw(&folder));
}

#[test]
fn wrong_sizes_are_never_seen() {
    let (hub, folder) = (Hub::new(), Folder::new());
    hub.fault(&["GET /cdn/", UNET], Fault::Long(5));
    fails(&folder, &hub, &["it came as ", "bytes of "]);
    hub.faults(&["GET /cdn/", UNET], Fault::Short(5), 1);
    hub.faults(&["GET /cdn/", UNET], Fault::Cut(0), 20);
    fails(&folder, &hub, &["the hub cannot be reached"]);
    hub.behave();
    drew(&hub.draw(&folder));
    check_cache(&folder, &hub);
}

#[test]
fn a_start_that_came_from_elsewhere_is_not_trusted() {
    let (hub, folder) = (Hub::new(), Folder::new());
    let bytes = hub.file("owner/tiny", UNET);
    let blobs = repository(&folder).join("blobs");
    std::fs::create_dir_all(&blobs).expect("the folder is writable");
    let partial = blobs.join(format!("{}.incomplete", sha256(&bytes)));
    for start in [
        vec![0; 1000],
        vec![0; bytes.len()],
        vec![0; bytes.len() + 1],
    ] {
        std::fs::write(&partial, &start).expect("the folder is writable");
        let run = hub.run(&folder, &[&DRAW[..], &["--overwrite"]].concat());
        drew(&run);
        assert_eq!(check_cache(&folder, &hub), 0);
        forget(&folder, &sha256(&bytes), UNET);
    }
}

/// Removes a file from the cache: its blob or, where there are no links to blobs, the file in the snapshot.
fn forget(folder: &Folder, etag: &str, name: &str) {
    let repository = repository(folder);
    let mut gone = std::fs::remove_file(repository.join("blobs").join(etag));
    if cfg!(windows) && gone.is_err() {
        gone = std::fs::remove_file(repository.join("snapshots").join(COMMIT).join(name));
    }
    gone.expect("it is there");
}

#[test]
fn a_disk_without_room_is_told_before_the_download() {
    let (hub, folder) = (Hub::new(), Folder::new());
    hub.fault(
        &["HEAD", UNET],
        Fault::Header("x-linked-size", "8000000000000000000".to_owned()),
    );
    fails(
        &folder,
        &hub,
        &["the download takes 8.00 EB and the disk of", "HF_HUB_CACHE"],
    );
    assert!(starts(&hub.asked()).is_empty(), "nothing was downloaded");
}

#[test]
fn a_hub_cannot_write_beside_the_cache() {
    for (header, value) in [
        ("x-linked-etag", "\"../../../../evil\""),
        ("x-linked-etag", "\"/tmp/evil\""),
        ("x-linked-etag", "\"\""),
        ("x-repo-commit", "../../evil"),
    ] {
        let (hub, folder) = (Hub::new(), Folder::new());
        hub.fault(&["HEAD", UNET], Fault::Header(header, value.to_owned()));
        fails(&folder, &hub, &["is no hub (it gives "]);
        assert_eq!(folder.names(), [""; 0]);
    }
    let (hub, folder) = (Hub::new(), Folder::new());
    let evil = ["../../evil.json", "/tmp/evil.json", "unet/../../evil.json"];
    let evil = evil.map(|name| (name.to_owned(), b"{}".to_vec()));
    hub.publish("owner/tiny", BTreeMap::from(evil));
    drew(&hub.draw(&folder));
    assert_eq!(folder.names(), ["a.png"]);
}

#[test]
fn redirects_without_end_are_left() {
    let (hub, folder) = (Hub::new(), Folder::new());
    let round = vec![(
        "location",
        "/api/models/owner/tiny/revision/main".to_owned(),
    )];
    hub.faults(&["/api/"], Fault::Status(307, round), 100);
    fails(&folder, &hub, &["redirects without end"]);
    assert!(hub.asked().len() < 20);
}

#[test]
fn two_processes_download_a_file_once() {
    let (hub, folder) = (Hub::new(), Folder::new());
    hub.fault(&["GET /cdn/", UNET], Fault::Slow(3));
    let children: Vec<_> = ["a.png", "b.png", "c.png"]
        .map(|name| {
            let mut command = hub.command(&folder, &DRAW[..7]);
            let command = command.args(["-o", name]).stdout(Stdio::piped());
            command
                .stderr(Stdio::piped())
                .spawn()
                .expect("the program starts")
        })
        .into_iter()
        .collect();
    for child in children {
        let run: Run = child.wait_with_output().expect("it ends").into();
        assert_eq!(run.code, Some(0), "{run:?}");
    }
    assert_eq!(starts(&hub.asked()).len(), 1);
    assert_eq!(check_cache(&folder, &hub), 0);
    assert_eq!(folder.read("a.png"), folder.read("c.png"));
}

/// Kills downloads at any moment, `KILLS` times (5 unless set).
#[test]
fn a_process_that_is_killed_leaves_a_cache_to_go_on_with() {
    let kills = std::env::var("KILLS")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(5);
    let hub = Hub::new();
    let mut folder = Folder::new();
    // Any fixed numbers do, as long as they spread: multiples of the golden ratio.
    let (mut fraction, mut partials) = (0.0, 0);
    for round in 0..kills {
        // A tiny model comes in under half a second; its largest file is sent in pieces.
        hub.behave();
        hub.faults(&["GET"], Fault::Slow(1), 100);
        let mut command = hub.command(&folder, &DRAW);
        let command = command.stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().expect("the program starts");
        fraction = (fraction + 0.618_034) % 1.0;
        std::thread::sleep(Duration::from_secs_f64(0.8 * fraction));
        let killed = child.kill();
        child.wait().expect("it ends");
        killed.expect("it could be killed");
        partials += check_cache(&folder, &hub);
        let names = folder.names();
        assert!(
            names
                .iter()
                .all(|name| name == "a.png" || name.starts_with(".diffuse-")),
            "{names:?}"
        );
        if round % 5 == 4 {
            // What is left is gone on with.
            hub.behave();
            let run = hub.run(&folder, &[&DRAW[..], &["--overwrite"]].concat());
            drew(&run);
            assert_eq!(check_cache(&folder, &hub), 0);
            folder = Folder::new();
        }
    }
    println!("{kills} kills, {partials} files found half-way");
    assert!(kills < 20 || partials > 0, "no kill came in time");
}

#[test]
fn a_file_whose_size_is_not_told_is_checked_all_the_same() {
    let (hub, folder) = (Hub::new(), Folder::new());
    let config = "unet/config.json";
    let bytes = hub.file("owner/tiny", config);
    let blobs = repository(&folder).join("blobs");
    std::fs::create_dir_all(&blobs).expect("the folder is writable");
    let left = blobs.join(format!("{}.incomplete", git_hash(&bytes)));
    for start in [bytes.clone(), vec![0; 10], vec![0; 9000]] {
        hub.faults(&["/owner/tiny/resolve/", config], Fault::Elsewhere, 2);
        std::fs::write(&left, &start).expect("the folder is writable");
        drew(&hub.run(&folder, &[&DRAW[..], &["--overwrite"]].concat()));
        assert_eq!(check_cache(&folder, &hub), 0);
        forget(&folder, &git_hash(&bytes), config);
    }
    std::fs::remove_file(folder.file("a.png")).expect("it is there");
    std::fs::remove_dir_all(repository(&folder).join("snapshots")).expect("it is there");
    hub.faults(&["/owner/tiny/resolve/", config], Fault::Elsewhere, 2);
    hub.fault(&["GET /cdn/", config], Fault::Flip);
    fails(&folder, &hub, &["it came as "]);
}

#[test]
fn a_commit_that_is_gone_from_the_hub_makes_room_for_the_new_one() {
    let (hub, folder) = (Hub::new(), Folder::new());
    let gone = "f".repeat(40);
    let unet = repository(&folder)
        .join("snapshots")
        .join(&gone)
        .join("unet");
    std::fs::create_dir_all(&unet).expect("the folder is writable");
    std::fs::create_dir_all(repository(&folder).join("refs")).expect("the folder is writable");
    std::fs::write(unet.join("config.json"), "{}").expect("the folder is writable");
    std::fs::write(repository(&folder).join("refs/main"), &gone).expect("the folder is writable");
    let run = hub.draw(&folder);
    assert_eq!((run.code, run.stdout.as_str()), (Some(1), ""), "{run:?}");
    assert!(
        run.stderr.contains("run again to take the new one"),
        "{run:?}"
    );
    drew(&hub.draw(&folder));
    assert_eq!(check_cache(&folder, &hub), 0);
}
