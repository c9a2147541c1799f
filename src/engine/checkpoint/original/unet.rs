//! The UNet of the original layout, whose blocks are numbered through where diffusers has stages.
//!
//! ```text
//! input_blocks.0.0                conv_in
//! input_blocks.{1..}.0, .1        down_blocks.b.resnets.r, .attentions.r      (or .0.op: down_blocks.b.downsamplers.0.conv)
//! middle_block.0, .1, .2          mid_block.resnets.0, .attentions.0, .resnets.1
//! output_blocks.{0..}.0, .1       up_blocks.b.resnets.r, .attentions.r        (and the last part's .conv: up_blocks.b.upsamplers.0.conv)
//! ```
use std::collections::{BTreeMap, BTreeSet};

/// What has the same name in every network.
const FIXED: [(&str, &str); 7] = [
    ("time_embed.0", "time_embedding.linear_1"),
    ("time_embed.2", "time_embedding.linear_2"),
    ("label_emb.0.0", "add_embedding.linear_1"),
    ("label_emb.0.2", "add_embedding.linear_2"),
    ("input_blocks.0.0", "conv_in"),
    ("out.0", "conv_norm_out"),
    ("out.2", "conv_out"),
];
/// Inside a residual block.
const RESNET: [(&str, &str); 6] = [
    ("in_layers.0", "norm1"),
    ("in_layers.2", "conv1"),
    ("emb_layers.1", "time_emb_proj"),
    ("out_layers.0", "norm2"),
    ("out_layers.3", "conv2"),
    ("skip_connection", "conv_shortcut"),
];

/// The parts of one network: what each is called in the original layout and today.
#[derive(Debug, Default)]
pub struct UNetNames(Vec<(String, String)>);

/// One numbered block of the original layout.
#[derive(Default)]
struct Parts {
    /// A halving alone.
    halves: bool,
    attention: bool,
    /// The number of the part that enlarges.
    enlarges: Option<usize>,
}

impl UNetNames {
    /// Of a network with these names of today.
    pub fn of_todays<'a>(names: impl Iterator<Item = &'a str>) -> Self {
        // "down_blocks.1.attentions.0" and so on
        let mut parts = BTreeSet::new();
        for name in names {
            let mut dots = name.match_indices('.').map(|(at, _)| at);
            let ends = if name.starts_with("mid_block") { 2 } else { 3 };
            if let Some(end) = dots.nth(ends) {
                parts.insert(&name[..end]);
            }
        }
        let has = |name: &str| parts.contains(name);
        let mut pairs = Vec::new();
        let mut number = 1;
        for side in ["down", "up"] {
            let stages = (0..).map(|b| format!("{side}_blocks.{b}"));
            let stages = stages.take_while(|stage| has(&format!("{stage}.resnets.0")));
            let original = if side == "down" { "input" } else { "output" };
            for stage in stages {
                let layers = (0..).take_while(|r| has(&format!("{stage}.resnets.{r}")));
                let mut last = 0;
                for r in layers {
                    pairs.push((
                        format!("{original}_blocks.{number}.0"),
                        format!("{stage}.resnets.{r}"),
                    ));
                    let attention = format!("{stage}.attentions.{r}");
                    last = 1;
                    if has(&attention) {
                        pairs.push((format!("{original}_blocks.{number}.1"), attention));
                        last = 2;
                    }
                    number += 1;
                }
                if has(&format!("{stage}.downsamplers.0")) {
                    pairs.push((
                        format!("{original}_blocks.{number}.0.op"),
                        format!("{stage}.downsamplers.0.conv"),
                    ));
                    number += 1;
                }
                if has(&format!("{stage}.upsamplers.0")) {
                    pairs.push((
                        format!("{original}_blocks.{}.{last}.conv", number - 1),
                        format!("{stage}.upsamplers.0.conv"),
                    ));
                }
            }
            number = 0;
        }
        Self(pairs).with_fixed()
    }

    /// Of a network with these original names.
    pub fn of_original<'a>(names: impl Iterator<Item = &'a str>) -> Self {
        let mut blocks: BTreeMap<(&str, usize), Parts> = BTreeMap::new();
        for name in names {
            let mut words = name.split('.');
            let side = words.next().unwrap_or_default();
            let (Some(block), Some(part)) = (number(words.next()), number(words.next())) else {
                continue;
            };
            if !matches!(side, "input_blocks" | "output_blocks") {
                continue;
            }
            let parts = blocks.entry((side, block)).or_default();
            match words.next() {
                Some("op") => parts.halves = true,
                Some("conv") => parts.enlarges = Some(part),
                _ if part == 1 => parts.attention = true,
                _ => {}
            }
        }
        let mut pairs = Vec::new();
        for (side, todays) in [
            ("input_blocks", "down_blocks"),
            ("output_blocks", "up_blocks"),
        ] {
            // The stage, and the block inside of it.
            let (mut b, mut r) = (0, 0);
            let mine = blocks.iter().filter(|((of, _), _)| *of == side);
            for ((_, block), parts) in mine {
                if (side, *block) == ("input_blocks", 0) {
                    continue;
                }
                if parts.halves {
                    pairs.push((
                        format!("{side}.{block}.0.op"),
                        format!("{todays}.{b}.downsamplers.0.conv"),
                    ));
                    (b, r) = (b + 1, 0);
                    continue;
                }
                pairs.push((
                    format!("{side}.{block}.0"),
                    format!("{todays}.{b}.resnets.{r}"),
                ));
                if parts.attention {
                    pairs.push((
                        format!("{side}.{block}.1"),
                        format!("{todays}.{b}.attentions.{r}"),
                    ));
                }
                r += 1;
                if let Some(part) = parts.enlarges {
                    pairs.push((
                        format!("{side}.{block}.{part}.conv"),
                        format!("{todays}.{b}.upsamplers.0.conv"),
                    ));
                    (b, r) = (b + 1, 0);
                }
            }
        }
        Self(pairs).with_fixed()
    }

    fn with_fixed(mut self) -> Self {
        let fixed = FIXED.map(|(original, todays)| (original.to_owned(), todays.to_owned()));
        let middle = [
            ("middle_block.0", "mid_block.resnets.0"),
            ("middle_block.1", "mid_block.attentions.0"),
            ("middle_block.2", "mid_block.resnets.1"),
        ];
        let middle = middle.map(|(original, todays)| (original.to_owned(), todays.to_owned()));
        self.0.extend(fixed);
        self.0.extend(middle);
        // A halving's name begins as a residual block's does.
        self.0
            .sort_by_key(|(original, _)| std::cmp::Reverse(original.len()));
        self
    }

    /// The original name of today's.
    pub fn original(&self, name: &str) -> Option<String> {
        let mut pairs = self.0.iter();
        let (original, rest) =
            pairs.find_map(|(original, todays)| Some((original, below(name, todays)?)))?;
        Some(match name.contains(".resnets.") {
            true => {
                let mut inside = RESNET.iter();
                let (part, end) = inside.find_map(|(part, todays)| {
                    Some((part, below(rest.strip_prefix('.')?, todays)?))
                })?;
                format!("{original}.{part}{end}")
            }
            false => format!("{original}{rest}"),
        })
    }

    /// Today's name of an original one.
    pub fn todays(&self, name: &str) -> Option<String> {
        let mut pairs = self.0.iter();
        let (todays, rest) =
            pairs.find_map(|(original, todays)| Some((todays, below(name, original)?)))?;
        Some(match todays.contains(".resnets.") {
            true => {
                let mut inside = RESNET.iter();
                let (part, end) = inside.find_map(|(original, part)| {
                    Some((part, below(rest.strip_prefix('.')?, original)?))
                })?;
                format!("{todays}.{part}{end}")
            }
            false => format!("{todays}{rest}"),
        })
    }
}

fn number(word: Option<&str>) -> Option<usize> {
    word?.parse().ok()
}

/// What follows `part` in `name`: nothing, or a dot and more.
fn below<'a>(name: &'a str, part: &str) -> Option<&'a str> {
    let rest = name.strip_prefix(part)?;
    (rest.is_empty() || rest.starts_with('.')).then_some(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A network of two stages with two layers each, the second without attention.
    const PAIRS: [(&str, &str); 15] = [
        ("time_embed.0.weight", "time_embedding.linear_1.weight"),
        ("input_blocks.0.0.bias", "conv_in.bias"),
        (
            "input_blocks.1.0.in_layers.2.weight",
            "down_blocks.0.resnets.0.conv1.weight",
        ),
        (
            "input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight",
            "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight",
        ),
        (
            "input_blocks.2.0.emb_layers.1.bias",
            "down_blocks.0.resnets.1.time_emb_proj.bias",
        ),
        (
            "input_blocks.2.1.norm.weight",
            "down_blocks.0.attentions.1.norm.weight",
        ),
        (
            "input_blocks.3.0.op.weight",
            "down_blocks.0.downsamplers.0.conv.weight",
        ),
        (
            "input_blocks.4.0.skip_connection.weight",
            "down_blocks.1.resnets.0.conv_shortcut.weight",
        ),
        (
            "middle_block.1.proj_in.weight",
            "mid_block.attentions.0.proj_in.weight",
        ),
        (
            "middle_block.2.out_layers.3.bias",
            "mid_block.resnets.1.conv2.bias",
        ),
        (
            "output_blocks.0.0.in_layers.0.weight",
            "up_blocks.0.resnets.0.norm1.weight",
        ),
        (
            "output_blocks.0.1.conv.weight",
            "up_blocks.0.upsamplers.0.conv.weight",
        ),
        (
            "output_blocks.1.0.out_layers.0.weight",
            "up_blocks.1.resnets.0.norm2.weight",
        ),
        (
            "output_blocks.1.1.proj_out.weight",
            "up_blocks.1.attentions.0.proj_out.weight",
        ),
        ("out.2.weight", "conv_out.weight"),
    ];

    #[test]
    fn both_directions_agree_whichever_names_the_network_has() {
        let of_original = UNetNames::of_original(PAIRS.iter().map(|pair| pair.0));
        let of_todays = UNetNames::of_todays(PAIRS.iter().map(|pair| pair.1));
        for table in [of_original, of_todays] {
            for (original, todays) in PAIRS {
                assert_eq!(table.todays(original).as_deref(), Some(todays));
                assert_eq!(table.original(todays).as_deref(), Some(original));
            }
            assert_eq!(table.todays("input_blocks.9.0.in_layers.0.weight"), None);
            assert_eq!(table.original("time_embedding.linear_3.weight"), None);
        }
    }
}
