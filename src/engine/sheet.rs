//! A contact sheet: pictures in rows and columns, each with a caption below it.
use super::png;
use anyhow::Result;
use font8x8::{BASIC_FONTS, LATIN_FONTS, UnicodeFonts};
use image::{Rgb, RgbImage, imageops};
use std::path::Path;

/// The longer side of a picture on the sheet, at most.
const SIDE: u32 = 256;
const GAP: u32 = 8;
/// A letter is a square of this many pixels.
const LETTER: u32 = 8;
const LINES: u32 = 2;
const PAPER: Rgb<u8> = Rgb([255, 255, 255]);
const INK: Rgb<u8> = Rgb([32, 32, 32]);

const TITLE: (&str, &str) = ("Title", "contact sheet of diffuse");

/// Whether the file at `path` is a contact sheet of this program.
pub fn is_one(path: &Path) -> bool {
    matches!(png::read_text(path, TITLE.0), Ok(Some(title)) if title == TITLE.1)
}

/// A picture on the sheet.
struct Entry {
    picture: RgbImage,
    caption: String,
}

/// Pictures, made small as they come.
#[derive(Default)]
pub struct Sheet(Vec<Entry>);

impl Sheet {
    pub fn add(&mut self, picture: &RgbImage, caption: String) {
        let longest = picture.width().max(picture.height()).max(1);
        let picture = match longest > SIDE {
            false => picture.clone(),
            true => {
                let side = |length: u32| (length * SIDE / longest).max(1);
                let (w, h) = (side(picture.width()), side(picture.height()));
                imageops::resize(picture, w, h, imageops::FilterType::CatmullRom)
            }
        };
        self.0.push(Entry { picture, caption });
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The sheet's file, whose title says what it is.
    pub fn encode(&self) -> Result<Vec<u8>> {
        png::encode(&self.draw(), &[(TITLE.0, TITLE.1.to_owned())])
    }

    /// As many columns as make the sheet square.
    pub fn draw(&self) -> RgbImage {
        let columns = (self.0.len() as f64).sqrt().ceil().max(1.0) as u32;
        let rows = (self.0.len() as u32).div_ceil(columns).max(1);
        let widest = |f: fn(&RgbImage) -> u32| self.0.iter().map(|e| f(&e.picture)).max();
        // Room for a few letters under the smallest pictures.
        let width = widest(RgbImage::width).unwrap_or(0).max(12 * LETTER);
        let height = widest(RgbImage::height).unwrap_or(0);
        let cell = (width + GAP, height + GAP + LINES * (LETTER + 2));
        let size = (columns * cell.0 + GAP, rows * cell.1 + GAP);
        let mut sheet = RgbImage::from_pixel(size.0, size.1, PAPER);
        for (k, entry) in (0u32..).zip(&self.0) {
            let (x, y) = (GAP + k % columns * cell.0, GAP + k / columns * cell.1);
            let left = x + (width - entry.picture.width()) / 2;
            imageops::replace(&mut sheet, &entry.picture, left.into(), y.into());
            write(&mut sheet, (x, y + height + 2), width, &entry.caption);
        }
        sheet
    }
}

/// Writes `text` in lines of `width` pixels; what does not fit ends in dots.
fn write(sheet: &mut RgbImage, (x, y): (u32, u32), width: u32, text: &str) {
    let in_line = (width / LETTER) as usize;
    let mut letters: Vec<char> = text
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    if letters.len() > in_line * LINES as usize {
        letters.truncate(in_line * LINES as usize - 2);
        letters.extend("..".chars());
    }
    for (k, letter) in (0u32..).zip(letters) {
        let (column, line) = (k % in_line as u32, k / in_line as u32);
        let known = BASIC_FONTS.get(letter).or_else(|| LATIN_FONTS.get(letter));
        // Letters of other scripts are boxes.
        let shape = known.unwrap_or([0, 126, 66, 66, 66, 66, 126, 0]);
        for (dy, bits) in (0u32..).zip(shape) {
            for dx in (0..8).filter(|dx| (bits >> dx) & 1 == 1) {
                sheet.put_pixel(x + column * LETTER + dx, y + line * (LETTER + 2) + dy, INK);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn five_pictures_are_three_columns_and_two_rows_and_all_are_on_it() {
        let mut sheet = Sheet::default();
        for k in 0..5u8 {
            sheet.add(
                &RgbImage::from_pixel(100, 60, Rgb([k, 200, 9])),
                format!("{k}"),
            );
        }
        let drawn = sheet.draw();
        assert_eq!(drawn.dimensions(), (3 * 108 + 8, 2 * (60 + 8 + 20) + 8));
        for k in 0..5u8 {
            let count = drawn
                .pixels()
                .filter(|pixel| pixel.0 == [k, 200, 9])
                .count();
            assert_eq!(count, 6000, "{k}");
        }
    }

    #[test]
    fn large_pictures_are_made_small_and_captions_of_any_text_fit() {
        for caption in ["", "a", &"long ".repeat(100), "雪\n\0é"] {
            let mut sheet = Sheet::default();
            sheet.add(&RgbImage::new(1024, 512), caption.to_owned());
            sheet.add(&RgbImage::new(1, 3000), caption.to_owned());
            assert_eq!(sheet.draw().dimensions(), (2 * 264 + 8, 256 + 8 + 20 + 8));
        }
    }

    #[test]
    fn a_caption_is_written_in_ink() {
        let ink = |caption: &str| {
            let mut sheet = Sheet::default();
            sheet.add(&RgbImage::from_pixel(100, 60, PAPER), caption.to_owned());
            sheet.draw().pixels().filter(|pixel| **pixel == INK).count()
        };
        assert_eq!(ink(""), 0);
        assert!(ink("seed 7") > ink("s"));
    }
}
