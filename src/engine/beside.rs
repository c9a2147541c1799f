//! Files that are made beside a picture: its animation, and what its steps made. Each says of which picture it is, so that those of a run
//! that broke off are made anew, and nobody else's file is ever replaced.
use super::checkpoint::hex;
use super::png;
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

/// What a file beside a picture carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark(String);

/// A keyword that the PNG specification has.
const TITLE: &str = "Title";
const START: &str = "made by diffuse beside picture ";
/// A GIF's comment: a block of a comment extension (GIF89a, section 24), and the trailer that ends the file.
const GIF_COMMENT: [u8; 2] = [0x21, 0xfe];
const GIF_END: [u8; 2] = [0x00, 0x3b];

impl Mark {
    /// That of the picture at `path`. Its name alone counts, so that folders may move, and as a hash, as it may have been made of the prompt.
    pub fn of(path: &Path) -> Self {
        let name = path.file_name().unwrap_or_default();
        let hash = hex(&Sha256::digest(name.as_encoded_bytes()));
        Self(format!("{START}{}", &hash[..16]))
    }

    /// As a text of a PNG.
    pub fn text(&self) -> (&'static str, String) {
        (TITLE, self.0.clone())
    }

    /// Writes it into a GIF, before its end.
    pub fn add_to_gif(&self, file: &mut Vec<u8>) {
        file.truncate(file.len().saturating_sub(1));
        file.extend(self.gif_end());
    }

    /// How a GIF with this mark ends.
    fn gif_end(&self) -> Vec<u8> {
        let length = [self.0.len() as u8];
        [&GIF_COMMENT[..], &length, self.0.as_bytes(), &GIF_END].concat()
    }

    /// Whether the file at `path` has it.
    pub fn is_on(&self, path: &Path) -> bool {
        read(path).is_some_and(|text| text == self.0)
    }
}

/// Whether the file at `path` was made beside some picture.
pub fn is_one(path: &Path) -> bool {
    read(path).is_some_and(|text| text.starts_with(START))
}

fn read(path: &Path) -> Option<String> {
    // To open a pipe is to wait for its other end.
    if !path.is_file() {
        return None;
    }
    match png::read_text(path, TITLE) {
        Ok(text) => text,
        Err(_) => end_of_gif(path),
    }
}

/// The comment at the end of a GIF, where it is as long as a mark.
fn end_of_gif(path: &Path) -> Option<String> {
    let end = Mark::of(Path::new("")).gif_end();
    let mut file = File::open(path).ok()?;
    let mut found = vec![0; end.len()];
    file.seek(SeekFrom::End(-(end.len() as i64))).ok()?;
    file.read_exact(&mut found).ok()?;
    let start = GIF_COMMENT.len() + 1;
    let text = found.strip_suffix(&GIF_END)?.get(start..)?;
    let is_comment = found[..start] == end[..start];
    String::from_utf8(text.to_vec()).ok().filter(|_| is_comment)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::animate;
    use anyhow::Result;
    use image::RgbImage;

    #[test]
    fn a_file_tells_its_picture_from_others() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let (ours, other) = (
            Mark::of(Path::new("out/a.png")),
            Mark::of(Path::new("b.png")),
        );
        assert_eq!(ours, Mark::of(Path::new("elsewhere/a.png")));
        let frames = [RgbImage::new(2, 1), RgbImage::new(2, 1)];
        let step = png::encode(&frames[0], &[ours.text()])?;
        for (name, file) in [
            ("film.png", animate::png(&frames, Some(&ours))?),
            ("film.gif", animate::gif(&frames, Some(&ours))?),
            ("step.png", step),
        ] {
            let path = folder.path().join(name);
            std::fs::write(&path, &file)?;
            assert!(ours.is_on(&path) && is_one(&path), "{name}");
            assert!(!other.is_on(&path), "{name}");
            assert_eq!(image::open(&path)?.width(), 2, "{name}");
        }
        Ok(())
    }

    #[test]
    fn a_file_without_a_mark_has_none() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("a");
        let frames = [RgbImage::new(2, 1)];
        for file in [
            animate::png(&frames, None)?,
            animate::gif(&frames, None)?,
            b"mine".to_vec(),
            Vec::new(),
            vec![0x3b; 200],
        ] {
            std::fs::write(&path, file)?;
            assert!(!is_one(&path));
        }
        std::fs::remove_file(&path)?;
        assert!(!is_one(&path));
        Ok(())
    }
}
