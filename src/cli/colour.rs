//! Whether there is colour, for the log and the help alike.
use console::Term;

/// By the usual variables: NO_COLOR (no-color.org), CLICOLOR and CLICOLOR_FORCE (bixense.com/clicolors). Without them a
/// stream that is a terminal has colour, if the terminal takes any.
pub fn is_wanted(stream: &Term) -> bool {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    if set("NO_COLOR").is_some() {
        return false;
    }
    let is_zero = |name| set(name).map(|value| value == "0");
    match (is_zero("CLICOLOR_FORCE"), is_zero("CLICOLOR")) {
        (Some(false), _) => true,
        (_, Some(true)) => false,
        _ => stream.is_term() && takes_codes(stream),
    }
}

/// Whether a terminal can do more than print.
#[cfg(not(windows))]
pub fn takes_codes(_terminal: &Term) -> bool {
    std::env::var_os("TERM").is_none_or(|name| name != "dumb")
}

/// A console of Windows is told to take the codes of colours by being asked.
#[cfg(windows)]
pub fn takes_codes(terminal: &Term) -> bool {
    terminal.features().colors_supported()
}
