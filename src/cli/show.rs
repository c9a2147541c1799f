//! A picture in the terminal, by the best means that the terminal has. viuer draws.
//!
//! viuer finds the means too, but it waits for the terminal's answers without a limit, and it believes what tmux inherited. So the
//! terminal is asked here first, in 1 s, and viuer is told to try only what was found.
use super::ask::{self, Silence};
use anyhow::{Context, Result, bail, ensure};
use image::{DynamicImage, RgbImage, imageops};
use std::io::{IsTerminal, Write};
use std::sync::mpsc;
use std::time::Duration;
use viuer::{Config, KittySupport};

/// For an answer of the terminal; over the slowest of lines it is a few tenths of a second.
const LIMIT: Duration = Duration::from_secs(1);
/// The question for pictures in kitty's protocol, as viuer asks it, and the answer
/// (sw.kovidgoyal.net/kitty/graphics-protocol, "Querying support").
const KITTY: (&str, &str) = (
    "\x1b_Gi=31,s=1,v=1,a=q,t=d,f=24;AAAA\x1b\\",
    "\x1b_Gi=31;OK\x1b\\",
);
/// Points in a piece of 4096 letters of base64, each of 4 bytes.
const KITTY_PIECE: u32 = 4096 / 4 * 3 / 4;
/// "Primary device attributes", which every terminal answers; 4 among them is sixel (vt100.net/docs/vt510-rm/DA1.html).
const ATTRIBUTES: &str = "\x1b[c";
/// What viuer takes a letter to be in sixels, and the widest picture that it makes of them.
const SIXEL_LETTER: (u32, u32) = (6, 12);
const SIXEL_WIDTH: u32 = 1000;

/// How pictures reach the screen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Means {
    /// kitty's protocol, through a file where the terminal can read it: `waits` for it to be read.
    Kitty {
        waits: bool,
    },
    Iterm,
    Sixel,
    /// Halves of blocks in letters, for every terminal with colours.
    Blocks,
}

/// The terminal on stdout as something to draw on.
#[derive(Clone, Copy, Debug)]
pub struct Screen(Means);

impl Screen {
    /// Finds the means, in [`LIMIT`] or little more. An error where stdout is no terminal, or one without colours.
    pub fn find() -> Result<Self> {
        ensure!(
            std::io::stdout().is_terminal(),
            "--show draws in a terminal and stdout is none; leave it out, or use --output"
        );
        let term = variable("TERM");
        if cfg!(unix) && matches!(term.as_str(), "" | "dumb") {
            bail!(
                "--show draws in colours and this terminal has none (TERM={term:?}); leave it out"
            );
        }
        let means = means(&term);
        tracing::debug!("--show: {means:?}");
        Ok(Self(means))
    }

    /// Draws `picture` where the cursor is, the whole of it and no larger than it is.
    pub fn draw(self, picture: &RgbImage) -> Result<()> {
        let (columns, rows) = viuer::terminal_size();
        // A terminal that does not tell its size is taken to have that of all terminals.
        let letters = match (columns, rows) {
            (0, _) | (_, 0) => (80, 24),
            (columns, rows) => (columns.into(), rows.into()),
        };
        let (width, height) = self.size(picture.dimensions(), letters, ask::points());
        let config = Config {
            absolute_offset: false,
            width: Some(width),
            height: Some(height),
            ..self.config()
        };
        let kitty = matches!(self.0, Means::Kitty { .. });
        let picture = match picture.dimensions() {
            // Of a picture that fits one piece viuer says that another follows, and kitty waits for it.
            (w, h) if kitty && w * h <= KITTY_PIECE => {
                imageops::resize(picture, 8 * w, 8 * h, imageops::Nearest)
            }
            _ => picture.clone(),
        };
        let picture = DynamicImage::ImageRgb8(picture);
        let print = move || match viuer::print(&picture, &config) {
            // The picture is there; what came was a key in place of the terminal's word that it was read.
            Err(viuer::ViuError::KittyResponse(_)) => Ok(()),
            other => other.map(drop).context("drawing in the terminal"),
        };
        match self.0 {
            Means::Kitty { waits: true } => {
                let _silence = Silence::new();
                within(5 * LIMIT, print).context("the terminal does not answer")?
            }
            Means::Sixel => {
                print()?;
                // viuer leaves the cursor in the picture's last row.
                Ok(writeln!(std::io::stdout())?)
            }
            _ => print(),
        }
    }

    fn config(self) -> Config {
        Config {
            use_kitty: matches!(self.0, Means::Kitty { .. }),
            use_iterm: self.0 == Means::Iterm,
            use_sixel: self.0 == Means::Sixel,
            ..Config::default()
        }
    }

    /// Columns and rows for a picture of `(width, height)`: all of the screen's, less a row for the prompt, but not more than
    /// a column for each of its points. `points` are the screen's, where it tells them.
    fn size(
        self,
        (width, height): (u32, u32),
        (columns, rows): (u32, u32),
        points: Option<(u32, u32)>,
    ) -> (u32, u32) {
        let (width, height) = (f64::from(width.max(1)), f64::from(height.max(1)));
        let mut room = (f64::from(columns), f64::from(rows.saturating_sub(1).max(1)));
        // How much higher a letter is than wide.
        let mut ratio = 2.0;
        if let Some((x, y)) = points {
            let letter = (f64::from(x) / room.0, f64::from(y) / f64::from(rows));
            if self.0 == Means::Sixel {
                let (w, h) = SIXEL_LETTER;
                room.0 *= letter.0 / f64::from(w);
                room.1 *= letter.1 / f64::from(h);
            } else {
                ratio = letter.1 / letter.0;
            }
        }
        if self.0 == Means::Sixel {
            room.0 = room.0.min(f64::from(SIXEL_WIDTH / SIXEL_LETTER.0));
        }
        let scale = (room.0 / width).min(room.1 * ratio / height).min(1.0);
        let whole = |length: f64, room: f64| (length.min(room) as u32).max(1);
        let rows = whole((height * scale / ratio).ceil(), room.1);
        let wide = f64::from(rows) * ratio * width / height;
        (whole(width * scale, wide.min(room.0)), rows)
    }
}

fn variable(name: &str) -> String {
    let value = std::env::var_os(name).unwrap_or_default();
    value.to_string_lossy().into_owned()
}

/// The means of the terminal on stdout, whose name is `term`.
fn means(term: &str) -> Means {
    let is_set = |name| !variable(name).is_empty();
    // What runs inside of these inherits the variables of the terminal outside, which sees nothing of what is drawn.
    let inside = ["TMUX", "STY", "ZELLIJ"].into_iter().any(is_set)
        || ["screen", "tmux"].iter().any(|name| term.starts_with(name));
    // These two print kitty's question.
    if term == "linux" || (!inside && variable("TERM_PROGRAM") == "Apple_Terminal") {
        return Means::Blocks;
    }
    let silence = Silence::new();
    let answer = silence.as_ref().and_then(|terminal| {
        // tmux makes the pane's title of kitty's question.
        let kitty = if inside { "" } else { KITTY.0 };
        let question = format!("{kitty}{ATTRIBUTES}");
        terminal.ask(
            question.as_bytes(),
            |text| attributes(text).is_some(),
            LIMIT,
        )
    });
    let answer = answer.unwrap_or_default();
    let has = |text: &str| {
        answer
            .windows(text.len())
            .any(|part| part == text.as_bytes())
    };
    // viuer asks again, and what it hears then is what it goes by.
    if has(KITTY.1) {
        match within(2 * LIMIT, viuer::get_kitty_support) {
            Some(KittySupport::Local) => return Means::Kitty { waits: true },
            Some(KittySupport::Remote) => return Means::Kitty { waits: false },
            _ => {}
        }
    }
    if !inside && viuer::is_iterm_supported() {
        return Means::Iterm;
    }
    let sixel = attributes(&answer).is_some_and(|attributes| attributes.contains(&4));
    match sixel && within(LIMIT, viuer::is_sixel_supported) == Some(true) {
        true => Means::Sixel,
        false => Means::Blocks,
    }
}

/// The numbers of the answer to [`ATTRIBUTES`], `ESC [ ? 6 2 ; 4 c`, when it is complete.
fn attributes(answer: &[u8]) -> Option<Vec<u32>> {
    let text = String::from_utf8_lossy(answer);
    let (_, start) = text.split_once("\x1b[?")?;
    let (numbers, _) = start.split_once('c')?;
    Some(numbers.split(';').filter_map(|n| n.parse().ok()).collect())
}

/// What `work` comes to, None if it takes longer than `limit`. It goes on then, and nobody waits for it.
fn within<T: Send + 'static>(
    limit: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || sender.send(work()));
    receiver.recv_timeout(limit).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_of_any_size_fits_any_screen() {
        for picture in [(1, 1), (512, 512), (8, 4000), (4000, 8), (63, 65)] {
            for letters in [(80, 24), (1, 1), (300, 5)] {
                for letter in [None, Some((8, 16)), Some((9, 21)), Some((5, 10))] {
                    let points = letter.map(|(x, y)| (x * letters.0, y * letters.1));
                    let rows = (letters.1 - 1).max(1);
                    for means in [Means::Blocks, Means::Iterm] {
                        let (w, h) = Screen(means).size(picture, letters, points);
                        assert!(w >= 1 && h >= 1);
                        assert!(w <= letters.0.min(picture.0) && h <= rows, "{w} {h}");
                    }
                    // Sixels are points of the screen.
                    let (w, h) = Screen(Means::Sixel).size(picture, letters, points);
                    let (x, y) = letter.unwrap_or(SIXEL_LETTER);
                    let fits = |n: u32, of: u32| n == 1 || n <= of;
                    let (sx, sy) = SIXEL_LETTER;
                    assert!(
                        fits(w, letters.0 * x / sx) && fits(h, rows * y / sy),
                        "{w} {h}"
                    );
                }
            }
        }
    }

    #[test]
    fn pictures_keep_their_shape() {
        let size = |means, points| Screen(means).size((512, 512), (80, 24), points);
        assert_eq!(size(Means::Blocks, None), (46, 23));
        assert_eq!(size(Means::Iterm, Some((800, 600))), (57, 23));
        assert_eq!(size(Means::Sixel, Some((800, 480))), (76, 38));
        assert_eq!(Screen(Means::Blocks).size((2, 2), (80, 24), None), (2, 1));
    }

    #[test]
    fn attributes_are_read_when_they_are_complete() {
        assert_eq!(attributes(b"\x1b[?62;4"), None);
        assert_eq!(attributes(b"x\x1b[?62;4cy"), Some(vec![62, 4]));
        assert_eq!(attributes(b"\x1b[?64c"), Some(vec![64]));
    }

    #[test]
    fn who_takes_too_long_is_not_waited_for() {
        assert_eq!(within(Duration::from_secs(60), || 7), Some(7));
        let (hold, held) = mpsc::channel::<()>();
        let late = within(Duration::from_millis(20), move || held.recv().is_ok());
        assert_eq!(late, None);
        drop(hold);
    }
}
