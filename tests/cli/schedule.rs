//! Flags that change the scheduler, and the schedule that is printed.
use crate::support::{Folder, Run, asset};
use serde_json::Value;

fn run(command: &str, more: &[&str]) -> Run {
    let model = asset(if command == "ddpm" {
        "tiny-ddpm"
    } else {
        "tiny-sd"
    });
    let mut args = vec![command, "--model", &model];
    args.extend(more);
    Folder::new().run(&args)
}

fn schedule(command: &str, more: &[&str]) -> Value {
    let mut args = vec!["--print-schedule", "--json"];
    args.extend(more);
    let run = run(command, &args);
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    serde_json::from_str(&run.stdout).expect("JSON")
}

/// Value and source of a key.
fn key(schedule: &Value, name: &str) -> (Value, String) {
    let keys = schedule["keys"].as_array().expect("keys");
    let key = keys.iter().find(|key| key["key"] == name).expect(name);
    let source = key["source"].as_str().expect("a word").to_owned();
    (key["value"].clone(), source)
}

#[test]
fn a_schedule_needs_the_configurations_alone() {
    let folder = Folder::new();
    let scheduler = folder.file("model/scheduler");
    std::fs::create_dir_all(&scheduler).expect("a folder");
    for file in ["model_index.json", "scheduler/scheduler_config.json"] {
        let from = format!("{}/{file}", asset("tiny-sd"));
        std::fs::copy(from, folder.file("model").join(file)).expect("a copy");
    }
    let args = [
        "txt2img",
        "--model=model",
        "--print-schedule",
        "--steps=4",
        "--scheduler=ddim",
    ];
    let run = folder.run(args);
    assert_eq!((run.code, run.stderr.as_str()), (Some(0), ""));
    let lines: Vec<&str> = run.stdout.lines().collect();
    assert_eq!(
        lines[0],
        "ddim (DDIMScheduler): 4 steps, 4 UNet calls, noise of 1.000000 at the start"
    );
    let cells: Vec<&str> = lines[3].split_whitespace().collect();
    // 3 * 250 + 1, and SD's alpha-bar there
    assert_eq!(cells[..2], ["1", "751"]);
    assert!((cells[3].parse::<f64>().expect("alpha-bar") - 0.0557).abs() < 1e-4);
    let line = |start: &str| {
        let found = lines.iter().find(|line| line.starts_with(start));
        found.expect(start).split_whitespace().collect::<Vec<_>>()
    };
    assert_eq!(line("beta_schedule")[1..], ["scaled_linear", "file"]);
    assert_eq!(
        line("thresholding")[1..],
        ["false", "default", "of", "the", "class"]
    );
    assert_eq!(line("skip_prk_steps")[1..3], ["true", "ignored:"]);
    assert_eq!(folder.names(), ["model"]);
}

#[test]
fn a_schedule_for_machines_has_each_call_and_the_source_of_each_key() {
    let pndm = schedule("txt2img", &["--steps=5"]);
    assert_eq!(pndm["class"], "PNDMScheduler");
    assert_eq!(
        (&pndm["steps"], &pndm["unet_calls"]),
        (&5.into(), &6.into())
    );
    let heun = schedule(
        "txt2img",
        &[
            "--scheduler=heun",
            "--steps=3",
            "--scheduler-option=use_karras_sigmas=true",
        ],
    );
    assert_eq!(heun["calls"].as_array().map(Vec::len), Some(5));
    assert_eq!(
        key(&heun, "use_karras_sigmas"),
        (true.into(), "flag".into())
    );
    assert_eq!(
        key(&heun, "set_alpha_to_one"),
        (false.into(), "ignored".into())
    );
    let single = schedule("ddpm", &["--scheduler=dpmpp-2s"]);
    assert_eq!(
        key(&single, "lower_order_final"),
        (true.into(), "class".into())
    );
    let sigmas = schedule("txt2img", &["--scheduler=euler", "--sigmas=9,1.5,0"]);
    assert_eq!(sigmas["steps"], 2);
    assert_eq!(sigmas["calls"][1]["sigma"], 1.5);
}

#[test]
fn what_the_pipeline_sets_is_told_from_what_the_file_says() {
    let folder = Folder::new();
    std::fs::create_dir_all(folder.file("model/scheduler")).expect("a folder");
    let index = r#"{"_class_name": "StableDiffusionPipeline", "scheduler": ["diffusers", "DDIMScheduler"]}"#;
    let file = r#"{"_class_name": "DDIMScheduler", "steps_offset": 0}"#;
    std::fs::write(folder.file("model/model_index.json"), index).expect("written");
    let path = folder.file("model/scheduler/scheduler_config.json");
    std::fs::write(path, file).expect("written");
    let run = folder.run(["txt2img", "--model=model", "--print-schedule", "--json"]);
    let schedule: Value = serde_json::from_str(&run.stdout).expect("JSON");
    for (name, value) in [
        ("steps_offset", Value::from(1)),
        ("clip_sample", false.into()),
    ] {
        assert_eq!(key(&schedule, name), (value, "pipeline".into()));
    }
}

#[test]
fn flags_that_the_scheduler_does_not_take_are_refused_in_one_line() {
    let cases: [(&[&str], &str); 11] = [
        (
            &["--scheduler=unipc", "--timesteps=999,500"],
            "unipc takes no list of timesteps; those that do: ddpm, euler",
        ),
        (
            &["--scheduler=euler", "--sigmas=9"],
            "sigmas: 9 alone is no step; the last is where the run ends",
        ),
        (
            &["--scheduler=ddim", "--sigmas=9,1,0"],
            "ddim takes no list of sigmas; those that do: euler",
        ),
        (
            &["--scheduler=euler", "--eta=0.5"],
            "euler takes no eta; those that do: ddim, tcd",
        ),
        (
            &["--scheduler=heun", "--scheduler-option=solver_order=3"],
            "heun has no option \"solver_order\"; it has num_train_timesteps",
        ),
        (
            &["--scheduler-option=steps_offset=one"],
            "steps_offset = \"one\" is not supported by this scheduler; accepted: a whole number",
        ),
        (&["--scheduler-option=steps_offset"], "is not key=value"),
        (
            &["--scheduler=euler", "--timesteps=1,2,3"],
            "1 comes before 2; they must descend",
        ),
        (
            &[
                "--scheduler=euler",
                "--timesteps=500,1",
                "--scheduler-option=use_karras_sigmas=true",
            ],
            "use_karras_sigmas = true places the timesteps itself",
        ),
        (
            &["--scheduler=edm-euler"],
            "edm-euler runs along timesteps that only models made for it know",
        ),
        (
            &["--scheduler=lcm", "--steps=60"],
            "original_inference_steps = 50; take no more",
        ),
    ];
    for (args, words) in cases {
        for print in [&["--print-schedule"][..], &["a cat"]] {
            let run = run("txt2img", &[args, print].concat());
            assert!(run.stderr.contains(words), "{args:?}: {}", run.stderr);
            assert_eq!(run.stderr.lines().count(), 1, "{}", run.stderr);
            assert_eq!((run.code, run.stdout.as_str()), (Some(1), ""));
        }
    }
}

#[test]
fn flags_of_the_schedule_that_cannot_be_meant_are_refused_before_the_model_is_opened() {
    let cases: [(&[&str], &str); 7] = [
        (&["--timesteps=9,x"], "\"x\" is not a number"),
        (&["--timesteps="], "\"\" is not a number"),
        (&["--sigmas=inf,0"], "\"inf\" is not a number"),
        (&["--timesteps=9", "--steps=3"], "cannot be used with"),
        (&["--timesteps=9", "--sigmas=3,0"], "cannot be used with"),
        (&["--eta=2"], "give a number from 0 to 1"),
        (&["--print-schedule", "--prompts=-"], "cannot be used with"),
    ];
    for (args, words) in cases {
        let run = run("ddpm", args);
        assert!(run.stderr.contains(words), "{args:?}: {}", run.stderr);
        assert_eq!(run.code, Some(2), "{}", run.stderr);
    }
}

#[test]
fn a_learned_variance_needs_a_network_that_predicts_one() {
    let option = "--scheduler-option=variance_type=learned_range";
    let run = run("ddpm", &[option]);
    let words = "out_channels = 3 with in_channels = 3: ddpm needs 6 (variance_type learned)";
    assert!(run.stderr.contains(words), "{}", run.stderr);
    assert_eq!(run.code, Some(1));
}
