//! [`super::ask`] where terminals are not asked.
use std::time::Duration;

pub struct Silence;

impl Silence {
    pub fn new() -> Option<Self> {
        None
    }

    pub fn ask(&self, _: &[u8], _: impl Fn(&[u8]) -> bool, _: Duration) -> Option<Vec<u8>> {
        None
    }
}

pub fn restore() {}

pub fn points() -> Option<(u32, u32)> {
    None
}
