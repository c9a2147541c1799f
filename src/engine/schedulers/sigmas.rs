//! Noise levels `sigma = sqrt((1 - alpha_bar) / alpha_bar)` and the families of them a file can ask for.
//!
//! Karras et al. 2022; exponential as in k-diffusion; beta: Lee et al. 2024; uniform in lambda: Lu et al. 2022.
use super::{
    Request, Settings,
    schedule::{Grid, beta_quantile, f32_of, interpolate, linspace, linspace_f32, timesteps},
};
use anyhow::{Result, ensure};

/// The table over all training steps, ascending.
pub fn table(alpha_bar: &[f64]) -> Vec<f64> {
    alpha_bar
        .iter()
        .map(|a| f32_of(f32_of(f32_of(1.0 - a) / a).sqrt()))
        .collect()
}

/// A family that replaces the sigmas of the timesteps; then the timesteps follow from the sigmas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    Karras,
    Exponential,
    Beta,
    Lu,
}

impl Family {
    /// The key that asks for it.
    pub fn key(self) -> &'static str {
        match self {
            Self::Karras => "use_karras_sigmas",
            Self::Exponential => "use_exponential_sigmas",
            Self::Beta => "use_beta_sigmas",
            Self::Lu => "use_lu_lambdas",
        }
    }

    pub fn of(settings: &Settings) -> Result<Option<Self>> {
        let asked = [Self::Karras, Self::Exponential, Self::Beta];
        let mut on = asked
            .into_iter()
            .filter(|family| settings.flag(family.key()));
        let first = on.next();
        if let (Some(a), Some(b)) = (first, on.next()) {
            anyhow::bail!(
                "{} and {} are both true; set one of them to false",
                a.key(),
                b.key()
            );
        }
        let lu = settings.flag(Self::Lu.key());
        Ok(match first {
            // diffusers asks for Karras, then Lu, then the other two.
            Some(family) if family == Self::Karras || !lu => Some(family),
            _ => lu.then_some(Self::Lu),
        })
    }

    /// `n` sigmas from `max` down to `min`.
    pub fn sigmas(self, min: f64, max: f64, n: usize) -> Vec<f64> {
        match self {
            Self::Karras => {
                let rho = 7.0;
                let (low, high) = (min.powf(1.0 / rho), max.powf(1.0 / rho));
                linspace(0.0, 1.0, n)
                    .into_iter()
                    .map(|r| (high + r * (low - high)).powf(rho))
                    .collect()
            }
            Self::Exponential | Self::Lu => linspace(max.ln(), min.ln(), n)
                .into_iter()
                .map(f64::exp)
                .collect(),
            Self::Beta => linspace(0.0, 1.0, n)
                .into_iter()
                .map(|r| min + beta_quantile(1.0 - r, 0.6) * (max - min))
                .collect(),
        }
    }
}

/// The (fractional) training step of a sigma, linear in log sigma.
pub fn timestep_of(sigma: f64, log_table: &[f64]) -> f64 {
    let log_sigma = sigma.max(1e-10).ln();
    let low = log_table
        .partition_point(|l| *l <= log_sigma)
        .saturating_sub(1)
        .min(log_table.len().saturating_sub(2));
    let high = (low + 1).min(log_table.len() - 1);
    let w = ((log_table[low] - log_sigma) / (log_table[low] - log_table[high])).clamp(0.0, 1.0);
    (1.0 - w) * low as f64 + w * high as f64
}

/// What a sampler in sigmas runs along: one timestep a step, one sigma more.
pub struct Levels {
    pub timesteps: Vec<f64>,
    pub sigmas: Vec<f64>,
}

/// Logarithms of a table, as f32 holds them.
pub fn log_table(table: &[f64]) -> Vec<f64> {
    table.iter().map(|s| f32_of(s.ln())).collect()
}

/// Where the classes that go back to k-diffusion differ.
#[derive(Clone, Copy, Default)]
pub struct Habits {
    /// `linspace` timesteps stay in f64.
    pub in_f64: bool,
    /// The timesteps of Karras sigmas are rounded.
    pub rounds_karras: bool,
    /// Karras sigmas take no notice of sigma_min and sigma_max.
    pub karras_unbounded: bool,
}

/// Levels of the samplers that go back to k-diffusion (Euler, Heun, ...).
pub fn continuous(
    settings: &Settings,
    alpha_bar: &[f64],
    request: &Request,
    habits: Habits,
) -> Result<Levels> {
    let (table, steps) = (table(alpha_bar), request.steps);
    let logs = log_table(&table);
    let grid = if habits.in_f64 {
        Grid::Double
    } else {
        Grid::Real
    };
    let (mut t, mut sigmas): (Vec<f64>, Vec<f64>);
    if let Some(list) = &request.sigmas {
        sigmas = list.iter().copied().map(f32_of).collect();
        t = timesteps_of(&sigmas[..steps], &logs);
    } else {
        t = timesteps(settings, grid, table.len(), request)?;
        sigmas = match settings.word("interpolation_type") {
            "log_linear" => {
                let (high, low) = (f32_of(table[table.len() - 1].ln()), f32_of(table[0].ln()));
                linspace_f32(high, low, steps + 1)
                    .into_iter()
                    .map(|l| f32_of(l.exp()))
                    .collect()
            }
            _ => t
                .iter()
                .map(|t| interpolate(*t, &table))
                .collect::<Vec<f64>>(),
        };
        if let Some(family) = Family::of(settings)? {
            let (low, high) = (sigmas[sigmas.len() - 1], sigmas[0]);
            let unbounded = habits.karras_unbounded && family == Family::Karras;
            let (min, max) = if unbounded {
                (low, high)
            } else {
                bounds(settings, low, high)
            };
            sigmas = family.sigmas(min, max, steps);
            t = timesteps_of(&sigmas, &logs);
            if habits.rounds_karras && family == Family::Karras {
                t.iter_mut().for_each(|t| *t = t.round_ties_even());
            }
        }
        sigmas.push(if settings.word("final_sigmas_type") == "sigma_min" {
            table[0]
        } else {
            0.0
        });
    }
    let sigmas: Vec<f64> = sigmas.into_iter().map(f32_of).collect();
    if settings.word("timestep_type") == "continuous"
        && settings.word("prediction_type") == "v_prediction"
    {
        t = sigmas[..sigmas.len() - 1]
            .iter()
            .map(|sigma| 0.25 * sigma.ln())
            .collect();
    }
    if !habits.in_f64 {
        t.iter_mut().for_each(|t| *t = f32_of(*t));
    }
    settings.ensure_first_once(&t)?;
    Ok(Levels {
        timesteps: t,
        sigmas,
    })
}

/// The timesteps of sigmas, as far as the table goes.
pub fn timesteps_of(sigmas: &[f64], log_table: &[f64]) -> Vec<f64> {
    sigmas
        .iter()
        .map(|sigma| timestep_of(*sigma, log_table))
        .collect()
}

/// Where the classes in lambda differ: in rounding the timesteps of a family of sigmas before they are cut to whole numbers,
/// and in the sigma that a family ends with unless that is zero.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// Karras and Lu rounded, unless the betas are cosine's; the lowest sigma of the table.
    DpmSolver,
    /// Karras rounded; the lowest sigma of the table.
    Singlestep,
    /// Karras rounded; the family's last sigma again.
    UniPc,
}

/// Levels of the solvers in lambda (DPM-Solver, UniPC): n + 1 points without the last, whole timesteps.
pub fn cut(
    settings: &Settings,
    alpha_bar: &[f64],
    request: &Request,
    style: Cut,
) -> Result<Levels> {
    let (table, steps) = (table(alpha_bar), request.steps);
    let train = table.len();
    let mut last = train;
    if settings.has("lambda_min_clipped") {
        let clipped = settings.number("lambda_min_clipped");
        let lambda = |a: &f64| {
            f32_of(f32_of(f32_of(a.sqrt()).ln()) - f32_of(f32_of(f32_of(1.0 - a).sqrt()).ln()))
        };
        last = train
            - alpha_bar
                .iter()
                .rev()
                .filter(|a| lambda(a) < clipped)
                .count();
        ensure!(
            last > 0,
            "lambda_min_clipped = {clipped} leaves no timestep"
        );
    }
    let mut t = timesteps(settings, Grid::Cut, last, request)?;
    let mut sigmas: Vec<f64> = t.iter().map(|t| interpolate(*t, &table)).collect();
    let mut lowest = table[0];
    if let Some(family) = Family::of(settings)? {
        let (min, max) = bounds(settings, table[0], table[train - 1]);
        let logs = log_table(&table);
        sigmas = match family {
            Family::Lu => linspace(logs[train - 1], logs[0], steps)
                .into_iter()
                .map(f64::exp)
                .collect(),
            _ => family.sigmas(min, max, steps),
        };
        let rounded = match style {
            Cut::UniPc | Cut::Singlestep => family == Family::Karras,
            Cut::DpmSolver => {
                matches!(family, Family::Karras | Family::Lu)
                    && settings.word("beta_schedule") != "squaredcos_cap_v2"
            }
        };
        let place = |t: f64| {
            if rounded {
                t.round_ties_even()
            } else {
                t.trunc()
            }
        };
        t = timesteps_of(&sigmas, &logs)
            .into_iter()
            .map(place)
            .collect();
        if style == Cut::UniPc {
            lowest = sigmas[steps - 1];
        }
    }
    settings.ensure_first_once(&t)?;
    sigmas.push(if settings.word("final_sigmas_type") == "zero" {
        0.0
    } else {
        lowest
    });
    Ok(Levels {
        timesteps: t,
        sigmas: sigmas.into_iter().map(f32_of).collect(),
    })
}

fn bounds(settings: &Settings, min: f64, max: f64) -> (f64, f64) {
    (
        settings.maybe_number("sigma_min").unwrap_or(min),
        settings.maybe_number("sigma_max").unwrap_or(max),
    )
}

/// `alpha = 1 / sqrt(sigma^2 + 1)`, `sigma_t = sigma alpha` and `lambda = log(alpha / sigma_t)` of the variance-preserving process.
#[derive(Clone, Copy)]
pub struct Level {
    pub alpha: f64,
    pub sigma: f64,
    pub lambda: f64,
}

impl Level {
    pub fn of(sigma: f64) -> Self {
        let alpha = 1.0 / (sigma * sigma + 1.0).sqrt();
        Self {
            alpha,
            sigma: sigma * alpha,
            lambda: alpha.ln() - (sigma * alpha).ln(),
        }
    }
}

/// The standard deviation that k-diffusion's samplers start from.
pub fn init_noise_sigma(settings: &Settings, sigmas: &[f64]) -> f64 {
    let max = sigmas.iter().copied().fold(0.0, f64::max);
    if settings.word("timestep_spacing") == "leading" {
        (max * max + 1.0).sqrt()
    } else {
        max
    }
}
