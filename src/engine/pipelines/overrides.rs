//! What a caller may change about the checkpoint's scheduler, and the scheduler and the run that follow.
use crate::engine::schedulers::{Request, SchedulerConfig, SchedulerKind};
use anyhow::{Result, ensure};

/// Changes of the scheduler beyond its class and its steps.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// `key=value`, for keys of the class.
    pub options: Vec<String>,
    /// Training steps in place of evenly placed ones.
    pub timesteps: Option<Vec<f64>>,
    /// Noise levels, the one that the last step reaches included.
    pub sigmas: Option<Vec<f64>>,
    /// Share of the noise that DDIM and TCD add, 0 to 1.
    pub eta: Option<f64>,
}

impl Overrides {
    /// `kind.from_config(config, **options)`; without `kind` the options count as if they stood in the file.
    pub fn scheduler(
        &self,
        config: SchedulerConfig,
        kind: Option<SchedulerKind>,
    ) -> Result<SchedulerConfig> {
        let config = match kind {
            Some(kind) => {
                ensure!(
                    !kind.has_own_range() || kind == config.kind(),
                    "{} runs along timesteps that only models made for it know, so it is no choice for --scheduler: it is taken where the checkpoint names {}; others are {}",
                    kind.name(),
                    kind.class(),
                    SchedulerKind::names(|kind| !kind.has_own_range())
                );
                config.swap(kind)
            }
            None => config,
        };
        self.options
            .iter()
            .try_fold(config, |config, option| config.with_option(option))
    }

    /// The run: `steps` long, unless a list says how long.
    pub fn request(&self, steps: usize) -> Request {
        let listed = match (&self.timesteps, &self.sigmas) {
            (Some(timesteps), _) => Some(timesteps.len()),
            (_, Some(sigmas)) => Some(sigmas.len().saturating_sub(1)),
            _ => None,
        };
        Request {
            steps: listed.unwrap_or(steps),
            timesteps: self.timesteps.clone(),
            sigmas: self.sigmas.clone(),
            eta: self.eta,
        }
    }
}
