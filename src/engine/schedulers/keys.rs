//! The keys of a class and the values that they take.
use anyhow::{Result, ensure};
use serde_json::Value;

/// A key of a class: its name, the values it takes and its default.
#[derive(Clone, Copy, Debug)]
pub struct Key(pub &'static str, pub Rule);

/// What a key may hold, with the default of the class.
#[derive(Clone, Copy, Debug)]
pub enum Rule {
    /// true or false; null counts as false
    Flag(bool),
    /// a whole number, 0 or more
    Count(i64),
    /// a whole number, 0 or more, or null, which is the default
    MaybeCount,
    /// a number
    Number(f64),
    /// a number or null, which is the default
    MaybeNumber,
    /// null or a list of numbers
    Numbers,
    /// a list of whole numbers, empty by default
    Counts,
    /// one of the words; the first is the default, an empty one stands for null
    Word(&'static [&'static str]),
    /// a feature that is not implemented: false or null
    Off,
    /// read only by a feature that is not implemented, so it has no effect
    Inert,
}

impl Rule {
    pub fn default(&self) -> Value {
        match self {
            Self::Flag(value) => (*value).into(),
            Self::Count(value) => (*value).into(),
            // JSON has no infinity; the tolerant reader writes it as this word.
            Self::Number(value) if value.is_infinite() => if *value > 0.0 {
                "Infinity"
            } else {
                "-Infinity"
            }
            .into(),
            Self::Number(value) => (*value).into(),
            Self::Counts => Value::Array(vec![]),
            Self::Word(words) => words[0].into(),
            Self::MaybeCount | Self::MaybeNumber | Self::Numbers | Self::Off | Self::Inert => {
                Value::Null
            }
        }
    }

    /// Refuses a value that the rule does not take.
    pub fn check(&self, name: &str, value: &Value) -> Result<()> {
        let list =
            |ok: fn(&Value) -> bool| value.as_array().is_some_and(|list| list.iter().all(ok));
        let (ok, accepted) = match self {
            Self::Flag(_) => (
                value.is_boolean() || value.is_null(),
                "true or false".to_string(),
            ),
            Self::Count(_) => (value.is_u64(), "a whole number, 0 or more".into()),
            Self::MaybeCount => (
                value.is_u64() || value.is_null(),
                "a whole number, 0 or more, or null".into(),
            ),
            Self::Number(_) => (
                number(value).is_some_and(|v| !v.is_nan()),
                "a number".into(),
            ),
            Self::MaybeNumber => (
                value.is_null() || value.as_f64().is_some_and(|v| v > 0.0),
                "a positive number or null".into(),
            ),
            Self::Numbers => (
                value.is_null() || list(Value::is_number),
                "null or a list of numbers".into(),
            ),
            Self::Counts => (list(Value::is_u64), "a list of whole numbers".into()),
            Self::Word(words) => {
                let shown: Vec<_> = words
                    .iter()
                    .map(|w| if w.is_empty() { "null" } else { w })
                    .collect();
                let word = if value.is_null() {
                    Some("")
                } else {
                    value.as_str()
                };
                (
                    word.is_some_and(|word| words.contains(&word)),
                    shown.join(", "),
                )
            }
            Self::Off => (
                value.is_null() || value == false,
                "false or null: this feature is not implemented".into(),
            ),
            Self::Inert => (true, String::new()),
        };
        ensure!(
            ok,
            "{name} = {value} is not supported by this scheduler; accepted: {accepted}"
        );
        Ok(())
    }
}

/// A number, or the word that stands for an infinite one.
pub fn number(value: &Value) -> Option<f64> {
    match value.as_str() {
        Some("-Infinity") => Some(f64::NEG_INFINITY),
        Some("Infinity") => Some(f64::INFINITY),
        _ => value.as_f64(),
    }
}

// The keys that several classes have, with the defaults that most of them share.
pub const TRAIN: Key = Key("num_train_timesteps", Rule::Count(1000));
pub const BETA_START: Key = Key("beta_start", Rule::Number(0.0001));
pub const BETA_END: Key = Key("beta_end", Rule::Number(0.02));
/// The defaults of the classes that were written for Stable Diffusion.
pub const SD_BETA_START: Key = Key("beta_start", Rule::Number(0.00085));
pub const SD_BETA_END: Key = Key("beta_end", Rule::Number(0.012));
pub const BETAS: Key = Key(
    "beta_schedule",
    Rule::Word(&["linear", "scaled_linear", "squaredcos_cap_v2"]),
);
pub const TRAINED: Key = Key("trained_betas", Rule::Numbers);
pub const PREDICTION: Key = Key(
    "prediction_type",
    Rule::Word(&["epsilon", "v_prediction", "sample"]),
);
/// Of the classes that never see a predicted x0.
pub const NOISE_OR_V: Key = Key("prediction_type", Rule::Word(&["epsilon", "v_prediction"]));
pub const LEADING: Key = Key(
    "timestep_spacing",
    Rule::Word(&["leading", "trailing", "linspace"]),
);
pub const LINSPACE: Key = Key(
    "timestep_spacing",
    Rule::Word(&["linspace", "leading", "trailing"]),
);
pub const OFFSET: Key = Key("steps_offset", Rule::Count(0));
pub const ZERO_SNR: Key = Key("rescale_betas_zero_snr", Rule::Flag(false));
pub const THRESHOLDING: Key = Key("thresholding", Rule::Flag(false));
pub const RATIO: Key = Key("dynamic_thresholding_ratio", Rule::Number(0.995));
pub const MAX_VALUE: Key = Key("sample_max_value", Rule::Number(1.0));
pub const CLIP_RANGE: Key = Key("clip_sample_range", Rule::Number(1.0));
pub const KARRAS: Key = Key("use_karras_sigmas", Rule::Flag(false));
pub const EXPONENTIAL: Key = Key("use_exponential_sigmas", Rule::Flag(false));
pub const BETA_SIGMAS: Key = Key("use_beta_sigmas", Rule::Flag(false));
/// No arguments of most classes, but their code asks the config for them, so another class's values count.
pub const SIGMA_MIN: Key = Key("sigma_min", Rule::MaybeNumber);
pub const SIGMA_MAX: Key = Key("sigma_max", Rule::MaybeNumber);
pub const NO_FLOW: Key = Key("use_flow_sigmas", Rule::Off);
pub const FLOW_SHIFT: Key = Key("flow_shift", Rule::Inert);
pub const NO_SHIFTING: Key = Key("use_dynamic_shifting", Rule::Off);
pub const SHIFT_TYPE: Key = Key("time_shift_type", Rule::Inert);
pub const LAMBDA_MIN: Key = Key("lambda_min_clipped", Rule::Number(f64::NEG_INFINITY));
/// Whether the network predicts a variance beside the noise; the solvers leave it away.
pub const VARIANCE: Key = Key(
    "variance_type",
    Rule::Word(&[
        "",
        "learned",
        "learned_range",
        "fixed_small",
        "fixed_small_log",
        "fixed_large",
        "fixed_large_log",
    ]),
);
pub const FINAL_SIGMAS: Key = Key("final_sigmas_type", Rule::Word(&["zero", "sigma_min"]));
