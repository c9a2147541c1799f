//! A disk that is full, a folder that changes under a run, a reader that went away.
use super::support::{DDPM, UNET, model, write};
use crate::hub::server::{Fault, Hub, files_of};
use crate::support::{Folder, Run, pixels};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

#[test]
#[cfg_attr(
    windows,
    ignore = "for other systems: Windows lets nobody replace a file that is open"
)]
fn a_model_that_changes_while_it_is_read_gives_a_picture_or_an_error() {
    let folder = model("tiny-ddpm");
    let args = [&DDPM[..], &["--seed", "1", "--overwrite"]].concat();
    assert_eq!(folder.run(&args).code, Some(0));
    let take = || {
        let picture = pixels(&folder.read("a.png"));
        std::fs::remove_file(folder.file("a.png")).expect("it was read");
        picture
    };
    let whole = take();
    let files = files_of(&folder.file("model"));
    let names = [UNET, "unet/config.json", "model_index.json"];
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let beside = folder.file("model/beside");
            for turn in 0usize.. {
                if done.load(Ordering::Relaxed) {
                    break;
                }
                for name in names {
                    let (path, bytes) = (folder.file("model").join(name), &files[name]);
                    match turn % 8 {
                        // Gone, and back as another file.
                        2 => std::fs::remove_file(&path).expect("it is there"),
                        3 | 5 => {
                            std::fs::write(&beside, bytes).expect("the folder is writable");
                            std::fs::rename(&beside, &path).expect("one disk");
                        }
                        // In place, so that a file that is open changes too.
                        n => write(&folder, name, &bytes[..bytes.len() * (n % 5) / 4]),
                    }
                }
                std::thread::sleep(Duration::from_micros(300));
            }
        });
        let _stop = Set(&done);
        let (mut drawn, mut refused) = (0, 0);
        // 20 runs, and as many more as it takes to meet both.
        while drawn + refused < 20 || ((drawn == 0 || refused == 0) && drawn + refused < 500) {
            let run = folder.run(&args);
            match run.code {
                Some(0) => {
                    assert_eq!(run.stdout, "a.png\n", "{run:?}");
                    assert_eq!(take(), whole);
                    drawn += 1;
                }
                Some(1) => {
                    assert_eq!(run.stdout, "", "{run:?}");
                    assert!(!run.stderr.contains("panicked"), "{run:?}");
                    assert!(!folder.file("a.png").exists(), "{run:?}");
                    refused += 1;
                }
                _ => panic!("{run:?}"),
            }
        }
        assert!(drawn > 0 && refused > 0, "{drawn} drawn, {refused} refused");
    });
}

/// Set when it goes, in whatever way.
struct Set<'a>(&'a AtomicBool);

impl Drop for Set<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_reader_that_goes_away_costs_no_picture() {
    let folder = model("tiny-ddpm");
    let mut command = folder.command([&DDPM[..7], &["-n", "3", "-o", "a.png"]].concat());
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .expect("the program starts");
    drop(child.stdout.take());
    assert_eq!(child.wait().expect("it ends").code(), Some(0));
    assert_eq!(folder.names(), ["a-1.png", "a-2.png", "a-3.png", "model"]);
}

#[cfg(target_os = "linux")]
#[test]
fn a_device_that_is_full_is_told() {
    let folder = model("tiny-ddpm");
    for args in [
        &[&DDPM[..7], &["-o", "-"]].concat()[..],
        &DDPM,
        &[&DDPM[..7], &["--dry-run"]].concat(),
        &["ddpm", "--model", "model", "--print-schedule"],
        &["--help"],
        &["--version", "--verbose"],
    ] {
        let full = std::fs::File::options().write(true).open("/dev/full");
        let mut command = folder.command(args);
        command.stdout(full.expect("Linux has it"));
        let run: Run = command.output().expect("the program starts").into();
        assert_eq!(run.code, Some(1), "{args:?}: {run:?}");
        let said = "diffuse: writing to stdout: No space left";
        assert!(run.stderr.contains(said), "{args:?}: {}", run.stderr);
    }
}

/// By hand, as root: `mount -t tmpfs -o size=1m tmpfs /mnt; SMALL_DISK=/mnt cargo test --test cli -- --ignored full_disk`
#[test]
#[ignore = "needs a disk of a megabyte: set SMALL_DISK to its folder"]
fn a_full_disk_leaves_nothing_wrong() {
    let disk =
        std::path::PathBuf::from(std::env::var("SMALL_DISK").expect("SMALL_DISK names a folder"));
    let picture = disk.join("a.png");
    let folder = model("tiny-ddpm");
    std::fs::write(&picture, "mine").expect("there is room for this");
    let filler = disk.join("filler");
    let mut size = 2 << 20;
    while size > 0 && std::fs::write(&filler, vec![1; size]).is_err() {
        size -= 4096;
    }
    std::fs::write(disk.join("last"), [1; 4096]).ok();
    let output = picture.to_str().expect("it is plain");
    let run = folder.run([&DDPM[..7], &["--overwrite", "-o", output]].concat());
    println!("{run:?}");
    assert_eq!(run.code, Some(1));
    assert_eq!(run.stderr.matches("diffuse: ").count(), 1, "{}", run.stderr);
    assert_eq!(std::fs::read(&picture).expect("it is there"), b"mine");
    for name in ["a.png", "filler", "last"] {
        std::fs::remove_file(disk.join(name)).ok();
    }
    assert_eq!(files_of(&disk).len(), 0, "half a picture is left");
    // The cache: told before where the hub names the size, and on the way where it does not.
    let (hub, folder) = (Hub::new(), Folder::new());
    let mut large = hub.file("owner/tiny", UNET);
    large.resize(2 << 20, 0);
    hub.publish("owner/tiny", [(UNET.to_owned(), large)].into());
    for fault in [None, Some(Fault::Header("x-linked-size", String::new()))] {
        if let Some(fault) = fault.clone() {
            hub.fault(&["HEAD", UNET], fault);
        }
        let mut command = hub.command(&folder, &crate::hub::server::DRAW);
        let run: Run = command
            .env("HF_HUB_CACHE", &disk)
            .output()
            .expect("the program starts")
            .into();
        println!("{run:?}");
        assert_eq!(run.code, Some(1));
        let said = if fault.is_some() {
            "is full: free some space"
        } else {
            "the download takes"
        };
        assert!(run.stderr.contains(said), "{}", run.stderr);
        let wrong: Vec<_> = files_of(&disk)
            .into_keys()
            .filter(|name| name.contains("/blobs/") && !name.ends_with(".incomplete"))
            .collect();
        // The three configs and nothing of the weights.
        assert_eq!(wrong.len(), 3, "{wrong:?}");
    }
    std::fs::remove_dir_all(disk.join("models--owner--tiny")).expect("it is there");
    std::fs::remove_dir_all(disk.join(".locks")).expect("it is there");
}
