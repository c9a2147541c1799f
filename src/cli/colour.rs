//! Whether there is colour, for the log and the help alike.

/// By the usual variables: NO_COLOR (no-color.org), CLICOLOR and CLICOLOR_FORCE (bixense.com/clicolors). Without them a
/// `terminal` has colour where it has a name.
pub fn is_wanted(terminal: bool) -> bool {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    if set("NO_COLOR").is_some() {
        return false;
    }
    let is_zero = |name| set(name).map(|value| value == "0");
    match (is_zero("CLICOLOR_FORCE"), is_zero("CLICOLOR")) {
        (Some(false), _) => true,
        (_, Some(true)) => false,
        _ => terminal && set("TERM").is_none_or(|name| name != "dumb"),
    }
}
