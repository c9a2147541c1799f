//! Laws that hold for every sampler, whatever its formulas.
use candle_core::{DType, Device, Tensor};
use clap::ValueEnum;
use diffuse::engine::{
    noise::Noise,
    schedulers::{Request, SchedulerConfig, SchedulerKind, Source},
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

fn randomly(kind: SchedulerKind) -> bool {
    matches!(kind, SchedulerKind::Ddpm | SchedulerKind::EulerAncestral)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(64) })]

    #[test]
    fn timesteps_never_rise_and_stay_in_the_training_range(kind in kinds(), steps in 1usize..200, spacing in 0usize..3) {
        let mut config = file(sd());
        config.insert("timestep_spacing".into(), ["leading", "trailing", "linspace"][spacing].into());
        if let Ok(scheduler) = SchedulerConfig::new(kind, config).build(&Request::new(steps)) {
            let t = scheduler.timesteps();
            prop_assert!(t.iter().all(|t| (0.0..1000.0).contains(t)));
            prop_assert!(t.windows(2).all(|pair| pair[0] >= pair[1]));
            prop_assert!((steps..=2 * steps + 1).contains(&t.len()));
        }
    }

    #[test]
    fn an_exact_denoiser_gives_x0_back(kind in kinds(), steps in 1usize..40, value in -0.9f64..0.9) {
        prop_assume!(!randomly(kind));
        // With prediction_type sample the exact network answers x0 itself; PNDM has none, so eps is worked out from x and t.
        let mut config = file(sd());
        let pndm = kind == SchedulerKind::Pndm;
        config.insert("prediction_type".into(), if pndm { "epsilon" } else { "sample" }.into());
        config.insert("set_alpha_to_one".into(), true.into());
        let mut scheduler = SchedulerConfig::new(kind, config).build(&Request::new(steps)).unwrap();
        let x0 = Tensor::full(value, (1, 1, 4, 4), &Device::Cpu).unwrap();
        let eps = Tensor::arange(0f64, 16.0, &Device::Cpu).unwrap().reshape((1, 1, 4, 4)).unwrap();
        let (eps, mut noise) = ((eps * 0.1).unwrap(), Noise::new(0, 1));
        let mut x = if pndm {
            let bar = alpha_bar(scheduler.timesteps()[0] as usize);
            ((&x0 * bar.sqrt()).unwrap() + (&eps * (1.0 - bar).sqrt()).unwrap()).unwrap()
        } else {
            (&eps * scheduler.init_noise_sigma()).unwrap()
        };
        for i in 0..scheduler.timesteps().len() {
            let output = if pndm { &eps } else { &x0 };
            x = scheduler.step(i, &x, output, &mut noise).unwrap();
        }
        let off = (x - x0).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f64>().unwrap();
        prop_assert!(off < 1e-5, "{} {steps} steps: off by {off}", kind.name());
    }

    #[test]
    fn a_run_is_linear_in_the_start_and_the_outputs(kind in kinds(), steps in 1usize..12, a in -2.0f64..2.0, b in -2.0f64..2.0) {
        prop_assume!(!randomly(kind));
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
        if let Err(error) = SchedulerConfig::new(kind, config).build(&Request::new(steps)) {
            let message = format!("{error:#}");
            prop_assert!(!message.contains('\n'));
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
    for kind in SchedulerKind::value_variants() {
        assert_eq!(SchedulerKind::of_class(kind.class()).unwrap(), *kind);
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
