//! Whole trajectories, call by call, against tests/fixtures/schedulers, which export_schedulers.py wrote.
use candle_core::{Device, Tensor};
use clap::ValueEnum;
use diffuse::engine::{
    noise::Noise,
    schedulers::{Request, Scheduler, SchedulerConfig, SchedulerKind},
};
use serde_json::{Map, Value};
use std::collections::HashMap;
use std::path::PathBuf;

/// Both sides start from the same f32 tables and work in f64; numpy's f32 logarithms differ from ours by one place.
const DETERMINISTIC: f64 = 1e-6;
/// Noise equals torch's to some 1e-6, times the largest sigma (below 200).
const STOCHASTIC: f64 = 2e-5;
/// Of longer lists of timesteps the exporter keeps so many at each end.
const HEAD: usize = 40;
const TAIL: usize = 20;

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/schedulers")
}

/// The dummy network of the exporter; `learned` puts a variance behind its output.
fn model(x: &Tensor, t: f64, learned: bool) -> candle_core::Result<Tensor> {
    let output = (((x * 0.7)?.tanh()? * 0.8)? + 0.3 * (0.013 * t).cos())?;
    if learned {
        Tensor::cat(&[output, ((x.cos()? * 0.2)? + 0.3)?], 1)
    } else {
        Ok(output)
    }
}

/// The samples after the middle call and the last.
fn run(scheduler: &mut dyn Scheduler, learned: bool) -> candle_core::Result<(Vec<f64>, Vec<f64>)> {
    let mut noise = Noise::new(7, 1);
    let channels = if learned { 3 } else { 1 };
    let start: Vec<f64> = (0..16 * channels)
        .map(|i| (1.7 * i as f64 + 0.3).sin())
        .collect();
    let start = Tensor::from_vec(start, (1, channels, 4, 4), &Device::Cpu)?;
    let mut x = (start * scheduler.init_noise_sigma())?;
    let mut middle = vec![];
    let n = scheduler.timesteps().len();
    for i in 0..n {
        let t = scheduler.timesteps()[i];
        let output = model(&scheduler.scale_input(i, &x)?, t, learned)?;
        x = scheduler.step(i, &x, &output, &mut noise)?;
        if i == n / 2 {
            middle = x.flatten_all()?.to_vec1()?;
        }
    }
    Ok((middle, x.flatten_all()?.to_vec1()?))
}

/// One trajectory of the reference: what was asked, and what came of it.
struct Case {
    what: String,
    file: Map<String, Value>,
    request: Request,
    noisy: bool,
    learned: bool,
    /// What differs from the base.
    about: Vec<String>,
    /// Why the reference refused it, or else how it went.
    outcome: Result<Trajectory, String>,
}

struct Trajectory {
    timesteps: Vec<f32>,
    calls: usize,
    init: f64,
    middle: Vec<f64>,
    last: Vec<f64>,
}

fn cases(kind: SchedulerKind) -> Vec<Case> {
    let bytes = std::fs::read(folder().join(format!("{}.safetensors", kind.name()))).unwrap();
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    let metadata = header.metadata().as_ref().unwrap();
    let tensors = candle_core::safetensors::load_buffer(&bytes, &Device::Cpu).unwrap();
    assert_eq!(metadata["class"], kind.class());
    let base: Map<String, Value> = serde_json::from_str(&metadata["base"]).unwrap();
    let cases: Vec<Value> = serde_json::from_str(&metadata["cases"]).unwrap();
    let read = |case| Case::read(kind, &base, case, &tensors);
    cases.iter().map(read).collect()
}

impl Case {
    fn read(
        kind: SchedulerKind,
        base: &Map<String, Value>,
        case: &Value,
        tensors: &HashMap<String, Tensor>,
    ) -> Self {
        let numbers = |key: &str| {
            let list = case.get(key)?.as_array().unwrap();
            Some(list.iter().map(|v| v.as_f64().unwrap()).collect())
        };
        let mut file = base.clone();
        file.extend(case["change"].as_object().unwrap().clone());
        let mut request = Request::new(case["steps"].as_u64().unwrap() as usize);
        request.eta = case.get("eta").map(|eta| eta.as_f64().unwrap());
        (request.timesteps, request.sigmas) = (numbers("set_timesteps"), numbers("set_sigmas"));
        let starts = |key: &str, with: &str| {
            kind.key(key).is_some() && file[key].as_str().is_some_and(|w| w.starts_with(with))
        };
        let has = |key: &str| file.contains_key(key);
        let outcome = match case.get("refused") {
            Some(why) => Err(why.to_string()),
            None => {
                let place = |i: usize| case["timesteps"][i].as_u64().unwrap() as usize;
                let (from, calls) = (place(0), place(1));
                let kept = calls.min(HEAD + TAIL);
                let row = |name: &str| {
                    let row = tensors[name].get(case["row"].as_u64().unwrap() as usize);
                    row.unwrap().to_vec1::<f64>().unwrap()
                };
                Ok(Trajectory {
                    timesteps: tensors["timesteps"].to_vec1::<f32>().unwrap()[from..from + kept]
                        .to_vec(),
                    calls,
                    init: case["init"].as_f64().unwrap(),
                    middle: row("middle"),
                    last: row("final"),
                })
            }
        };
        let change = case["change"].as_object().unwrap();
        Self {
            about: change.keys().cloned().collect(),
            what: format!("{} {case}", kind.name()),
            noisy: kind.is_random()
                || has("algorithm_type") && starts("algorithm_type", "sde")
                || request.eta > Some(0.0),
            learned: has("variance_type") && starts("variance_type", "learned"),
            file,
            request,
            outcome,
        }
    }

    /// How ours differs from the reference.
    fn disagreements(self, kind: SchedulerKind) -> Vec<String> {
        let built = SchedulerConfig::new(kind, self.file).build(&self.request);
        let (what, mut wrong) = (self.what, vec![]);
        match (built, self.outcome) {
            (Err(ours), Err(why)) => {
                // The same thing is wrong.
                let ours = format!("{ours:#}");
                let is_same =
                    |(theirs, words): &(&str, &str)| why.contains(theirs) && ours.contains(words);
                if !self.about.iter().any(|key| ours.contains(key))
                    && !SAME_REASONS.iter().any(is_same)
                {
                    wrong.push(format!("{what}: refused for {ours}, diffusers: {why}"));
                }
            }
            (Ok(_), Err(why)) => wrong.push(format!("{what}: accepted, diffusers: {why}")),
            (Err(error), Ok(_)) => wrong.push(format!("{what}: refused: {error:#}")),
            (Ok(mut scheduler), Ok(expected)) => {
                let ours = shorten(scheduler.timesteps());
                let near = |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-6 * b.abs().max(1.0);
                let same = ours.iter().zip(&expected.timesteps).all(near);
                if scheduler.timesteps().len() != expected.calls || !same {
                    wrong.push(format!("{what}: timesteps {ours:?}"));
                    return wrong;
                }
                if (scheduler.init_noise_sigma() / expected.init - 1.0).abs() > 1e-6 {
                    let init = scheduler.init_noise_sigma();
                    wrong.push(format!("{what}: init_noise_sigma {init}"));
                }
                let bound = if self.noisy {
                    STOCHASTIC
                } else {
                    DETERMINISTIC
                };
                let (middle, last) = run(scheduler.as_mut(), self.learned).unwrap();
                for (name, ours, expected) in [
                    ("middle", middle, expected.middle),
                    ("final", last, expected.last),
                ] {
                    let size = expected.iter().fold(1.0f64, |m, v| m.max(v.abs()));
                    let off = ours
                        .iter()
                        .zip(&expected)
                        .map(|(a, b)| (a - b).abs() / size)
                        .fold(0.0, f64::max);
                    // NaN is beyond every bound.
                    // The reference's first numbers.
                    let compared = !expected.is_empty() && ours.len() >= expected.len();
                    if off.is_nan() || off > bound || !compared {
                        wrong.push(format!("{what}: {name} is off by {off:e} of {size}"));
                    }
                }
            }
        }
        wrong
    }
}

/// What the reference says where a key is not what is wrong, and ours.
const SAME_REASONS: [(&str, &str); 12] = [
    ("TypeError: ", "takes no list of"),
    ("`sigmas` is only", "takes no list of"),
    ("'list' object has no", "takes no list of"),
    ("AttributeError", "takes no list of"),
    ("original_steps", "original_inference_steps"),
    ("not finite", "divide by zero"),
    // It starts at the second, and its last step has no weight that is a number.
    ("not finite", "repeat the first timestep"),
    ("AssertionError", "repeat the first timestep"),
    ("IndexError", "repeat the first timestep"),
    ("descending", "they must descend"),
    ("IndexError", "they must descend"),
    ("list index", "they must descend"),
];

fn shorten(timesteps: &[f64]) -> Vec<f32> {
    let n = timesteps.len();
    let kept = |i: &usize| n <= HEAD + TAIL || *i < HEAD || *i >= n - TAIL;
    (0..n).filter(kept).map(|i| timesteps[i] as f32).collect()
}

#[test]
fn every_scheduler_walks_the_trajectory_of_diffusers_and_refuses_what_it_refuses() {
    let mut wrong = vec![];
    for kind in SchedulerKind::value_variants() {
        let cases = cases(*kind);
        let walked = cases.iter().filter(|case| case.outcome.is_ok()).count();
        assert!(walked >= 20, "{walked} trajectories for {}", kind.name());
        wrong.extend(cases.into_iter().flat_map(|case| case.disagreements(*kind)));
    }
    assert!(
        wrong.is_empty(),
        "{} disagreements:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}
