//! An animated PNG: frames of one size, shown one after another for ever. See the PNG specification, third edition, section 4.9.
use anyhow::{Context, Result, ensure};
use image::RgbImage;
use png::{BitDepth, ColorType, Encoder};

/// A frame's hundredths of a second; the last one's, so that the result can be looked at.
const FRAME: u16 = 10;
const LAST: u16 = 200;

/// The file of `frames`, which need the size of the last.
pub fn encode(frames: &[RgbImage]) -> Result<Vec<u8>> {
    let last = frames.last().context("an animation needs a frame")?;
    let (width, height) = last.dimensions();
    ensure!(
        frames
            .iter()
            .all(|frame| frame.dimensions() == (width, height)),
        "the frames differ in size"
    );
    let mut file = Vec::new();
    let write = |file: &mut Vec<u8>| -> Result<(), png::EncodingError> {
        let mut encoder = Encoder::new(file, width, height);
        encoder.set_color(ColorType::Rgb);
        encoder.set_depth(BitDepth::Eight);
        encoder.set_animated(frames.len() as u32, 0)?;
        encoder.set_frame_delay(FRAME, 100)?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_frame_comes_back_and_the_last_one_stays_longest() -> Result<()> {
        let frames: Vec<_> = (0..3u8)
            .map(|k| RgbImage::from_pixel(4, 3, image::Rgb([k, 50, 255 - k])))
            .collect();
        let file = encode(&frames)?;
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
    fn frames_of_two_sizes_are_refused() {
        assert!(encode(&[RgbImage::new(1, 1), RgbImage::new(2, 1)]).is_err());
        assert!(encode(&[]).is_err());
    }
}
