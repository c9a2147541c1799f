//! A `diffuse` process in a folder of its own, with no way to the network.
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use tempfile::TempDir;

/// A temporary folder that commands run in.
pub struct Folder(TempDir);

/// What a run gave.
#[derive(Debug)]
pub struct Run {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Folder {
    pub fn new() -> Self {
        Self(tempfile::tempdir().expect("a temporary folder can be made"))
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    /// `diffuse` with nothing of the caller's environment that would change it.
    pub fn command<S: AsRef<std::ffi::OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_diffuse"));
        command.args(args).current_dir(self.path());
        for name in [
            "RUST_LOG",
            "NO_COLOR",
            "COLUMNS",
            "CLICOLOR_FORCE",
            "HF_TOKEN",
        ] {
            command.env_remove(name);
        }
        // No cache but this folder's, and a port at which nobody answers instead of the hub.
        command
            .env("HF_HOME", self.path().join(".hub"))
            .env("HF_ENDPOINT", "http://127.0.0.1:9")
            .env_remove("HF_HUB_CACHE");
        command
    }

    pub fn run<S: AsRef<std::ffi::OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Run {
        let output = self.command(args).output().expect("the program starts");
        output.into()
    }

    /// The names in the folder, sorted; the hub's cache apart.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<_> = std::fs::read_dir(self.path())
            .expect("the folder can be read")
            .map(|entry| entry.expect("the entry can be read").file_name())
            .map(|name| name.into_string().expect("the tests use plain names"))
            .filter(|name| name != ".hub")
            .collect();
        names.sort();
        names
    }
}

impl From<Output> for Run {
    fn from(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).expect("the program prints UTF-8");
        Self {
            code: output.status.code(),
            stdout: text(output.stdout),
            stderr: text(output.stderr),
        }
    }
}

/// One of the checkpoints that come with the program.
pub fn asset(name: &str) -> String {
    format!("{}/assets/{name}", env!("CARGO_MANIFEST_DIR"))
}
