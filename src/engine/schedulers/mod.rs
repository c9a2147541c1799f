//! Samplers: how a sample at one noise level becomes one at the next.
//!
//! [`SchedulerConfig`] reads the file, [`SchedulerKind`] names the class, [`SchedulerConfig::build`] gives the sampler for one run.
//! To add one: its file, which tells all about it in `ABOUT`, with its `mod` and its line in the list below.
mod algebra;
mod config;
mod ddim;
mod ddpm;
mod deis;
mod dpm_sde;
mod dpm_solver;
mod dpmpp_2m;
mod dpmpp_2s;
mod edm;
mod edm_dpmpp_2m;
mod edm_euler;
mod euler;
mod euler_ancestral;
mod heun;
mod ipndm;
mod kdpm2;
mod kdpm2_ancestral;
mod keys;
mod lcm;
mod lms;
mod pndm;
mod report;
mod request;
mod sa_solver;
pub mod schedule;
mod sigmas;
mod tcd;
mod unipc;

use super::noise::Noise;
use candle_core::{Result, Tensor};
use clap::{ValueEnum, builder::PossibleValue};
pub use config::{SchedulerConfig, Settings, Source};
pub use keys::{Key, Rule};
pub use report::{Call, Report};
pub use request::Request;

/// One sampler, ready to use: built for a number of steps and used for one batch.
///
/// Calls of the model are addressed by their index `i`, so timesteps may be fractional or repeat (PNDM, Heun).
pub trait Scheduler {
    /// The timestep that the model is given at each call, in order.
    fn timesteps(&self) -> &[f64];
    /// `sqrt((1 - alpha_bar) / alpha_bar)` of what the model sees at call `i`; infinite where alpha_bar is 0.
    fn sigma(&self, i: usize) -> f64;
    /// Standard deviation of the noise that the first call starts from.
    fn init_noise_sigma(&self) -> f64 {
        1.0
    }
    /// What the model sees at call `i`.
    fn scale_input(&self, _i: usize, x: &Tensor) -> Result<Tensor> {
        Ok(x.clone())
    }
    /// `x_t -> x_{t-1}`; `x` and `output` are `(b, c, h, w)`.
    fn step(&mut self, i: usize, x: &Tensor, output: &Tensor, noise: &mut Noise) -> Result<Tensor>;
}

type Build = fn(&Settings, &Request) -> anyhow::Result<Box<dyn Scheduler>>;
/// A key, and whether a run has it set to true by the class.
type Forced = (&'static str, fn(&Settings, &Request) -> bool);

/// What a sampler's file tells about it.
pub struct About {
    /// On the command line.
    name: &'static str,
    /// The class of diffusers that it is.
    class: &'static str,
    keys: &'static [Key],
    build: Build,
    /// A key and the value that the name stands for, whatever the file says.
    preset: Option<(&'static str, &'static str)>,
    /// `(key, word of another class, own word)`: the class reads the one as the other.
    aliases: &'static [(&'static str, &'static str, &'static str)],
    /// A key that the class sets to true by itself for some runs.
    forced: Option<Forced>,
    timesteps: bool,
    sigmas: bool,
    eta: bool,
    /// Adds noise as it goes, with the default keys.
    random: bool,
    /// Its timesteps are no training steps of the models here, so only a checkpoint made for it can name it.
    own_range: bool,
}

impl About {
    const fn new(
        name: &'static str,
        class: &'static str,
        keys: &'static [Key],
        build: Build,
    ) -> Self {
        Self {
            name,
            class,
            keys,
            build,
            preset: None,
            aliases: &[],
            forced: None,
            timesteps: false,
            sigmas: false,
            eta: false,
            random: false,
            own_range: false,
        }
    }
}

macro_rules! list {
    ($($kind:ident: $about:path,)*) => {
        /// The samplers by their names on the command line.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum SchedulerKind { $($kind),* }

        impl SchedulerKind {
            const ALL: &[Self] = &[$(Self::$kind),*];
            fn about(self) -> &'static About {
                match self { $(Self::$kind => &$about),* }
            }
        }
    };
}

list! {
    Ddpm: ddpm::ABOUT,
    Ddim: ddim::ABOUT,
    Pndm: pndm::ABOUT,
    Unipc: unipc::ABOUT,
    Euler: euler::ABOUT,
    EulerAncestral: euler_ancestral::ABOUT,
    Heun: heun::ABOUT,
    Lms: lms::ABOUT,
    Kdpm2: kdpm2::ABOUT,
    Kdpm2Ancestral: kdpm2_ancestral::ABOUT,
    Dpmpp2m: dpmpp_2m::ABOUT,
    Dpmpp2mSde: dpmpp_2m::SDE,
    Dpmpp2s: dpmpp_2s::ABOUT,
    DpmSde: dpm_sde::ABOUT,
    Deis: deis::ABOUT,
    SaSolver: sa_solver::ABOUT,
    Lcm: lcm::ABOUT,
    Tcd: tcd::ABOUT,
    Ipndm: ipndm::ABOUT,
    EdmEuler: edm_euler::ABOUT,
    EdmDpmpp2m: edm_dpmpp_2m::ABOUT,
}

impl ValueEnum for SchedulerKind {
    fn value_variants<'a>() -> &'a [Self] {
        Self::ALL
    }
    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(PossibleValue::new(self.name()))
    }
}

impl SchedulerKind {
    /// The name on the command line.
    pub fn name(self) -> &'static str {
        self.about().name
    }

    /// The class of diffusers that this is.
    pub fn class(self) -> &'static str {
        self.about().class
    }

    /// The keys that the class reads.
    pub fn keys(self) -> &'static [Key] {
        self.about().keys
    }

    pub fn key(self, name: &str) -> Option<Key> {
        self.keys().iter().copied().find(|key| key.0 == name)
    }

    /// Whether it takes a list of timesteps in place of a number of steps.
    pub fn takes_timesteps(self) -> bool {
        self.about().timesteps
    }

    /// Whether it takes a list of sigmas in place of a number of steps.
    pub fn takes_sigmas(self) -> bool {
        self.about().sigmas
    }

    pub fn takes_eta(self) -> bool {
        self.about().eta
    }

    /// Whether it adds noise as it goes, with the default keys.
    pub fn is_random(self) -> bool {
        self.about().random
    }

    /// Whether its timesteps lie off the training steps of other models, so that it cannot be swapped in.
    pub fn has_own_range(self) -> bool {
        self.about().own_range
    }

    /// The kind that implements a class of diffusers.
    pub fn of_class(class: &str) -> anyhow::Result<Self> {
        let found = Self::ALL.iter().copied().find(|kind| kind.class() == class);
        found.ok_or_else(|| {
            anyhow::anyhow!(
                "scheduler class \"{class}\" is not supported; supported: {}",
                Self::classes()
            )
        })
    }

    fn classes() -> String {
        let mut classes: Vec<_> = Self::ALL.iter().map(|kind| kind.class()).collect();
        classes.dedup();
        classes.join(", ")
    }

    /// The names of those for which `has` holds, for messages.
    pub fn names(has: impl Fn(Self) -> bool) -> String {
        let names: Vec<_> = Self::ALL
            .iter()
            .filter(|kind| has(**kind))
            .map(|kind| kind.name())
            .collect();
        names.join(", ")
    }

    /// The word that the class takes another class's `word` for; `word` itself where it has an own meaning.
    fn alias<'a>(self, key: &str, word: &'a str) -> &'a str {
        let own = self
            .about()
            .aliases
            .iter()
            .find(|(k, foreign, _)| *k == key && *foreign == word);
        own.map_or(word, |(_, _, own)| *own)
    }
}
