//! Tokenizers from a checkpoint's files: the ids are those of transformers.
use super::support::{checkpoint, fixtures, said};
use diffuse::engine::checkpoint::Checkpoint;
use diffuse::engine::models::tokenizer::{ClipTokenizer, Encoded, Overflow};
use std::path::Path;

/// A checkpoint whose tokenizer is a copy of a fixture.
fn tokenizer_of(fixture: &Path) -> (tempfile::TempDir, Checkpoint) {
    let (folder, checkpoint) = checkpoint(|_| ());
    let tokenizer = folder.path().join("tokenizer");
    std::fs::create_dir(&tokenizer).unwrap();
    for file in std::fs::read_dir(fixture).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), tokenizer.join(file.file_name())).unwrap();
    }
    (folder, checkpoint)
}

fn encode(tokenizer: &ClipTokenizer, prompt: &str, length: usize) -> Encoded {
    let pieces = [(prompt.to_owned(), 1.0)];
    tokenizer.encode(&pieces, length, Overflow::Cut).unwrap()
}

/// Compares with a file that `export_tokenizer.py` wrote.
fn ids_agree(fixture: &Path, cases: &serde_json::Value) {
    let (_folder, checkpoint) = tokenizer_of(fixture);
    let tokenizer = ClipTokenizer::load(&checkpoint, "tokenizer").unwrap();
    for case in cases.as_array().unwrap() {
        let prompt = case["prompt"].as_str().unwrap();
        let ids: Vec<u32> = serde_json::from_value(case["ids"].clone()).unwrap();
        assert_eq!(tokenizer.max_length(), Some(ids.len()));
        let ours = encode(&tokenizer, &tokenizer.expand(prompt).unwrap(), ids.len());
        assert_eq!(ours.chunks, [ids], "{}: {prompt:?}", fixture.display());
        assert_eq!(
            ours.tokens as u64,
            case["tokens"].as_u64().unwrap(),
            "{prompt:?}"
        );
        assert_eq!(ours.lost.as_deref(), case["lost"].as_str(), "{prompt:?}");
    }
}

#[test]
fn ids_are_those_of_transformers_by_either_kind_of_file() {
    let folder = fixtures().join("tokenizer");
    let expected = std::fs::read_to_string(folder.join("expected.json")).unwrap();
    let expected: serde_json::Value = serde_json::from_str(&expected).unwrap();
    let cases = expected["cases"].as_object().unwrap();
    assert_eq!(cases.len(), 7);
    for (name, cases) in cases {
        ids_agree(&folder.join(name), cases);
    }
}

#[test]
#[ignore = "needs a vocabulary that is not in the repository: set TOKENIZER_DIR and TOKENIZER_IDS (see export_tokenizer.py)"]
fn ids_are_those_of_transformers_on_another_vocabulary() {
    let folder = std::env::var("TOKENIZER_DIR").unwrap();
    let ids = std::fs::read_to_string(std::env::var("TOKENIZER_IDS").unwrap()).unwrap();
    let expected: serde_json::Value = serde_json::from_str(&ids).unwrap();
    ids_agree(Path::new(&folder), &expected["cases"]["other"]);
}

#[test]
fn a_vocabulary_without_its_special_tokens_is_refused() {
    let (folder, checkpoint) = tokenizer_of(&fixtures().join("tokenizer/end-two-files"));
    let tokenizer = folder.path().join("tokenizer");
    std::fs::write(
        tokenizer.join("tokenizer_config.json"),
        r#"{"eos_token": "<end>"}"#,
    )
    .unwrap();
    assert!(
        said(ClipTokenizer::load(&checkpoint, "tokenizer").map(|_| ()))
            .contains("\"<end>\", the eos_token")
    );
    std::fs::write(tokenizer.join("vocab.json"), r#"{"a": 0, "a</w>": -1}"#).unwrap();
    assert!(said(ClipTokenizer::load(&checkpoint, "tokenizer").map(|_| ())).contains("vocab.json"));
    std::fs::remove_file(tokenizer.join("vocab.json")).unwrap();
    assert!(
        said(ClipTokenizer::load(&checkpoint, "tokenizer").map(|_| ()))
            .contains("no tokenizer/vocab.json")
    );
}

#[test]
fn an_absurd_length_is_no_length() {
    let (folder, checkpoint) = tokenizer_of(&fixtures().join("tokenizer/end-two-files"));
    let config = r#"{"model_max_length": 1000000000000000019884624838656}"#;
    std::fs::write(
        folder.path().join("tokenizer/tokenizer_config.json"),
        config,
    )
    .unwrap();
    assert_eq!(
        ClipTokenizer::load(&checkpoint, "tokenizer")
            .unwrap()
            .max_length(),
        None
    );
}

#[test]
fn a_tokenizer_that_fills_or_cuts_at_the_left_is_refused() {
    let (folder, checkpoint) = tokenizer_of(&fixtures().join("tokenizer/end-one-file"));
    let tokenizer = folder.path().join("tokenizer");
    let config = tokenizer.join("tokenizer_config.json");
    for text in [
        r#"{"padding_side": "left"}"#,
        r#"{"truncation_side": "left"}"#,
        r#"{"split_special_tokens": true}"#,
    ] {
        std::fs::write(&config, text).unwrap();
        let said = said(ClipTokenizer::load(&checkpoint, "tokenizer").map(|_| ()));
        assert!(said.contains("is not supported (accepted: "), "{said}");
    }
    std::fs::write(&config, "{}").unwrap();
    let path = tokenizer.join("tokenizer.json");
    let text = std::fs::read_to_string(&path).unwrap();
    let mut file: serde_json::Value = serde_json::from_str(&text).unwrap();
    file["padding"] = serde_json::json!({"direction": "Left"});
    std::fs::write(&path, file.to_string()).unwrap();
    let said = said(ClipTokenizer::load(&checkpoint, "tokenizer").map(|_| ()));
    assert!(said.contains("padding.direction = Left"), "{said}");
}
