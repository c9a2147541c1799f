//! Processes that are killed while they write: under the name of a picture is a whole picture or nothing.
use super::support::{DDPM, model, write};
use crate::support::Folder;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

/// Everything that a run can write.
const ALL: [&str; 10] = [
    "-n",
    "3",
    "--save-steps",
    "1",
    "--animate",
    "film-{index}.gif",
    "--grid",
    "grid.png",
    "--seed",
    "5",
];

/// The names in the folder that no picture has: what was being written.
#[track_caller]
fn parts(folder: &Folder) -> Vec<String> {
    let names = folder.names().into_iter().filter(|name| name != "model");
    let (parts, whole): (Vec<_>, Vec<_>) =
        names.partition(|name| name.starts_with(".diffuse-") && name.ends_with(".part"));
    for name in whole {
        decodes(&folder.file(&name));
    }
    parts
}

#[track_caller]
fn decodes(path: &Path) {
    use image::AnimationDecoder;
    let bytes = std::fs::read(path).expect("it is there");
    let end: &[u8] = if path.extension() == Some("gif".as_ref()) {
        let decoder = image::codecs::gif::GifDecoder::new(std::io::Cursor::new(&bytes));
        let frames = decoder.expect("it is a GIF").into_frames();
        assert_eq!(frames.collect_frames().expect("all of it").len(), 2);
        b";"
    } else {
        image::load_from_memory(&bytes).expect("it is a picture");
        b"IEND\xae\x42\x60\x82"
    };
    assert!(bytes.ends_with(end), "{}", path.display());
}

/// Kills runs when they write, `KILLS` times (6 unless set).
#[test]
fn a_process_that_is_killed_leaves_whole_pictures_and_parts_that_say_so() {
    let kills = std::env::var("KILLS").ok().and_then(|n| n.parse().ok());
    let args = [&DDPM[..4], &["2", "--overwrite", "-o", "a.png"], &ALL].concat();
    let folder = model("tiny-ddpm");
    // Larger pictures take longer to write.
    let config = std::fs::read_to_string(folder.file("model/unet/config.json"));
    let config = config.expect("it is there");
    let mut config: serde_json::Value = serde_json::from_str(&config).expect("it is JSON");
    config["sample_size"] = 64.into();
    write(&folder, "unet/config.json", config.to_string());
    let whole = folder.run(&args);
    assert_eq!(whole.code, Some(0), "{whole:?}");
    assert_eq!(parts(&folder), [""; 0]);
    let names = folder.names();
    let files: Vec<Vec<u8>> = names[..names.len() - 1]
        .iter()
        .map(|name| folder.read(name))
        .collect();
    assert_eq!(names.len(), 3 + 3 + 3 + 1 + 1, "{names:?}");
    let (mut fraction, mut found, mut late) = (0.0, 0, 0);
    for kill in 0..kills.unwrap_or(6) {
        if kill % 4 == 0 {
            // New names in one run of four, taken ones in the rest.
            for name in folder.names().iter().filter(|name| *name != "model") {
                std::fs::remove_file(folder.file(name)).expect("it is there");
            }
        }
        let before = parts(&folder).len();
        let mut command = folder.command(&args);
        let command = command.stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().expect("the program starts");
        // Any fixed numbers do, as long as they spread: multiples of the golden ratio. The run writes ten files.
        fraction = (fraction + 0.618_034) % 1.0;
        let mut writes = (fraction * 10.0) as usize;
        let (start, mut seen) = (Instant::now(), before);
        while start.elapsed() < Duration::from_secs(60)
            && child.try_wait().expect("it is ours").is_none()
        {
            let now = parts_now(&folder);
            if now > seen {
                if writes == 0 {
                    break;
                }
                writes -= 1;
            }
            seen = now;
        }
        late += usize::from(child.try_wait().expect("it is ours").is_some());
        child.kill().expect("it could be killed");
        child.wait().expect("it ends");
        found += parts(&folder).len() - before;
    }
    println!(
        "{kill} kills, {found} files found half-way, {late} runs ended first",
        kill = kills.unwrap_or(6)
    );
    assert!(kills.unwrap_or(0) < 20 || found > 0, "no kill came in time");
    // What is left is in nobody's way.
    let again = folder.run(&args);
    assert_eq!(again.code, Some(0), "{again:?}");
    for (name, bytes) in std::iter::zip(&names, files) {
        if name.ends_with(".gif") || name.contains("step") || name == "grid.png" {
            assert_eq!(folder.read(name), bytes, "{name}");
        }
    }
}

fn parts_now(folder: &Folder) -> usize {
    let entries = std::fs::read_dir(folder.path()).expect("it is there");
    let names = entries.flatten().map(|entry| entry.file_name());
    names
        .filter(|name| name.as_encoded_bytes().ends_with(b".part"))
        .count()
}
