//! PNG files: pictures with texts in them, and the texts of a PNG from anywhere, read with care.
//!
//! What is wrong with a file is told without its name, which the caller puts before: "has a broken text".
//!
//! A text is a chunk of its own before the pixels: tEXt where Latin-1 can hold it, as most readers expect, and iTXt
//! (UTF-8) elsewhere. See the PNG specification, third edition, section 11.3.3. Other programs that save the picture anew may pack it (zTXt).
use anyhow::{Context, Result, bail, ensure};
use image::RgbImage;
use png::{BitDepth, ColorType, Decoder, Encoder, Info, Limits, Reader};
use std::fs::File;
use std::io::BufReader;
use std::path::Path;

/// The bytes that reading a picture's texts may take: a long prompt takes thousands.
const TEXTS_LIMIT: usize = 8 << 20;
/// The bytes of one text, unpacked: a compressed text may promise more than it is.
const TEXT_LIMIT: usize = 1 << 20;

/// The file of `picture`, with `(keyword, text)` pairs before its pixels.
pub fn encode(picture: &RgbImage, texts: &[(&str, String)]) -> Result<Vec<u8>> {
    let mut file = Vec::new();
    write(&mut file, picture, texts).context("encoding the PNG")?;
    Ok(file)
}

fn write(
    file: &mut Vec<u8>,
    picture: &RgbImage,
    texts: &[(&str, String)],
) -> Result<(), png::EncodingError> {
    let mut encoder = Encoder::new(file, picture.width(), picture.height());
    encoder.set_color(ColorType::Rgb);
    encoder.set_depth(BitDepth::Eight);
    // The quickest by far, and larger by a few percent: a picture is made once and its file copied on.
    encoder.set_compression(png::Compression::Fast);
    for (keyword, text) in texts {
        // A null ends a text, so none can be inside.
        let (keyword, text) = ((*keyword).to_owned(), text.replace('\0', " "));
        if text.chars().all(|c| u32::from(c) < 256) {
            encoder.add_text_chunk(keyword, text)?;
        } else {
            encoder.add_itxt_chunk(keyword, text)?;
        }
    }
    let mut writer = encoder.write_header()?;
    writer.write_image_data(picture)?;
    writer.finish()
}

/// The text with this keyword in the PNG at `path`; None where there is none.
///
/// The file may be anything: what is no PNG, is broken or asks for more than a few megabytes is an error.
pub fn read_text(path: &Path, keyword: &str) -> Result<Option<String>> {
    let mut reader = open(path)?;
    if let Some(text) = text_of(reader.info(), keyword)? {
        return Ok(Some(text));
    }
    // ImageMagick writes texts behind the pixels. A file that is broken there has none.
    match reader.finish() {
        Ok(()) => text_of(reader.info(), keyword),
        Err(_) => Ok(None),
    }
}

/// The text, among those that were read so far.
fn text_of(info: &Info, keyword: &str) -> Result<Option<String>> {
    if let Some(chunk) = info
        .uncompressed_latin1_text
        .iter()
        .find(|c| c.keyword == keyword)
    {
        return Ok(Some(chunk.text.clone()));
    }
    let mut texts = info.utf8_text.iter().cloned();
    let mut packed = info.compressed_latin1_text.iter().cloned();
    let text = if let Some(mut chunk) = texts.find(|c| c.keyword == keyword) {
        let unpacked = chunk.decompress_text_with_limit(TEXT_LIMIT);
        unpacked.and_then(|()| chunk.get_text())
    } else if let Some(mut chunk) = packed.find(|c| c.keyword == keyword) {
        let unpacked = chunk.decompress_text_with_limit(TEXT_LIMIT);
        unpacked.and_then(|()| chunk.get_text()).map(utf8_of_latin1)
    } else {
        return Ok(None);
    };
    text.map(Some)
        .with_context(|| format!("has a broken text {keyword:?}"))
}

/// ImageMagick packs a text of any script, where Latin-1 alone may be: bytes of UTF-8 were read as letters.
fn utf8_of_latin1(text: String) -> String {
    let bytes: Option<Vec<u8>> = text.chars().map(|c| u8::try_from(c).ok()).collect();
    let utf8 = bytes.and_then(|bytes| String::from_utf8(bytes).ok());
    utf8.unwrap_or(text)
}

/// The PNG at `path`, read up to its pixels.
fn open(path: &Path) -> Result<Reader<BufReader<File>>> {
    let found = std::fs::metadata(path).context("cannot be read")?;
    ensure!(found.is_file(), "is not a file");
    let file = File::open(path).context("cannot be read")?;
    let limits = Limits { bytes: TEXTS_LIMIT };
    Decoder::new_with_limits(BufReader::new(file), limits)
        .read_info()
        .context("is not a PNG that can be read")
}

/// Fails where the PNG at `path` has a palette of broken colours, on which the png crate panics (0.18.1) when it comes to the pixels.
pub fn check_palette(path: &Path) -> Result<()> {
    checked_size(path).map(|_| ())
}

/// The width and height, of a PNG whose palette is none that is broken.
fn checked_size(path: &Path) -> Result<(u32, u32)> {
    let reader = open(path)?;
    let info = reader.info();
    let bytes = info.palette.as_ref().map_or(0, |p| p.len());
    ensure!(
        bytes % 3 == 0 && bytes <= 3 * 256,
        "has a palette of {bytes} bytes, which are not up to 256 colours of 3"
    );
    Ok(info.size())
}

/// The pixels of the PNG at `path`; None where it has not the size of `like`. No more memory is taken than such a picture needs.
pub fn read_pixels(path: &Path, like: &RgbImage) -> Result<Option<RgbImage>> {
    if checked_size(path)? != like.dimensions() {
        return Ok(None);
    }
    let mut reader = image::ImageReader::open(path).context("cannot be read")?;
    reader.set_format(image::ImageFormat::Png);
    let mut limits = image::Limits::default();
    limits.max_image_width = Some(like.width());
    limits.max_image_height = Some(like.height());
    // 16 bits and an alpha channel at most, and the decoder's own buffers.
    limits.max_alloc = Some(like.len() as u64 * 4 + (TEXTS_LIMIT as u64));
    reader.limits(limits);
    match reader.decode() {
        Ok(picture) => Ok(Some(picture.into_rgb8())),
        Err(err) => bail!("has pixels that cannot be read: {err}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn small() -> RgbImage {
        RgbImage::from_raw(2, 1, vec![0, 1, 2, 253, 254, 255]).expect("3 bytes for each pixel")
    }

    fn saved(bytes: &[u8]) -> (tempfile::TempDir, std::path::PathBuf) {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("a.png");
        std::fs::write(&path, bytes).expect("the folder is writable");
        (folder, path)
    }

    #[test]
    fn texts_of_any_script_come_back_and_the_pixels_stay() -> Result<()> {
        for text in ["", "a cat", "línea\nñ", "狐 🦊", &"x".repeat(100_000)] {
            let texts = [("parameters", text.to_owned()), ("other", "b".to_owned())];
            let (_folder, path) = saved(&encode(&small(), &texts)?);
            assert_eq!(read_text(&path, "parameters")?.as_deref(), Some(text));
            assert_eq!(read_text(&path, "other")?.as_deref(), Some("b"));
            assert_eq!(read_text(&path, "none")?, None);
            assert_eq!(read_pixels(&path, &small())?, Some(small()));
        }
        Ok(())
    }

    // As ImageMagick and Pillow save a picture of this program anew.
    #[test]
    fn a_packed_text_is_read_and_so_is_utf8_in_it() -> Result<()> {
        for text in ["a cat", "línea", "кот 🐱"] {
            let bytes = |text: &str| text.bytes().map(char::from).collect::<String>();
            for packed in [bytes(text), text.to_owned()] {
                let mut file = Vec::new();
                let mut encoder = Encoder::new(&mut file, 2, 1);
                encoder.set_color(ColorType::Rgb);
                if encoder.add_ztxt_chunk("k".to_owned(), packed).is_err() {
                    continue;
                }
                let Ok(mut writer) = encoder.write_header() else {
                    // Letters beyond Latin-1 cannot be there.
                    continue;
                };
                writer.write_image_data(&[0; 6])?;
                writer.finish()?;
                // Before the pixels, and behind them as ImageMagick has it.
                for file in [behind_the_pixels(&file), file] {
                    let (_folder, path) = saved(&file);
                    assert_eq!(read_text(&path, "k")?.as_deref(), Some(text));
                }
            }
        }
        Ok(())
    }

    /// A PNG's bytes with its packed texts moved to its end.
    fn behind_the_pixels(file: &[u8]) -> Vec<u8> {
        let (start, mut rest) = file.split_at(8);
        let (mut before, mut texts) = (start.to_vec(), Vec::new());
        while let Some(length) = rest.first_chunk::<4>() {
            let (chunk, after) = rest.split_at(12 + u32::from_be_bytes(*length) as usize);
            match &chunk[4..8] {
                b"zTXt" => texts.extend(chunk),
                b"IEND" => before.extend([&texts[..], chunk].concat()),
                _ => before.extend(chunk),
            }
            rest = after;
        }
        assert_ne!(before, file);
        before
    }

    #[test]
    fn a_compressed_text_that_unpacks_to_more_than_a_megabyte_is_refused() -> Result<()> {
        let mut bytes = Vec::new();
        let mut encoder = Encoder::new(&mut bytes, 1, 1);
        encoder.set_color(ColorType::Rgb);
        let mut bomb = png::text_metadata::ITXtChunk::new("k", "a".repeat(TEXT_LIMIT + 1));
        bomb.compressed = true;
        bomb.compress_text()?;
        let mut writer = encoder.write_header()?;
        writer.write_text_chunk(&bomb)?;
        writer.write_image_data(&[0; 3])?;
        writer.finish()?;
        let (_folder, path) = saved(&bytes);
        assert!(bytes.len() < TEXT_LIMIT / 20, "{}", bytes.len());
        assert!(read_text(&path, "k").is_err());
        Ok(())
    }

    #[test]
    fn a_picture_of_another_size_is_not_decoded() -> Result<()> {
        for (width, height) in [(3, 1), (1, 1), (2, 2), (1, 2)] {
            let (_folder, path) = saved(&encode(&RgbImage::new(width, height), &[])?);
            assert_eq!(read_pixels(&path, &small())?, None);
        }
        Ok(())
    }

    #[test]
    fn a_palette_of_broken_colours_is_refused() -> Result<()> {
        for (bytes, fine) in [(3, true), (768, true), (1, false), (5, false), (771, false)] {
            let mut file = Vec::new();
            let mut encoder = Encoder::new(&mut file, 2, 1);
            encoder.set_color(ColorType::Indexed);
            encoder.set_palette(vec![9; bytes]);
            let mut writer = encoder.write_header()?;
            writer.write_image_data(&[0; 2])?;
            writer.finish()?;
            let (_folder, path) = saved(&file);
            let read = read_pixels(&path, &small());
            assert_eq!(read.is_ok(), fine, "{bytes}: {read:?}");
        }
        Ok(())
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn a_spoiled_file_is_an_error_or_a_text_and_never_a_panic(
            spoils in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
            cut in any::<Option<prop::sample::Index>>(),
        ) {
            let mut bytes = encode(&small(), &[("parameters", "狐".repeat(20))]).expect("it encodes");
            for (at, byte) in spoils {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            if let Some(cut) = cut {
                bytes.truncate(cut.index(bytes.len()));
            }
            let (_folder, path) = saved(&bytes);
            let _ = read_text(&path, "parameters");
            let _ = read_pixels(&path, &small());
        }
    }
}
