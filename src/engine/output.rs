//! Pixels and files: `[-1, 1]` to 8 bits as diffusers' image processor does, and files that appear whole or not at all.
use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, Device, Tensor};
use image::RgbImage;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use tempfile::NamedTempFile;

/// Held from the first byte of a file to its rename.
static WRITING: Mutex<()> = Mutex::new(());

/// Waits for the file that is being written, if any, and keeps others from starting while the guard lives.
///
/// Whoever ends the process takes this first: then no half file is left behind.
pub fn hold_writes() -> MutexGuard<'static, ()> {
    // The mutex guards no data, so one poisoned by a panic is as good as new.
    WRITING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A picture of `(channels, height, width)` values: `round(255 * clamp(x / 2 + 0.5, 0, 1))`, halves to even as numpy rounds.
///
/// One channel is grey. Values outside `[-1, 1]` are clamped; values that are no numbers are an error, never a black picture.
pub fn to_rgb(x: &Tensor) -> Result<RgbImage> {
    let (channels, height, width) = x
        .dims3()
        .context("a picture is (channels, height, width)")?;
    let x = x.to_dtype(DType::F32)?.to_device(&Device::Cpu)?;
    let values = x.flatten_all()?.to_vec1::<f32>()?;
    let bad = values.iter().filter(|v| !v.is_finite()).count();
    ensure!(
        bad == 0,
        "{bad} of the picture's {} values are not finite, so it is not written; try --dtype f32",
        values.len()
    );
    let plane = height * width;
    let source = match channels {
        1 => [0, 0, 0],
        3 => [0, plane, 2 * plane],
        _ => bail!("the model makes {channels} channels; a PNG needs 1 or 3"),
    };
    let bytes = (0..plane)
        .flat_map(|pixel| source.map(|start| to_byte(values[start + pixel])))
        .collect();
    RgbImage::from_raw(u32::try_from(width)?, u32::try_from(height)?, bytes)
        .context("a picture has 3 bytes for each pixel")
}

fn to_byte(x: f32) -> u8 {
    ((x / 2.0 + 0.5).clamp(0.0, 1.0) * 255.0).round_ties_even() as u8
}

/// Writes a file at `path`: beside it first, then renamed. Without `overwrite` a file that exists is an error.
pub fn write(path: &Path, bytes: &[u8], overwrite: bool) -> Result<()> {
    ensure!(
        placed(path, bytes, overwrite)?,
        "{} exists; add --overwrite to replace it",
        path.display()
    );
    Ok(())
}

/// Writes a file at `path`, unless one is there by then; whether it did.
pub fn write_where_free(path: &Path, bytes: &[u8]) -> Result<bool> {
    placed(path, bytes, false)
}

/// Writes a file at the first of `names` that is free, also when other processes take names at the same moment.
pub fn write_as_new(names: impl IntoIterator<Item = PathBuf>, bytes: &[u8]) -> Result<PathBuf> {
    for path in names {
        if placed(&path, bytes, false)? {
            return Ok(path);
        }
    }
    bail!("every name for the picture is taken")
}

/// Whether a file can be made in `folder`, tried with one that has no name.
pub fn check_folder(folder: &Path) -> Result<()> {
    let _writing = hold_writes();
    match tempfile::tempfile_in(folder) {
        Ok(_) => Ok(()),
        Err(err) => Err(anyhow::Error::new(err)
            .context(format!("the folder {} cannot be written", folder.display()))),
    }
}

/// The folder that `path` is in.
pub fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// A file in `folder` with a free name between `prefix` and `suffix`, gone with its handle unless it is given a name that stays.
pub fn temporary(folder: &Path, prefix: &str, suffix: &str) -> std::io::Result<NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(prefix).suffix(suffix);
    // Temporary files are private by default; this one takes what the umask leaves of rw-rw-rw-.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    builder.tempfile_in(folder)
}

fn placed(path: &Path, bytes: &[u8], overwrite: bool) -> Result<bool> {
    place(path, bytes, overwrite).with_context(|| format!("writing {}", path.display()))
}

/// Puts `bytes` at `path`, in a folder that is made if it is not there; false when the name is taken and may not be.
fn place(path: &Path, bytes: &[u8], overwrite: bool) -> std::io::Result<bool> {
    let _writing = hold_writes();
    std::fs::create_dir_all(folder_of(path))?;
    let mut file = temporary(folder_of(path), ".diffuse-", ".part")?;
    // The handle's own error would name the file beside it.
    file.as_file_mut().write_all(bytes)?;
    let placed = if overwrite {
        file.persist(path)
    } else {
        file.persist_noclobber(path)
    };
    match placed {
        Ok(_) => Ok(true),
        Err(err) if !overwrite && err.error.kind() == ErrorKind::AlreadyExists => Ok(false),
        Err(err) => Err(err.error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::png;
    use proptest::prelude::*;

    fn picture(width: u32, height: u32, bytes: Vec<u8>) -> RgbImage {
        RgbImage::from_raw(width, height, bytes).expect("3 bytes for each pixel")
    }

    #[test]
    fn pixels_are_rounded_not_truncated_and_halves_go_to_even() {
        // 0.5 * 255 = 127.5 and 254.5 / 255 are halves: numpy's round gives 128 and 254.
        assert_eq!(to_byte(0.0), 128);
        assert_eq!(to_byte(2.0 * (100.6 / 255.0) - 1.0), 101);
        assert_eq!(to_byte(2.0 * (100.4 / 255.0) - 1.0), 100);
        assert_eq!(1.5f32.round_ties_even(), 2.0);
    }

    #[test]
    fn every_byte_comes_back_from_its_value() {
        for byte in 0..=255u8 {
            assert_eq!(to_byte(f32::from(byte) / 255.0 * 2.0 - 1.0), byte);
        }
    }

    #[test]
    fn values_outside_the_range_are_clamped() -> Result<()> {
        let x = Tensor::new(&[[[-9f32]], [[9.0]], [[1.0]]], &Device::Cpu)?;
        assert_eq!(to_rgb(&x)?.into_raw(), [0, 255, 255]);
        Ok(())
    }

    #[test]
    fn one_channel_becomes_grey_and_channels_interleave() -> Result<()> {
        let grey = Tensor::new(&[[[-1f32, 1.0]]], &Device::Cpu)?;
        assert_eq!(to_rgb(&grey)?.into_raw(), [0, 0, 0, 255, 255, 255]);
        let colour = Tensor::new(
            &[[[-1f32, 1.0]], [[1.0, -1.0]], [[-1.0, -1.0]]],
            &Device::Cpu,
        )?;
        assert_eq!(to_rgb(&colour)?.into_raw(), [0, 255, 0, 255, 0, 0]);
        Ok(())
    }

    #[test]
    fn values_that_are_no_numbers_are_an_error() -> Result<()> {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let x = Tensor::new(&[[[0f32, bad]]], &Device::Cpu)?;
            let message = to_rgb(&x)
                .expect_err("a black picture otherwise")
                .to_string();
            assert!(
                message.starts_with("1 of the picture's 2 values"),
                "{message}"
            );
        }
        Ok(())
    }

    #[test]
    fn two_and_four_channels_are_refused() -> Result<()> {
        for channels in [2, 4] {
            let x = Tensor::zeros((channels, 2, 2), DType::F32, &Device::Cpu)?;
            assert!(to_rgb(&x).is_err(), "{channels}");
        }
        Ok(())
    }

    #[test]
    fn a_taken_name_is_never_replaced_unless_asked() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("a.png");
        std::fs::write(&path, "mine")?;
        let white = b"white";
        assert!(write(&path, white, false).is_err());
        assert_eq!(std::fs::read(&path)?, b"mine");
        let next = folder.path().join("b.png");
        assert_eq!(write_as_new([path.clone(), next.clone()], white)?, next);
        write(&path, white, true)?;
        assert_eq!(std::fs::read(&path)?, std::fs::read(&next)?);
        assert_eq!(
            std::fs::read_dir(folder.path())?.count(),
            2,
            "nothing else is left"
        );
        Ok(())
    }

    #[cfg(unix)]
    #[test]
    fn a_picture_has_the_permissions_of_an_ordinary_new_file() -> Result<()> {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir()?;
        let (ours, plain) = (folder.path().join("a.png"), folder.path().join("b"));
        write(&ours, b"picture", false)?;
        std::fs::write(&plain, "")?;
        let mode = |path| std::fs::metadata(path).map(|m| m.permissions().mode());
        assert_eq!(mode(&ours)?, mode(&plain)?);
        Ok(())
    }

    #[test]
    fn threads_that_want_the_same_name_all_keep_their_picture() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let names = |k| folder.path().join(format!("{k}.png"));
        std::thread::scope(|scope| {
            for k in 0..8u8 {
                scope.spawn(move || {
                    write_as_new((0..).map(names), &[k]).expect("names are endless")
                });
            }
        });
        let mut seen: Vec<u8> = (0..8)
            .map(|k| Ok(std::fs::read(names(k))?[0]))
            .collect::<Result<_>>()?;
        seen.sort_unstable();
        assert_eq!(seen, (0..8).collect::<Vec<_>>());
        Ok(())
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn a_png_decodes_to_the_picture_it_was_made_from(
            (width, height, bytes) in (1u32..40, 1u32..40).prop_flat_map(|(w, h)| {
                (Just(w), Just(h), prop::collection::vec(any::<u8>(), (w * h * 3) as usize))
            })
        ) {
            let folder = tempfile::tempdir().expect("a temporary folder");
            let path = folder.path().join("a.png");
            let before = picture(width, height, bytes);
            let png = png::encode(&before, &[]).expect("it encodes");
            write(&path, &png, false).expect("the folder is writable");
            prop_assert_eq!(image::open(&path).expect("a PNG").into_rgb8(), before);
        }
    }
}
