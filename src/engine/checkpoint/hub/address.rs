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
        let parts = path
            .splitn(5, '/')
            .map(|part| percent_decode_str(part).decode_utf8());
        let parts: Vec<_> = parts.collect::<Result<_, _>>().ok()?;
        let parts: Vec<&str> = parts.iter().map(AsRef::as_ref).collect();
        let (owner, name, revision, file) = match parts[..] {
            [owner, name] => (owner, name, "main", None),
            [owner, name, "tree", revision] => (owner, name, revision, None),
            [owner, name, "blob" | "resolve", revision, file] => {
                (owner, name, revision, Some(file))
            }
            _ => return None,
        };
        let id = format!("{owner}/{name}");
        is_id(&id).then(|| Self {
            id,
            revision: (revision != "main").then(|| revision.to_owned()),
            file: file.map(str::to_owned),
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
