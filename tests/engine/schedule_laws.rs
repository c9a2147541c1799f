//! Laws that hold for every sampler, whatever its formulas.
use candle_core::{DType, Device, Tensor};
use clap::ValueEnum;
use diffuse::engine::{
    noise::Noise,
    schedulers::{Request, Scheduler, SchedulerConfig, SchedulerKind, Source},
};
use proptest::prelude::*;
use serde_json::{Map, Value, json};

fn file(json: Value) -> Map<String, Value> {
    json.as_object().unwrap().clone()
}

fn kinds() -> impl Strategy<Value = SchedulerKind> {
    prop::sample::select(SchedulerKind::value_variants().to_vec())
}

fn sd() -> Value {
    json!({"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": false, "skip_prk_steps": true})
}

/// (alpha, sigma) of `alpha x0 + sigma eps`, what the model sees at call `i`.
fn level(scheduler: &dyn Scheduler, i: usize) -> (f64, f64) {
    let sigma = scheduler.sigma(i);
    let alpha = 1.0 / (sigma * sigma + 1.0).sqrt();
    (alpha, sigma * alpha)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(64) })]

    #[test]
    fn timesteps_never_rise_and_stay_in_the_training_range(kind in kinds(), steps in 1usize..200, spacing in 0usize..3) {
        let mut config = file(sd());
        config.insert("timestep_spacing".into(), ["leading", "trailing", "linspace"][spacing].into());
        prop_assume!(!kind.has_own_range());
        // These two choose among 50.
        let steps = match kind {
            SchedulerKind::Lcm | SchedulerKind::Tcd => steps % 50 + 1,
            _ => steps,
        };
        let built = SchedulerConfig::new(kind, config).build(&Request::new(steps));
        // numpy's arange gives these counts one more, at -1, for which tables that are read by index have no level.
        let over = spacing == 1 && [61, 103, 121, 122].contains(&steps);
        if over && matches!(kind, SchedulerKind::Ddpm | SchedulerKind::Ddim | SchedulerKind::Pndm) {
            let why = built.err().map(|err| format!("{err:#}")).unwrap_or_default();
            prop_assert!(why.contains("end at -1; take one step more or fewer"), "{}", why);
            return Ok(());
        }
        let scheduler = built.map_err(|err| TestCaseError::fail(format!("{err:#}")))?;
        let t = scheduler.timesteps();
        // An ancestral step's middle is the next level itself, as far as f32 tables can tell.
        let slack = if kind == SchedulerKind::Kdpm2Ancestral { 0.02 } else { 0.0 };
        let lowest = if over { -1.0 } else { 0.0 };
        prop_assert!(t.iter().all(|t| (lowest..1000.0).contains(t)));
        prop_assert!(t.windows(2).all(|pair| pair[0] + slack >= pair[1]));
        prop_assert!((steps..=2 * steps + 1).contains(&t.len()));
    }

    #[test]
    fn an_exact_denoiser_gives_x0_back(kind in kinds(), steps in 4usize..40, value in -0.9f64..0.9) {
        prop_assume!(!kind.is_random() && !kind.has_own_range());
        let mut config = file(sd());
        config.insert("set_alpha_to_one".into(), true.into());
        let mut scheduler = SchedulerConfig::new(kind, config).build(&Request::new(steps)).unwrap();
        let x0 = Tensor::full(value, (1, 1, 4, 4), &Device::Cpu).unwrap();
        let eps = (Tensor::arange(0f64, 16.0, &Device::Cpu).unwrap().reshape((1, 1, 4, 4)).unwrap() * 0.1).unwrap();
        // The sample whose scaled form is on the path, whatever the scale.
        let (alpha, sigma) = level(&*scheduler, 0);
        let seen = ((&x0 * alpha).unwrap() + (&eps * sigma).unwrap()).unwrap();
        let scale = scheduler.scale_input(0, &x0.ones_like().unwrap()).unwrap();
        let (mut x, mut noise) = ((seen / scale).unwrap(), Noise::new(0, 1));
        for i in 0..scheduler.timesteps().len() {
            let (alpha, sigma) = level(&*scheduler, i);
            let seen = scheduler.scale_input(i, &x).unwrap();
            let exact = ((seen - (&x0 * alpha).unwrap()).unwrap() / sigma).unwrap();
            x = scheduler.step(i, &x, &exact, &mut noise).unwrap();
        }
        let off = (x - x0).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f64>().unwrap();
        // These two end at the first training step's sigma, 0.03, and not at 0.
        let above_zero = matches!(kind, SchedulerKind::Deis | SchedulerKind::Tcd);
        prop_assert!(off < if above_zero { 0.05 } else { 1e-5 }, "{} {steps} steps: off by {off}", kind.name());
    }

    #[test]
    fn the_sigma_of_a_call_is_that_of_its_timestep(kind in kinds(), steps in 4usize..50) {
        prop_assume!(!kind.has_own_range());
        let scheduler = SchedulerConfig::new(kind, file(sd())).build(&Request::new(steps)).unwrap();
        for (i, t) in scheduler.timesteps().iter().enumerate() {
            let sigma = |t: f64| { let bar = alpha_bar(t as usize); ((1.0 - bar) / bar).sqrt() };
            // A timestep between two lies between their sigmas; f32 tables are off by parts in ten thousand at 0.
            let (low, high) = (sigma(t.floor()) * (1.0 - 1e-3), sigma(t.ceil()) * (1.0 + 1e-3));
            let ours = scheduler.sigma(i);
            prop_assert!((low..=high).contains(&ours), "{}: {ours} at {t}", kind.name());
        }
    }

    #[test]
    fn a_run_is_linear_in_the_start_and_the_outputs(kind in kinds(), steps in 1usize..12, a in -2.0f64..2.0, b in -2.0f64..2.0) {
        prop_assume!(!kind.is_random());
        let run = |scale: f64, shift: f64| {
            let mut scheduler = SchedulerConfig::new(kind, file(sd())).build(&Request::new(steps)).unwrap();
            let ramp = Tensor::arange(0f64, 16.0, &Device::Cpu).unwrap().reshape((1, 1, 4, 4)).unwrap();
            let mut x = ((&ramp * scale).unwrap() + shift).unwrap();
            for i in 0..scheduler.timesteps().len() {
                let output = ((ramp.sin().unwrap() * scale).unwrap() + shift * (i as f64).cos()).unwrap();
                x = scheduler.step(i, &x, &output, &mut Noise::new(0, 1)).unwrap();
            }
            x
        };
        let sum = ((run(1.0, 0.0) * a).unwrap() + (run(0.0, 1.0) * b).unwrap()).unwrap();
        let whole = run(a, b);
        let size = whole.abs().unwrap().max_all().unwrap().to_scalar::<f64>().unwrap().max(1.0);
        let off = (whole - sum).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f64>().unwrap();
        prop_assert!(off < 1e-9 * size, "{}: {off} of {size}", kind.name());
    }

    #[test]
    fn no_value_of_any_key_makes_a_panic(kind in kinds(), steps in 0usize..1100, key in 0usize..40, value in 0usize..12) {
        let keys = kind.keys();
        let values = [json!(null), json!(-1), json!(0), json!(1), json!(3), json!(1e300), json!(true), json!("x"), json!("-Infinity"), json!([]), json!([0.5]), json!({})];
        let mut config = file(sd());
        config.insert(keys[key % keys.len()].0.into(), values[value].clone());
        // A few steps of each are taken, too; of most, building is all that a run of so many costs.
        let steps = if steps % 2 == 0 { steps % 8 } else { steps };
        match SchedulerConfig::new(kind, config).build(&Request::new(steps)) {
            Ok(mut scheduler) => {
                let (mut x, mut noise) = (Tensor::ones((1, 1, 4, 4), DType::F64, &Device::Cpu).unwrap(), Noise::new(0, 1));
                for i in 0..scheduler.timesteps().len().min(8) {
                    let seen = scheduler.scale_input(i, &x).unwrap();
                    prop_assert!(scheduler.sigma(i) >= 0.0 || scheduler.sigma(i).is_nan());
                    let Ok(next) = scheduler.step(i, &x, &seen, &mut noise) else { break };
                    x = next;
                }
            }
            Err(error) => {
                let message = format!("{error:#}");
                prop_assert!(!message.contains('\n'));
            }
        }
    }

    #[test]
    fn steps_in_f32_keep_f32_and_agree_with_f64(kind in kinds(), steps in 1usize..12) {
        let run = |dtype: DType| {
            let mut scheduler = SchedulerConfig::new(kind, file(sd())).build(&Request::new(steps)).unwrap();
            let (mut noise, mut x) = (Noise::new(1, 1), Tensor::full(0.5f64, (1, 1, 4, 4), &Device::Cpu).unwrap().to_dtype(dtype).unwrap());
            for i in 0..scheduler.timesteps().len() {
                let output = scheduler.scale_input(i, &x).unwrap().tanh().unwrap();
                x = scheduler.step(i, &x, &output, &mut noise).unwrap();
                assert_eq!(x.dtype(), dtype);
            }
            x.to_dtype(DType::F64).unwrap()
        };
        let (a, b) = (run(DType::F32), run(DType::F64));
        let size = b.abs().unwrap().max_all().unwrap().to_scalar::<f64>().unwrap().max(1.0);
        let off = (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f64>().unwrap();
        // f32's 6e-8, through up to 12 steps from a sigma of up to 15
        prop_assert!(off < 1e-4 * size, "{}: {off}", kind.name());
    }
}

/// SD's own schedule, written a second time in f64.
fn alpha_bar(t: usize) -> f64 {
    let (start, end) = (0.00085f64.sqrt(), 0.012f64.sqrt());
    (0..=t)
        .map(|s| 1.0 - (start + (end - start) * s as f64 / 999.0).powi(2))
        .product()
}

#[test]
fn every_class_has_a_name_of_its_own_and_is_found_by_it() {
    let mut names = std::collections::HashSet::new();
    for kind in SchedulerKind::value_variants() {
        assert!(names.insert(kind.name()), "{}", kind.name());
        // The SDE is a second name of its class, with a key set.
        let found = match kind {
            SchedulerKind::Dpmpp2mSde => SchedulerKind::Dpmpp2m,
            kind => *kind,
        };
        assert_eq!(SchedulerKind::of_class(kind.class()).unwrap(), found);
    }
    let error = SchedulerKind::of_class("FlowMatchEulerDiscreteScheduler")
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("FlowMatchEulerDiscreteScheduler") && error.contains("DDIMScheduler"),
        "{error}"
    );
}

fn value(config: &SchedulerConfig, key: &str) -> (Value, Source) {
    let found = config
        .provenance()
        .unwrap()
        .into_iter()
        .find(|(name, ..)| name == key);
    found.map(|(_, value, source)| (value, source)).unwrap()
}

#[test]
fn an_override_of_the_pipeline_survives_a_swap_only_where_the_file_had_the_key() {
    // SD 1.4's file in short: PNDM with steps_offset and without clip_sample.
    let config = SchedulerConfig::from_json(file(
        json!({"_class_name": "PNDMScheduler", "steps_offset": 0}),
    ))
    .unwrap()
    .with_pipeline_override();
    assert_eq!(value(&config, "steps_offset"), (json!(1), Source::Pipeline));
    let ddim = config.clone().swap(SchedulerKind::Ddim);
    assert_eq!(value(&ddim, "steps_offset"), (json!(1), Source::Pipeline));
    assert_eq!(value(&ddim, "clip_sample"), (json!(true), Source::Default));
    let bare = SchedulerConfig::from_json(file(json!({"_class_name": "DDIMScheduler"})))
        .unwrap()
        .with_pipeline_override();
    assert_eq!(
        value(&bare, "clip_sample"),
        (json!(false), Source::Pipeline)
    );
    assert_eq!(
        value(&bare.swap(SchedulerKind::Ddpm), "clip_sample"),
        (json!(true), Source::Default)
    );
}

#[test]
fn a_foreign_key_is_ignored_and_comes_back_when_a_class_that_has_it_is_chosen() {
    let config = SchedulerConfig::from_json(file(
        json!({"_class_name": "PNDMScheduler", "clip_sample": false}),
    ))
    .unwrap();
    assert_eq!(
        value(&config, "clip_sample"),
        (json!(false), Source::Ignored)
    );
    assert_eq!(
        value(&config.swap(SchedulerKind::Ddim), "clip_sample"),
        (json!(false), Source::File)
    );
}

#[test]
fn refusals_name_the_key_its_value_and_what_is_accepted() {
    let cases = [
        (
            SchedulerKind::Dpmpp2m,
            json!({"use_flow_sigmas": true}),
            20,
            "use_flow_sigmas = true",
        ),
        (
            SchedulerKind::Ddim,
            json!({"beta_schedule": "sigmoid"}),
            20,
            "beta_schedule = \"sigmoid\"",
        ),
        (
            SchedulerKind::Ddim,
            json!({"beta_start": "low"}),
            20,
            "beta_start = \"low\"",
        ),
        (
            SchedulerKind::Pndm,
            json!({"prediction_type": "sample"}),
            20,
            "prediction_type = \"sample\"",
        ),
        (SchedulerKind::Pndm, json!({}), 3, "4 or more"),
        (
            SchedulerKind::Ddim,
            json!({"steps_offset": 1}),
            1000,
            "past the last training step",
        ),
        (SchedulerKind::Euler, json!({}), 0, "0 steps"),
        (SchedulerKind::Euler, json!({}), 1001, "1 to 1000"),
    ];
    for (kind, config, steps, words) in cases {
        let error = SchedulerConfig::new(kind, file(config))
            .build(&Request::new(steps))
            .err()
            .map(|e| format!("{e:#}"))
            .unwrap();
        assert!(error.contains(words), "{error}");
    }
}

#[test]
fn options_are_typed_by_their_key_and_unknown_ones_list_the_known() {
    let config = SchedulerConfig::new(SchedulerKind::Euler, file(sd()));
    let karras = config
        .clone()
        .with_option("use_karras_sigmas=true")
        .unwrap();
    assert_eq!(
        value(&karras, "use_karras_sigmas"),
        (json!(true), Source::Flag)
    );
    let unknown = config
        .clone()
        .with_option("solver_order=2")
        .unwrap_err()
        .to_string();
    assert!(
        unknown.contains("solver_order") && unknown.contains("use_karras_sigmas"),
        "{unknown}"
    );
    assert!(
        config
            .clone()
            .with_option("use_karras_sigmas=maybe")
            .is_err()
    );
    assert!(config.with_option("use_karras_sigmas").is_err());
}

#[test]
fn lists_and_eta_are_refused_by_samplers_that_do_not_take_them() {
    let (timesteps, sigmas) = (Some(vec![999.0, 500.0]), Some(vec![9.0, 1.0, 0.0]));
    let with_timesteps = |list: &[f64]| Request {
        timesteps: Some(list.to_vec()),
        ..Request::new(list.len())
    };
    let cases = [
        (
            SchedulerKind::Ddim,
            Request {
                timesteps,
                ..Request::new(2)
            },
            "ddim takes no list of timesteps; those that do: ddpm, euler, heun",
        ),
        (
            SchedulerKind::Heun,
            Request {
                sigmas,
                ..Request::new(2)
            },
            "heun takes no list of sigmas; those that do: euler",
        ),
        (
            SchedulerKind::Euler,
            Request {
                eta: Some(0.5),
                ..Request::new(2)
            },
            "euler takes no eta; those that do: ddim, tcd",
        ),
        (
            SchedulerKind::Ddim,
            Request {
                eta: Some(1.5),
                ..Request::new(2)
            },
            "eta 1.5 is not between 0 and 1",
        ),
        (
            SchedulerKind::Euler,
            with_timesteps(&[10.0, 20.0]),
            "10 comes before 20; they must descend",
        ),
        (
            SchedulerKind::Euler,
            with_timesteps(&[1000.0, 20.0]),
            "1000 is not a whole number from 0 to 999",
        ),
        (
            SchedulerKind::Euler,
            with_timesteps(&[99.5]),
            "99.5 is not a whole number",
        ),
        (
            SchedulerKind::Euler,
            Request {
                sigmas: Some(vec![3.0, -1.0]),
                ..Request::new(1)
            },
            "each is 0 or more",
        ),
        (
            SchedulerKind::Lcm,
            Request::new(51),
            "original_inference_steps = 50",
        ),
    ];
    for (kind, request, words) in cases {
        let built = SchedulerConfig::new(kind, file(sd())).build(&request);
        let error = built.err().map(|e| format!("{e:#}")).unwrap();
        assert!(error.contains(words), "{error}");
    }
}

#[test]
fn a_report_tells_every_call_and_every_key_of_every_scheduler() {
    for kind in SchedulerKind::value_variants() {
        let config = SchedulerConfig::new(*kind, file(sd()));
        let request = Request::new(6);
        let report = config.report(&request).unwrap();
        let scheduler = config.build(&request).unwrap();
        let timesteps: Vec<f64> = report.calls.iter().map(|call| call.timestep).collect();
        assert_eq!(timesteps, scheduler.timesteps());
        for key in kind.keys() {
            assert!(report.keys.iter().any(|(name, ..)| name == key.0));
        }
        let json = report.json();
        assert_eq!(json["class"], kind.class());
        assert_eq!(json["unet_calls"], timesteps.len());
        assert_eq!(json["calls"].as_array().unwrap().len(), timesteps.len());
    }
}

#[test]
fn a_report_says_where_each_value_came_from() {
    let json = json!({"_class_name": "PNDMScheduler", "beta_end": 0.012, "skip_prk_steps": true, "solver_type": "bh2"});
    let config = SchedulerConfig::from_json(file(json))
        .unwrap()
        .with_pipeline_override()
        .swap(SchedulerKind::Dpmpp2s)
        .with_option("solver_order=2")
        .unwrap();
    let report = config.report(&Request::new(5)).unwrap();
    let source = |key: &str| {
        let found = report.keys.iter().find(|(name, ..)| name == key);
        found
            .map(|(_, value, source)| (value.clone(), *source))
            .unwrap()
    };
    assert_eq!(source("beta_end"), (json!(0.012), Source::File));
    assert_eq!(source("beta_start"), (json!(0.0001), Source::Default));
    assert_eq!(source("skip_prk_steps"), (json!(true), Source::Ignored));
    assert_eq!(source("solver_order"), (json!(2), Source::Flag));
    // Singlestep sets this itself, and reads UniPC's word as its own.
    assert_eq!(source("lower_order_final"), (json!(true), Source::Class));
    assert_eq!(source("solver_type"), (json!("midpoint"), Source::Class));
    assert_eq!(report.calls.len(), 5);
}

#[test]
fn zero_terminal_snr_is_reported_as_an_infinite_sigma() {
    let config = json!({"rescale_betas_zero_snr": true, "prediction_type": "v_prediction", "timestep_spacing": "trailing"});
    let report = SchedulerConfig::new(SchedulerKind::Ddim, file(config))
        .report(&Request::new(4))
        .unwrap();
    assert_eq!(report.calls[0].sigma, f64::INFINITY);
    assert_eq!(
        (report.calls[0].alpha_bar(), report.calls[0].snr()),
        (0.0, 0.0)
    );
    assert_eq!(report.json()["calls"][0]["sigma"], "Infinity");
}

#[test]
fn the_name_of_the_sde_sets_its_key_and_a_swap_away_takes_it_back() {
    let config = SchedulerConfig::new(SchedulerKind::Dpmpp2m, file(sd()));
    let sde = config.swap(SchedulerKind::Dpmpp2mSde);
    let set = (json!("sde-dpmsolver++"), Source::Flag);
    assert_eq!(value(&sde, "algorithm_type"), set);
    let back = (json!("dpmsolver++"), Source::Default);
    assert_eq!(
        value(&sde.swap(SchedulerKind::Dpmpp2m), "algorithm_type"),
        back
    );
}

#[test]
fn the_brownian_motion_of_dpm_sde_is_the_seeds_or_the_files() {
    let run = |config: Value, seed: u64| {
        let mut config = file(config);
        config.extend(file(sd()));
        let built = SchedulerConfig::new(SchedulerKind::DpmSde, config).build(&Request::new(5));
        let (mut scheduler, mut noise) = (built.unwrap(), Noise::new(seed, 1));
        let mut x = Tensor::ones((1, 1, 4, 4), candle_core::DType::F32, &Device::Cpu).unwrap();
        for i in 0..scheduler.timesteps().len() {
            x = scheduler.step(i, &x, &x.clone(), &mut noise).unwrap();
        }
        x.flatten_all().unwrap().to_vec1::<f32>().unwrap()
    };
    assert_eq!(run(json!({}), 1), run(json!({}), 1));
    assert_ne!(run(json!({}), 1), run(json!({}), 2));
    let own = json!({"noise_sampler_seed": 3});
    assert_eq!(run(own.clone(), 1), run(own, 2));
}

/// A scheduler of `kind` from these keys.
fn built(kind: SchedulerKind, keys: Value, steps: usize) -> anyhow::Result<()> {
    let config = SchedulerConfig::new(kind, file(keys));
    config.build(&Request::new(steps)).map(drop)
}

#[test]
fn a_first_timestep_that_comes_again_is_refused_wherever_it_stands() {
    // The middle of the first step is the table's end once more.
    let keys = json!({"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
        "use_exponential_sigmas": true, "sigma_min": 0.03, "sigma_max": 20.0});
    for kind in [SchedulerKind::Kdpm2, SchedulerKind::DpmSde] {
        let refused = built(kind, keys.clone(), 20).expect_err("it repeats");
        let said = format!("{refused:#}");
        assert!(said.contains("repeat the first timestep"), "{said}");
    }
    let one = json!({"sigma_min": 1.0, "sigma_max": 1.0});
    for kind in [SchedulerKind::EdmEuler, SchedulerKind::EdmDpmpp2m] {
        assert!(built(kind, one.clone(), 3).is_err(), "{kind:?}");
    }
}

#[test]
fn keys_of_other_classes_files_do_not_stand_in_the_way() {
    let betas = json!({"trained_betas": [0.1, 0.2, 0.3], "beta_schedule": "laplace", "num_train_timesteps": 3});
    built(SchedulerKind::Euler, betas, 2).expect("the word is not read");
    built(SchedulerKind::Ddpm, json!({"variance_type": null}), 5).expect("as the first");
    let zero = json!({"rescale_betas_zero_snr": true, "timestep_spacing": "trailing", "prediction_type": "v_prediction"});
    for steps in [2, 5, 10, 20] {
        let config = SchedulerConfig::new(SchedulerKind::Ddim, file(zero.clone()));
        let request = Request {
            eta: Some(1.0),
            ..Request::new(steps)
        };
        config.build(&request).expect("the root of zero is zero");
    }
    let hidden = json!({"rescale_betas_zero_snr": true, "timestep_spacing": "trailing", "thresholding": true});
    built(SchedulerKind::Ddim, hidden, 4).expect_err("it divides by zero");
}
