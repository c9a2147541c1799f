//! The terminal as indicatif draws on it, but for the spaces after the last line.
//!
//! indicatif fills each line to the edge, so that what others write comes on the next one. A terminal echoes Ctrl-C as `^C` there too, and
//! clearing the bar then clears the echo and leaves the bar. A line as wide as the terminal ends in [`ECHO`], for the same reason.
use console::Term;
use indicatif::{ProgressDrawTarget, TermLike};
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Room for the echo of a key.
pub const ECHO: &str = "  ";
/// How often a line is drawn in a second, at most: indicatif's own.
const REFRESH_RATE: u8 = 20;

/// Where the bars are drawn; hidden where stderr is no terminal.
pub fn stderr() -> ProgressDrawTarget {
    let term = Term::buffered_stderr();
    if !term.is_term() {
        return ProgressDrawTarget::hidden();
    }
    let screen = Box::new(Unfilled {
        term,
        filling: Mutex::default(),
    });
    ProgressDrawTarget::term_like_with_hz(screen, REFRESH_RATE)
}

/// Keeps spaces at the end back until more is written, and drops them where the cursor moves.
#[derive(Debug)]
struct Unfilled {
    term: Term,
    filling: Mutex<String>,
}

impl Unfilled {
    fn filling(&self) -> MutexGuard<'_, String> {
        // Spaces alone are guarded; a panic elsewhere leaves them usable.
        self.filling.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The terminal, for what moves its cursor.
    fn moved(&self) -> &Term {
        self.filling().clear();
        &self.term
    }
}

impl TermLike for Unfilled {
    fn width(&self) -> u16 {
        self.term.width()
    }

    fn height(&self) -> u16 {
        self.term.height()
    }

    fn move_cursor_up(&self, n: usize) -> io::Result<()> {
        self.moved().move_cursor_up(n)
    }

    fn move_cursor_down(&self, n: usize) -> io::Result<()> {
        self.moved().move_cursor_down(n)
    }

    fn move_cursor_right(&self, n: usize) -> io::Result<()> {
        self.moved().move_cursor_right(n)
    }

    fn move_cursor_left(&self, n: usize) -> io::Result<()> {
        self.moved().move_cursor_left(n)
    }

    fn write_line(&self, s: &str) -> io::Result<()> {
        self.moved().write_line(s)
    }

    fn write_str(&self, s: &str) -> io::Result<()> {
        let mut filling = self.filling();
        let text = s.trim_end_matches(' ');
        if !text.is_empty() {
            self.term.write_str(&filling)?;
            self.term.write_str(text)?;
            filling.clear();
        }
        filling.push_str(&s[text.len()..]);
        Ok(())
    }

    fn clear_line(&self) -> io::Result<()> {
        self.moved().clear_line()
    }

    fn flush(&self) -> io::Result<()> {
        self.term.flush()
    }
}
