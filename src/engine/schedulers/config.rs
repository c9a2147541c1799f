//! `scheduler_config.json`, read the way diffusers' `from_config` reads it.
//!
//! - A key that is absent takes the default of the class *chosen*, not of the class that wrote the file.
//! - A key that the class does not have is ignored, but kept: a later swap may choose a class that has it.
//! - A value of the class's own key that is not implemented, or has the wrong type, is refused by name.
//! - A swap copies what the file said. What the pipeline overrode is copied only when the file had the key.
use super::{Key, Request, Rule, Scheduler, SchedulerKind, keys::number};
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value};

/// Where the value of a key came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    File,
    Default,
    Pipeline,
    Flag,
    /// The class itself puts this value in the place of another.
    Class,
    /// The class has no such key.
    Ignored,
}

impl Source {
    /// In a few words, for tables.
    pub fn text(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Default => "default of the class",
            Self::Pipeline => "set by the pipeline",
            Self::Flag => "flag",
            Self::Class => "set by the class",
            Self::Ignored => "ignored: no key of the class",
        }
    }

    /// In one word, for machines.
    pub fn word(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Default => "default",
            Self::Pipeline => "pipeline",
            Self::Flag => "flag",
            Self::Class => "class",
            Self::Ignored => "ignored",
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
    /// Whether the pipeline tells the scheduler that it begins with its first call.
    begun: bool,
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
            flags: preset(kind),
            begun: false,
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

    /// What some pipelines do to any scheduler that they run: `set_begin_index(0)`. Others leave it to the scheduler to look its first
    /// timestep up.
    pub fn begun(mut self) -> Self {
        self.begun = true;
        self
    }

    /// `kind.from_config(self.config)`.
    pub fn swap(mut self, kind: SchedulerKind) -> Self {
        for Key(name, _) in self.kind.keys() {
            if let Some(Value::String(word)) = self.file.get_mut(*name) {
                // A class writes its own word into its config; a swap copies the result.
                *word = self.kind.alias(name, word).to_string();
            }
        }
        self.pipeline.retain(|key, _| self.file.contains_key(key));
        self.kind = kind;
        self.flags = preset(kind);
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
        // As JSON has them, or Python.
        let text = match text {
            "True" => "true",
            "False" => "false",
            "None" => "null",
            text => text,
        };
        let value = match rule {
            Rule::Word(_) => Value::from(if text == "null" { "" } else { text }),
            _ => serde_json::from_str(text).unwrap_or_else(|_| Value::from(text)),
        };
        rule.check(name, &value).context("scheduler option")?;
        self.flags.insert(name.into(), value);
        Ok(self)
    }

    /// The sampler for one run.
    pub fn build(&self, request: &Request) -> Result<Box<dyn Scheduler>> {
        let settings = self.settings()?;
        let train = settings.count("num_train_timesteps");
        ensure!(
            (1..=1_000_000).contains(&train),
            "num_train_timesteps = {train} is not between 1 and 1000000"
        );
        request.check(self.kind, &settings)?;
        (self.kind.about().build)(&settings, request)
            .with_context(|| format!("scheduler {}", self.kind.name()))
    }

    /// Whether the network is to predict a variance beside the noise, in as many channels again.
    pub fn predicts_variance(&self) -> Result<bool> {
        let settings = self.settings()?;
        Ok(settings.word("variance_type").starts_with("learned"))
    }

    /// The keys whose values the class itself changes in a run, with the value that it puts there.
    pub fn changes(&self, request: &Request) -> Result<Vec<(&'static str, Value)>> {
        let settings = self.settings()?;
        let mut changes = Vec::new();
        for (name, value, _) in &settings.values {
            let word = value.as_str().unwrap_or("");
            let own = self.kind.alias(name, word);
            if own != word {
                changes.push((*name, Value::from(own)));
            }
        }
        if let Some((name, forced)) = self.kind.about().forced
            && forced(&settings, request)
        {
            changes.push((name, Value::from(true)));
        }
        Ok(changes)
    }

    /// The values of every key of the class, checked.
    pub fn settings(&self) -> Result<Settings> {
        let mut values = Vec::new();
        let places = [
            (&self.flags, Source::Flag),
            (&self.pipeline, Source::Pipeline),
            (&self.file, Source::File),
        ];
        let given = |name: &str| {
            let mut found = places.iter();
            found.find_map(|(place, source)| Some((place.get(name)?, *source)))
        };
        // A list of betas leaves the schedule's word unread: it may be another class's.
        let has_betas = given("trained_betas").is_some_and(|(value, _)| value.is_array());
        for Key(name, rule) in self.kind.keys() {
            let given = given(name).filter(|_| *name != "beta_schedule" || !has_betas);
            let (value, source) = match given {
                Some((value, source)) => (value.clone(), source),
                None => (rule.default(), Source::Default),
            };
            rule.check(name, &value).with_context(|| match source {
                Source::Flag => "scheduler option",
                _ => "scheduler_config.json",
            })?;
            values.push((*name, value, source));
        }
        let begun = self.begun;
        Ok(Settings { values, begun })
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

fn preset(kind: SchedulerKind) -> Map<String, Value> {
    let preset = kind.about().preset;
    preset
        .map(|(key, value)| (key.to_string(), Value::from(value)))
        .into_iter()
        .collect()
}

/// The checked values of one class's keys. The getters are called with names from that class's table only.
pub struct Settings {
    values: Vec<(&'static str, Value, Source)>,
    begun: bool,
}

impl Settings {
    fn get(&self, name: &str) -> &Value {
        self.values
            .iter()
            .find(|(key, ..)| *key == name)
            .map_or(&Value::Null, |(_, value, _)| value)
    }
    /// Refuses timesteps whose first comes once more, unless the pipeline says where it begins: diffusers looks the first one up in the
    /// list and, finding two, starts at the second, so that it runs past the end.
    pub fn ensure_first_once(&self, timesteps: &[f64]) -> Result<()> {
        let count = timesteps.iter().filter(|t| **t == timesteps[0]).count();
        ensure!(
            self.begun || count == 1,
            "{} steps repeat the first timestep {}; take fewer",
            timesteps.len(),
            timesteps[0]
        );
        Ok(())
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
    pub fn maybe_count(&self, name: &str) -> Option<u64> {
        self.get(name).as_u64()
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
