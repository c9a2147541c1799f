//! CLIP's byte-pair encoding from the checkpoint's own files, to exactly as many ids as the text encoder takes.
//!
//! The reference builds the same tokenizer around any vocabulary: of `tokenizer.json` it takes the vocabulary, the
//! merges and the added tokens. The names of the special tokens come from `tokenizer_config.json` and
//! `special_tokens_map.json`, more added tokens from `added_tokens.json`.
use super::config::refuse_unsupported;
use crate::engine::checkpoint::{Checkpoint, Place, json};
use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, HashSet};
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::{self, Lowercase, NFC, Replace, replace::ReplacePattern};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, SplitDelimiterBehavior, Tokenizer};

/// What CLIP splits a text into before merging bytes: contractions, words, single digits, the rest.
const WORDS: &str =
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";
const BOS: &str = "<|startoftext|>";
const EOS: &str = "<|endoftext|>";
/// The special tokens that CLIP names, and its names.
const NAMED: [(&str, &str); 4] = [
    ("bos_token", BOS),
    ("eos_token", EOS),
    ("unk_token", EOS),
    ("pad_token", EOS),
];
const END_OF_WORD: &str = "</w>";
/// CLIP's own vocabulary takes 4 MB.
const FILE_LIMIT: u64 = 8 << 20;

/// A text as ids.
#[derive(Clone, Debug, PartialEq)]
pub struct Encoded {
    /// Rows of exactly as many ids as were asked for; one row unless the text was to be read in chunks.
    pub chunks: Vec<Vec<u32>>,
    /// A weight for each id, in rows as `chunks`; empty where all are 1.
    pub weights: Vec<Vec<f32>>,
    /// How many ids the whole text has, with the two around it.
    pub tokens: usize,
    /// The end of the text, where it did not fit.
    pub lost: Option<String>,
}

/// What becomes of a text that is longer than a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overflow {
    /// It is cut.
    Cut,
    /// It goes on in the next row.
    Chunks,
}

/// Text to ids.
pub struct ClipTokenizer {
    tokenizer: Tokenizer,
    bos: u32,
    eos: u32,
    pad: u32,
    max_length: Option<usize>,
    /// Added tokens that stand for several.
    several: Vec<Several>,
}

/// An added token, and the text with which all that it stands for is meant.
struct Several {
    id: u32,
    name: String,
    all: String,
}

impl ClipTokenizer {
    /// Reads the tokenizer of a checkpoint.
    pub fn load(checkpoint: &Checkpoint, component: &str) -> Result<Self> {
        let settings = Settings::read(checkpoint, component)?;
        let (bpe, added) = match checkpoint.file(component, "tokenizer.json")? {
            Some(path) => from_tokenizer_json(&path, settings.text("unk_token", EOS))
                .with_context(|| path.display().into_owned())?,
            None => {
                let need = |name: &str| {
                    checkpoint.file(component, name)?.with_context(|| {
                        format!(
                            "{} has no {component}/tokenizer.json and no {component}/{name}",
                            checkpoint.name()
                        )
                    })
                };
                let (vocab, merges) = (need("vocab.json")?, need("merges.txt")?);
                let bpe = from_two_files(&vocab, &merges, settings.text("unk_token", EOS))
                    .with_context(|| format!("{} and merges.txt beside it", vocab.display()))?;
                (bpe, Vec::new())
            }
        };
        Self::build(bpe, &added, &settings)
            .with_context(|| format!("{}/{component}", checkpoint.name()))
    }

    fn build(bpe: BPE, added: &[Value], settings: &Settings) -> Result<Self> {
        let mut tokenizer = Tokenizer::new(bpe);
        let spaces = Replace::new(ReplacePattern::Regex(r"\s+".into()), " ").map_err(plain)?;
        tokenizer
            .with_normalizer(Some(normalizers::Sequence::new(vec![
                NFC.into(),
                spaces.into(),
                Lowercase.into(),
            ])))
            .map_err(plain)?;
        let words = Split::new(
            SplitPattern::Regex(WORDS.into()),
            SplitDelimiterBehavior::Removed,
            true,
        )
        .map_err(plain)?;
        tokenizer.with_pre_tokenizer(Some(Sequence::new(vec![
            words.into(),
            ByteLevel::default().add_prefix_space(false).into(),
        ])));
        tokenizer.with_decoder(Some(ByteLevel::default()));
        let mut special = settings.special_tokens();
        let listed = settings.added_tokens(added, &special)?;
        let names: Vec<String> = listed.iter().map(|token| token.content.clone()).collect();
        tokenizer.add_tokens(listed).map_err(plain)?;
        for (key, default) in NAMED {
            let name = settings.text(key, default);
            // What pads may be a token more, of which the text encoder then has to know.
            if tokenizer.token_to_id(name).is_none() && key != "pad_token" {
                bail!("the vocabulary lacks {:?}, the {key}", json::one_line(name));
            }
        }
        // A special token is found in the text before anything else, so `!` that pads is never part of a word.
        special.retain(|token| !names.contains(&token.content));
        tokenizer.add_tokens(special).map_err(plain)?;
        let id = |key, default| {
            tokenizer
                .token_to_id(settings.text(key, default))
                .with_context(|| format!("no {key}"))
        };
        let (bos, eos, pad) = (
            id("bos_token", BOS)?,
            id("eos_token", EOS)?,
            id("pad_token", EOS)?,
        );
        Ok(Self {
            bos,
            eos,
            pad,
            max_length: settings.max_length(),
            several: several(&tokenizer),
            tokenizer,
        })
    }

    /// A text with what it has of tokens that stand for several (textual inversion with more than one vector) written out.
    pub fn expand(&self, text: &str) -> Result<String> {
        let mut text = text.to_owned();
        if !self.several.is_empty() {
            let found = self
                .tokenizer
                .encode_fast(text.as_str(), false)
                .map_err(plain)?;
            for Several { id, name, all } in &self.several {
                if found.get_ids().contains(id) {
                    text = text.replace(name, all);
                }
            }
        }
        Ok(text)
    }

    /// The length the tokenizer's files state; `None` where they state none (1e30 stands for none).
    pub fn max_length(&self) -> Option<usize> {
        self.max_length
    }

    /// One more than the largest id.
    pub fn vocabulary(&self) -> usize {
        let ids = self.tokenizer.get_vocab(true).into_values();
        ids.max().map_or(0, |id| id as usize + 1)
    }

    /// The ids of a text, given in pieces with a weight each: `length - 2` to a row, between the two that mark a text's ends, then padding.
    pub fn encode(
        &self,
        pieces: &[(String, f32)],
        length: usize,
        overflow: Overflow,
    ) -> Result<Encoded> {
        let least = match overflow {
            Overflow::Cut => 2,
            Overflow::Chunks => 3,
        };
        if length < least {
            bail!("a text encoder of {length} positions has no room for a text");
        }
        let (mut all, mut weights) = (Vec::new(), Vec::new());
        for (piece, weight) in pieces {
            let piece = self
                .tokenizer
                .encode_fast(piece.as_str(), false)
                .map_err(plain)?;
            all.extend_from_slice(piece.get_ids());
            weights.resize(all.len(), *weight);
        }
        let room = length - 2;
        let (kept, rest) = match overflow {
            Overflow::Cut => all.split_at(all.len().min(room)),
            Overflow::Chunks => (all.as_slice(), &[][..]),
        };
        weights.truncate(kept.len());
        let mut chunks: Vec<Vec<u32>> = kept
            .chunks(room.max(1))
            .map(|ids| row(ids, length, (self.bos, self.eos, self.pad)))
            .collect();
        if chunks.is_empty() {
            chunks.push(self.empty(length));
        }
        let plain = weights.iter().all(|&weight| weight == 1.0);
        let weights = match plain {
            true => Vec::new(),
            false => weights
                .chunks(room.max(1))
                .map(|weights| row(weights, length, (1.0, 1.0, 1.0)))
                .collect(),
        };
        Ok(Encoded {
            chunks,
            weights,
            tokens: all.len() + 2,
            lost: (!rest.is_empty()).then(|| self.decode(rest)).transpose()?,
        })
    }

    /// The row of the empty text.
    pub fn empty(&self, length: usize) -> Vec<u32> {
        row(&[], length, (self.bos, self.eos, self.pad))
    }

    fn decode(&self, ids: &[u32]) -> Result<String> {
        let text = self.tokenizer.decode(ids, false).map_err(plain)?;
        Ok(text.replace(END_OF_WORD, " ").trim().to_string())
    }
}

/// Tokens `T` with `T_1`, `T_2`, ... beside them, as diffusers names the vectors of one word.
fn several(tokenizer: &Tokenizer) -> Vec<Several> {
    let added = tokenizer.get_added_tokens_decoder();
    let names: HashSet<&str> = added.values().map(|token| &*token.content).collect();
    let is_added = |name: &str| names.contains(name);
    let written_out = added.iter().filter_map(|(id, token)| {
        let name = &token.content;
        let more = (1..).map(|k| format!("{name}_{k}"));
        let more: Vec<String> = more.take_while(|next| is_added(next)).collect();
        (!more.is_empty()).then(|| Several {
            id: *id,
            name: name.clone(),
            all: format!("{name} {}", more.join(" ")),
        })
    });
    let mut several: Vec<_> = written_out.collect();
    several.sort_by(|a, b| a.name.cmp(&b.name));
    several
}

/// `inner` between `first` and `last`, then `pad` up to `length`.
fn row<T: Copy>(inner: &[T], length: usize, (first, last, pad): (T, T, T)) -> Vec<T> {
    let mut row = Vec::with_capacity(length);
    row.push(first);
    row.extend_from_slice(inner);
    row.push(last);
    row.resize(length, pad);
    row
}

/// The small files beside the vocabulary.
struct Settings {
    config: Map<String, Value>,
    added: Map<String, Value>,
}

impl Settings {
    fn read(checkpoint: &Checkpoint, component: &str) -> Result<Self> {
        let optional = |name: &str| -> Result<Map<String, Value>> {
            match checkpoint.file(component, name)? {
                Some(path) => json::read_object(&path, json::CONFIG_LIMIT),
                None => Ok(Map::new()),
            }
        };
        let mut config = optional("tokenizer_config.json")?;
        let mut added = Map::new();
        // As the reference: files that list their added tokens have said it all.
        if !config.contains_key("added_tokens_decoder") {
            config.extend(optional("special_tokens_map.json")?);
            added = optional("added_tokens.json")?;
        }
        let right = [Value::from("right")];
        let unsupported: [(&str, &[Value]); 3] = [
            ("padding_side", &right),
            ("truncation_side", &right),
            ("split_special_tokens", &[Value::Bool(false)]),
        ];
        refuse_unsupported(&config, &unsupported)
            .with_context(|| format!("{component}/tokenizer_config.json"))?;
        Ok(Self { config, added })
    }

    /// A token's text, which stands alone or in an object.
    fn text<'a>(&'a self, key: &str, default: &'a str) -> &'a str {
        self.config.get(key).and_then(content).unwrap_or(default)
    }

    /// The special tokens: those of CLIP, any other key that ends in `_token`, and the lists of more.
    fn special_tokens(&self) -> Vec<AddedToken> {
        let known = NAMED.map(|(key, default)| (key, self.text(key, default)));
        let mut tokens: Vec<_> = known
            .into_iter()
            .map(|(key, name)| named(self.config.get(key).unwrap_or(&Value::Null), name))
            .collect();
        let is_other =
            |key: &str| key.ends_with("_token") && NAMED.iter().all(|(known, _)| *known != key);
        let others = self.config.iter().filter(|(key, _)| is_other(key));
        let lists = ["additional_special_tokens", "extra_special_tokens"];
        let lists = lists.iter().filter_map(|key| self.config.get(*key));
        let listed = lists.flat_map(|list| match list {
            Value::Array(list) => list.iter().collect(),
            Value::Object(list) => list.values().collect(),
            _ => Vec::new(),
        });
        for value in others.map(|(_, value)| value).chain(listed) {
            if let Some(name) = content(value)
                && tokens.iter().all(|token| token.content != name)
            {
                tokens.push(named(value, name));
            }
        }
        tokens
    }

    /// The tokens that the files add to the vocabulary, in the order of their ids, which is the one that the next free ids go by.
    fn added_tokens(
        &self,
        of_tokenizer_json: &[Value],
        special: &[AddedToken],
    ) -> Result<Vec<AddedToken>> {
        let mut tokens = BTreeMap::new();
        let mut add = |id: Option<u64>, value: &Value| {
            let fields = value
                .as_object()
                .context("an added token is not an object")?;
            let name = content(value).context("an added token has no content")?;
            let id = id
                .with_context(|| format!("the added token {:?} has no id", json::one_line(name)))?;
            tokens.insert(id, token(fields, name, false));
            anyhow::Ok(())
        };
        if let Some(listed) = self
            .config
            .get("added_tokens_decoder")
            .and_then(Value::as_object)
        {
            for (id, value) in listed {
                add(id.parse().ok(), value)?;
            }
        } else {
            for (name, id) in &self.added {
                let is_special = special.iter().any(|token| token.content == *name);
                add(
                    id.as_u64(),
                    &json!({"content": name, "normalized": !is_special}),
                )?;
            }
            for value in of_tokenizer_json {
                add(value.get("id").and_then(Value::as_u64), value)?;
            }
        }
        Ok(tokens.into_values().collect())
    }

    fn max_length(&self) -> Option<usize> {
        let keys = ["model_max_length", "max_len"];
        let length = keys
            .iter()
            .find_map(|key| self.config.get(*key)?.as_f64())?;
        (2.0..=1e6).contains(&length).then_some(length as usize)
    }
}

/// A token's text, which stands alone or in an object.
fn content(value: &Value) -> Option<&str> {
    value.as_str().or_else(|| value.get("content")?.as_str())
}

/// A special token of this name.
fn named(value: &Value, name: &str) -> AddedToken {
    match value {
        Value::Object(fields) => token(fields, name, true),
        _ => AddedToken::from(name, true),
    }
}

fn token(fields: &Map<String, Value>, name: &str, special: bool) -> AddedToken {
    let flag = |key: &str, default| fields.get(key).and_then(Value::as_bool).unwrap_or(default);
    let special = flag("special", special);
    AddedToken::from(name, special)
        .single_word(flag("single_word", false))
        .lstrip(flag("lstrip", false))
        .rstrip(flag("rstrip", false))
        .normalized(flag("normalized", !special))
}

fn bpe(vocab: Vocab, merges: Vec<(String, String)>, unk: &str) -> Result<BPE> {
    BPE::builder()
        .vocab_and_merges(vocab, merges)
        .continuing_subword_prefix(String::new())
        .end_of_word_suffix(END_OF_WORD.into())
        .unk_token(unk.into())
        .build()
        .map_err(plain)
}

fn vocabulary(map: &Map<String, Value>) -> Result<Vocab> {
    let id = |(name, id): (&String, &Value)| {
        let id = id.as_u64().and_then(|id| u32::try_from(id).ok());
        let id = id.filter(|&id| id < u32::MAX / 2);
        Ok((
            name.clone(),
            id.with_context(|| format!("the id of {:?} is not a number", json::one_line(name)))?,
        ))
    };
    map.iter().map(id).collect()
}

/// The model, and the tokens that the file adds.
fn from_tokenizer_json(place: &Place, unk: &str) -> Result<(BPE, Vec<Value>)> {
    let root = json::read_object(place, FILE_LIMIT)?;
    let model = root
        .get("model")
        .and_then(Value::as_object)
        .context("has no model")?;
    if model
        .get("type")
        .and_then(Value::as_str)
        .is_some_and(|kind| kind != "BPE")
    {
        bail!("its model is not BPE, which is CLIP's");
    }
    let vocab = vocabulary(
        model
            .get("vocab")
            .and_then(Value::as_object)
            .context("has no vocab")?,
    )?;
    let merge = |value: &Value| {
        let pair = match value {
            Value::String(text) => text.split_once(' '),
            Value::Array(two) => match two.as_slice() {
                [Value::String(a), Value::String(b)] => Some((a.as_str(), b.as_str())),
                _ => None,
            },
            _ => None,
        };
        let (a, b) = pair.context("a merge is not a pair of tokens")?;
        Ok((a.to_string(), b.to_string()))
    };
    let merges = model
        .get("merges")
        .and_then(Value::as_array)
        .context("has no merges")?;
    let merges = merges.iter().map(merge).collect::<Result<_>>()?;
    for key in ["padding", "truncation"] {
        let direction = root.get(key).and_then(|way| way.get("direction")?.as_str());
        ensure!(
            direction.is_none_or(|direction| direction == "Right"),
            "{key}.direction = {} is not supported (accepted: Right)",
            json::one_line(direction.unwrap_or_default())
        );
    }
    let added = root
        .get("added_tokens")
        .and_then(Value::as_array)
        .cloned()
        .unwrap_or_default();
    Ok((bpe(vocab, merges, unk)?, added))
}

fn from_two_files(vocab: &Place, merges: &Place, unk: &str) -> Result<BPE> {
    let vocab = vocabulary(&json::read_object(vocab, FILE_LIMIT)?)?;
    let text = String::from_utf8(json::read_bounded(merges, FILE_LIMIT)?)
        .context("merges.txt is not UTF-8")?;
    let mut pairs = Vec::new();
    for line in text.lines().filter(|line| !line.starts_with("#version")) {
        let pair = line.split_once(' ').filter(|(_, b)| !b.contains(' '));
        let (a, b) = pair.with_context(|| {
            format!(
                "merges.txt: {:?} is not a pair of tokens",
                json::one_line(line)
            )
        })?;
        pairs.push((a.to_string(), b.to_string()));
    }
    bpe(vocab, pairs, unk)
}

fn plain(err: Box<dyn std::error::Error + Send + Sync>) -> anyhow::Error {
    anyhow!("{}", json::one_line(&err.to_string()))
}
