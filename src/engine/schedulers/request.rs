//! What one run asks of a sampler beyond its file: the number of steps, or the very timesteps or sigmas, and eta.
use super::{SchedulerKind, Settings, sigmas::Family};
use anyhow::{Result, bail, ensure};

/// How the sampler is to run: what is not in the file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Request {
    pub steps: usize,
    /// Training steps in place of evenly placed ones, descending; as many as `steps`.
    pub timesteps: Option<Vec<f64>>,
    /// Noise levels, descending, the one that the last step reaches included; one more than `steps`.
    pub sigmas: Option<Vec<f64>>,
    /// Share of the DDPM's noise that DDIM adds, or TCD's gamma, 0 to 1; None is 0.
    pub eta: Option<f64>,
}

impl Request {
    pub fn new(steps: usize) -> Self {
        Self {
            steps,
            ..Self::default()
        }
    }

    /// Refuses what the sampler does not take, by the flag's name.
    pub(super) fn check(&self, kind: SchedulerKind, settings: &Settings) -> Result<()> {
        let (name, train) = (kind.name(), settings.count("num_train_timesteps"));
        if let Some([only]) = self.sigmas.as_deref() {
            bail!("sigmas: {only} alone is no step; the last is where the run ends, as in 14,5,0");
        }
        ensure!(
            (1..=train).contains(&self.steps),
            "{} steps: {name} takes 1 to {train} (num_train_timesteps)",
            self.steps
        );
        if let Some(eta) = self.eta {
            ensure!(
                kind.takes_eta() || eta == 0.0,
                "{name} takes no eta; those that do: {}",
                SchedulerKind::names(SchedulerKind::takes_eta)
            );
            ensure!(
                (0.0..=1.0).contains(&eta),
                "eta {eta} is not between 0 and 1"
            );
        }
        if let Some(list) = &self.timesteps {
            ensure!(
                kind.takes_timesteps(),
                "{name} takes no list of timesteps; those that do: {}",
                SchedulerKind::names(SchedulerKind::takes_timesteps)
            );
            check_timesteps(list, train, settings)?;
        }
        if let Some(list) = &self.sigmas {
            ensure!(
                kind.takes_sigmas(),
                "{name} takes no list of sigmas; those that do: {}",
                SchedulerKind::names(SchedulerKind::takes_sigmas)
            );
            check_descending("sigmas", list)?;
            ensure!(
                list.iter().all(|s| *s >= 0.0 && s.is_finite()),
                "sigmas: each is 0 or more, and only the last may be 0"
            );
        }
        Ok(())
    }
}

fn check_timesteps(list: &[f64], train: usize, settings: &Settings) -> Result<()> {
    check_descending("timesteps", list)?;
    if let Some(t) = list
        .iter()
        .find(|t| **t < 0.0 || **t >= train as f64 || t.fract() != 0.0)
    {
        bail!(
            "timesteps: {t} is not a whole number from 0 to {}",
            train - 1
        );
    }
    if let Some(family) = Family::of(settings)? {
        bail!(
            "{} = true places the timesteps itself; set it to false or leave the list of timesteps away",
            family.key()
        );
    }
    ensure!(
        settings.word("timestep_type") != "continuous"
            || settings.word("prediction_type") != "v_prediction",
        "timestep_type continuous with v_prediction takes no list of timesteps; set timestep_type to discrete"
    );
    Ok(())
}

fn check_descending(what: &str, list: &[f64]) -> Result<()> {
    if let Some(pair) = list.windows(2).find(|pair| pair[0] <= pair[1]) {
        bail!(
            "{what}: {} comes before {}; they must descend",
            pair[0],
            pair[1]
        );
    }
    Ok(())
}
