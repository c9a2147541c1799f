//! Requests to the hub: the list of a repository's files, what is known of one, and its bytes from any place on.
//!
//! Redirects are followed here and not by ureq, because a large file's size and hash stand in the redirect itself, and
//! because the token is for the hub alone and not for where it sends us.
use super::layout::is_commit;
use super::settings::Settings;
use crate::engine::checkpoint::json::one_line;
use hf_hub::{Repo, api::RepoInfo};
use std::time::Duration;
use ureq::http::{HeaderMap, Response, Uri};
use ureq::{Agent, Body};

/// A repository of many thousand files takes a megabyte or two.
const LIST_LIMIT: u64 = 32 << 20;
const MOST_REDIRECTS: usize = 8;

/// Why there is no answer that can be used.
#[derive(Debug)]
pub enum Failure {
    /// The hub says no: the status, the hub's own code and words for it, and how long it asks to wait.
    Refused {
        status: u16,
        code: String,
        message: String,
        wait: Option<Duration>,
    },
    /// No answer, or one that broke off.
    Broken(String),
    /// An answer that no hub gives.
    Strange(String),
}

impl Failure {
    /// Whether the same request may do better later.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Refused { status, .. } => matches!(status, 408 | 429 | 500 | 502 | 503 | 504),
            Self::Broken(_) => true,
            Self::Strange(_) => false,
        }
    }
}

impl From<ureq::Error> for Failure {
    fn from(err: ureq::Error) -> Self {
        Self::Broken(one_line(&err.to_string()))
    }
}

/// What the hub says of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct About {
    /// SHA-256 of what git LFS keeps, git's own hash of the rest. Fit for a file's name.
    pub etag: String,
    pub size: Option<u64>,
}

/// The names of a repository's files.
#[derive(Debug)]
pub struct List {
    pub commit: String,
    pub names: Vec<String>,
}

#[derive(Debug)]
pub struct Client {
    agent: Agent,
    endpoint: String,
    token: Option<String>,
}

impl Client {
    pub fn new(settings: &Settings) -> Self {
        // Proxies come from the environment, which is ureq's default.
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .accept_encoding("identity")
            .user_agent(concat!("diffuse/", env!("CARGO_PKG_VERSION")))
            .timeout_connect(Some(settings.silence))
            .timeout_per_read(Some(settings.silence))
            .build();
        Self {
            agent: config.into(),
            endpoint: settings.endpoint.clone(),
            token: settings.token.clone(),
        }
    }

    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    pub fn has_token(&self) -> bool {
        self.token.is_some()
    }

    /// The files of a repository at its revision.
    pub fn list(&self, repository: &Repo) -> Result<List, Failure> {
        let url = format!("{}/api/{}", self.endpoint, repository.api_url());
        let mut response = self.follow("GET", &url, 0)?;
        let bytes = response.body_mut().with_config().limit(LIST_LIMIT);
        let info: RepoInfo = serde_json::from_slice(&bytes.read_to_vec()?)
            .map_err(|_| Failure::Strange("sends no list of files".to_owned()))?;
        if !is_commit(&info.sha) {
            return Err(Failure::Strange("names no commit".to_owned()));
        }
        Ok(List {
            commit: info.sha,
            names: info.siblings.into_iter().map(|s| s.rfilename).collect(),
        })
    }

    /// What is known of a file, without its bytes.
    pub fn about(&self, repository: &Repo, name: &str) -> Result<About, Failure> {
        let response = self.follow("HEAD", &self.url(repository, name), 0)?;
        let headers = response.headers();
        let etag = text(headers, "x-linked-etag").or_else(|| text(headers, "etag"));
        let etag = etag.unwrap_or_default();
        let etag = etag.trim_start_matches("W/").trim_matches('"');
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if etag.is_empty() || etag.len() > 128 || etag.starts_with('.') || !etag.chars().all(plain)
        {
            return Err(Failure::Strange(format!("gives {name} no etag")));
        }
        if text(headers, "x-repo-commit").is_none_or(|commit| commit != repository.revision()) {
            return Err(Failure::Strange(format!("gives {name} no commit")));
        }
        // A redirect's own length is not the file's.
        let length = match response.status().is_redirection() {
            true => None,
            false => text(headers, "content-length"),
        };
        let size = text(headers, "x-linked-size").or(length);
        Ok(About {
            etag: etag.to_owned(),
            size: size.and_then(|size| size.parse().ok()),
        })
    }

    /// The bytes of a file from `start` on; the status tells whether the server heeded that.
    pub fn bytes(
        &self,
        repository: &Repo,
        name: &str,
        start: u64,
    ) -> Result<Response<Body>, Failure> {
        self.follow("GET", &self.url(repository, name), start)
    }

    fn url(&self, repository: &Repo, name: &str) -> String {
        let (id, revision) = (repository.url(), repository.url_revision());
        let name = escape(name);
        format!("{}/{id}/resolve/{revision}/{name}", self.endpoint)
    }

    /// The answer, at the end of all redirects; of a HEAD, at the end of those within the hub.
    fn follow(&self, method: &str, url: &str, start: u64) -> Result<Response<Body>, Failure> {
        let mut url = url.to_owned();
        for _ in 0..MOST_REDIRECTS {
            let response = self.send(method, &url, start)?;
            let status = response.status();
            let next = match text(response.headers(), "location") {
                Some(next) if status.is_redirection() => absolute(&url, next),
                _ if status.is_success() => return Ok(response),
                _ => return Err(refused(&response)),
            };
            if method == "HEAD" && origin(&next) != origin(&url) {
                return Ok(response);
            }
            url = next;
        }
        Err(Failure::Strange("redirects without end".to_owned()))
    }

    fn send(&self, method: &str, url: &str, start: u64) -> Result<Response<Body>, Failure> {
        let mut request = match method {
            "HEAD" => self.agent.head(url),
            _ => self.agent.get(url),
        };
        if let Some(token) = &self.token
            && origin(url) == origin(&self.endpoint)
        {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        if start > 0 {
            request = request.header("range", format!("bytes={start}-"));
        }
        Ok(request.call()?)
    }
}

fn refused(response: &Response<Body>) -> Failure {
    let headers = response.headers();
    let said = |name| one_line(text(headers, name).unwrap_or_default());
    let seconds = text(headers, "retry-after").and_then(|text| text.trim().parse().ok());
    Failure::Refused {
        status: response.status().as_u16(),
        code: said("x-error-code"),
        message: said("x-error-message"),
        wait: seconds.map(Duration::from_secs),
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// Scheme, host and port: to whom the token is known.
fn origin(url: &str) -> Option<(String, String)> {
    let url: Uri = url.parse().ok()?;
    Some((
        url.scheme_str()?.to_owned(),
        url.authority()?.as_str().to_owned(),
    ))
}

/// Where a redirect leads that may leave out scheme and host.
fn absolute(from: &str, to: &str) -> String {
    match (to.starts_with('/'), origin(from)) {
        (true, Some((scheme, authority))) => format!("{scheme}://{authority}{to}"),
        _ => to.to_owned(),
    }
}

/// A file's name as a part of an address.
fn escape(name: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.~/".contains(&b);
    name.bytes()
        .map(|b| match plain(b) {
            true => char::from(b).to_string(),
            false => format!("%{b:02X}"),
        })
        .collect()
}
