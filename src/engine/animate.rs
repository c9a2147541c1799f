//! Animations: frames of one size, shown one after another for ever, as a PNG (PNG specification, third edition, section 4.9) or as a
//! GIF, which has 256 colours a frame.
use super::beside::Mark;
use anyhow::{Context, Result, ensure};
use image::codecs::gif::{GifEncoder, Repeat};
use image::{Delay, DynamicImage, Frame, RgbImage};
use png::{BitDepth, ColorType, Encoder};

/// A frame's hundredths of a second; the last one's, so that the result can be looked at.
const FRAME: u16 = 10;
const LAST: u16 = 200;
/// How the GIF's colours are looked for: 1 is the best and slowest, 30 the quickest.
const SPEED: i32 = 10;

/// The PNG of `frames`, which need the size of the last; with the mark of a picture.
pub fn png(frames: &[RgbImage], mark: Option<&Mark>) -> Result<Vec<u8>> {
    let (width, height) = size(frames)?;
    let mut file = Vec::new();
    let write = |file: &mut Vec<u8>| -> Result<(), png::EncodingError> {
        let mut encoder = Encoder::new(file, width, height);
        encoder.set_color(ColorType::Rgb);
        encoder.set_depth(BitDepth::Eight);
        encoder.set_animated(frames.len() as u32, 0)?;
        encoder.set_frame_delay(FRAME, 100)?;
        if let Some((keyword, text)) = mark.map(Mark::text) {
            encoder.add_text_chunk(keyword.to_owned(), text)?;
        }
        let mut writer = encoder.write_header()?;
        for (k, frame) in frames.iter().enumerate() {
            if k + 1 == frames.len() {
                writer.set_frame_delay(LAST, 100)?;
            }
            writer.write_image_data(frame)?;
        }
        writer.finish()
    };
    write(&mut file).context("encoding the animation")?;
    Ok(file)
}

/// The GIF of `frames`, which need the size of the last; with the mark of a picture.
pub fn gif(frames: &[RgbImage], mark: Option<&Mark>) -> Result<Vec<u8>> {
    size(frames)?;
    let mut file = Vec::new();
    let write = |file: &mut Vec<u8>| -> image::ImageResult<()> {
        let mut encoder = GifEncoder::new_with_speed(file, SPEED);
        encoder.set_repeat(Repeat::Infinite)?;
        for (k, frame) in frames.iter().enumerate() {
            let hundredths = if k + 1 == frames.len() { LAST } else { FRAME };
            let delay = Delay::from_numer_denom_ms(10 * u32::from(hundredths), 1);
            let pixels = DynamicImage::ImageRgb8(frame.clone()).into_rgba8();
            encoder.encode_frame(Frame::from_parts(pixels, 0, 0, delay))?;
        }
        Ok(())
    };
    write(&mut file).context("encoding the animation")?;
    if let Some(mark) = mark {
        mark.add_to_gif(&mut file);
    }
    Ok(file)
}

fn size(frames: &[RgbImage]) -> Result<(u32, u32)> {
    let last = frames.last().context("an animation needs a frame")?;
    ensure!(
        frames
            .iter()
            .all(|frame| frame.dimensions() == last.dimensions()),
        "the frames differ in size"
    );
    Ok(last.dimensions())
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::AnimationDecoder;

    fn three() -> Vec<RgbImage> {
        (0..3u8)
            .map(|k| RgbImage::from_pixel(4, 3, image::Rgb([k, 50, 255 - k])))
            .collect()
    }

    #[test]
    fn every_frame_comes_back_and_the_last_one_stays_longest() -> Result<()> {
        let frames = three();
        let file = png(&frames, None)?;
        let mut reader = png::Decoder::new(std::io::Cursor::new(file)).read_info()?;
        let control = reader.info().animation_control.context("it is animated")?;
        assert_eq!((control.num_frames, control.num_plays), (3, 0));
        for (k, frame) in frames.iter().enumerate() {
            let mut bytes = vec![0; frame.len()];
            reader.next_frame(&mut bytes)?;
            assert_eq!(&bytes, frame.as_raw(), "frame {k}");
            let delay = reader.info().frame_control.map(|control| control.delay_num);
            assert_eq!(delay, Some(if k == 2 { LAST } else { FRAME }));
        }
        Ok(())
    }

    #[test]
    fn a_gif_of_few_colours_has_them_all_and_repeats_for_ever() -> Result<()> {
        let frames = three();
        let file = gif(&frames, None)?;
        // The application block that asks for it: no count of repeats.
        assert!(
            file.windows(14)
                .any(|part| part == b"NETSCAPE2.0\x03\x01\0")
        );
        let decoder = image::codecs::gif::GifDecoder::new(std::io::Cursor::new(file))?;
        let found = decoder.into_frames().collect_frames()?;
        assert_eq!(found.len(), 3);
        for (k, (frame, wanted)) in found.iter().zip(&frames).enumerate() {
            let milliseconds = frame.delay().numer_denom_ms();
            assert_eq!(
                milliseconds,
                (if k == 2 { 2000 } else { 100 }, 1),
                "frame {k}"
            );
            let pixels = DynamicImage::ImageRgba8(frame.buffer().clone()).into_rgb8();
            assert_eq!(&pixels, wanted, "frame {k}");
        }
        Ok(())
    }

    #[test]
    fn frames_of_two_sizes_are_refused() {
        for encode in [png, gif] {
            assert!(encode(&[RgbImage::new(1, 1), RgbImage::new(2, 1)], None).is_err());
            assert!(encode(&[], None).is_err());
        }
    }
}
