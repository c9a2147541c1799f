//! What PEFT says of a LoRA beside its tensors: diffusers writes it into the header, PEFT into a file `adapter_config.json`.
use super::super::json;
use super::names::Module;
use super::source::Lora;
use anyhow::{Context, Result, ensure};
use regex::Regex;
use serde_json::{Map, Value};
use std::collections::HashMap;

/// The keys begin with `unet.` or the like where the tensors' names do.
pub struct Settings {
    values: Map<String, Value>,
    /// `alpha_pattern`, by what its key begins with, in its order.
    alphas: HashMap<String, Vec<(Regex, f64)>>,
}

impl Settings {
    /// Those in a header.
    pub fn of_notes(notes: &HashMap<String, String>) -> Result<Self> {
        let text = notes.get("lora_adapter_metadata");
        let values = text.and_then(|text| serde_json::from_str(text).ok());
        Self::new(values.unwrap_or_default())
    }

    /// Those in the file beside PEFT's own.
    pub fn beside(lora: &Lora) -> Result<Self> {
        let name = "adapter_config.json";
        let file = lora.beside(name)?;
        let file = file.with_context(|| {
            format!("is of PEFT, which keeps its scale in {name}: put that beside it")
        })?;
        Self::new(json::read_object(&file, json::CONFIG_LIMIT)?)
    }

    fn new(values: Map<String, Value>) -> Result<Self> {
        let mut alphas = HashMap::new();
        for (key, value) in &values {
            if let (Some(prefix), Some(pattern)) =
                (key.strip_suffix("alpha_pattern"), value.as_object())
            {
                let alphas: &mut Vec<_> = alphas.entry(prefix.to_owned()).or_default();
                for (key, alpha) in pattern {
                    // As PEFT looks for a module's own (get_pattern_key).
                    let pattern = Regex::new(&format!("^(.*\\.)?({key})$"));
                    let pattern = pattern.with_context(|| {
                        format!("its alpha_pattern {} cannot be read", json::one_line(key))
                    })?;
                    alphas.extend(alpha.as_f64().map(|alpha| (pattern, alpha)));
                }
            }
        }
        Ok(Self { values, alphas })
    }

    /// `alpha / rank`: 1 where neither the file nor its settings say otherwise. Each module has its own alpha, where diffusers 0.42 gives
    /// attention's layers, and all of the text encoders, the most common one of kohya's file.
    pub fn factor(&self, module: &Module, alpha: Option<f64>, rank: usize) -> Result<f64> {
        let component = format!("{}.", module.component);
        let prefixes: &[&str] = match module.prefixed {
            true => &[&component],
            false => &["", &component],
        };
        let setting = |key: &str| {
            let mut found = prefixes
                .iter()
                .filter_map(|prefix| self.values.get(&format!("{prefix}{key}")));
            found.next()
        };
        let on = |key: &str| setting(key).and_then(Value::as_bool) == Some(true);
        ensure!(!on("use_dora"), "holds DoRA, which is not supported");
        let own = || {
            let names = module.todays();
            let mut alphas = prefixes
                .iter()
                .filter_map(|prefix| self.alphas.get(*prefix))
                .flatten();
            let found = alphas.find(|(key, _)| names.iter().any(|name| key.is_match(name)));
            found.map(|(_, alpha)| *alpha)
        };
        let common = || setting("lora_alpha")?.as_f64();
        let Some(alpha) = alpha.or_else(own).or_else(common) else {
            return Ok(1.0);
        };
        let rank = rank as f64;
        Ok(alpha / if on("use_rslora") { rank.sqrt() } else { rank })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::checkpoint::lora::names;

    fn factor(settings: &str, name: &str) -> f64 {
        let notes = HashMap::from([("lora_adapter_metadata".to_owned(), settings.to_owned())]);
        let settings = Settings::of_notes(&notes).expect("they can be read");
        let (module, _) = names::parse(name).expect("a LoRA").expect("a layout");
        settings.factor(&module, None, 4).expect("a factor")
    }

    #[test]
    fn an_alpha_is_that_of_the_first_pattern_of_the_module_or_of_all() {
        let settings = r#"{"unet.lora_alpha": 8, "unet.alpha_pattern": {"^mid.to_q": 2, "to_[qk]": 16, "to_q": 1}}"#;
        let of = |path: &str| factor(settings, &format!("unet.{path}.lora_A.weight"));
        assert_eq!(
            [of("mid.to_q"), of("up.mid.to_q"), of("up.to_k")],
            [0.5, 4.0, 4.0]
        );
        assert_eq!([of("to_kx"), of("conv_in")], [2.0, 2.0]);
    }

    #[test]
    fn tensors_without_a_prefix_have_settings_without_one() {
        let settings = r#"{"lora_alpha": 8, "alpha_pattern": {"to_q": 16}}"#;
        assert_eq!(factor(settings, "mid.to_q.lora_A.weight"), 4.0);
        assert_eq!(factor(settings, "mid.to_k.lora_A.weight"), 2.0);
        // diffusers does not see these.
        assert_eq!(factor(settings, "unet.mid.to_k.lora_A.weight"), 1.0);
    }
}
