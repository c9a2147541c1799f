//! [`super::signals`] where Ctrl-C is an event of the console.
use anyhow::{Context, Result};

/// At Ctrl-C: `clean_up`, then the end, which keeps what `clean_up` gives.
pub fn answer<T>(clean_up: impl FnOnce() -> T + Send + 'static) -> Result<()> {
    let mut clean_up = Some(clean_up);
    let end = move || {
        let _kept = clean_up.take().map(|clean_up| clean_up());
        std::process::exit(130);
    };
    ctrlc::set_handler(end).context("answering Ctrl-C")
}
