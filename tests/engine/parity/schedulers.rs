//! Whole trajectories, call by call, against tests/fixtures/schedulers, which export_schedulers.py wrote.
use candle_core::{Device, Tensor};
use clap::ValueEnum;
use diffuse::engine::{
    noise::Noise,
    schedulers::{Request, Scheduler, SchedulerConfig, SchedulerKind},
};
use serde_json::{Map, Value};
use std::path::PathBuf;

/// Both sides start from the same f32 tables and work in f64; numpy's f32 logarithms differ from ours by one place.
const DETERMINISTIC: f64 = 1e-6;
/// Noise equals torch's to some 1e-6, times the largest sigma (below 200).
const STOCHASTIC: f64 = 2e-5;

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/schedulers")
}

/// The dummy network of the exporter.
fn model(x: &Tensor, t: f64) -> candle_core::Result<Tensor> {
    ((x * 0.7)?.tanh()? * 0.8)? + 0.3 * (0.013 * t).cos()
}

/// The samples after the middle call and the last.
fn run(scheduler: &mut dyn Scheduler) -> candle_core::Result<(Vec<f64>, Vec<f64>)> {
    let mut noise = Noise::new(7, 1);
    let start: Vec<f64> = (0..16).map(|i| (1.7 * i as f64 + 0.3).sin()).collect();
    let mut x =
        (Tensor::from_vec(start, (1, 1, 4, 4), &Device::Cpu)? * scheduler.init_noise_sigma())?;
    let mut middle = vec![];
    let n = scheduler.timesteps().len();
    for i in 0..n {
        let t = scheduler.timesteps()[i];
        let output = model(&scheduler.scale_input(i, &x)?, t)?;
        x = scheduler.step(i, &x, &output, &mut noise)?;
        if i == n / 2 {
            middle = x.flatten_all()?.to_vec1()?;
        }
    }
    Ok((middle, x.flatten_all()?.to_vec1()?))
}

fn build(
    kind: SchedulerKind,
    base: &Map<String, Value>,
    case: &Value,
) -> anyhow::Result<Box<dyn Scheduler>> {
    let mut file = base.clone();
    file.extend(case["change"].as_object().unwrap().clone());
    let mut request = Request::new(case["steps"].as_u64().unwrap() as usize);
    request.eta = case["eta"].as_f64().unwrap();
    SchedulerConfig::new(kind, file).build(&request)
}

/// Every disagreement of one scheduler with its fixture.
fn disagreements(kind: SchedulerKind) -> Vec<String> {
    let bytes = std::fs::read(folder().join(format!("{}.safetensors", kind.name()))).unwrap();
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    let metadata = header.metadata().as_ref().unwrap();
    let tensors = candle_core::safetensors::load_buffer(&bytes, &Device::Cpu).unwrap();
    assert_eq!(metadata["class"], kind.class());
    let base: Map<String, Value> = serde_json::from_str(&metadata["base"]).unwrap();
    let cases: Vec<Value> = serde_json::from_str(&metadata["cases"]).unwrap();
    let all_timesteps: Vec<f32> = tensors["timesteps"].to_vec1().unwrap();
    let row = |name: &str, i: u64| {
        tensors[name]
            .get(i as usize)
            .unwrap()
            .to_vec1::<f64>()
            .unwrap()
    };
    let mut wrong = vec![];
    for case in &cases {
        let what = format!(
            "{} {} steps {} eta {}",
            kind.name(),
            case["change"],
            case["steps"],
            case["eta"]
        );
        match (build(kind, &base, case), case.get("refused")) {
            (Err(_), Some(_)) => {}
            (Ok(_), Some(why)) => wrong.push(format!("{what}: accepted, diffusers: {why}")),
            (Err(error), None) => wrong.push(format!("{what}: refused: {error:#}")),
            (Ok(mut scheduler), None) => {
                let (from, n) = (
                    case["timesteps"][0].as_u64().unwrap() as usize,
                    case["timesteps"][1].as_u64().unwrap() as usize,
                );
                let expected = &all_timesteps[from..from + n];
                let ours: Vec<f32> = scheduler.timesteps().iter().map(|t| *t as f32).collect();
                let near = |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-6 * b.abs().max(1.0);
                if ours.len() != n || !ours.iter().zip(expected).all(near) {
                    wrong.push(format!(
                        "{what}: timesteps {:?} not {:?}",
                        &ours[..ours.len().min(8)],
                        &expected[..n.min(8)]
                    ));
                    continue;
                }
                let init = case["init"].as_f64().unwrap();
                if (scheduler.init_noise_sigma() / init - 1.0).abs() > 1e-6 {
                    wrong.push(format!(
                        "{what}: init_noise_sigma {} not {init}",
                        scheduler.init_noise_sigma()
                    ));
                }
                let (middle, last) = run(scheduler.as_mut()).unwrap();
                for (name, ours) in [("middle", middle), ("final", last)] {
                    let expected = row(name, case["row"].as_u64().unwrap());
                    let size = expected.iter().fold(1.0f64, |m, v| m.max(v.abs()));
                    let off = ours
                        .iter()
                        .zip(&expected)
                        .map(|(a, b)| (a - b).abs() / size)
                        .fold(0.0, f64::max);
                    let noisy = is_noisy(kind, case);
                    let bound = if noisy { STOCHASTIC } else { DETERMINISTIC };
                    // NaN is beyond every bound.
                    if off.is_nan() || off > bound {
                        wrong.push(format!("{what}: {name} is off by {off:e} of {size}"));
                    }
                }
            }
        }
    }
    assert!(
        cases.iter().any(|case| case.get("row").is_some()),
        "no trajectories for {}",
        kind.name()
    );
    wrong
}

fn is_noisy(kind: SchedulerKind, case: &Value) -> bool {
    let sde = case["change"]["algorithm_type"]
        .as_str()
        .is_some_and(|a| a.starts_with("sde"));
    matches!(
        kind.name().as_str(),
        "ddpm" | "euler-ancestral" | "lcm" | "tcd"
    ) || sde
        || case["eta"].as_f64() > Some(0.0)
}

#[test]
fn every_scheduler_walks_the_trajectory_of_diffusers_and_refuses_what_it_refuses() {
    let wrong: Vec<String> = SchedulerKind::value_variants()
        .iter()
        .flat_map(|kind| disagreements(*kind))
        .collect();
    assert!(
        wrong.is_empty(),
        "{} disagreements:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}
