//! Signals that end the program: in order first, then by the signal itself, so that whoever started it knows.
use anyhow::{Context, Result};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use signal_hook::low_level;
use std::ffi::c_int;

/// At Ctrl-C, SIGTERM or SIGHUP: `clean_up`, then the end, which keeps what `clean_up` gives. A signal that is ignored, as nohup has it,
/// stays so. Process 1 of a container has no default for SIGTERM, and ends too.
pub fn answer<T>(clean_up: impl FnOnce() -> T + Send + 'static) -> Result<()> {
    let heard = [SIGINT, SIGTERM, SIGHUP].into_iter();
    let mut signals = Signals::new(heard.filter(|signal| !is_ignored(*signal)))
        .context("listening to signals")?;
    let wait = move || {
        if let Some(signal) = signals.forever().next() {
            let _kept = clean_up();
            // A shell ends its loop when a program ended by Ctrl-C, and not when it exits with 130. No signal of its own ends process 1.
            if std::process::id() != 1 {
                let _ = low_level::emulate_default_handler(signal);
            }
            std::process::exit(128 + signal);
        }
    };
    // A file's limit (ulimit -f) is an error of what writes it, as a full disk is.
    // SAFETY: it says what is done at a signal, and no code is to run.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
    let thread = std::thread::Builder::new().name("signals".to_owned());
    thread.spawn(wait).context("listening to signals")?;
    Ok(())
}

fn is_ignored(signal: c_int) -> bool {
    let mut now = std::mem::MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: without a new action sigaction only writes the present one to `now`, for which all zeros are a value.
    let now = unsafe {
        libc::sigaction(signal, std::ptr::null(), now.as_mut_ptr());
        now.assume_init()
    };
    now.sa_sigaction == libc::SIG_IGN
}
