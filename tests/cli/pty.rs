//! A terminal for tests: what a program writes on it, and what it answers.
use crate::support::code;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::ptr::null_mut;
use std::time::{Duration, Instant};

/// What came to the screen.
#[derive(Debug)]
pub struct Seen {
    pub code: Option<i32>,
    pub bytes: Vec<u8>,
    pub took: Duration,
    /// Whether keys are echoed and kept for whole lines, as a shell expects them.
    pub as_before: bool,
}

impl Seen {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }
}

/// The size of the screen.
pub const COLUMNS: u16 = 80;
pub const ROWS: u16 = 24;

/// Runs `command` on a terminal of 80 x 24 letters, each of 8 x 16 points. `answer` gets what was written and not yet answered; it says
/// how much of that it has taken, and what the terminal says to it.
pub fn run(
    command: &mut Command,
    mut answer: impl FnMut(&[u8]) -> Option<(usize, Vec<u8>)>,
) -> Seen {
    let (mut screen, keys) = open();
    let copy = || keys.try_clone().expect("a copy");
    command.stdin(copy()).stdout(copy()).stderr(copy());
    // SAFETY: both calls are allowed between fork and exec.
    unsafe {
        command.pre_exec(|| {
            libc::setsid();
            match libc::ioctl(0, libc::TIOCSCTTY, 0) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            }
        });
    }
    let start = Instant::now();
    let mut child = command.spawn().expect("the program starts");
    let (mut bytes, mut taken, mut buffer) = (Vec::new(), 0, [0; 4096]);
    let code = loop {
        let ended = child.try_wait().expect("it can be waited for");
        while is_ready(&screen) {
            let n = screen.read(&mut buffer).expect("the terminal is open");
            bytes.extend_from_slice(&buffer[..n]);
            while let Some((n, reply)) = answer(&bytes[taken..]) {
                taken += n;
                screen.write_all(&reply).expect("the terminal is open");
            }
        }
        if let Some(status) = ended {
            break code(status);
        }
        if start.elapsed() > Duration::from_secs(60) {
            child.kill().expect("it runs");
            panic!("it hangs: {}", String::from_utf8_lossy(&bytes));
        }
    };
    let took = start.elapsed();
    // SAFETY: a zeroed termios is one, and is written before it is read.
    let modes = unsafe {
        let mut modes: libc::termios = std::mem::zeroed();
        assert_eq!(libc::tcgetattr(keys.as_raw_fd(), &mut modes), 0);
        modes
    };
    let line = libc::ECHO | libc::ICANON;
    Seen {
        code,
        bytes,
        took,
        as_before: modes.c_lflag & line == line,
    }
}

/// A terminal that answers nothing.
pub fn silent(_: &[u8]) -> Option<(usize, Vec<u8>)> {
    None
}

/// One that gives the second of a pair where the first is written.
pub fn talkative(
    pairs: &'static [(&'static str, &'static str)],
) -> impl FnMut(&[u8]) -> Option<(usize, Vec<u8>)> {
    move |text| {
        let place = |question: &str| {
            let question = question.as_bytes();
            text.windows(question.len())
                .position(|part| part == question)
        };
        let first = pairs
            .iter()
            .filter_map(|(question, reply)| Some((place(question)? + question.len(), reply)));
        let (end, reply) = first.min()?;
        Some((end, reply.as_bytes().to_vec()))
    }
}

fn open() -> (File, OwnedFd) {
    let (mut screen, mut keys) = (-1, -1);
    let size = libc::winsize {
        ws_row: ROWS,
        ws_col: COLUMNS,
        ws_xpixel: 8 * COLUMNS,
        ws_ypixel: 16 * ROWS,
    };
    // SAFETY: the pointers are of living values or null, as openpty takes them, and what it opens is owned once.
    unsafe {
        let failed = libc::openpty(&mut screen, &mut keys, null_mut(), null_mut(), &size);
        assert_eq!(failed, 0, "{}", std::io::Error::last_os_error());
        // The program is to have the terminal by its three streams alone.
        for fd in [screen, keys] {
            libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC);
        }
        (File::from_raw_fd(screen), OwnedFd::from_raw_fd(keys))
    }
}

/// Whether something was written, waited for a moment.
fn is_ready(screen: &File) -> bool {
    let mut poll = libc::pollfd {
        fd: screen.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one living pollfd.
    unsafe { libc::poll(&mut poll, 1, 20) > 0 && poll.revents & libc::POLLIN != 0 }
}
