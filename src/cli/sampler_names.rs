//! What other programs call the samplers, so that such a name is answered with what to type here.
use crate::engine::schedulers::SchedulerKind;
use clap::ValueEnum;
use clap::builder::{EnumValueParser, PossibleValue, TypedValueParser};
use clap::error::{ContextKind, ContextValue};
use std::ffi::OsStr;

/// Names, as [`letters`] leaves them, of AUTOMATIC1111's web UI, ComfyUI, InvokeAI and stable-diffusion.cpp that are neither ours nor those
/// of diffusers' classes.
const ELSEWHERE: &[(&str, SchedulerKind)] = &[
    ("dpm2", SchedulerKind::Kdpm2),
    ("dpm2a", SchedulerKind::Kdpm2Ancestral),
    ("dpm2ancestral", SchedulerKind::Kdpm2Ancestral),
    ("dpmpp", SchedulerKind::Dpmpp2m),
    ("dpmppsde", SchedulerKind::DpmSde),
    ("eulera", SchedulerKind::EulerAncestral),
    ("plms", SchedulerKind::Pndm),
    ("unipcbh2", SchedulerKind::Unipc),
];

/// What they write behind a name, and the key of diffusers that it stands for.
const SIGMAS: &[(&str, &str)] = &[
    ("karras", "use_karras_sigmas"),
    ("k", "use_karras_sigmas"),
    ("exponential", "use_exponential_sigmas"),
    ("beta", "use_beta_sigmas"),
];

/// The flags for what is called `name` elsewhere.
fn here(name: &str) -> Option<String> {
    let name = letters(name);
    if let Some(kind) = kind(&name) {
        return Some(format!("--scheduler {}", kind.name()));
    }
    SIGMAS.iter().find_map(|(end, key)| {
        let kind = kind(name.strip_suffix(end)?)?;
        kind.key(key)?;
        let name = kind.name();
        Some(format!("--scheduler {name} --scheduler-option {key}=true"))
    })
}

/// The sampler that is called so somewhere, there also with a `k` in front of it, for k-diffusion.
fn kind(name: &str) -> Option<SchedulerKind> {
    named(name).or_else(|| named(name.strip_prefix('k')?))
}

/// The sampler whose name or class has these letters, or which is called so elsewhere.
fn named(name: &str) -> Option<SchedulerKind> {
    let is_ours = |kind: &SchedulerKind| {
        let class = letters(kind.class());
        let short = class.strip_suffix("scheduler");
        letters(kind.name()) == name || class == name || short == Some(name)
    };
    let ours = SchedulerKind::value_variants().iter().copied();
    let elsewhere = ELSEWHERE.iter().filter(|(elsewhere, _)| *elsewhere == name);
    ours.filter(is_ours)
        .chain(elsewhere.map(|(_, kind)| *kind))
        .next()
}

/// Letters and figures in lower case, with `p` for `+`: spellings differ in the rest.
fn letters(name: &str) -> String {
    let plus = name.replace('+', "p").to_lowercase();
    plus.chars().filter(|c| c.is_alphanumeric()).collect()
}

/// The samplers' own names; one of another program is refused with ours.
#[derive(Clone, Default)]
pub struct SamplerParser(EnumValueParser<SchedulerKind>);

impl TypedValueParser for SamplerParser {
    type Value = SchedulerKind;

    fn parse_ref(
        &self,
        command: &clap::Command,
        arg: Option<&clap::Arg>,
        value: &OsStr,
    ) -> Result<SchedulerKind, clap::Error> {
        self.0.parse_ref(command, arg, value).map_err(|mut err| {
            if let Some(here) = value.to_str().and_then(here) {
                let tip = format!("here that is {here}").into();
                err.remove(ContextKind::SuggestedValue);
                err.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![tip]));
            }
            err
        })
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        self.0.possible_values()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_other_programs_are_answered_with_ours() {
        for (name, ours) in [
            ("euler_a", "euler-ancestral"),
            ("Euler a", "euler-ancestral"),
            ("k_euler_a", "euler-ancestral"),
            ("euler_ancestral", "euler-ancestral"),
            ("Heun", "heun"),
            ("k_lms", "lms"),
            ("DPM2 a", "kdpm2-ancestral"),
            ("kdpm_2_a", "kdpm2-ancestral"),
            ("dpm++2m", "dpmpp-2m"),
            ("dpmpp_2m_sde", "dpmpp-2m-sde"),
            ("DPM++ SDE", "dpm-sde"),
            ("PLMS", "pndm"),
            ("uni_pc", "unipc"),
            ("DPMSolverMultistepScheduler", "dpmpp-2m"),
            ("EulerDiscrete", "euler"),
            (
                "DPM++ 2M Karras",
                "dpmpp-2m --scheduler-option use_karras_sigmas=true",
            ),
            ("euler_k", "euler --scheduler-option use_karras_sigmas=true"),
            (
                "DPM++ 2M SDE Exponential",
                "dpmpp-2m-sde --scheduler-option use_exponential_sigmas=true",
            ),
        ] {
            assert_eq!(here(name), Some(format!("--scheduler {ours}")), "{name}");
        }
    }

    #[test]
    fn names_of_samplers_that_are_not_here_have_no_answer() {
        for name in [
            "",
            "k",
            "karras",
            "dpm_adaptive",
            "DPM++ 2S a",
            "ddim_karras",
            "restart",
        ] {
            assert_eq!(here(name), None, "{name}");
        }
    }

    #[test]
    fn every_name_elsewhere_is_spelled_as_it_is_looked_for() {
        for (name, _) in ELSEWHERE {
            assert_eq!(letters(name), *name);
            assert!(here(name).is_some());
        }
    }
}
