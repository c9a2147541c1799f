//! Trying a reader on many inputs, and counting how far they get: a fuzzer whose inputs all fail at the first check tries nothing else.
use crate::checkpoint::support::line;
use diffuse::engine::checkpoint::Checkpoint;
use diffuse::engine::pipelines::ddpm::DdpmSystem;
use diffuse::engine::pipelines::txt2img::{Txt2ImgRequest, Txt2ImgSystem};
use diffuse::engine::pipelines::{Job, Only, Overrides, Plan, Sampling, System};
use diffuse::engine::progress::Progress;
use diffuse::engine::runtime::{DeviceChoice, Precision, Runtime};
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{Config, RngSeed, TestRunner};
use serde_json::{Map, Value, json};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How many inputs a property is tried on, and which: `FUZZ_CASES` that differ each time, or the same few.
fn cases(few: u32) -> (u32, RngSeed) {
    let asked = std::env::var("FUZZ_CASES").ok();
    match asked.and_then(|n| n.parse().ok()) {
        Some(cases) => (cases, RngSeed::Random),
        None => (few, RngSeed::Fixed(0)),
    }
}

/// What is counted of an input: the last stage that it reached, or why it was refused.
pub type Reached = anyhow::Result<&'static str>;

/// Tries `reader` on inputs, which must not panic, and prints what they reached. Some must reach `deepest`.
#[track_caller]
pub fn fuzz<S: Strategy>(
    few: u32,
    inputs: S,
    deepest: &str,
    reader: impl Fn(&S::Value) -> Reached,
) {
    let (cases, rng_seed) = cases(few);
    let config = Config {
        cases,
        rng_seed,
        failure_persistence: None,
        max_shrink_iters: 4000,
        ..Config::default()
    };
    let tally = RefCell::new(BTreeMap::<String, u32>::new());
    let slowest = RefCell::new((Duration::ZERO, String::new()));
    let mut runner = TestRunner::new(config);
    let result = runner.run(&inputs, |input| {
        let start = Instant::now();
        let reached = match reader(&input) {
            Ok(stage) => stage.to_owned(),
            Err(err) => kind(&err),
        };
        let taken = start.elapsed();
        *tally.borrow_mut().entry(reached).or_default() += 1;
        if taken > slowest.borrow().0 {
            let text: String = format!("{input:?}").chars().take(2000).collect();
            *slowest.borrow_mut() = (taken, text);
        }
        Ok(())
    });
    let tally = tally.into_inner();
    let mut counts: Vec<(&String, &u32)> = tally.iter().collect();
    counts.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
    println!(
        "{} inputs, {} ways",
        tally.values().sum::<u32>(),
        counts.len()
    );
    for (reached, count) in counts.iter().take(60) {
        println!("{count:8} {reached}");
    }
    let (taken, input) = slowest.into_inner();
    println!("slowest: {taken:?} {input}");
    if let Err(err) = result {
        panic!("{err}");
    }
    assert!(tally.contains_key(deepest), "no input reached {deepest:?}");
}

/// An error without what differs from input to input: numbers, names in quotes and files.
fn kind(err: &anyhow::Error) -> String {
    let text = line(err);
    assert!(text.chars().count() < 2000, "a long error: {text}");
    let mut kind = String::from("refused: ");
    let (mut quote, mut last) = (false, ' ');
    for c in text.chars() {
        if c == '"' {
            quote = !quote;
        }
        let c = if c.is_ascii_digit() { '0' } else { c };
        let (quoted, repeated) = (quote && c != '"', c == '0' && last == '0');
        if !quoted && !repeated {
            kind.push(c);
            last = c;
        }
    }
    let words: Vec<&str> = kind.split(' ').filter(|word| !word.contains('/')).collect();
    words.join(" ").chars().take(110).collect()
}

/// A model's folder that is spoiled for each input, and is whole again for the next.
pub struct Model {
    folder: tempfile::TempDir,
    whole: BTreeMap<String, Vec<u8>>,
    spoiled: RefCell<BTreeSet<String>>,
}

impl Model {
    /// A copy of a folder of the repository.
    pub fn of(folder: &str) -> Self {
        let mut whole = BTreeMap::new();
        files_of(&repository().join(folder), "", &mut whole);
        Self::new(whole)
    }

    pub fn new(whole: BTreeMap<String, Vec<u8>>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let model = Self {
            folder,
            spoiled: RefCell::new(whole.keys().cloned().collect()),
            whole,
        };
        model.mend();
        model
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// A file as it was.
    pub fn file(&self, name: &str) -> &[u8] {
        &self.whole[name]
    }

    /// The names of its files.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.whole.keys().map(String::as_str)
    }

    /// All is as it was.
    pub fn mend(&self) {
        for name in std::mem::take(&mut *self.spoiled.borrow_mut()) {
            let path = self.path().join(&name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            match self.whole.get(&name) {
                Some(bytes) => std::fs::write(path, bytes).unwrap(),
                None => std::fs::remove_file(path).unwrap(),
            }
        }
    }

    /// One file is another until the next [`Model::mend`].
    pub fn spoil(&self, name: &str, bytes: impl AsRef<[u8]>) {
        self.spoiled.borrow_mut().insert(name.to_owned());
        std::fs::write(self.path().join(name), bytes).unwrap();
    }

    pub fn open(&self) -> anyhow::Result<Checkpoint> {
        Checkpoint::open(self.path().to_str().unwrap(), "main")
    }
}

pub fn repository() -> PathBuf {
    env!("CARGO_MANIFEST_DIR").into()
}

/// A file of the fixtures.
pub fn fixture(name: &str) -> Vec<u8> {
    std::fs::read(repository().join("tests/fixtures").join(name)).unwrap()
}

fn files_of(folder: &Path, inside: &str, files: &mut BTreeMap<String, Vec<u8>>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = format!("{inside}{}", path.file_name().unwrap().to_str().unwrap());
        match path.is_dir() {
            true => files_of(&path, &format!("{name}/"), files),
            false => drop(files.insert(name, std::fs::read(&path).unwrap())),
        }
    }
}

pub fn sampling() -> Sampling {
    Sampling {
        steps: Some(2),
        scheduler: None,
        overrides: Overrides::default(),
    }
}

/// Reads, plans, loads and draws as far as that goes; drawn is what is small.
pub fn draw(checkpoint: &Checkpoint, prompt: &str) -> Reached {
    let runtime = Runtime::new(DeviceChoice::Cpu, Precision::F32)?;
    if matches!(checkpoint.file("vae", "config.json"), Ok(Some(_))) {
        let system = Txt2ImgSystem::read(checkpoint)?;
        let plan = system.plan(&Txt2ImgRequest {
            prompt: prompt.to_owned(),
            long_prompt: prompt.len() % 2 == 1,
            prompt_weights: prompt.len() % 3 == 1,
            sampling: sampling(),
            ..Txt2ImgRequest::default()
        })?;
        finish(checkpoint, &runtime, &system, &plan)
    } else {
        let system = DdpmSystem::read(checkpoint)?;
        let plan = system.plan(&sampling())?;
        finish(checkpoint, &runtime, &system, &plan)
    }
}

fn finish<S: System>(
    checkpoint: &Checkpoint,
    runtime: &Runtime,
    system: &S,
    plan: &Plan,
) -> Reached {
    let progress = Progress::hidden();
    let at_once = true;
    let only = Only { plan, at_once };
    let pipeline = system.load(checkpoint, runtime, Some(only), &progress)?;
    let (calls, decoding) = plan.working_bytes(1);
    if plan.work.multiplications > 1e9 || calls.max(decoding) > 1 << 28 {
        return Ok("loaded");
    }
    let job = Job { plan, seed: 0 };
    pipeline.draw(&[job], &progress, &mut |_, _| Ok(()))?;
    Ok("drawn")
}

/// Values that no file has, and a few that one may have.
pub fn value(texts: &'static [&'static str]) -> impl Strategy<Value = Value> {
    let wholes = [
        0u64,
        1,
        2,
        3,
        4,
        5,
        7,
        8,
        16,
        32,
        33,
        64,
        65_535,
        65_536,
        1 << 31,
        1 << 32,
        1 << 62,
        u64::MAX,
    ];
    let fractions = [0.0, -0.0, 0.5, 1.0, -1.0, 1e-300, 1e300, 1e38];
    let leaf = prop_oneof![
        1 => Just(Value::Null),
        1 => any::<bool>().prop_map(Value::from),
        3 => prop::sample::select(wholes.to_vec()).prop_map(Value::from),
        1 => any::<i64>().prop_map(Value::from),
        1 => prop::sample::select(fractions.to_vec()).prop_map(Value::from),
        3 => prop::sample::select(texts.to_vec()).prop_map(Value::from),
    ];
    leaf.prop_recursive(2, 8, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            inner.prop_map(|value| json!({"content": value})),
        ]
    })
}

/// A change somewhere in a JSON text.
#[derive(Clone, Debug)]
pub struct Edit {
    /// Which child, from the root down.
    steps: Vec<Index>,
    change: Change,
}

#[derive(Clone, Debug)]
enum Change {
    Set(Value),
    Remove,
    /// Under another name, or at another place of a list.
    Move(String, Index),
    Add(String, Value),
    /// The value of a neighbour.
    Copy(Index),
}

/// Edits with these texts as values and these names as keys.
pub fn edit(
    texts: &'static [&'static str],
    names: &'static [&'static str],
) -> impl Strategy<Value = Edit> {
    let name = || prop::sample::select(names.to_vec()).prop_map(str::to_owned);
    let change = prop_oneof![
        4 => value(texts).prop_map(Change::Set),
        1 => Just(Change::Remove),
        1 => (name(), any::<Index>()).prop_map(|(name, at)| Change::Move(name, at)),
        2 => (name(), value(texts)).prop_map(|(name, value)| Change::Add(name, value)),
        2 => any::<Index>().prop_map(Change::Copy),
    ];
    (prop::collection::vec(any::<Index>(), 1..4), change)
        .prop_map(|(steps, change)| Edit { steps, change })
}

impl Edit {
    pub fn apply(&self, root: &mut Value) {
        let mut parent = root;
        for step in &self.steps[..self.steps.len() - 1] {
            let holds = |value: &Value| match value {
                Value::Object(map) => !map.is_empty(),
                Value::Array(list) => !list.is_empty(),
                _ => false,
            };
            let children: Vec<bool> = match &*parent {
                Value::Object(map) => map.values().map(holds).collect(),
                Value::Array(list) => list.iter().map(holds).collect(),
                _ => return,
            };
            let inner: Vec<usize> = (0..children.len()).filter(|&i| children[i]).collect();
            if inner.is_empty() {
                break;
            }
            let at = inner[step.index(inner.len())];
            parent = match parent {
                Value::Object(map) => map.values_mut().nth(at).unwrap(),
                Value::Array(list) => &mut list[at],
                _ => return,
            };
        }
        let last = self.steps[self.steps.len() - 1];
        match parent {
            Value::Object(map) if !map.is_empty() => self.change_object(map, last),
            Value::Array(list) if !list.is_empty() => self.change_list(list, last),
            other => {
                if let Change::Set(value) = &self.change {
                    *other = value.clone();
                }
            }
        }
    }

    fn change_object(&self, map: &mut Map<String, Value>, at: Index) {
        let key = |at: Index| map.keys().nth(at.index(map.len())).unwrap().clone();
        let (key, other) = (key(at), |at: &Index| map[&key(*at)].clone());
        match &self.change {
            Change::Set(value) => drop(map.insert(key, value.clone())),
            Change::Remove => drop(map.shift_remove(&key)),
            Change::Move(name, _) => {
                let value = map.shift_remove(&key).unwrap();
                map.insert(name.clone(), value);
            }
            Change::Add(name, value) => drop(map.insert(name.clone(), value.clone())),
            Change::Copy(from) => {
                let value = other(from);
                map.insert(key, value);
            }
        }
    }

    fn change_list(&self, list: &mut Vec<Value>, at: Index) {
        let at = at.index(list.len());
        match &self.change {
            Change::Set(value) => list[at] = value.clone(),
            Change::Remove => drop(list.remove(at)),
            Change::Move(_, to) => {
                let value = list.remove(at);
                list.insert(to.index(list.len() + 1), value);
            }
            Change::Add(_, value) => list.push(value.clone()),
            Change::Copy(from) => list[at] = list[from.index(list.len())].clone(),
        }
    }
}
