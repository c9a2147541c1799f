//! What a kernel reads, where it need not be one map in memory: two maps side by side, and a map enlarged.

use super::length;

/// A map (b, h, w, c) of which the first channels lie in one place and the rest, if any, in another.
#[derive(Clone, Copy)]
pub struct Parts<'a> {
    pub(super) x: [&'a [f32]; 2],
    pub(super) channels: [usize; 2],
}

impl<'a> Parts<'a> {
    pub fn whole(x: &'a [f32], channels: usize) -> Self {
        Self::joined((x, channels), (&[], 0))
    }

    /// Two maps of one size, the first's channels before the second's.
    pub fn joined((x0, c0): (&'a [f32], usize), (x1, c1): (&'a [f32], usize)) -> Self {
        Parts {
            x: [x0, x1],
            channels: [c0, c1],
        }
    }

    pub fn channels(&self) -> usize {
        let [first, rest] = self.channels;
        first
            .checked_add(rest)
            .expect("channels that can be counted")
    }

    /// How many of the two are there.
    pub(super) fn count(&self) -> usize {
        1 + usize::from(self.channels[1] > 0)
    }

    /// # Panics
    /// If a part has not the length that its channels and the number of pixels ask for.
    pub(super) fn check(&self, pixels: usize) {
        for (x, c) in self.x.iter().zip(self.channels) {
            assert_eq!(
                x.len(),
                length(&[pixels, c]),
                "a map of {pixels} pixels x {c}"
            );
        }
    }
}

/// For each line of a map the line that it is read from: itself, or by nearest neighbours in a smaller map.
pub(super) struct Lines(Vec<usize>);

impl Lines {
    pub fn new(from: usize, to: usize) -> Self {
        Lines((0..to).map(|i| nearest(i, from, to)).collect())
    }

    /// None beside the map, on either side: a negative index has wrapped around to a large one.
    pub fn get(&self, i: usize) -> Option<usize> {
        self.0.get(i).copied()
    }
}

/// The line of a map of `from` lines that line `i` of its enlargement to `to` lines repeats: floor(i * from / to), computed as torch's
/// `interpolate` does, in f32 from the ratio of the sizes, rounding included.
pub fn nearest(i: usize, from: usize, to: usize) -> usize {
    if to == from || to == 2 * from {
        return i * from / to;
    }
    ((i as f32 * (from as f32 / to as f32)) as usize).min(from - 1)
}
