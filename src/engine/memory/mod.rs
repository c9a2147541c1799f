//! Memory: whether a picture of a size can be made in it, told before any work, and what was taken.
mod limits;

use anyhow::{Result, bail};

/// What the program takes without a model: its code, the tokenizer's tables, the threads' stacks.
pub const OWN: u64 = 40 << 20;

/// Bytes that the allocator may keep beyond the most that was ever in use, for one of so many bytes. Without them blocks of one size
/// would make way for those of another and back in every call of a network.
pub fn slack(peak: u64) -> u64 {
    (peak / 8).min(256 << 20)
}

/// Bytes that can be had without swapping and within the limits of this process; None where the system does not say.
pub fn available() -> Option<u64> {
    let free = kilobytes("/proc/meminfo", "MemAvailable:");
    free.into_iter().chain(limits::left()).min()
}

/// The bytes that a line `name: N kB` of `file` tells.
fn kilobytes(file: &str, name: &str) -> Option<u64> {
    let text = std::fs::read_to_string(file).ok()?;
    let line = text.lines().find(|line| line.starts_with(name))?;
    let kilobytes: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kilobytes << 10)
}

/// The most bytes that this process ever held in memory; None where the system does not say.
pub fn peak() -> Option<u64> {
    kilobytes("/proc/self/status", "VmHWM:")
}

/// Refuses what needs more than `available` bytes. `what` names the thing and `try_instead` what to type.
pub fn check(need: u64, available: Option<u64>, what: &str, try_instead: &str) -> Result<()> {
    match available {
        Some(available) if need > available => {
            bail!(
                "{what} needs about {} of memory and {} is free; {try_instead}",
                gigabytes(need),
                gigabytes(available)
            )
        }
        _ => Ok(()),
    }
}

/// `"4.2 GB"`, or `"44 MB"` of less than one.
pub fn gigabytes(bytes: u64) -> String {
    match bytes {
        1_000_000_000.. => format!("{:.1} GB", bytes as f64 / 1e9),
        _ => format!("{} MB", bytes.div_ceil(1_000_000)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_need_over_the_free_memory_is_refused_with_both_figures() {
        let message = check(
            3_000_000_000,
            Some(2_000_000_000),
            "a 4096x4096 picture",
            "try a smaller --width",
        )
        .unwrap_err()
        .to_string();
        assert_eq!(
            message,
            "a 4096x4096 picture needs about 3.0 GB of memory and 2.0 GB is free; try a smaller --width"
        );
        assert!(check(2_000_000_000, Some(2_000_000_000), "", "").is_ok());
        assert!(check(u64::MAX, None, "", "").is_ok());
    }
}
