//! The bars on a terminal's screen, and what stays of them.
use crate::hub::server::{Fault, Hub, WEIGHTS};
use crate::pty::{COLUMNS, ROWS, run};
use crate::support::{Folder, asset};
use std::process::Command;

/// The rows of the screen after `bytes`, up to the last that is not empty.
fn screen(bytes: &[u8]) -> Vec<String> {
    let mut parser = vt100::Parser::new(ROWS, COLUMNS, 0);
    parser.process(bytes);
    let rows = parser.screen().rows(0, COLUMNS);
    let mut rows: Vec<String> = rows.map(|row| row.trim_end().to_owned()).collect();
    let used = rows.iter().rposition(|row| !row.is_empty());
    rows.truncate(used.map_or(0, |last| last + 1));
    rows
}

/// Presses Ctrl-C once as many bars are on the screen. The program ends at once and leaves the other rows as they were. Gives the bars.
#[track_caller]
fn interrupt(command: &mut Command, count: usize, is_bar: fn(&str) -> bool) -> Vec<String> {
    let mut found = None;
    let seen = run(command, |written| {
        let (bars, others): (Vec<_>, Vec<_>) =
            screen(written).into_iter().partition(|row| is_bar(row));
        (found.is_none() && bars.len() == count).then(|| {
            found = Some((bars, others));
            (0, b"\x03".to_vec())
        })
    });
    let after = screen(&seen.bytes);
    assert_eq!(seen.code, Some(130), "{after:#?}");
    assert!(seen.text().contains("^C"), "the terminal echoes: {seen:?}");
    let (bars, others) = found.expect("the bars were seen");
    assert_eq!(after, others, "beside {bars:#?}");
    bars
}

#[test]
fn ctrl_c_takes_the_bar_off_the_screen() {
    let (folder, model) = (Folder::new(), asset("tiny-sd"));
    let args = ["txt2img", "a cat", "--model", &model, "--steps", "900"];
    let mut command = folder.command([&args[..], &["--width", "256", "--height", "256"]].concat());
    interrupt(&mut command, 1, |row| row.starts_with("denoising "));
}

#[test]
fn each_download_has_a_row_and_ctrl_c_takes_them_off_the_screen() {
    let (hub, folder) = (Hub::new(), Folder::new());
    // Small files have no bar, and equal ones are one file.
    let bytes = WEIGHTS.map(|name| (name.to_owned(), name.repeat(1 << 16).into_bytes()));
    hub.publish("owner/words", bytes.into());
    hub.faults(&["GET /cdn/"], Fault::Slow(20), 3);
    let args = ["txt2img", "a cat", "--model", "owner/words"];
    let mut bars = interrupt(&mut hub.command(&folder, &args), 3, |row| {
        row.ends_with(" left")
    });
    bars.sort();
    for (bar, part) in bars.iter().zip(["text_encoder ", "unet ", "vae "]) {
        assert!(bar.starts_with(part), "{bars:#?}");
        // Two columns are left to the echo.
        assert_eq!(bar.len(), usize::from(COLUMNS) - 2, "{bars:#?}");
    }
}
