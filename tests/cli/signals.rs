//! The ends that come from outside: Ctrl-C, SIGTERM, and signals that are to be ignored.
use crate::support::{Folder, Run, asset};
use rustix::process::{Pid, Signal};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};

/// Pictures without end, one after another.
fn endless(folder: &Folder) -> Command {
    let model = asset("tiny-ddpm");
    let args = ["ddpm", "--model", &model, "--steps", "2", "--device", "cpu"];
    let more = ["-n", "100000", "-o", "a.png", "-q"];
    folder.command(args.iter().chain(&more))
}

fn tell(child: &Child, signal: Signal) {
    let sent = rustix::process::kill_process(Pid::from_child(child), signal);
    sent.expect("it lives");
}

/// Starts `command`, waits for its first picture, sends `signals` and gives what the last one made of it.
fn send(command: &mut Command, signals: &[Signal]) -> std::process::Output {
    use std::io::{BufRead, BufReader};
    let piped = command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = piped.spawn().expect("the program starts");
    let mut reader = BufReader::new(child.stdout.take().expect("it is piped"));
    for (k, signal) in signals.iter().enumerate() {
        let mut path = String::new();
        reader.read_line(&mut path).expect("a path is printed");
        assert_eq!(path, format!("a-{}.png\n", k + 1));
        tell(&child, *signal);
    }
    child.wait_with_output().expect("it ends")
}

#[test]
fn a_signal_ends_the_program_as_itself_and_leaves_whole_pictures_alone() {
    for (signal, number) in [(Signal::INT, 2), (Signal::TERM, 15), (Signal::HUP, 1)] {
        let folder = Folder::new();
        let output = send(&mut endless(&folder), &[signal]);
        // A shell ends its loop for a program that Ctrl-C ended, and for none that exits with 130.
        assert_eq!(output.status.signal(), Some(number), "{signal:?}");
        let run = Run::from(output);
        assert_eq!((run.code, run.stderr.as_str()), (Some(128 + number), ""));
        for name in folder.names() {
            let whole = name.starts_with("a-") && image::open(folder.file(&name)).is_ok();
            assert!(whole, "{signal:?}: {name}");
        }
    }
}

#[test]
fn a_signal_ends_a_program_whose_reader_does_not_read() {
    let folder = Folder::new();
    let mut command = endless(&folder);
    let piped = command.arg("--json").stdout(Stdio::piped());
    let mut child = piped.spawn().expect("the program starts");
    let unread = child.stdout.take().expect("it is piped");
    // A pipe holds 64 KB, on some systems 16, and a line is far from 4.
    let waiting = || rustix::io::ioctl_fionread(&unread).expect("it is a pipe");
    let mut last = 0;
    wait_until(|| {
        let now = waiting();
        now == std::mem::replace(&mut last, now) && now > 12 << 10
    });
    tell(&child, Signal::TERM);
    let mut status = None;
    wait_until(|| {
        status = child.try_wait().expect("it is a child");
        status.is_some()
    });
    assert_eq!(status.and_then(|status| status.signal()), Some(15));
}

/// Asks every fifth of a second, for a minute.
fn wait_until(mut done: impl FnMut() -> bool) {
    for _ in 0..300 {
        if done() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(200));
    }
    panic!("it takes more than a minute");
}

#[test]
fn a_signal_that_was_ignored_before_stays_so() {
    let folder = Folder::new();
    let program = endless(&folder);
    let mut shell = folder.command_after("trap '' INT HUP", program.get_args());
    let output = send(&mut shell, &[Signal::INT, Signal::HUP, Signal::TERM]);
    assert_eq!(output.status.signal(), Some(15));
}
