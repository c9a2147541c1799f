//! `--show`: the picture in the terminal, by the best means that it has, and never a wait for what it does not say.
use crate::pty::{self, Seen, run, silent, talkative};
use crate::support::{Folder, asset, pixels};
use base64::{Engine, prelude::BASE64_STANDARD};
use image::{RgbImage, imageops};
use std::process::Command;
use std::time::Duration;

const KITTY_QUESTION: &str = "\x1b_Gi=31,s=1,v=1,a=q,t=d,f=24;AAAA\x1b\\";
const ATTRIBUTES: &str = "\x1b[c";
/// Answers the question for attributes without sixel, and swallows all others.
const PLAIN: &[(&str, &str)] = &[(ATTRIBUTES, "\x1b[?62;22c")];
const SIXEL: &[(&str, &str)] = &[(ATTRIBUTES, "\x1b[?62;4;22c")];
/// kitty at the other end of a line: it reads no files of this machine.
const KITTY: &[(&str, &str)] = &[
    (KITTY_QUESTION, "\x1b_Gi=31;OK\x1b\\"),
    ("a=q,t=t;", "\x1b_Gi=31;EBADF:no such file\x1b\\"),
    (ATTRIBUTES, "\x1b[?62;c"),
];

fn command(folder: &Folder) -> Command {
    let model = asset("tiny-sd");
    let args = [
        "txt2img", "a cat", "--model", &model, "--steps", "1", "--seed", "7", "--device", "cpu",
        "-o", "a.png", "--show",
    ];
    clean(folder.command(args))
}

/// With a terminal's variables as those of xterm.
fn clean(mut command: Command) -> Command {
    for name in [
        "TMUX",
        "STY",
        "ZELLIJ",
        "TERM_PROGRAM",
        "LC_TERMINAL",
        "KONSOLE_VERSION",
    ] {
        command.env_remove(name);
    }
    command
        .env("TERM", "xterm-256color")
        .env("COLORTERM", "truecolor");
    command
}

/// The picture of a run that went well and left the terminal as it was, with no answer on it.
#[track_caller]
fn picture(folder: &Folder, seen: &Seen) -> RgbImage {
    let text = seen.text();
    assert_eq!(seen.code, Some(0), "{text:?}");
    assert!(seen.as_before);
    assert!(text.contains("a.png\r\n"), "{text:?}");
    // Sixels may have these letters too.
    let asked = text.split("\x1bP").next().expect("a part");
    assert!(!asked.contains("^["), "an answer is echoed: {asked:?}");
    pixels(&folder.read("a.png"))
}

/// The pictures that half blocks show: the background is the pixel above.
fn blocks(seen: &Seen) -> Option<RgbImage> {
    let text = seen.text();
    let lines: Vec<_> = text.lines().filter(|line| line.contains('▄')).collect();
    let colour = |text: &str, key: &str| -> Option<[u8; 3]> {
        let (_, numbers) = text.rsplit_once(key)?;
        let (numbers, _) = numbers.split_once('m')?;
        let numbers: Vec<u8> = numbers.split(';').filter_map(|n| n.parse().ok()).collect();
        numbers.try_into().ok()
    };
    let mut rows = Vec::new();
    for line in &lines {
        let (mut above, mut below) = (Vec::new(), Vec::new());
        for letter in line.split_inclusive('▄').filter(|part| part.ends_with('▄')) {
            above.extend(colour(letter, "\x1b[48;2;")?);
            below.extend(colour(letter, "\x1b[38;2;")?);
        }
        rows.extend([above, below]);
    }
    let (width, height) = (rows.first()?.len() as u32 / 3, rows.len() as u32);
    RgbImage::from_raw(width, height, rows.concat())
}

/// What half blocks on this screen are to show of a square picture.
fn in_blocks(picture: &RgbImage) -> RgbImage {
    let rows = u32::from(pty::ROWS) - 1;
    imageops::resize(picture, 2 * rows, 2 * rows, imageops::CatmullRom)
}

#[test]
fn a_terminal_that_never_answers_is_waited_for_a_second_and_gets_half_blocks() {
    let folder = Folder::new();
    let seen = run(&mut command(&folder), silent);
    let picture = picture(&folder, &seen);
    assert!(seen.took < Duration::from_secs(15), "{:?}", seen.took);
    assert!(seen.text().contains(KITTY_QUESTION));
    assert_eq!(blocks(&seen), Some(in_blocks(&picture)));
}

#[test]
fn a_terminal_without_pictures_gets_half_blocks() {
    let folder = Folder::new();
    let seen = run(&mut command(&folder), talkative(PLAIN));
    let picture = picture(&folder, &seen);
    assert_eq!(blocks(&seen), Some(in_blocks(&picture)));
    // Without 24-bit colours in those of xterm.
    let mut plain = command(&folder);
    let seen = run(
        plain.env_remove("COLORTERM").arg("--overwrite"),
        talkative(PLAIN),
    );
    let text = seen.text();
    assert!(
        !text.contains("8;2;") && text.contains("\x1b[48;5;"),
        "{text:?}"
    );
    assert_eq!(text.matches('▄').count(), 46 * 23);
}

/// The pictures that kitty was sent, and what was said of the size of each; nothing of the bar or the log is between the pieces.
fn in_kitty(seen: &Seen) -> Vec<(String, RgbImage)> {
    let text = seen.text();
    let read = |sent: &str| {
        let (head, _) = sent.split_once(",m=").expect("a head");
        let size: Vec<u32> = head
            .split([',', '='])
            .filter_map(|n| n.parse().ok())
            .collect();
        let (mut data, mut rest) = (String::new(), sent);
        loop {
            let (control, payload) = rest.split_once(';').expect("a payload");
            let (payload, next) = payload.split_once("\x1b\\").expect("an end");
            data += payload;
            if !control.ends_with("m=1") {
                break;
            }
            rest = next.strip_prefix("\x1b_G").expect("the next piece");
        }
        let bytes = BASE64_STANDARD.decode(data).expect("base64");
        let sent = image::RgbaImage::from_raw(size[0], size[1], bytes).expect("all of it");
        let picture = image::DynamicImage::ImageRgba8(sent).into_rgb8();
        (head.to_owned(), picture)
    };
    text.split("\x1b_Gf=32,").skip(1).map(read).collect()
}

#[test]
fn kitty_gets_every_pixel() {
    let folder = Folder::new();
    let mut rows = command(&folder);
    let seen = run(rows.args(["-n", "2"]), talkative(KITTY));
    let text = seen.text();
    assert_eq!(seen.code, Some(0), "{text:?}");
    assert!(seen.as_before && !text.contains("^["), "{text:?}");
    let pictures = in_kitty(&seen);
    assert_eq!(pictures.len(), 2, "{text:?}");
    for (k, (head, sent)) in (1..).zip(pictures) {
        assert_eq!(head, "a=T,t=d,s=64,v=64,c=46,r=23");
        assert!(sent == pixels(&folder.read(&format!("a-{k}.png"))));
    }
}

#[test]
fn kitty_gets_the_end_of_a_picture_of_one_piece() {
    let folder = Folder::new();
    let model = asset("tiny-ddpm");
    let mut small = clean(folder.command([
        "ddpm", "--model", &model, "--steps", "1", "-o", "a.png", "--show",
    ]));
    let seen = run(&mut small, talkative(KITTY));
    let picture = picture(&folder, &seen);
    let large = imageops::resize(&picture, 128, 128, imageops::Nearest);
    let wanted = ("a=T,t=d,s=128,v=128,c=16,r=8".to_owned(), large);
    assert!(in_kitty(&seen) == [wanted]);
}

#[test]
fn a_kitty_on_this_machine_reads_a_file_and_a_key_meanwhile_does_no_harm() {
    const BEGIN: &str = "\x1b_Gf=32,s=64,v=64,c=46,r=23,a=T,t=t;";
    for word in ["\x1b[0n", "q\x1b[0n"] {
        let folder = Folder::new();
        let mut sent = None;
        let mut easy = talkative(&[
            (KITTY_QUESTION, "\x1b_Gi=31;OK\x1b\\"),
            ("a=q,t=t;", "\x1b_Gi=31;OK\x1b\\"),
            (ATTRIBUTES, "\x1b[?62;c"),
        ]);
        let seen = run(&mut command(&folder), |bytes| {
            if let Some(answer) = easy(bytes) {
                return Some(answer);
            }
            let text = String::from_utf8_lossy(bytes);
            let (_, from) = text.split_once(BEGIN)?;
            let (path, _) = from.split_once("\x1b\\\x1b[5n")?;
            let path = BASE64_STANDARD.decode(path).expect("base64");
            let path = String::from_utf8(path).expect("a path");
            sent = std::fs::read(&path).ok();
            std::fs::remove_file(path).expect("kitty removes it");
            Some((bytes.len(), word.as_bytes().to_vec()))
        });
        let picture = picture(&folder, &seen);
        let sent = image::RgbaImage::from_raw(64, 64, sent.expect("a file")).expect("all of it");
        assert!(image::DynamicImage::ImageRgba8(sent).into_rgb8() == picture);
        assert!(!seen.text().contains("warning"), "{:?}", seen.text());
    }
}

#[test]
fn iterm_gets_every_pixel() {
    for (name, value) in [("TERM_PROGRAM", "iTerm.app"), ("LC_TERMINAL", "iTerm2")] {
        let folder = Folder::new();
        let seen = run(command(&folder).env(name, value), talkative(PLAIN));
        let picture = picture(&folder, &seen);
        let text = seen.text();
        let (_, sent) = text.split_once("\x1b]1337;File=inline=1;").expect("a file");
        let (control, data) = sent.split_once(':').expect("data");
        let (data, _) = data.split_once('\x07').expect("an end");
        let png = BASE64_STANDARD.decode(data).expect("base64");
        let size = format!(
            "preserveAspectRatio=1;size={};width=46;height=23",
            png.len()
        );
        assert_eq!(control, size);
        assert!(pixels(&png) == picture);
    }
}

/// The picture of a sixel string, as DEC's manual of the VT330 says (vt100.net/docs/vt3xx-gp/chapter14.html).
fn sixels(text: &str) -> RgbImage {
    let mut bytes = text.bytes().peekable();
    let numbers = |bytes: &mut std::iter::Peekable<std::str::Bytes>| {
        let mut list = vec![0];
        while let Some(c) = bytes.next_if(|c| c.is_ascii_digit() || *c == b';') {
            match c {
                b';' => list.push(0),
                digit => {
                    *list.last_mut().expect("one") =
                        list[list.len() - 1] * 10 + u32::from(digit - b'0')
                }
            }
        }
        list
    };
    let (mut picture, mut palette) = (RgbImage::new(1, 1), std::collections::BTreeMap::new());
    let (mut x, mut y, mut colour, mut times) = (0, 0, 0, 1);
    while let Some(c) = bytes.next() {
        match c {
            b'"' => {
                let size = numbers(&mut bytes);
                picture = RgbImage::new(size[2], size[3]);
            }
            b'#' => {
                let list = numbers(&mut bytes);
                colour = list[0];
                if let [_, 2, rgb @ ..] = &list[..] {
                    let rgb = [0, 1, 2].map(|i| ((rgb[i] * 255 + 50) / 100) as u8);
                    palette.insert(colour, rgb);
                }
            }
            b'!' => times = numbers(&mut bytes)[0],
            b'$' => x = 0,
            b'-' => (x, y) = (0, y + 6),
            b'?'..=b'~' => {
                for _ in 0..std::mem::replace(&mut times, 1) {
                    for bit in (0..6).filter(|bit| ((c - b'?') >> bit) & 1 == 1) {
                        picture.put_pixel(x, y + bit, image::Rgb(palette[&colour]));
                    }
                    x += 1;
                }
            }
            _ => panic!("{c} in sixels"),
        }
    }
    picture
}

#[track_caller]
fn is_in_sixels(seen: &Seen, picture: &RgbImage) {
    let text = seen.text();
    let (_, sent) = text.split_once("\x1bP").expect("a picture");
    let (sent, after) = sent.split_once("\x1b\\").expect("an end");
    let (control, sent) = sent.split_once('q').expect("sixels");
    assert!(
        control.bytes().all(|c| c.is_ascii_digit() || c == b';'),
        "{control:?}"
    );
    // What follows is below.
    assert!(after.starts_with("\r\n"), "{after:?}");
    let drawn = sixels(sent);
    // 80 x 23 letters of 8 x 16 points are 106 x 30 of 6 x 12, and a point of the picture is at most a letter.
    assert_eq!(drawn.dimensions(), (60 * 6, 30 * 12));
    let wanted = imageops::resize(picture, 360, 360, imageops::Triangle);
    let off: u32 = drawn
        .iter()
        .zip(wanted.iter())
        .map(|(a, b)| u32::from(a.abs_diff(*b)))
        .sum();
    let mean = f64::from(off) / f64::from(3 * 360 * 360);
    // Of 256 colours and percents of them, dithered.
    assert!(mean < 8.0, "{mean}");
}

#[test]
fn a_terminal_with_sixels_gets_them() {
    let folder = Folder::new();
    let seen = run(&mut command(&folder), talkative(SIXEL));
    is_in_sixels(&seen, &picture(&folder, &seen));
}

#[test]
fn inside_of_tmux_only_tmux_is_believed() {
    for (name, value) in [
        ("TMUX", "/tmp/tmux-0/default,1,0"),
        ("STY", "1.pts-0"),
        ("ZELLIJ", "0"),
        ("TERM", "screen-256color"),
    ] {
        let folder = Folder::new();
        let mut inside = command(&folder);
        for (name, value) in [
            ("TERM_PROGRAM", "iTerm.app"),
            ("LC_TERMINAL", "iTerm2"),
            (name, value),
        ] {
            inside.env(name, value);
        }
        // Whoever asks kitty's question in tmux gives the pane a new title.
        let seen = run(&mut inside, talkative(PLAIN));
        assert!(!seen.text().contains("\x1b_G"), "{name}");
        let picture = picture(&folder, &seen);
        assert_eq!(blocks(&seen), Some(in_blocks(&picture)), "{name}");
        let seen = run(inside.arg("--overwrite"), talkative(SIXEL));
        is_in_sixels(&seen, &picture);
    }
}

#[test]
fn a_job_in_the_background_asks_nothing_and_draws() {
    let folder = Folder::new();
    let job = command(&folder);
    let mut shell = clean(Command::new("bash"));
    shell.args(["-c", "set -m; \"$@\" & wait $!", "bash"]);
    shell.arg(job.get_program()).args(job.get_args());
    shell.current_dir(folder.path()).env_remove("NO_COLOR");
    let seen = run(&mut shell, silent);
    assert!(!seen.text().contains(ATTRIBUTES));
    let picture = picture(&folder, &seen);
    assert_eq!(blocks(&seen), Some(in_blocks(&picture)));
}

#[test]
fn ctrl_c_while_the_terminal_is_asked_leaves_it_as_it_was() {
    let folder = Folder::new();
    let seen = run(&mut command(&folder), talkative(&[(ATTRIBUTES, "\x03")]));
    assert_eq!(seen.code, Some(130), "{:?}", seen.text());
    assert!(seen.as_before);
    assert_eq!(folder.names(), [""; 0]);
}

#[test]
fn a_terminal_without_colours_is_refused() {
    for term in ["dumb", ""] {
        let folder = Folder::new();
        let seen = run(command(&folder).env("TERM", term), silent);
        let wanted = format!(
            "diffuse: --show draws in colours and this terminal has none (TERM={term:?}); leave it out\r\n"
        );
        assert_eq!((seen.code, seen.text()), (Some(1), wanted));
        assert_eq!(folder.names(), [""; 0]);
    }
}

#[test]
fn a_pipe_is_refused() {
    let folder = Folder::new();
    let output = command(&folder).output().expect("it starts");
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0));
    assert_eq!(
        text,
        "diffuse: --show draws in a terminal and stdout is none; leave it out, or use --output\n"
    );
    assert_eq!(folder.names(), [""; 0]);
}
