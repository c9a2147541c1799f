//! Addresses of huggingface.co's pages and files, as they are copied from a browser.
use super::is_id;
use percent_encoding::percent_decode_str;
use std::fmt;
use std::path::Path;

/// What an address leads to.
#[derive(Debug, PartialEq, Eq)]
pub struct Address {
    id: String,
    /// None for `main`.
    revision: Option<String>,
    pub file: Option<String>,
}

impl Address {
    /// `https://huggingface.co/owner/name`, with `/tree/REVISION`, `/blob/REVISION/FILE` or `/resolve/REVISION/FILE` behind it or not; the
    /// short name of the host and none of the scheme will do. None for any other text, and for a path that exists.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        let mut schemes = ["https://", "http://"].iter();
        let found = schemes.find_map(|scheme| text.strip_prefix(scheme));
        let (host, path) = found.unwrap_or(text).split_once('/')?;
        let is_hub = ["huggingface.co", "www.huggingface.co", "hf.co"].contains(&host);
        if !is_hub || Path::new(text).exists() {
            return None;
        }
        let path = path.split(['?', '#']).next()?.trim_end_matches('/');
        let parts: Vec<&str> = path.splitn(5, '/').collect();
        let (owner, name, more) = match parts[..] {
            [owner, name, ref more @ ..] => (owner, name, more),
            _ => return None,
        };
        let (revision, file) = match *more {
            [] => ("main", None),
            ["tree", revision] => (revision, None),
            ["blob" | "resolve", revision, file] => (revision, Some(file)),
            _ => return None,
        };
        let decoded = |part: &str| percent_decode_str(part).decode_utf8().ok().map(Into::into);
        let id = format!("{owner}/{name}");
        Some(Self {
            revision: match revision {
                "main" => None,
                revision => Some(decoded(revision)?),
            },
            file: match file {
                None => None,
                Some(file) => Some(decoded(file)?),
            },
            id: is_id(&id).then_some(id)?,
        })
    }
}

/// `owner/name[@REVISION][/FILE]`, as the command line takes it.
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.id)?;
        if let Some(revision) = &self.revision {
            write!(f, "@{revision}")?;
        }
        match &self.file {
            Some(file) => write!(f, "/{file}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Address;

    #[test]
    fn pages_and_files_become_ids() {
        let cases = [
            ("https://huggingface.co/o/n", "o/n"),
            ("https://huggingface.co/o/n/", "o/n"),
            (" http://hf.co/o/n\n", "o/n"),
            ("huggingface.co/o/n?library=diffusers", "o/n"),
            ("https://huggingface.co/o/n/tree/main", "o/n"),
            ("https://huggingface.co/o/n/tree/fp16", "o/n@fp16"),
            (
                "https://huggingface.co/o/n/tree/refs%2Fpr%2F1",
                "o/n@refs/pr/1",
            ),
            ("https://huggingface.co/o/n/blob/main/a.bin", "o/n/a.bin"),
            (
                "https://huggingface.co/o/n/resolve/v2/x/a%20b.safetensors?download=true",
                "o/n@v2/x/a b.safetensors",
            ),
        ];
        for (text, plain) in cases {
            let found = Address::parse(text).map(|address| address.to_string());
            assert_eq!(found.as_deref(), Some(plain), "{text}");
        }
    }

    #[test]
    fn other_texts_are_left() {
        let cases = [
            "o/n",
            "huggingface.co/o",
            "https://huggingface.co",
            "https://huggingface.co/datasets/o/n",
            "https://huggingface.co/o/n/discussions",
            "https://huggingface.co/o/n/tree/main/unet",
            "https://huggingface.co/o/n/blob/main",
            "https://huggingface.co/o/../n",
            "https://huggingface.co.evil/o/n",
            "https://huggingface.co/o/n/tree/%FF",
            "./huggingface.co/o/n",
        ];
        for text in cases {
            assert_eq!(Address::parse(text), None, "{text}");
        }
    }
}
