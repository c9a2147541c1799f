//! The spellings of LoRA files: which module a tensor changes, and which of its matrices it is.
//!
//! | Layout | A name |
//! |---|---|
//! | PEFT, diffusers since 0.20 | `unet.mid_block.attentions.0.proj_in.lora_A.weight` |
//! | diffusers before | `unet.mid_block.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora.down.weight` |
//! | the first of diffusers | the same without `unet.` |
//! | kohya | `lora_unet_mid_block_attentions_0_proj_in.lora_down.weight`, with an `.alpha` beside it |
use anyhow::{Result, bail};

/// A module in the spelling of its file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Module {
    pub component: &'static str,
    pub path: String,
    /// kohya's, with `_` for the dots.
    pub flat: bool,
    /// The component is said by its name.
    pub prefixed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// `(rank, inputs)`, A
    Down,
    /// `(outputs, rank)`, B
    Up,
    Alpha,
}

/// What PEFT's own files put before all names.
pub const PEFT: &str = "base_model.model.";

const ROLES: [(&str, Role); 13] = [
    (".lora_A.weight", Role::Down),
    (".lora_A.default.weight", Role::Down),
    (".lora_down.weight", Role::Down),
    (".lora.down.weight", Role::Down),
    ("_lora.down.weight", Role::Down),
    (".lora_linear_layer.down.weight", Role::Down),
    (".lora_B.weight", Role::Up),
    (".lora_B.default.weight", Role::Up),
    (".lora_up.weight", Role::Up),
    (".lora.up.weight", Role::Up),
    ("_lora.up.weight", Role::Up),
    (".lora_linear_layer.up.weight", Role::Up),
    (".alpha", Role::Alpha),
];

/// Other ways to change weights with few numbers, by what their tensors' names contain.
const OTHERS: [(&str, &str); 9] = [
    ("dora_scale", "DoRA"),
    ("lora_magnitude_vector", "DoRA"),
    ("hada_", "LoHa"),
    ("lokr_", "LoKr"),
    ("lora_mid.", "LoRA in three matrices (lora_mid)"),
    ("oft_", "OFT"),
    (".diff", "differences of whole weights"),
    ("lora_B.bias", "LoRA with biases"),
    ("lora_B.default.bias", "LoRA with biases"),
];

const FLAT: [(&str, &str); 4] = [
    ("lora_unet_", "unet"),
    ("lora_te_", "text_encoder"),
    ("lora_te1_", "text_encoder"),
    ("lora_te2_", "text_encoder_2"),
];
const DOTTED: [(&str, &str); 3] = [
    ("unet.", "unet"),
    ("text_encoder.", "text_encoder"),
    ("text_encoder_2.", "text_encoder_2"),
];

/// What a tensor is; None where its name is of no layout of LoRAs. Other kinds of changes are refused by their names.
pub fn parse(name: &str) -> Result<Option<(Module, Role)>> {
    if let Some((_, kind)) = OTHERS.iter().find(|(part, _)| name.contains(part)) {
        bail!("holds {kind}, which is not supported (accepted: LoRA)");
    }
    let Some((path, role)) = ROLES
        .iter()
        .find_map(|(end, role)| Some((name.strip_suffix(end)?, *role)))
    else {
        return Ok(None);
    };
    let prefixed = |table: &[(&str, &'static str)]| {
        let mut found = table
            .iter()
            .filter_map(|(start, component)| Some((path.strip_prefix(start)?, *component)));
        found.next()
    };
    let (path, component, flat, prefixed) = match (prefixed(&FLAT), prefixed(&DOTTED)) {
        (Some((path, component)), _) => (path, component, true, true),
        (_, Some((path, component))) => (path, component, false, true),
        _ => (path, "unet", false, false),
    };
    let path = path.strip_prefix(PEFT).unwrap_or(path);
    let module = Module {
        component,
        path: path.to_owned(),
        flat,
        prefixed,
    };
    Ok(Some((module, role)))
}

impl Module {
    /// For messages.
    pub fn display(&self) -> String {
        format!("{}.{}", self.component, self.path)
    }

    /// Today's names that a dotted path may mean, without `text_model.`; a flat one has none.
    pub fn todays(&self) -> Vec<String> {
        let path = self.path.replace(".processor", "");
        let path = path.strip_prefix("text_model.").unwrap_or(&path);
        let mut names = vec![path.to_owned()];
        // The processors of attention named their four layers themselves.
        for (old, new) in [
            (".to_q", ".q_proj"),
            (".to_k", ".k_proj"),
            (".to_v", ".v_proj"),
            (".to_out", ".out_proj"),
            (".to_out", ".to_out.0"),
        ] {
            names.extend(path.strip_suffix(old).map(|start| format!("{start}{new}")));
        }
        names
    }

    /// The name with `_` for the dots, without `text_model_`.
    pub fn flattened(&self) -> &str {
        self.path.strip_prefix("text_model_").unwrap_or(&self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(name: &str) -> (&'static str, String, Role) {
        let (module, role) = parse(name).unwrap().unwrap();
        (module.component, module.path, role)
    }

    #[test]
    fn every_layout_names_its_module() {
        let to_q = "down_blocks.0.attentions.0.transformer_blocks.0.attn1";
        for (name, role) in [
            (format!("unet.{to_q}.to_q.lora_A.weight"), Role::Down),
            (
                format!("unet.{to_q}.processor.to_q_lora.up.weight"),
                Role::Up,
            ),
            (
                format!("{to_q}.processor.to_q_lora.down.weight"),
                Role::Down,
            ),
            (format!("unet.{to_q}.to_q.lora.up.weight"), Role::Up),
            (format!("unet.{to_q}.to_q.alpha"), Role::Alpha),
            (
                format!("base_model.model.{to_q}.to_q.lora_B.default.weight"),
                Role::Up,
            ),
        ] {
            let (module, found) = parse(&name).unwrap().unwrap();
            assert_eq!((module.component, found), ("unet", role), "{name}");
            assert_eq!(module.todays()[0], format!("{to_q}.to_q"), "{name}");
        }
        let old = "text_encoder.text_model.encoder.layers.1.self_attn.to_out_lora.down.weight";
        let (module, _) = parse(old).unwrap().unwrap();
        assert!(
            module
                .todays()
                .contains(&"encoder.layers.1.self_attn.out_proj".to_owned())
        );
        assert_eq!(
            read("lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_up.weight"),
            (
                "text_encoder_2",
                "text_model_encoder_layers_0_mlp_fc1".to_owned(),
                Role::Up
            )
        );
        assert_eq!(read("lora_te_x.alpha").0, "text_encoder");
        assert_eq!(read("lora_unet_conv_in.lora_down.weight").1, "conv_in");
        assert_eq!(parse("emb_params").unwrap(), None);
    }

    #[test]
    fn other_kinds_of_changes_are_refused_by_name() {
        for (name, kind) in [
            ("lora_unet_x.hada_w1_a", "LoHa"),
            ("lora_unet_x.lokr_w1", "LoKr"),
            ("lora_unet_x.dora_scale", "DoRA"),
            ("lora_unet_x.lora_mid.weight", "lora_mid"),
            ("lora_unet_x.diff_b", "differences"),
            ("unet.x.lora_B.bias", "biases"),
        ] {
            let said = parse(name).unwrap_err().to_string();
            assert!(said.contains(kind), "{said}");
        }
    }
}
