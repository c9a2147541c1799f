//! What the text encoders of a plan are to read, and what the UNet is told beside.
use crate::engine::models::clip::Depth;

/// The conditioning of one picture.
#[derive(Clone, Debug)]
pub struct Text {
    pub guidance: Guidance,
    /// The negative prompt's first where there is guidance by two passes, then the prompt's.
    pub halves: Vec<Half>,
    /// Tokens that each half has.
    pub tokens: usize,
    /// Original height and width, top and left of the crop, target height and width, for a UNet that reads them.
    pub sizes: Option<[f64; 6]>,
    /// Layers that were left out at the end of the text encoders, where that was asked for.
    pub clip_skip: Option<usize>,
    /// The words beyond the text encoder's length, by the name of their text.
    pub lost: Vec<(&'static str, String)>,
}

impl Text {
    /// Whether two can be drawn in one batch: all but the words is equal.
    pub fn batches_with(&self, other: &Self) -> bool {
        (self.guidance, self.tokens, self.sizes) == (other.guidance, other.tokens, other.sizes)
    }
}

/// How closely the picture follows the text.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Guidance {
    /// One pass with the prompt alone.
    None,
    /// Two passes (Ho & Salimans 2022), and how far the spread of the guided prediction is brought back to that of
    /// the prompt's own, 0 to 1.
    TwoPasses { scale: f64, rescale: f64 },
    /// One pass, of a UNet that was distilled to take the scale as an input (Luo et al. 2023, section 4.1).
    Embedded { scale: f64 },
}

impl Guidance {
    /// None: there is none.
    pub fn scale(self) -> Option<f64> {
        match self {
            Self::None => None,
            Self::TwoPasses { scale, .. } | Self::Embedded { scale } => Some(scale),
        }
    }
}

/// One of the two texts of a picture.
#[derive(Clone, Debug, PartialEq)]
pub enum Half {
    /// States of zeros, which some models have for a negative prompt that was not given.
    Zeros,
    Words {
        /// As each text encoder reads them.
        towers: Vec<Tokens>,
        depth: Depth,
    },
}

/// A text as one text encoder reads it.
#[derive(Clone, Debug, PartialEq)]
pub struct Tokens {
    /// Rows of the text encoder's length.
    pub chunks: Vec<Vec<u32>>,
    /// A weight for each token, in rows as `chunks`; empty where none was asked for.
    pub weights: Vec<Vec<f32>>,
}
