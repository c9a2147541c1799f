//! The tensors of one network of the file, by today's names. Some are cut or turned on the way.
use super::UNetNames;
use crate::engine::checkpoint::weights::Entry;
use anyhow::{Context, Result};

/// Which tensors of the file are a component's.
#[derive(Clone, Debug)]
pub struct Selection {
    prefix: &'static str,
    network: Network,
}

#[derive(Clone, Debug)]
enum Network {
    UNet(std::sync::Arc<UNetNames>),
    Vae {
        levels: usize,
    },
    Clip,
    /// OpenCLIP's tower, the first `layers` of it.
    OpenClip {
        layers: usize,
        projection: bool,
    },
}

/// The decoder's parts that are not numbered. The encoder is not read.
const VAE: [(&str, &str); 5] = [
    ("decoder.norm_out.", "decoder.conv_norm_out."),
    ("decoder.mid.block_1.", "decoder.mid_block.resnets.0."),
    ("decoder.mid.block_2.", "decoder.mid_block.resnets.1."),
    ("decoder.mid.attn_1.", "decoder.mid_block.attentions.0."),
    // as they are
    ("decoder.conv_", "decoder.conv_"),
];
const VAE_ATTENTION: [(&str, &str); 5] = [
    ("norm", "group_norm"),
    ("q", "to_q"),
    ("k", "to_k"),
    ("v", "to_v"),
    ("proj_out", "to_out.0"),
];
const OPEN_CLIP_LAYER: [(&str, &str); 5] = [
    ("ln_1", "layer_norm1"),
    ("ln_2", "layer_norm2"),
    ("mlp.c_fc", "mlp.fc1"),
    ("mlp.c_proj", "mlp.fc2"),
    ("attn.out_proj", "self_attn.out_proj"),
];

impl Selection {
    pub fn unet(prefix: &'static str, names: UNetNames) -> Self {
        let network = Network::UNet(names.into());
        Self { prefix, network }
    }

    /// `names` without the prefix.
    pub fn vae<'a>(prefix: &'static str, names: impl Iterator<Item = &'a str>) -> Self {
        let levels = names
            .filter_map(|name| {
                let number = name.strip_prefix("decoder.up.")?;
                number.split('.').next()?.parse::<usize>().ok()
            })
            .max()
            .map_or(0, |last| last.saturating_add(1));
        let network = Network::Vae { levels };
        Self { prefix, network }
    }

    pub fn clip(prefix: &'static str) -> Self {
        let network = Network::Clip;
        Self { prefix, network }
    }

    pub fn open_clip(prefix: &'static str, layers: usize, projection: bool) -> Self {
        let network = Network::OpenClip { layers, projection };
        Self { prefix, network }
    }

    /// Whether a tensor is the component's.
    pub fn has(&self, original: &str) -> bool {
        original.starts_with(self.prefix)
    }

    /// What a tensor of the file is today: nothing, one tensor or several. A name that is not known stays, for the loader to refuse.
    pub fn pieces(&self, original: &str, entry: Entry) -> Result<Vec<(String, Entry)>> {
        let Some(name) = original.strip_prefix(self.prefix) else {
            return Ok(Vec::new());
        };
        let one =
            |name: Option<String>, entry| Ok(vec![(name.unwrap_or(original.to_owned()), entry)]);
        match &self.network {
            Network::UNet(names) => one(names.todays(name), entry),
            Network::Vae { levels } => one(vae(name, *levels), entry),
            Network::Clip => one(Some(name.to_owned()), entry),
            Network::OpenClip { layers, projection } => {
                open_clip(name, entry, *layers, *projection).with_context(|| original.to_owned())
            }
        }
    }
}

fn vae(name: &str, levels: usize) -> Option<String> {
    if let Some(rest) = name.strip_prefix("decoder.up.") {
        let (level, rest) = rest.split_once('.')?;
        let stage = levels.checked_sub(level.parse::<usize>().ok()?.checked_add(1)?)?;
        let rest = match rest.strip_prefix("block.") {
            Some(block) => format!("resnets.{}", block.replace("nin_shortcut", "conv_shortcut")),
            None => rest.replace("upsample.", "upsamplers.0."),
        };
        return Some(format!("decoder.up_blocks.{stage}.{rest}"));
    }
    let Some((rest, todays)) = VAE
        .iter()
        .find_map(|(original, todays)| Some((name.strip_prefix(original)?, *todays)))
    else {
        // `post_quant_conv`, and what the decoder has no use for.
        return Some(name.to_owned());
    };
    if !todays.contains(".attentions.") {
        return Some(format!("{todays}{rest}"));
    }
    let (layer, end) = rest.split_once('.')?;
    let layer = VAE_ATTENTION
        .iter()
        .find(|(original, _)| *original == layer)?;
    Some(format!("{todays}{}.{end}", layer.1))
}

fn open_clip(
    name: &str,
    entry: Entry,
    layers: usize,
    projection: bool,
) -> Result<Vec<(String, Entry)>> {
    let one = |name: &str, entry| Ok(vec![(name.to_owned(), entry)]);
    match name {
        "positional_embedding" => return one("embeddings.position_embedding.weight", entry),
        "token_embedding.weight" => return one("embeddings.token_embedding.weight", entry),
        "ln_final.weight" => return one("final_layer_norm.weight", entry),
        "ln_final.bias" => return one("final_layer_norm.bias", entry),
        // x P there, and P^T x here.
        "text_projection" if projection => {
            return one("text_projection.weight", entry.transposed()?);
        }
        // The other half of CLIP, which looks at pictures, uses these.
        "text_projection" | "logit_scale" | "attn_mask" => return Ok(Vec::new()),
        "text_projection.weight" if !projection => return Ok(Vec::new()),
        _ => {}
    }
    let layer = name.strip_prefix("transformer.resblocks.");
    let Some((number, rest)) = layer.and_then(|layer| layer.split_once('.')) else {
        return one(name, entry);
    };
    if number.parse::<usize>().is_ok_and(|number| number >= layers) {
        return Ok(Vec::new());
    }
    let start = format!("encoder.layers.{number}");
    // Queries, keys and values in one matrix.
    if let Some(end) = rest.strip_prefix("attn.in_proj_") {
        let parts = ["q_proj", "k_proj", "v_proj"].into_iter().enumerate();
        let parts = parts
            .map(|(i, part)| Ok((format!("{start}.self_attn.{part}.{end}"), entry.rows(i, 3)?)));
        return parts.collect();
    }
    let found = OPEN_CLIP_LAYER
        .iter()
        .find_map(|(original, todays)| Some((rest.strip_prefix(original)?, *todays)));
    match found {
        Some((end, todays)) => one(&format!("{start}.{todays}{end}"), entry),
        None => one(name, entry),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::checkpoint::weights::FileType;

    fn pieces(selection: &Selection, name: &str) -> Vec<(String, Vec<usize>, u64)> {
        let entry = Entry::new(FileType::F32, vec![6, 2], 100);
        let pieces = selection.pieces(name, entry).unwrap();
        let told = |(name, entry): (String, Entry)| (name, entry.shape, entry.offset);
        pieces.into_iter().map(told).collect()
    }

    #[test]
    fn a_matrix_of_three_is_cut_by_rows() {
        let tower = Selection::open_clip("m.", 2, true);
        let names = pieces(&tower, "m.transformer.resblocks.1.attn.in_proj_weight");
        let start = "encoder.layers.1.self_attn";
        let wanted = [("q", 100), ("k", 116), ("v", 132)]
            .map(|(part, offset)| (format!("{start}.{part}_proj.weight"), vec![2, 2], offset));
        assert_eq!(names, wanted);
        assert!(pieces(&tower, "m.transformer.resblocks.2.ln_1.weight").is_empty());
        assert_eq!(pieces(&tower, "m.text_projection")[0].1, [2, 6]);
        assert!(pieces(&tower, "other").is_empty());
    }

    #[test]
    fn the_levels_of_the_decoder_are_counted_from_the_other_end() {
        let names = ["decoder.up.0.x", "decoder.up.2.x", "encoder.down.0.x"];
        let vae = Selection::vae("v.", names.into_iter());
        for (original, todays) in [
            (
                "v.decoder.up.2.block.1.nin_shortcut.weight",
                "decoder.up_blocks.0.resnets.1.conv_shortcut.weight",
            ),
            (
                "v.decoder.up.1.upsample.conv.bias",
                "decoder.up_blocks.1.upsamplers.0.conv.bias",
            ),
            (
                "v.decoder.mid.attn_1.q.weight",
                "decoder.mid_block.attentions.0.to_q.weight",
            ),
            ("v.decoder.norm_out.bias", "decoder.conv_norm_out.bias"),
            ("v.decoder.conv_in.bias", "decoder.conv_in.bias"),
            ("v.post_quant_conv.bias", "post_quant_conv.bias"),
        ] {
            assert_eq!(pieces(&vae, original)[0].0, todays);
        }
    }
}
