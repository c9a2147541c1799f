//! Questions to the terminal, with a limit on the time it may take to answer.
//!
//! A terminal answers on the way that keys come, so keys are neither echoed nor kept for a line's end meanwhile.
use rustix::fs::{Mode, OFlags, open};
use rustix::io::{Errno, read, write};
use rustix::termios::{self, LocalModes, OptionalActions, SpecialCodeIndex, Termios};
use std::os::fd::OwnedFd;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How the terminal was before it was asked, for whoever ends the program in between.
static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);

/// The terminal of this process, silent while this lives.
pub struct Silence(OwnedFd);

impl Silence {
    /// None where there is no terminal to ask: none at all, or one that another job has. A job in the background would be
    /// stopped for asking.
    pub fn new() -> Option<Self> {
        let terminal = terminal()?;
        let foreground = termios::tcgetpgrp(&terminal).ok()?;
        if foreground != rustix::process::getpgrp() {
            return None;
        }
        let mut modes = termios::tcgetattr(&terminal).ok()?;
        let before = modes.clone();
        modes
            .local_modes
            .remove(LocalModes::ICANON | LocalModes::ECHO);
        // A read comes back after a tenth of a second, with nothing if nothing came.
        modes.special_codes[SpecialCodeIndex::VMIN] = 0;
        modes.special_codes[SpecialCodeIndex::VTIME] = 1;
        *BEFORE.lock().unwrap_or_else(PoisonError::into_inner) = Some(before);
        let silence = Self(terminal);
        termios::tcsetattr(&silence.0, OptionalActions::Drain, &modes).ok()?;
        Some(silence)
    }

    /// What the terminal says to `question` until `is_all`, or until `limit` is over.
    pub fn ask(
        &self,
        question: &[u8],
        is_all: impl Fn(&[u8]) -> bool,
        limit: Duration,
    ) -> Option<Vec<u8>> {
        let mut left = question;
        while !left.is_empty() {
            let n = write(&self.0, left).ok()?;
            left = &left[n..];
        }
        let (mut answer, start) = (Vec::new(), Instant::now());
        let mut bytes = [0; 256];
        // After the limit it is read once more: the answer may have come while the program did not run.
        let mut is_last = false;
        while !is_all(&answer) {
            if std::mem::replace(&mut is_last, start.elapsed() > limit) {
                return None;
            }
            match read(&self.0, &mut bytes) {
                Ok(n) => answer.extend_from_slice(&bytes[..n]),
                Err(Errno::INTR) => {}
                Err(_) => return None,
            }
        }
        Some(answer)
    }
}

impl Drop for Silence {
    fn drop(&mut self) {
        restore();
    }
}

/// Makes the terminal as it was; to be called before a signal ends the program.
pub fn restore() {
    let before = BEFORE.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let (Some(before), Some(terminal)) = (before, terminal()) {
        // With the terminal gone there is nothing to restore.
        let _ = termios::tcsetattr(terminal, OptionalActions::Now, &before);
    }
}

/// The size of the screen in points, where the terminal tells.
pub fn points() -> Option<(u32, u32)> {
    let size = termios::tcgetwinsize(std::io::stdout()).ok()?;
    let points = (size.ws_xpixel.into(), size.ws_ypixel.into());
    (points.0 > 0 && points.1 > 0).then_some(points)
}

fn terminal() -> Option<OwnedFd> {
    open("/dev/tty", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).ok()
}
