//! Noise levels and timesteps: plain numbers, no tensors.
//!
//! Arithmetic is f64. Tables are rounded to f32 where diffusers rounds them, because differences such as `1 - alpha_bar` turn
//! that rounding into something visible: at t = 0 it moves sigma by parts in ten thousand.
use super::{Request, Settings};
use anyhow::{Result, ensure};
use std::f64::consts::FRAC_PI_2;

/// `x` as f32 holds it.
pub fn f32_of(x: f64) -> f64 {
    x as f32 as f64
}

/// `alpha_bar_t = prod_{s<=t} (1 - beta_s)` (Ho et al. 2020, section 2), from the keys of the file.
pub fn alpha_bar(settings: &Settings) -> Result<Vec<f64>> {
    let mut betas = betas(settings)?;
    if settings.flag("rescale_betas_zero_snr") {
        betas = zero_terminal_snr(&betas);
    }
    let valid = |beta: &f64| *beta > 0.0 && *beta <= 1.0;
    if let Some(t) = betas.iter().position(|beta| !valid(beta)) {
        anyhow::bail!(
            "beta_{t} = {} is not between 0 and 1; check beta_start, beta_end and trained_betas",
            betas[t]
        );
    }
    Ok(cumulative(&betas))
}

/// `alpha_bar` of a sampler whose sigmas must be finite: a zero at the end becomes 2^-24.
pub fn alpha_bar_above_zero(settings: &Settings) -> Result<Vec<f64>> {
    let mut alpha_bar = alpha_bar(settings)?;
    if let (true, Some(last)) = (
        settings.flag("rescale_betas_zero_snr"),
        alpha_bar.last_mut(),
    ) {
        *last = 2f64.powi(-24);
    }
    Ok(alpha_bar)
}

fn cumulative(betas: &[f64]) -> Vec<f64> {
    let mut product = 1.0;
    let next = |beta: &f64| {
        product *= f32_of(1.0 - beta);
        f32_of(product)
    };
    betas.iter().map(next).collect()
}

/// `beta_t`, t = 0 to T-1.
fn betas(settings: &Settings) -> Result<Vec<f64>> {
    let n = settings.count("num_train_timesteps");
    if let Some(list) = settings.numbers("trained_betas") {
        ensure!(
            list.len() == n,
            "trained_betas holds {} numbers and num_train_timesteps is {n}; they must be equal",
            list.len()
        );
        return Ok(list.into_iter().map(f32_of).collect());
    }
    let (start, end) = (settings.number("beta_start"), settings.number("beta_end"));
    Ok(match settings.word("beta_schedule") {
        "scaled_linear" => linspace_f32(start.sqrt(), end.sqrt(), n)
            .into_iter()
            .map(|b| f32_of(b * b))
            .collect(),
        // Nichol & Dhariwal 2021, formula (17)
        "squaredcos_cap_v2" => of_alpha_bar(n, |t| ((t + 0.008) / 1.008 * FRAC_PI_2).cos().powi(2)),
        "laplace" => of_alpha_bar(n, |t| {
            let log_snr = -0.5 * 1f64.copysign(0.5 - t) * (1.0 - 2.0 * (0.5 - t).abs() + 1e-6).ln();
            (log_snr.exp() / (1.0 + log_snr.exp())).sqrt()
        }),
        "exp" => of_alpha_bar(n, |t| (-12.0 * t).exp()),
        "sigmoid" => {
            let curve = |x: f64| {
                f32_of(
                    f32_of(f32_of(1.0 / (1.0 + (-x).exp())) * f32_of(end - start)) + f32_of(start),
                )
            };
            linspace_f32(-6.0, 6.0, n).into_iter().map(curve).collect()
        }
        _ => linspace_f32(start, end, n),
    })
}

fn of_alpha_bar(n: usize, curve: impl Fn(f64) -> f64) -> Vec<f64> {
    let at = |i: usize| curve(i as f64 / n as f64);
    (0..n)
        .map(|i| f32_of((1.0 - at(i + 1) / at(i)).min(0.999)))
        .collect()
}

/// torch.linspace in f32: from both ends towards the middle, one rounding a value.
pub fn linspace_f32(start: f64, end: f64, n: usize) -> Vec<f64> {
    let (start, end) = (f32_of(start), f32_of(end));
    if n == 1 {
        return vec![start];
    }
    let step = f32_of(f32_of(end - start) / (n - 1) as f64);
    let value = |i: usize| {
        if i < n / 2 {
            start + step * i as f64
        } else {
            end - step * (n - 1 - i) as f64
        }
    };
    (0..n).map(|i| f32_of(value(i))).collect()
}

/// Lin et al. 2024, algorithm 1: sqrt(alpha_bar) shifted to end at 0 and scaled to keep its start.
fn zero_terminal_snr(betas: &[f64]) -> Vec<f64> {
    let root: Vec<f64> = cumulative(betas)
        .into_iter()
        .map(|v| f32_of(v.sqrt()))
        .collect();
    let (first, last) = (root[0], root[root.len() - 1]);
    let scale = f32_of(first / f32_of(first - last));
    let bar: Vec<f64> = root
        .iter()
        .map(|v| f32_of(f32_of(f32_of(v - last) * scale).powi(2)))
        .collect();
    let alphas = (0..bar.len()).map(|i| {
        if i == 0 {
            bar[0]
        } else {
            f32_of(bar[i] / bar[i - 1])
        }
    });
    alphas.map(|alpha| f32_of(1.0 - alpha)).collect()
}

/// numpy.linspace
pub fn linspace(start: f64, end: f64, n: usize) -> Vec<f64> {
    let step = if n > 1 {
        (end - start) / (n - 1) as f64
    } else {
        0.0
    };
    (0..n)
        .map(|i| {
            if n > 1 && i == n - 1 {
                end
            } else {
                start + i as f64 * step
            }
        })
        .collect()
}

/// How a class places its timesteps (Lin et al. 2024, table 2).
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Grid {
    /// n whole numbers
    Whole,
    /// n numbers; `linspace` is not rounded, only stored as f32
    Real,
    /// as `Real`, stored as f64
    Double,
    /// n + 1 whole numbers without the lowest
    Cut,
}

/// The timesteps of a run over `train` training steps, descending.
pub fn timesteps(
    settings: &Settings,
    grid: Grid,
    train: usize,
    request: &Request,
) -> Result<Vec<f64>> {
    if let Some(list) = &request.timesteps {
        return Ok(list.clone());
    }
    let steps = request.steps;
    let points = if grid == Grid::Cut { steps + 1 } else { steps };
    let offset = settings.count("steps_offset") as f64;
    Ok(match settings.word("timestep_spacing") {
        "leading" => (0..points)
            .rev()
            .take(steps)
            .map(|i| (i * (train / points)) as f64 + offset)
            .collect(),
        "trailing" => {
            let list = trailing(
                train as f64,
                settings.count("num_train_timesteps") as f64 / steps as f64,
            );
            // Levels are read between the table's ends, so there it is the lowest again; in a table by index it is the highest.
            ensure!(
                grid != Grid::Whole || list.iter().all(|t| *t >= 0.0),
                "trailing timesteps of this count end at -1; take one step more or fewer"
            );
            list
        }
        // A class without the key spaces them so.
        _ => {
            let ascending = linspace(0.0, train as f64 - 1.0, points);
            let place = |t: f64| match grid {
                Grid::Real => f32_of(t),
                Grid::Double => t,
                Grid::Whole | Grid::Cut => t.round_ties_even(),
            };
            ascending.into_iter().rev().take(steps).map(place).collect()
        }
    })
}

/// `round(arange(train, 0, -ratio)) - 1`; of some counts it is one more, the last at -1.
fn trailing(train: f64, ratio: f64) -> Vec<f64> {
    // numpy counts by division, which can round up, and steps by the first difference it stored.
    let (n, delta) = ((train / ratio).ceil() as usize, train - (train - ratio));
    (0..n)
        .map(|i| (train - i as f64 * delta).round_ties_even() - 1.0)
        .collect()
}

/// Timesteps as places in a table of `train` entries.
pub fn indices(timesteps: &[f64], train: usize) -> Result<Vec<usize>> {
    if let Some(t) = timesteps.iter().find(|t| **t >= train as f64) {
        anyhow::bail!(
            "timestep {t} is past the last training step {}; take fewer steps or steps_offset 0",
            train - 1
        );
    }
    Ok(timesteps.iter().map(|t| *t as usize).collect())
}

/// Refuses weights that are not finite: the run could only end in NaN.
pub fn ensure_finite<'a>(weights: impl IntoIterator<Item = &'a f64>) -> Result<()> {
    let finite = weights.into_iter().all(|w| w.is_finite());
    ensure!(
        finite,
        "these keys with this number of steps divide by zero, so every pixel would be NaN; take fewer steps or other keys"
    );
    Ok(())
}

/// numpy.interp over the places 0, 1, 2, ...: clamped at both ends.
pub fn interpolate(place: f64, table: &[f64]) -> f64 {
    let last = table.len() - 1;
    if place >= last as f64 {
        return table[last];
    }
    let low = place.max(0.0).floor() as usize;
    (table[low + 1] - table[low]) * (place.max(0.0) - low as f64) + table[low]
}

/// The quantile function of the beta distribution with both parameters `a`, symmetric about 1/2.
pub fn beta_quantile(p: f64, a: f64) -> f64 {
    if p <= 0.0 || p >= 1.0 {
        return p.clamp(0.0, 1.0);
    }
    // Bisection on the half where x itself keeps its relative precision.
    let (q, mirrored) = if p <= 0.5 {
        (p, false)
    } else {
        (1.0 - p, true)
    };
    let (mut low, mut high) = (0.0, 0.5);
    for _ in 0..200 {
        let middle = 0.5 * (low + high);
        if incomplete_beta(middle, a) < q {
            low = middle
        } else {
            high = middle
        }
    }
    let x = 0.5 * (low + high);
    if mirrored { 1.0 - x } else { x }
}

/// The regularised incomplete beta function I_x(a, a) for x <= 1/2, scaled so that I_{1/2} = 1/2.
fn incomplete_beta(x: f64, a: f64) -> f64 {
    // x^a sum_n (1-a)_n / (n! (a+n)) x^n; for x <= 1/2 the terms halve at the least.
    let series = |x: f64| {
        let (mut sum, mut factor) = (0.0, 1.0);
        for n in 0..80 {
            sum += factor / (a + n as f64);
            factor *= (n as f64 + 1.0 - a) / (n as f64 + 1.0) * x;
        }
        x.powf(a) * sum
    };
    0.5 * series(x) / series(0.5)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::f64::consts::PI;

    #[test]
    fn the_beta_quantile_of_one_half_parameters_is_the_arcsine_law() {
        for p in [0.01, 0.3, 0.5, 0.77, 0.999] {
            let law = (PI * p / 2.0).sin().powi(2);
            assert!((beta_quantile(p, 0.5) - law).abs() < 1e-12, "{p}");
        }
    }
}
