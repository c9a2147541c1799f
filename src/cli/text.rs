//! Flags of how a text is read and what the UNet is told beside it.
use super::args;
use crate::engine::pipelines::txt2img::Sizes;
use clap::Args;

#[derive(Debug, Args)]
#[command(next_help_heading = "Text")]
pub struct TextArgs {
    /// Read prompts of any length, in chunks of 75 tokens, in place of cutting them
    ///
    /// Each chunk is read by itself between the two tokens that mark a text's ends, and the UNet sees the states of all, one chunk after another.
    /// The shorter of prompt and negative prompt has chunks of the empty text behind it. AUTOMATIC1111 and compel do the same.
    #[arg(long)]
    pub long_prompt: bool,
    /// Read (word), [word] and (word:1.2) as weights
    ///
    /// As in AUTOMATIC1111: (word) is 1.1, [word] is 1 / 1.1, they multiply where they are nested, and \( is a parenthesis. A weight multiplies
    /// the states of its tokens; then all states of the chunk are scaled to the mean that they had.
    #[arg(long)]
    pub prompt_weights: bool,
    /// Leave out the last N layers of the text encoders, counted as in diffusers
    ///
    /// 0 is all layers that the model reads, 1 is what other programs call a clip skip of 2. The final norm follows where the model has it.
    /// The negative prompt is read without, as in diffusers.
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = layers)]
    pub clip_skip: Option<usize>,
    /// Size of the original that the picture is to look taken from, for models that are told sizes [default: the picture's]
    #[arg(long, value_name = "WxH", value_parser = size)]
    original_size: Option<Pair>,
    /// Where the picture is to look cut out of it, in pixels from the top and from the left (crops_coords_top_left) [default: 0,0]
    #[arg(long, value_name = "TOP,LEFT", value_parser = crop)]
    crop: Option<Pair>,
    /// Size that the picture is to look made for [default: the picture's]
    #[arg(long, value_name = "WxH", value_parser = size)]
    target_size: Option<Pair>,
}

impl TextArgs {
    pub fn sizes(&self) -> Sizes {
        let numbers = |pair: &Option<Pair>| pair.as_ref().map(|pair| (pair.0, pair.1));
        Sizes {
            original: numbers(&self.original_size),
            crop: numbers(&self.crop),
            target: numbers(&self.target_size),
        }
    }
}

/// Two numbers in one value.
#[derive(Clone, Debug)]
struct Pair(u32, u32);

/// The UNet was trained on photographs; larger numbers are typing mistakes.
const MOST: u32 = 65_536;

fn pair(text: &str, between: char, least: u32) -> Option<Pair> {
    let (a, b) = text.split_once(between)?;
    let number = |text: &str| -> Option<u32> {
        let number = text.trim().parse().ok()?;
        (least..=MOST).contains(&number).then_some(number)
    };
    Some(Pair(number(a)?, number(b)?))
}

fn size(text: &str) -> Result<Pair, String> {
    pair(text, 'x', 1).ok_or_else(|| {
        format!("give width and height from 1 to {MOST} with an x between, as in 1024x768")
    })
}

fn crop(text: &str) -> Result<Pair, String> {
    pair(text, ',', 0).ok_or_else(|| {
        format!("give top and left from 0 to {MOST} with a comma between, as in 0,128")
    })
}

fn layers(text: &str) -> Result<usize, String> {
    args::whole(text, 0, 1000, "a whole number of 0 or more")
}
