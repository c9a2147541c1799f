//! LoRAs: small files that change a checkpoint's weights as they are read.
//!
//! - [`names`]: the layouts
//! - [`source`]: where a LoRA is
//! - [`settings`]: what PEFT says beside the tensors
//! - [`delta`]: the arithmetic
mod delta;
mod names;
mod settings;
mod source;

pub use delta::Delta;
pub use source::Lora;

use super::json::one_line;
use super::weights::{Entry, Naming, Weights, without_trailing_ones};
use super::{Checkpoint, header, original, read, torch};
use anyhow::{Context, Result, bail, ensure};
use candle_core::DType;
use names::{Module, Role};
use settings::Settings;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

/// What is done to the weights of a component, by the weights' names.
pub type Patches = HashMap<String, Vec<Delta>>;

/// Unmatched modules that a warning names.
const NAMED: usize = 8;
/// The prefix that transformers wrote before its version 5.
const TODAYS: Naming = Naming {
    strip: "text_model.",
    ignore: &[],
    layers: None,
};

impl Checkpoint {
    /// Adds a LoRA with its weight. Nothing is downloaded but the list of a repository's files.
    pub fn add_lora(&mut self, of: &str, weight: f64) -> Result<()> {
        self.loras.push(Lora::find(of, weight, self.network)?);
        Ok(())
    }

    pub fn loras(&self) -> &[Lora] {
        &self.loras
    }

    /// Reads the LoRAs and finds what they change in the `components` that are to be loaded. Refuses those for another architecture.
    pub fn prepare_loras(&self, components: &[&str], dtype: DType) -> Result<()> {
        if self.loras.is_empty() || self.patches.get().is_some() {
            return Ok(());
        }
        let mut models = Vec::new();
        for component in components {
            let weights = Weights::open(&self.prepare_weights(component, dtype)?, TODAYS)?;
            models.push(Model::new(component, weights));
        }
        let mut patches = HashMap::new();
        for lora in &self.loras {
            let mut apply = || File::read(lora)?.apply(lora.weight, &models, &mut patches);
            let (left, count) = apply().with_context(|| format!("the LoRA {}", lora.name()))?;
            if !left.is_empty() {
                warn(lora.name(), &left, count);
            }
        }
        let _ = self.patches.set(patches);
        Ok(())
    }

    /// What the LoRAs do to a component.
    pub fn patches(&self, component: &str) -> Result<Patches> {
        if self.loras.is_empty() {
            return Ok(Patches::new());
        }
        let patches = self.patches.get().context("the LoRAs were not read")?;
        Ok(patches.get(component).cloned().unwrap_or_default())
    }
}

/// A component whose weights may be changed.
struct Model {
    component: String,
    weights: Weights,
    /// Names of modules by their names with `_` for the dots, in today's layout and in the original one.
    flat: HashMap<String, String>,
}

impl Model {
    fn new(component: &str, weights: Weights) -> Self {
        let modules = || {
            weights
                .names()
                .filter_map(|name| name.strip_suffix(".weight"))
        };
        let mut flat: HashMap<String, String> = modules()
            .map(|name| (name.replace('.', "_"), name.to_owned()))
            .collect();
        if component == "unet" {
            let table = original::UNetNames::of_todays(weights.names());
            for name in modules() {
                if let Some(original) = table.original(name) {
                    flat.entry(original.replace('.', "_"))
                        .or_insert(name.to_owned());
                }
            }
        }
        Self {
            component: component.to_owned(),
            weights,
            flat,
        }
    }

    /// The name and shape of the weight that a module of a LoRA changes.
    fn find(&self, module: &Module) -> Option<(String, &[usize])> {
        let names: Vec<String> = match module.flat {
            true => self
                .flat
                .get(module.flattened())
                .cloned()
                .into_iter()
                .collect(),
            false => module.todays(),
        };
        let mut weights = names.into_iter().map(|name| format!("{name}.weight"));
        weights.find_map(|name| self.weights.shape(&name).map(|shape| (name, shape)))
    }
}

/// A LoRA's tensors.
struct File {
    source: Arc<super::place::Source>,
    modules: BTreeMap<Module, Matrices>,
    /// Names of no layout.
    unknown: Vec<String>,
    settings: Settings,
}

#[derive(Default)]
struct Matrices {
    down: Option<Entry>,
    up: Option<Entry>,
    alpha: Option<f64>,
}

impl File {
    fn read(lora: &Lora) -> Result<Self> {
        let place = lora.place()?;
        let source = place.open()?;
        let length = source.length()?;
        let torch = [".bin", ".pt", ".ckpt", ".pth"];
        let is_torch = torch.iter().any(|end| lora.name().ends_with(end));
        let (mut entries, notes) = if is_torch {
            (torch::read(source.reader(), length)?, HashMap::new())
        } else {
            // Two readers of one file would share their place in it.
            let notes = header::notes(place.open()?.reader(), length)?;
            (header::read(source.reader(), length)?, notes)
        };
        entries.sort_by(|(a, _), (b, _)| a.cmp(b));
        let is_of_peft = entries
            .iter()
            .any(|(name, _)| name.starts_with(names::PEFT));
        let settings = match is_of_peft {
            true => Settings::beside(lora)?,
            false => Settings::of_notes(&notes)?,
        };
        let mut modules: BTreeMap<Module, Matrices> = BTreeMap::new();
        let mut unknown = Vec::new();
        for (name, entry) in entries {
            let Some((module, role)) = names::parse(&name)? else {
                unknown.push(one_line(&name));
                continue;
            };
            let matrices = modules.entry(module).or_default();
            let earlier = match role {
                Role::Down => matrices.down.replace(entry).is_some(),
                Role::Up => matrices.up.replace(entry).is_some(),
                Role::Alpha => {
                    let count: usize = entry.shape.iter().product();
                    ensure!(count == 1, "{} has {count} numbers", one_line(&name));
                    let alpha = read::number(&source, &entry)?;
                    matrices.alpha.replace(alpha).is_some()
                }
            };
            ensure!(
                !earlier,
                "has {} a second time, in another spelling",
                one_line(&name)
            );
        }
        // As diffusers takes a file that has the original names and today's: the original ones are left away.
        let is_flat = |module: &Module, parts: [&str; 3]| {
            module.flat
                && module.component == "unet"
                && parts.iter().any(|part| module.path.starts_with(part))
        };
        if modules
            .keys()
            .any(|module| is_flat(module, ["down_blocks_", "mid_block_", "up_blocks_"]))
        {
            modules.retain(|module, _| {
                !is_flat(module, ["input_blocks_", "middle_block_", "output_blocks_"])
            });
        }
        Ok(Self {
            source: Arc::new(source),
            modules,
            unknown,
            settings,
        })
    }

    fn apply(
        self,
        weight: f64,
        models: &[Model],
        patches: &mut HashMap<String, Patches>,
    ) -> Result<(Vec<String>, usize)> {
        let (mut left, mut matched) = (self.unknown, 0);
        let count = self.modules.len() + left.len();
        let mut changed = HashSet::new();
        for (module, matrices) in &self.modules {
            let (down, up) = match (&matrices.down, &matrices.up) {
                (Some(down), Some(up)) => (down.view(), up.view()),
                (None, None) => continue,
                _ => bail!("has one matrix of two for {}", one_line(&module.display())),
            };
            let mut delta = Delta {
                file: self.source.clone(),
                down: Arc::new(down),
                up: Arc::new(up),
                scale: weight,
            };
            delta.scale *= self.settings.factor(module, matrices.alpha, delta.rank())?;
            delta.check().with_context(|| one_line(&module.display()))?;
            let model = models
                .iter()
                .find(|model| model.component == module.component);
            let Some((name, shape)) = model.and_then(|model| model.find(module)) else {
                left.push(one_line(&module.display()));
                continue;
            };
            if without_trailing_ones(shape) != without_trailing_ones(&delta.shape()) {
                bail!(
                    "was made for another architecture: it changes {} as {:?}, and the model has {shape:?} there",
                    one_line(&module.display()),
                    delta.shape()
                );
            }
            ensure!(
                changed.insert((module.component, name.clone())),
                "changes {} a second time, in another spelling",
                one_line(&module.display())
            );
            let patches = patches.entry(module.component.to_owned()).or_default();
            patches.entry(name).or_default().push(delta);
            matched += 1;
        }
        if matched == 0 {
            bail!(
                "changes nothing of this model: none of its {count} modules is there{}",
                left.first()
                    .map_or(String::new(), |name| format!(", as {name}"))
            );
        }
        Ok((left, count))
    }
}

/// Lists what did not fit.
fn warn(name: &str, left: &[String], count: usize) {
    let more = match left.len().saturating_sub(NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    tracing::warn!(
        "{name}: {} of its {count} modules {} no place in this model: {}{more}",
        left.len(),
        if left.len() == 1 { "has" } else { "have" },
        left[..left.len().min(NAMED)].join(", ")
    );
}
