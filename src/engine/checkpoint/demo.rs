//! The trained checkpoints that the program carries: `--model demo`. They are the folders of `assets/demo`, file by file, so the
//! program needs neither a download nor a disk to draw a picture.

/// What the user types.
pub const NAME: &str = "demo";

/// One of the checkpoints, by the command that draws from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Demo {
    Txt2img,
    Ddpm,
}

/// A file's name in its checkpoint, and its bytes.
pub type File = (&'static str, &'static [u8]);

macro_rules! files {
    ($folder:literal: $($name:literal)*) => {
        &[$((
            $name,
            include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/assets/demo/", $folder, "/", $name)) as &[u8],
        )),*]
    };
}

impl Demo {
    /// Every file of the checkpoint.
    pub const fn files(self) -> &'static [File] {
        match self {
            Self::Txt2img => TXT2IMG,
            Self::Ddpm => DDPM,
        }
    }

    /// The bytes of a file of this name.
    pub fn get(self, name: &str) -> Option<&'static [u8]> {
        let found = self.files().iter().find(|(known, _)| *known == name);
        found.map(|(_, bytes)| *bytes)
    }
}

const TXT2IMG: &[File] = files!("txt2img":
    "model_index.json"
    "scheduler/scheduler_config.json"
    "text_encoder/config.json"
    "text_encoder/model.safetensors"
    "tokenizer/tokenizer.json"
    "tokenizer/tokenizer_config.json"
    "unet/config.json"
    "unet/diffusion_pytorch_model.safetensors"
    "vae/config.json"
    "vae/diffusion_pytorch_model.safetensors"
);

const DDPM: &[File] = files!("ddpm":
    "model_index.json"
    "scheduler/scheduler_config.json"
    "unet/config.json"
    "unet/diffusion_pytorch_model.safetensors"
);

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use std::path::Path;

    fn read(folder: &Path, prefix: &str, files: &mut BTreeMap<String, Vec<u8>>) {
        for entry in std::fs::read_dir(folder).expect("the folder is in the repository") {
            let entry = entry.expect("an entry");
            let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
            match entry.path().is_dir() {
                true => read(&entry.path(), &format!("{name}/"), files),
                false => {
                    let bytes = std::fs::read(entry.path()).expect("it is a file");
                    files.insert(name, bytes);
                }
            }
        }
    }

    #[test]
    fn the_program_carries_every_file_of_the_folders_bit_for_bit() {
        for (demo, folder) in [(Demo::Txt2img, "txt2img"), (Demo::Ddpm, "ddpm")] {
            let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/demo");
            let mut files = BTreeMap::new();
            read(&root.join(folder), "", &mut files);
            let names: Vec<_> = files.keys().collect();
            let mut carried: Vec<_> = demo.files().iter().map(|(name, _)| *name).collect();
            carried.sort();
            assert_eq!(carried, names, "{folder}: the list in checkpoint/demo.rs");
            for (name, bytes) in demo.files() {
                assert!(files[*name] == *bytes, "{folder}/{name}");
            }
        }
    }

    #[test]
    fn both_together_fit_into_a_crate() {
        let files = [Demo::Txt2img, Demo::Ddpm].map(Demo::files).concat();
        let bytes: usize = files.iter().map(|(_, bytes)| bytes.len()).sum();
        assert!(bytes <= 8_000_000, "{bytes}");
    }
}
