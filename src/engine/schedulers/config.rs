//! `scheduler_config.json`, read the way diffusers' `from_config` reads it.
//!
//! - A key that is absent takes the default of the class *chosen*, not of the class that wrote the file.
//! - A key that the class does not have is ignored, but kept: a later swap may choose a class that has it.
//! - A value of the class's own key that is not implemented, or has the wrong type, is refused by name.
//! - A swap copies what the file said. What the pipeline overrode is copied only when the file had the key.
use super::{Scheduler, SchedulerKind};
use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use serde_json::{Map, Value};

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

/// Where the value of a key came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    File,
    Default,
    Pipeline,
    Flag,
    /// The class has no such key.
    Ignored,
}

/// How the sampler is to run: what is not in the file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Request {
    pub steps: usize,
    /// Share of the DDPM's noise that DDIM adds, 0 to 1.
    pub eta: f64,
}

impl Request {
    pub fn new(steps: usize) -> Self {
        Self {
            steps,
            ..Self::default()
        }
    }
}

/// The scheduler's file and the class chosen to read it.
#[derive(Clone, Debug, PartialEq)]
pub struct SchedulerConfig {
    kind: SchedulerKind,
    file: Map<String, Value>,
    pipeline: Map<String, Value>,
    flags: Map<String, Value>,
}

impl SchedulerConfig {
    /// The file's own class, named by `_class_name`.
    pub fn from_json(file: Map<String, Value>) -> Result<Self> {
        let Some(class) = file.get("_class_name") else {
            bail!(
                "the scheduler's config names no class; its key _class_name must be one of {}",
                SchedulerKind::classes()
            );
        };
        let class = class
            .as_str()
            .with_context(|| format!("_class_name = {class} is not a string"))?;
        Ok(Self::new(SchedulerKind::of_class(class)?, file))
    }

    /// The file read as class `kind`, whatever `_class_name` says.
    pub fn new(kind: SchedulerKind, file: Map<String, Value>) -> Self {
        Self {
            kind,
            file,
            pipeline: Map::new(),
            flags: Map::new(),
        }
    }

    pub fn kind(&self) -> SchedulerKind {
        self.kind
    }

    /// What the text-to-image pipeline does to the scheduler that it is built with: `steps_offset` becomes 1 and `clip_sample` false.
    pub fn with_pipeline_override(mut self) -> Self {
        let has = |key: &str| self.file.contains_key(key) || self.kind.key(key).is_some();
        if has("steps_offset") && self.lookup("steps_offset") != Some(Value::from(1)) {
            self.pipeline.insert("steps_offset".into(), 1.into());
        }
        if self.lookup("clip_sample") == Some(Value::Bool(true)) {
            self.pipeline.insert("clip_sample".into(), false.into());
        }
        self
    }

    /// `kind.from_config(self.config)`.
    pub fn swap(mut self, kind: SchedulerKind) -> Self {
        self.kind.settle(&mut self.file);
        self.pipeline.retain(|key, _| self.file.contains_key(key));
        self.kind = kind;
        self
    }

    /// Sets one key of the chosen class from `key=value` on the command line.
    pub fn with_option(mut self, option: &str) -> Result<Self> {
        let Some((name, text)) = option.split_once('=') else {
            bail!(
                "scheduler option \"{option}\" is not key=value; for example timestep_spacing=trailing"
            );
        };
        let Some(Key(_, rule)) = self.kind.key(name) else {
            let keys: Vec<_> = self.kind.keys().iter().map(|k| k.0).collect();
            bail!(
                "{} has no option \"{name}\"; it has {}",
                self.kind.name(),
                keys.join(", ")
            );
        };
        let value = match rule {
            Rule::Word(_) => Value::from(if text == "null" { "" } else { text }),
            _ => serde_json::from_str(text).unwrap_or_else(|_| Value::from(text)),
        };
        rule.check(name, &value)?;
        self.flags.insert(name.into(), value);
        Ok(self)
    }

    /// The sampler for one run.
    pub fn build(&self, request: &Request) -> Result<Box<dyn Scheduler>> {
        let settings = self.settings()?;
        let (name, train) = (self.kind.name(), settings.count("num_train_timesteps"));
        ensure!(
            (1..=1_000_000).contains(&train),
            "num_train_timesteps = {train} is not between 1 and 1000000"
        );
        ensure!(
            (1..=train).contains(&request.steps),
            "{} steps: {name} takes 1 to {train} (num_train_timesteps)",
            request.steps
        );
        ensure!(
            (0.0..=1.0).contains(&request.eta),
            "eta {} is not between 0 and 1",
            request.eta
        );
        self.kind
            .build(&settings, request)
            .with_context(|| format!("scheduler {name}"))
    }

    /// The values of every key of the class, checked.
    pub fn settings(&self) -> Result<Settings> {
        let mut values = Vec::new();
        for Key(name, rule) in self.kind.keys() {
            let (value, source) = match (
                self.flags.get(*name),
                self.pipeline.get(*name),
                self.file.get(*name),
            ) {
                (Some(value), _, _) => (value.clone(), Source::Flag),
                (_, Some(value), _) => (value.clone(), Source::Pipeline),
                (_, _, Some(value)) => (value.clone(), Source::File),
                _ => (rule.default(), Source::Default),
            };
            rule.check(name, &value)?;
            values.push((*name, value, source));
        }
        Ok(Settings { values })
    }

    /// Every key that plays a part or was in the file, its value and where that came from.
    pub fn provenance(&self) -> Result<Vec<(String, Value, Source)>> {
        let own = self
            .settings()?
            .values
            .into_iter()
            .map(|(name, value, source)| (name.to_string(), value, source));
        let foreign = self
            .file
            .iter()
            .filter(|(name, _)| !name.starts_with('_') && self.kind.key(name).is_none());
        Ok(own
            .chain(foreign.map(|(name, value)| (name.clone(), value.clone(), Source::Ignored)))
            .collect())
    }

    /// The value of every key of the class.
    pub fn effective(&self) -> Result<Map<String, Value>> {
        let values = self.settings()?.values.into_iter();
        Ok(values
            .map(|(name, value, _)| (name.to_string(), value))
            .collect())
    }

    fn lookup(&self, name: &str) -> Option<Value> {
        self.file
            .get(name)
            .cloned()
            .or_else(|| self.kind.key(name).map(|Key(_, rule)| rule.default()))
    }
}

impl Rule {
    fn default(&self) -> Value {
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
            Self::MaybeNumber | Self::Numbers | Self::Off | Self::Inert => Value::Null,
        }
    }

    fn check(&self, name: &str, value: &Value) -> Result<()> {
        let list =
            |ok: fn(&Value) -> bool| value.as_array().is_some_and(|list| list.iter().all(ok));
        let (ok, accepted) = match self {
            Self::Flag(_) => (
                value.is_boolean() || value.is_null(),
                "true or false".to_string(),
            ),
            Self::Count(_) => (value.is_u64(), "a whole number, 0 or more".into()),
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
            "scheduler_config.json: {name} = {value} is not supported by this scheduler; accepted: {accepted}"
        );
        Ok(())
    }
}

fn number(value: &Value) -> Option<f64> {
    match value.as_str() {
        Some("-Infinity") => Some(f64::NEG_INFINITY),
        Some("Infinity") => Some(f64::INFINITY),
        _ => value.as_f64(),
    }
}

/// The checked values of one class's keys. The getters are called with names from that class's table only.
pub struct Settings {
    values: Vec<(&'static str, Value, Source)>,
}

impl Settings {
    fn get(&self, name: &str) -> &Value {
        self.values
            .iter()
            .find(|(key, ..)| *key == name)
            .map_or(&Value::Null, |(_, value, _)| value)
    }
    pub fn has(&self, name: &str) -> bool {
        self.values.iter().any(|(key, ..)| *key == name)
    }
    /// Whether the key was set by the file, the pipeline or a flag.
    pub fn is_set(&self, name: &str) -> bool {
        self.values
            .iter()
            .any(|(key, _, source)| *key == name && *source != Source::Default)
    }
    /// False as well where the class has no such key.
    pub fn flag(&self, name: &str) -> bool {
        self.get(name).as_bool().unwrap_or(false)
    }
    pub fn count(&self, name: &str) -> usize {
        self.get(name).as_u64().unwrap_or(0) as usize
    }
    pub fn number(&self, name: &str) -> f64 {
        number(self.get(name)).unwrap_or(f64::NAN)
    }
    pub fn maybe_number(&self, name: &str) -> Option<f64> {
        self.get(name).as_f64()
    }
    /// The empty word where the key is null.
    pub fn word(&self, name: &str) -> &str {
        self.get(name).as_str().unwrap_or("")
    }
    pub fn numbers(&self, name: &str) -> Option<Vec<f64>> {
        Some(
            self.get(name)
                .as_array()?
                .iter()
                .filter_map(Value::as_f64)
                .collect(),
        )
    }
}

impl SchedulerKind {
    /// The name on the command line.
    pub fn name(self) -> String {
        self.to_possible_value()
            .map_or(String::new(), |value| value.get_name().to_string())
    }

    pub fn key(self, name: &str) -> Option<Key> {
        self.keys().iter().copied().find(|key| key.0 == name)
    }

    /// The kind that implements a class of diffusers.
    pub fn of_class(class: &str) -> Result<Self> {
        let found = Self::value_variants()
            .iter()
            .copied()
            .find(|kind| kind.class() == class);
        found.with_context(|| {
            format!(
                "scheduler class \"{class}\" is not supported; supported: {}",
                Self::classes()
            )
        })
    }

    fn classes() -> String {
        let classes: Vec<_> = Self::value_variants()
            .iter()
            .map(|kind| kind.class())
            .collect();
        classes.join(", ")
    }

    /// What a class writes into its own config while it is built; a swap copies the result.
    fn settle(self, file: &mut Map<String, Value>) {
        for Key(name, _) in self
            .keys()
            .iter()
            .filter(|key| matches!(key.0, "solver_type" | "algorithm_type"))
        {
            let Some(word) = file.get(*name).and_then(Value::as_str) else {
                continue;
            };
            let settled = self.alias(name, word).to_string();
            file.insert(name.to_string(), settled.into());
        }
    }
}
