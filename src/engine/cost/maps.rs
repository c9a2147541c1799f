//! Memory of the maps, in f32: what each part reads, holds and writes, and what waits meanwhile.
use super::{Kind, Network, Part};

/// Bytes of a number.
const WIDTH: f64 = 4.0;

impl Network {
    /// Bytes of all maps at the widest moment.
    pub fn widest(&self) -> u64 {
        let numbers = self.0.iter().map(Part::numbers).fold(0.0, f64::max);
        (WIDTH * numbers) as u64
    }
}

impl Part {
    /// The numbers in memory at its own widest moment, its input among them.
    fn numbers(&self) -> f64 {
        let (from, c) = (self.from as f64, self.to as f64);
        let read = from * self.pixels_read;
        let beside = match self.kind {
            Kind::Conv(_) => c,
            // The first norm's map and the first convolution's; later the second norm's, the shortcut's and the result.
            Kind::Resnet => {
                let shortcut = if self.from == self.to { 0.0 } else { c };
                (from + c).max(2.0 * c + shortcut)
            }
            // A convolution's map, before and after its activation.
            Kind::TinyBlock => 3.0 * c,
            // The norm's map, queries, keys, values and what they give.
            Kind::Pixels { .. } => 5.0 * c,
            // The same beside what goes through; later the gated layer's four.
            Kind::Text { .. } => 6.0 * c,
        };
        self.kept + read + beside * self.pixels
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::models::autoencoder::Autoencoder;
    use crate::engine::models::unet_config::UNetFile;
    use anyhow::Result;
    use serde_json::{Value, from_value, json};

    #[test]
    fn a_decoder_is_widest_where_the_last_block_takes_256_channels_to_128() -> Result<()> {
        let keys = json!({"block_out_channels": [128, 256, 512, 512], "layers_per_block": 2});
        let decoder = Network::decoder(&Autoencoder::Kl(from_value(keys)?), (64, 64));
        // 256 that come, 256 of the norm and 128 of the first convolution; or 256, twice 128, the shortcut's 128 and no norm's.
        assert_eq!(decoder.widest(), 4 * 512 * 512 * 640);
        Ok(())
    }

    #[test]
    fn maps_of_a_unet_wait_for_the_other_side() -> Result<()> {
        let unet = |blocks: &[&str], widths: Value| -> Result<u64> {
            let up: Vec<String> = blocks
                .iter()
                .map(|name| name.replace("Down", "Up"))
                .collect();
            let keys = json!({
                "sample_size": 32, "in_channels": 4, "out_channels": 4, "down_block_types": blocks, "up_block_types": up,
                "block_out_channels": widths, "layers_per_block": 1, "norm_num_groups": 8, "add_attention": false
            });
            let config = from_value::<UNetFile>(keys)?.unconditional()?;
            Ok(Network::unet(&config, (32, 32), 0).widest())
        };
        // Up: 2 maps come joined, and beside them the norm's two and the convolution's one; one more waits.
        assert_eq!(unet(&["DownBlock2D"], json!([8]))?, 4 * 32 * 32 * 8 * 6);
        // From below come 16 channels: they and the 8 beside them, the norm's 24, the convolution's 8; 8 more wait.
        let two = unet(&["DownBlock2D"; 2], json!([8, 16]))?;
        assert_eq!(two, 4 * 32 * 32 * (24 + 24 + 8 + 8));
        Ok(())
    }
}
