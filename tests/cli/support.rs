//! A `diffuse` process in a folder of its own, with no way to the network.
use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Output, Stdio};
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
        let mut command = Command::new(program());
        command.args(args).current_dir(self.path());
        for name in [
            "RUST_LOG",
            "RUST_BACKTRACE",
            "NO_COLOR",
            "COLUMNS",
            "CLICOLOR",
            "CLICOLOR_FORCE",
            "HF_TOKEN",
            "DIFFUSE_MODEL",
            "DIFFUSE_DEVICE",
            "HF_TOKEN_PATH",
            "HF_HUB_OFFLINE",
            "HF_HUB_DOWNLOAD_TIMEOUT",
            "HUGGINGFACE_HUB_CACHE",
            "TRANSFORMERS_OFFLINE",
            "ALL_PROXY",
            "all_proxy",
            "HTTPS_PROXY",
            "https_proxy",
            "HTTP_PROXY",
            "http_proxy",
            "NO_PROXY",
            "no_proxy",
            "HF_HUB_DISABLE_IMPLICIT_TOKEN",
        ] {
            command.env_remove(name);
        }
        // No cache but this folder's, and a port at which nobody answers instead of the hub.
        command
            .env("HF_HOME", self.path().join(".hub"))
            .env("HF_ENDPOINT", "http://127.0.0.1:9")
            .env_remove("HF_HUB_CACHE");
        // A shell that puts the tests in the background has them ignore Ctrl-C, and so would the program.
        #[cfg(unix)]
        {
            use std::os::unix::process::CommandExt;
            let heed = || {
                for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
                    // SAFETY: it may be called between fork and exec.
                    unsafe { libc::signal(signal, libc::SIG_DFL) };
                }
                Ok(())
            };
            // SAFETY: nothing else is done there.
            unsafe { command.pre_exec(heed) };
        }
        command
    }

    /// The same in a shell, after a line of its own.
    #[cfg(unix)]
    pub fn command_after<S: AsRef<std::ffi::OsStr>>(
        &self,
        line: &str,
        args: impl IntoIterator<Item = S>,
    ) -> Command {
        let (program, mut shell) = (self.command(args), Command::new("sh"));
        shell.args(["-c", &format!("{line}; exec \"$@\""), "sh"]);
        shell.arg(program.get_program()).args(program.get_args());
        shell.current_dir(self.path());
        for (name, value) in program.get_envs() {
            match value {
                Some(value) => shell.env(name, value),
                None => shell.env_remove(name),
            };
        }
        shell
    }

    pub fn run<S: AsRef<std::ffi::OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Run {
        let output = self.command(args).output().expect("the program starts");
        output.into()
    }

    #[cfg(target_os = "linux")]
    pub fn run_after<S: AsRef<std::ffi::OsStr>>(
        &self,
        line: &str,
        args: impl IntoIterator<Item = S>,
    ) -> Run {
        let output = self.command_after(line, args).output();
        output.expect("sh is there").into()
    }

    /// A run with `input` on its stdin.
    pub fn feed<S: AsRef<std::ffi::OsStr>>(
        &self,
        args: impl IntoIterator<Item = S>,
        input: &str,
    ) -> Run {
        let mut child = self
            .command(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let mut stdin = child.stdin.take().expect("it is piped");
        // A program that refuses its arguments closes the pipe early.
        let _ = stdin.write_all(input.as_bytes());
        drop(stdin);
        child.wait_with_output().expect("it ends").into()
    }

    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        std::fs::write(self.file(name), bytes).expect("the folder is writable");
    }

    pub fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.file(name))
            .unwrap_or_else(|err| panic!("{name}: {err}; there are {:?}", self.names()))
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

impl Run {
    /// The objects that `--json` printed.
    pub fn objects(&self) -> Vec<serde_json::Value> {
        let lines = self.stdout.lines();
        lines
            .map(|line| serde_json::from_str(line).unwrap_or_else(|err| panic!("{err}: {line}")))
            .collect()
    }
}

/// The texts of a PNG by their keywords.
pub fn texts(png: &[u8]) -> std::collections::BTreeMap<String, String> {
    let reader = png::Decoder::new(std::io::Cursor::new(png))
        .read_info()
        .expect("it is a PNG");
    let info = reader.info();
    let plain = info.uncompressed_latin1_text.iter();
    let utf8 = info.utf8_text.iter();
    plain
        .map(|chunk| (chunk.keyword.clone(), chunk.text.clone()))
        .chain(utf8.map(|chunk| {
            (
                chunk.keyword.clone(),
                chunk.get_text().expect("it is UTF-8"),
            )
        }))
        .collect()
}

/// Decoded pixels.
pub fn pixels(png: &[u8]) -> image::RgbImage {
    image::load_from_memory(png)
        .expect("it is a picture")
        .into_rgb8()
}

impl From<Output> for Run {
    fn from(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).expect("the program prints UTF-8");
        let mut stderr = text(output.stderr);
        if cfg!(windows) {
            // Paths in messages, as the tests expect them.
            stderr = stderr.replace('\\', "/");
        }
        Self {
            code: code(output.status),
            stdout: text(output.stdout),
            stderr,
        }
    }
}

/// The exit code as a shell gives it.
pub fn code(status: ExitStatus) -> Option<i32> {
    #[cfg(unix)]
    if let Some(signal) = std::os::unix::process::ExitStatusExt::signal(&status) {
        return Some(128 + signal);
    }
    status.code()
}

/// Cargo says where the program is when it runs a test; a test that was built elsewhere is told the same way.
fn program() -> OsString {
    let told = std::env::var_os("CARGO_BIN_EXE_diffuse");
    told.unwrap_or_else(|| env!("CARGO_BIN_EXE_diffuse").into())
}

/// The repository, in the same way.
fn root() -> String {
    std::env::var("CARGO_MANIFEST_DIR").unwrap_or_else(|_| env!("CARGO_MANIFEST_DIR").into())
}

/// One of the checkpoints that come with the program.
pub fn asset(name: &str) -> String {
    format!("{}/assets/{name}", root())
}

/// A file or folder of the fixtures.
pub fn fixture(name: &str) -> PathBuf {
    Path::new(&root()).join("tests/fixtures").join(name)
}

/// Copies a folder with all that is in it to a new one.
pub fn copy(from: &Path, to: &Path) {
    std::fs::create_dir(to).expect("a new folder");
    for entry in from.read_dir().expect("a folder") {
        let entry = entry.expect("an entry");
        let target = to.join(entry.file_name());
        match entry.file_type().expect("a type").is_dir() {
            true => copy(&entry.path(), &target),
            false => drop(std::fs::copy(entry.path(), target).expect("a copy")),
        }
    }
}

/// The largest difference of two pictures of one size, of 255.
#[track_caller]
pub fn levels_apart(ours: &image::RgbImage, theirs: &Path) -> u8 {
    let name = theirs.display();
    let theirs = image::open(theirs).expect("the reference").into_rgb8();
    assert_eq!(ours.dimensions(), theirs.dimensions(), "{name}");
    largest_difference(ours, &theirs)
}

/// Of two pictures of one size.
pub fn largest_difference(a: &image::RgbImage, b: &image::RgbImage) -> u8 {
    differences(a, b).max().expect("it has pixels")
}

/// Of every number of two pictures of one size.
pub fn differences<'a>(
    a: &'a image::RgbImage,
    b: &'a image::RgbImage,
) -> impl Iterator<Item = u8> + 'a {
    a.iter().zip(b.iter()).map(|(a, b)| a.abs_diff(*b))
}

/// How many inputs a property is tried on: `FUZZ_CASES`, or a few.
pub fn cases(few: u32) -> u32 {
    let asked = std::env::var("FUZZ_CASES").ok();
    asked.and_then(|n| n.parse().ok()).unwrap_or(few)
}
