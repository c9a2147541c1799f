//! A picture in letters: each is the upper half of a block, its colour one pixel and its background the pixel below.
//!
//! This works in every terminal with colours, and through tmux and ssh, where the protocols for real pictures do not. viuer, the
//! kept library for those, draws the same blocks there and brings eight crates.
use image::{RgbImage, imageops};
use std::fmt::Write;

/// What the terminal can show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Colours {
    /// 24 bits.
    True,
    /// The 6 x 6 x 6 cube and 24 greys of xterm.
    Xterm256,
}

impl Colours {
    /// By `COLORTERM`, as terminals tell it.
    pub fn of_terminal() -> Self {
        match std::env::var("COLORTERM").as_deref() {
            Ok("truecolor" | "24bit") => Self::True,
            _ => Self::Xterm256,
        }
    }

    fn code(self, [r, g, b]: [u8; 3]) -> String {
        if self == Self::True {
            return format!("2;{r};{g};{b}");
        }
        // The cube's levels are 0, 95, 135, 175, 215 and 255.
        let level = |x: u8| match x {
            0..48 => 0,
            48..115 => 1,
            _ => (usize::from(x) - 35) / 40,
        };
        let value = |level: usize| {
            if level == 0 {
                0
            } else {
                55 + 40 * level as i32
            }
        };
        let (i, j, k) = (level(r), level(g), level(b));
        let off = |colour: [i32; 3]| {
            let pairs = colour.iter().zip([r, g, b]);
            pairs.map(|(x, y)| (x - i32::from(y)).pow(2)).sum::<i32>()
        };
        let mean = (i32::from(r) + i32::from(g) + i32::from(b)) / 3;
        let grey = ((mean - 3) / 10).clamp(0, 23);
        if off([8 + 10 * grey; 3]) < off([value(i), value(j), value(k)]) {
            format!("5;{}", 232 + grey)
        } else {
            format!("5;{}", 16 + 36 * i + 6 * j + k)
        }
    }
}

/// `picture` in lines of letters, as large as fits `(columns, rows)` with a row left for the prompt.
pub fn draw(picture: &RgbImage, (columns, rows): (u32, u32), colours: Colours) -> String {
    let (width, height) = (picture.width().max(1), picture.height().max(1));
    let room = (columns.max(1), 2 * rows.saturating_sub(1).max(1));
    // As wide as the room, unless that is too high; never larger than the picture.
    let scale = (f64::from(room.0) / f64::from(width))
        .min(f64::from(room.1) / f64::from(height))
        .min(1.0);
    let side = |length: u32| ((f64::from(length) * scale) as u32).max(1);
    let (width, height) = (side(width), side(height).next_multiple_of(2));
    let small = imageops::resize(picture, width, height, imageops::FilterType::Triangle);
    let mut text = String::new();
    for y in (0..height).step_by(2) {
        for x in 0..width {
            let (above, below) = (small.get_pixel(x, y).0, small.get_pixel(x, y + 1).0);
            // Writing to a string cannot fail.
            let _ = write!(
                text,
                "\x1b[38;{};48;{}m\u{2580}",
                colours.code(above),
                colours.code(below)
            );
        }
        text += "\x1b[0m\n";
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::Rgb;

    #[test]
    fn a_letter_is_two_pixels() {
        let mut picture = RgbImage::from_pixel(2, 2, Rgb([1, 2, 3]));
        picture.put_pixel(1, 1, Rgb([9, 8, 7]));
        assert_eq!(
            draw(&picture, (80, 24), Colours::True),
            "\x1b[38;2;1;2;3;48;2;1;2;3m▀\x1b[38;2;1;2;3;48;2;9;8;7m▀\x1b[0m\n"
        );
    }

    #[test]
    fn a_picture_of_any_size_fits_any_terminal() {
        for (width, height) in [(1, 1), (512, 512), (8, 4000), (4000, 8)] {
            for room in [(80, 24), (1, 1), (300, 5), (0, 0)] {
                let text = draw(&RgbImage::new(width, height), room, Colours::True);
                let lines: Vec<_> = text.lines().collect();
                assert!(
                    lines.len() as u32 <= room.1.saturating_sub(1).max(1),
                    "{room:?}"
                );
                for line in lines {
                    assert!(
                        line.matches('▀').count() as u32 <= room.0.max(1),
                        "{room:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn xterms_cube_and_greys_are_found() {
        let code = |colour| Colours::Xterm256.code(colour);
        assert_eq!(code([0, 0, 0]), "5;16");
        assert_eq!(code([255, 255, 255]), "5;231");
        assert_eq!(code([255, 0, 0]), "5;196");
        assert_eq!(code([95, 135, 175]), "5;67");
        assert_eq!(code([128, 128, 128]), "5;244");
    }
}
