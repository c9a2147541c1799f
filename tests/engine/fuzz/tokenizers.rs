//! The files of tokenizers, and prompts: ids that are in the vocabulary, in rows of the right length, or an error.
use super::harness::{Edit, Model, edit, fuzz, sampling};
use diffuse::engine::models::tokenizer::{ClipTokenizer, Overflow};
use diffuse::engine::pipelines::txt2img::{Txt2ImgRequest, Txt2ImgSystem};
use diffuse::engine::pipelines::{Half, System};
use proptest::prelude::*;
use proptest::sample::Index;
use serde_json::Value;
use std::collections::BTreeMap;

const TEXTS: [&str; 20] = [
    "",
    " ",
    "a",
    "a b",
    "a</w>",
    "</w>",
    "a photo",
    "!",
    "<|startoftext|>",
    "<|endoftext|>",
    "<|endoftext|> ",
    "é",
    "Ġ",
    "\u{fffd}",
    "\n",
    "BPE",
    "Unigram",
    "left",
    "NFC",
    "cat</w> a",
];
const NAMES: [&str; 24] = [
    "model",
    "type",
    "vocab",
    "merges",
    "added_tokens",
    "post_processor",
    "cls",
    "sep",
    "content",
    "special",
    "lstrip",
    "normalized",
    "single_word",
    "bos_token",
    "eos_token",
    "pad_token",
    "unk_token",
    "added_tokens_decoder",
    "model_max_length",
    "a",
    "",
    "cat</w>",
    "!",
    "<|endoftext|>",
];

/// The corpus: a tokenizer of each kind, as the only component beside a UNet.
fn tokenizers() -> Vec<Model> {
    let kinds = [
        "end-one-file",
        "end-two-files",
        "exclamation-one-file",
        "exclamation-two-files",
        "object-map",
    ];
    let config = (
        "unet/config.json".to_owned(),
        br#"{"sample_size": 32}"#.to_vec(),
    );
    let model = |kind: &&str| {
        let files = Model::of(&format!("tests/fixtures/tokenizer/{kind}"));
        let files = files
            .names()
            .map(|name| (format!("tokenizer/{name}"), files.file(name).to_vec()));
        Model::new(files.chain([config.clone()]).collect())
    };
    kinds.iter().map(model).collect()
}

/// Loads the tokenizer and reads a few texts.
fn read(model: &Model, length: usize) -> anyhow::Result<&'static str> {
    let tokenizer = ClipTokenizer::load(&model.open()?, "tokenizer")?;
    let mut tokens = 0;
    for text in [
        "a photo of a cat, naïve 🐱!",
        "",
        "<|endoftext|> x <|startoftext|>",
        "CAT'S 3D  猫\u{301}\n",
        &"cat a".repeat(70),
    ] {
        for overflow in [Overflow::Cut, Overflow::Chunks] {
            let encoded = tokenizer.encode(&[(text.to_owned(), 1.5)], length, overflow)?;
            assert!(encoded.chunks.iter().all(|row| row.len() == length));
            tokens += encoded.tokens;
        }
    }
    Ok(if tokens > 10 {
        "texts read"
    } else {
        "empty texts read"
    })
}

#[test]
fn no_tokenizer_panics() {
    let models = tokenizers();
    let edits = prop::collection::vec((any::<Index>(), edit(&TEXTS, &NAMES)), 1..5);
    let inputs = (0..models.len(), edits, 2..90usize);
    fuzz(48, inputs, "texts read", |(model, edits, length)| {
        let model = &models[*model];
        model.mend();
        let files: Vec<&str> = model
            .names()
            .filter(|name| name.starts_with("tokenizer/") && name.ends_with(".json"))
            .collect();
        let mut spoiled = BTreeMap::<&str, Value>::new();
        for (at, edit) in edits {
            let name = files[at.index(files.len())];
            let whole = || serde_json::from_slice(model.file(name)).unwrap();
            Edit::apply(edit, spoiled.entry(name).or_insert_with(whole));
        }
        for (name, file) in spoiled {
            model.spoil(name, file.to_string());
        }
        read(model, *length)
    });
}

#[test]
fn no_damage_to_a_tokenizers_files_panics() {
    let models = tokenizers();
    let byte = prop_oneof![2 => prop::sample::select(b" \n{}[]\",:01ae\\\xc4\xff".to_vec()), 1 => any::<u8>()];
    let edits = prop::collection::vec((any::<Index>(), byte), 1..4);
    let inputs = (0..models.len(), any::<Index>(), edits);
    fuzz(48, inputs, "texts read", |(model, name, edits)| {
        let model = &models[*model];
        model.mend();
        let files: Vec<&str> = model
            .names()
            .filter(|name| name.starts_with("tokenizer/"))
            .collect();
        let name = files[name.index(files.len())];
        let mut bytes = model.file(name).to_vec();
        for (at, byte) in edits {
            let at = at.index(bytes.len());
            bytes[at] = *byte;
        }
        model.spoil(name, bytes);
        read(model, 77)
    });
}

/// Texts with what a prompt's readers look for.
fn prompt() -> impl Strategy<Value = String> {
    let words = [
        "a cat",
        "(",
        ")",
        "[",
        "]",
        ":",
        ":1.5)",
        ":1e9)",
        ":-0)",
        ":999999999999999999999999999999999999999999)",
        "\\",
        "\\(",
        "<|endoftext|>",
        "<|startoftext|>",
        "'s",
        "!",
        "</w>",
        "\0",
        "\u{feff}",
        "\u{202e}",
        "e\u{301}",
        "ﷺ",
        "🏳️‍🌈",
        "\u{10ffff}",
        "  ",
        "\n",
        "İ",
        "ß",
        "0123456789",
        "AND",
        "{a|b}",
    ];
    prop_oneof![
        1 => any::<String>(),
        3 => prop::collection::vec(prop::sample::select(words.to_vec()), 0..60).prop_map(|words| words.concat()),
        1 => (any::<String>(), 1..40usize).prop_map(|(text, times)| text.repeat(times)),
    ]
}

#[test]
fn any_prompt_gives_rows_of_77_known_ids() {
    let model = Model::of("assets/tiny-sd");
    let checkpoint = model.open().unwrap();
    let system = Txt2ImgSystem::read(&checkpoint).unwrap();
    let vocabulary = ClipTokenizer::load(&checkpoint, "tokenizer")
        .unwrap()
        .vocabulary() as u32;
    let inputs = (prompt(), prompt(), any::<bool>(), any::<bool>());
    fuzz(
        256,
        inputs,
        "planned with weights",
        |(prompt, negative, long, weights)| {
            let plan = system.plan(&Txt2ImgRequest {
                prompt: prompt.clone(),
                negative_prompt: Some(negative.clone()),
                long_prompt: *long,
                prompt_weights: *weights,
                sampling: sampling(),
                ..Txt2ImgRequest::default()
            })?;
            let text = plan.text.unwrap();
            let mut weighted = false;
            assert_eq!(text.halves.len(), 2);
            for half in &text.halves {
                let Half::Words { towers, .. } = half else {
                    panic!("{half:?}")
                };
                for tokens in towers {
                    assert!(tokens.chunks.iter().all(|row| row.len() == 77));
                    assert!(tokens.chunks.iter().flatten().all(|&id| id < vocabulary));
                    assert!(*long || tokens.chunks.len() == 1);
                    assert_eq!(tokens.chunks.len() * 77, text.tokens);
                    weighted |= !tokens.weights.is_empty();
                }
            }
            Ok(match (weighted, text.lost.is_empty()) {
                (true, _) => "planned with weights",
                (false, true) => "planned",
                (false, false) => "planned and cut",
            })
        },
    );
}

#[test]
fn any_text_gives_as_many_ids_as_were_asked_for() {
    let model = &tokenizers()[2];
    let tokenizer = ClipTokenizer::load(&model.open().unwrap(), "tokenizer").unwrap();
    fuzz(256, (prompt(), 2..100usize), "cut", |(prompt, length)| {
        let encoded = tokenizer.encode(&[(prompt.clone(), 1.0)], *length, Overflow::Cut)?;
        assert_eq!(encoded.chunks.len(), 1);
        assert_eq!(encoded.chunks[0].len(), *length);
        let known = |id: &u32| (*id as usize) < tokenizer.vocabulary();
        assert!(encoded.chunks[0].iter().all(known));
        assert_eq!(encoded.lost.is_some(), encoded.tokens > *length);
        Ok(if encoded.lost.is_some() {
            "cut"
        } else {
            "whole"
        })
    });
}
