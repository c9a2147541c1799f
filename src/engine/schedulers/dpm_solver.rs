//! What the exponential integrators share (DPM-Solver, DPM-Solver++, DEIS, SA-Solver): the integral's parts and the model's output
//! in the form that the integral is over. Formulas by Lu et al. 2022, "DPM-Solver++".
use super::{
    Settings,
    algebra::{Clip, Prediction, combine},
    schedule::ensure_finite,
    sigmas::Level,
};
use candle_core::{Result, Tensor};
use std::collections::VecDeque;

/// What the solver's integral is over, and whether it adds noise.
#[derive(Clone, Copy, PartialEq)]
pub struct Form {
    pub x0: bool,
    pub sde: bool,
}

/// One step from level s to level t: `x_t = a x + phi_1 D0 + phi_2 D1 + phi_3 D2 + noise z`, D1 and D2 the derivatives by lambda
/// in units of h and of h^2.
pub struct Parts {
    pub a: f64,
    pub phi: [f64; 3],
    pub noise: f64,
}

impl Form {
    pub fn of(settings: &Settings) -> Self {
        let algorithm = settings.word("algorithm_type");
        Self {
            x0: algorithm.ends_with("++") || algorithm == "deis",
            sde: algorithm.starts_with("sde"),
        }
    }

    pub fn parts(self, s: Level, t: Level) -> Parts {
        let h = t.lambda - s.lambda;
        let (a, scale, e) = match self {
            // formula (8), and (18) of its SDE
            Form {
                x0: true,
                sde: false,
            } => (t.sigma / s.sigma, t.alpha, -h),
            Form {
                x0: true,
                sde: true,
            } => (t.sigma / s.sigma * (-h).exp(), t.alpha, -2.0 * h),
            // DPM-Solver, formula (3.7), and its SDE
            Form { x0: false, .. } => (t.alpha / s.alpha, t.sigma, h),
        };
        let doubled = if self.sde && !self.x0 { 2.0 } else { 1.0 };
        let phi1 = -doubled * scale * (e.exp() - 1.0);
        let sign = if self.x0 { 1.0 } else { -doubled };
        let phi2 = sign
            * scale
            * if self.x0 {
                (e.exp() - 1.0) / -e + 1.0
            } else {
                (e.exp() - 1.0) / e - 1.0
            };
        let phi3 = match self {
            Form { sde: true, .. } => scale * ((1.0 - e.exp() + e) / (e * e) - 0.5),
            _ => -scale * ((e.exp() - 1.0 - e) / (e * e) - 0.5),
        };
        let noise = match self {
            Form { sde: false, .. } => 0.0,
            Form { x0: true, .. } => t.sigma * (1.0 - (-2.0 * h).exp()).sqrt(),
            Form { x0: false, .. } => t.sigma * ((2.0 * h).exp() - 1.0).sqrt(),
        };
        Parts {
            a,
            phi: [phi1, phi2, phi3],
            noise,
        }
    }
}

/// One step as a weighted sum: of x, of the outputs, newest first, and of noise.
pub struct Weights {
    pub x: f64,
    pub outputs: Vec<f64>,
    pub noise: f64,
}

impl Weights {
    pub fn sum<'a>(
        &self,
        x: &'a Tensor,
        outputs: impl IntoIterator<Item = &'a Tensor>,
        noise: Option<&'a Tensor>,
    ) -> Result<Tensor> {
        let mut terms = vec![(self.x, x)];
        terms.extend(noise.map(|noise| (self.noise, noise)));
        terms.extend(self.outputs.iter().copied().zip(outputs));
        combine(&terms)
    }

    /// All of them, to be checked.
    pub fn all(&self) -> impl Iterator<Item = &f64> {
        self.outputs.iter().chain([&self.x, &self.noise])
    }
}

/// The weights of a multistep method to level `t` from `past`: s_0 (where x is), s_1, s_2, as many as the order.
pub fn multistep(form: Form, heun: bool, t: Level, past: &[Level]) -> Weights {
    let s0 = past[0];
    let h = t.lambda - s0.lambda;
    let Parts {
        a: x,
        phi: [phi1, phi2, phi3],
        noise,
    } = form.parts(s0, t);
    let outputs = match past {
        [_] => vec![phi1],
        [_, s1] => {
            let r0 = (s0.lambda - s1.lambda) / h;
            let d1 = if heun { phi2 } else { 0.5 * phi1 } / r0;
            vec![phi1 + d1, -d1]
        }
        _ => {
            let (r0, r1) = (
                (s0.lambda - past[1].lambda) / h,
                (past[1].lambda - past[2].lambda) / h,
            );
            // D1 = D1_0 + r0/(r0+r1) (D1_0 - D1_1);  D2 = (D1_0 - D1_1) / (r0+r1)
            let difference = (phi2 * r0 + phi3) / (r0 + r1);
            let (d10, d11) = ((phi2 + difference) / r0, -difference / r1);
            vec![phi1 + d10, d11 - d10, -d11]
        }
    };
    Weights { x, outputs, noise }
}

/// The steps of a multistep method, in order, and the outputs that they are still to read.
pub struct Multistep {
    steps: Vec<Weights>,
    /// Newest first.
    outputs: VecDeque<Tensor>,
}

impl Multistep {
    /// Steps from each of `levels` to the next. `weights(t, past)` are those of a step to `t` from `past`: s_0 (where x is), s_1, s_2, as many
    /// as its order.
    pub fn new<L: Copy>(
        settings: &Settings,
        levels: &[L],
        weights: impl Fn(L, &[L]) -> anyhow::Result<Weights>,
    ) -> anyhow::Result<Self> {
        let orders = multistep_orders(settings, levels.len().saturating_sub(1));
        let steps = orders.into_iter().enumerate().map(|(i, order)| {
            let past: Vec<L> = levels[..=i].iter().rev().take(order).copied().collect();
            let step = weights(levels[i + 1], &past)?;
            ensure_finite(step.all())?;
            Ok(step)
        });
        Ok(Self {
            steps: steps.collect::<anyhow::Result<_>>()?,
            outputs: VecDeque::new(),
        })
    }

    /// Step `i`, after the output of its call.
    pub fn step(
        &mut self,
        i: usize,
        x: &Tensor,
        output: Tensor,
        noise: Option<&Tensor>,
    ) -> Result<Tensor> {
        self.outputs.push_front(output);
        self.outputs.truncate(3);
        self.steps[i].sum(x, &self.outputs, noise)
    }
}

/// The orders of a multistep method along `n` steps: rising from 1, and falling again before the end where the keys ask for it.
fn multistep_orders(settings: &Settings, n: usize) -> Vec<usize> {
    let most = settings.count("solver_order");
    let short = settings.flag("lower_order_final") && n < 15;
    let euler_at_final =
        settings.flag("euler_at_final") || short || settings.word("final_sigmas_type") == "zero";
    let order = |i: usize| {
        if i == n - 1 && euler_at_final {
            1
        } else {
            most.min(i + 1).min(if i + 2 == n && short { 2 } else { 3 })
        }
    };
    (0..n).map(order).collect()
}

/// Makes of the network's output what the integral is over: x0, or else eps.
pub struct Converter {
    pub x0: bool,
    prediction: Prediction,
    clip: Clip,
}

impl Converter {
    pub fn new(settings: &Settings, x0: bool) -> anyhow::Result<Self> {
        Ok(Self {
            x0,
            prediction: Prediction::of(settings),
            clip: Clip::of(settings)?,
        })
    }

    pub fn convert(&self, sigma: f64, x: &Tensor, output: &Tensor) -> Result<Tensor> {
        let Level { alpha, sigma, .. } = Level::of(sigma);
        let mut output = output.to_dtype(x.dtype())?;
        // A network that predicts a variance too.
        if output.dim(1)? == 2 * x.dim(1)? {
            output = output.narrow(1, 0, x.dim(1)?)?;
        }
        if !self.x0 && matches!(self.clip, Clip::Keep) {
            return self.prediction.eps(alpha, sigma, x, &output);
        }
        let x0 = self
            .clip
            .apply(self.prediction.x0(alpha, sigma, x, &output)?)?;
        if self.x0 {
            Ok(x0)
        } else {
            combine(&[(1.0, x), (-alpha, &x0)])? / sigma
        }
    }
}
