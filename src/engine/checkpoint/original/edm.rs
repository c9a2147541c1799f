//! Playground 2.5: the networks of Stable Diffusion XL, trained as in "Elucidating the Design Space of Diffusion-Based Generative Models"
//! (Karras et al., 2022). Its file carries the moments of the latents, and nothing else tells it from Stable Diffusion XL.
use crate::engine::checkpoint::place::Source;
use crate::engine::checkpoint::read;
use crate::engine::checkpoint::weights::Entry;
use anyhow::{Context, Result};
use candle_core::{DType, Shape};
use serde_json::{Map, Value, json};
use std::collections::HashMap;

/// The two tensors.
const MEAN: &str = "edm_mean";
const STD: &str = "edm_std";

/// Moments of each channel of the latents.
#[derive(Debug)]
pub struct Edm {
    mean: Vec<f64>,
    std: Vec<f64>,
}

impl Edm {
    /// What the file has of it; an error where it is a half.
    pub fn read(file: &Source, entries: &HashMap<String, Entry>) -> Result<Option<Self>> {
        if ![MEAN, STD].iter().any(|name| entries.contains_key(*name)) {
            return Ok(None);
        }
        let numbers = |name: &str| -> Result<Vec<f64>> {
            let entry = entries.get(name).context("it is missing")?;
            let count = entry.shape.iter().product::<usize>();
            let numbers = read::tensor(file, entry, Shape::from(count), DType::F64)?;
            Ok(numbers.to_vec1()?)
        };
        let numbers = |name| numbers(name).with_context(|| format!("tensor {name}"));
        Ok(Some(Self {
            mean: numbers(MEAN)?,
            std: numbers(STD)?,
        }))
    }

    /// Makes the configuration of a component, "" being the model's index, of that which Stable Diffusion XL has. The VAE's scale is the one
    /// that diffusers has for the published model, and the scheduler, made for it, has the defaults of its class.
    pub fn amend(&self, component: &str, config: &mut Map<String, Value>) {
        const SCHEDULER: &str = "EDMDPMSolverMultistepScheduler";
        match component {
            "" => config["scheduler"][1] = json!(SCHEDULER),
            "scheduler" => *config = Map::from_iter([("_class_name".to_owned(), json!(SCHEDULER))]),
            "vae" => config.extend([
                ("scaling_factor".to_owned(), json!(0.5)),
                ("latents_mean".to_owned(), json!(self.mean)),
                ("latents_std".to_owned(), json!(self.std)),
            ]),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // With two of the published model's moments.
    #[test]
    fn the_scheduler_is_edms_and_the_vae_has_the_files_moments() {
        let edm = Edm {
            mean: vec![-1.6574, 1.886],
            std: vec![8.4927, 5.9022],
        };
        let amended = |component: &str, config: Value| {
            let Value::Object(mut config) = config else {
                unreachable!("all are objects");
            };
            edm.amend(component, &mut config);
            Value::Object(config)
        };
        assert_eq!(
            amended(
                "vae",
                json!({"scaling_factor": 0.13025, "force_upcast": true})
            ),
            json!({"scaling_factor": 0.5, "force_upcast": true, "latents_mean": [-1.6574, 1.886], "latents_std": [8.4927, 5.9022]})
        );
        assert_eq!(
            amended(
                "scheduler",
                json!({"_class_name": "EulerDiscreteScheduler", "beta_start": 0.00085})
            ),
            json!({"_class_name": "EDMDPMSolverMultistepScheduler"})
        );
        assert_eq!(
            amended(
                "",
                json!({"scheduler": ["diffusers", "EulerDiscreteScheduler"]})
            ),
            json!({"scheduler": ["diffusers", "EDMDPMSolverMultistepScheduler"]})
        );
        let unet = json!({"in_channels": 4});
        assert_eq!(amended("unet", unet.clone()), unet);
    }
}
