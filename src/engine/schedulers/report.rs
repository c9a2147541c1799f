//! What a sampler is going to do, for people and machines to read: no model and no weights are needed.
use super::{Request, SchedulerConfig, Source};
use anyhow::Result;
use serde_json::{Value, json};

/// The run of a sampler, call by call, and where each of its keys came from.
pub struct Report {
    pub name: &'static str,
    pub class: &'static str,
    pub steps: usize,
    /// Standard deviation of the noise that the first call starts from.
    pub init_noise_sigma: f64,
    pub calls: Vec<Call>,
    /// Name, value and source of every key of the class, then those of the file that the class does not have.
    pub keys: Vec<(String, Value, Source)>,
}

/// One call of the model.
pub struct Call {
    pub timestep: f64,
    /// `sqrt((1 - alpha_bar) / alpha_bar)`; infinite at zero terminal SNR.
    pub sigma: f64,
}

impl Call {
    pub fn alpha_bar(&self) -> f64 {
        1.0 / (1.0 + self.sigma * self.sigma)
    }

    /// `alpha_bar / (1 - alpha_bar)`
    pub fn snr(&self) -> f64 {
        1.0 / (self.sigma * self.sigma)
    }
}

impl SchedulerConfig {
    /// The run that `request` asks for.
    pub fn report(&self, request: &Request) -> Result<Report> {
        let scheduler = self.build(request)?;
        let mut keys = self.provenance()?;
        for (name, value) in self.changes(request)? {
            for key in keys.iter_mut().filter(|key| key.0 == name) {
                (key.1, key.2) = (value.clone(), Source::Class);
            }
        }
        let call = |(i, &timestep): (usize, &f64)| Call {
            timestep,
            sigma: scheduler.sigma(i),
        };
        Ok(Report {
            name: self.kind().name(),
            class: self.kind().class(),
            steps: request.steps,
            init_noise_sigma: scheduler.init_noise_sigma(),
            calls: scheduler.timesteps().iter().enumerate().map(call).collect(),
            keys,
        })
    }
}

impl Report {
    /// The same as JSON; an infinite number is the word that scheduler files have for it.
    pub fn json(&self) -> Value {
        let calls: Vec<Value> = self
            .calls
            .iter()
            .map(|call| {
                json!({
                    "timestep": number(call.timestep),
                    "sigma": number(call.sigma),
                    "alpha_bar": number(call.alpha_bar()),
                    "snr": number(call.snr()),
                })
            })
            .collect();
        let key = |(name, value, source): &(String, Value, Source)| json!({"key": name, "value": value, "source": source.word()});
        json!({
            "scheduler": self.name,
            "class": self.class,
            "steps": self.steps,
            "unet_calls": self.calls.len(),
            "init_noise_sigma": number(self.init_noise_sigma),
            "calls": calls,
            "keys": self.keys.iter().map(key).collect::<Vec<_>>(),
        })
    }
}

fn number(x: f64) -> Value {
    if x.is_infinite() {
        "Infinity".into()
    } else {
        x.into()
    }
}
