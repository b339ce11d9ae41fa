//! Tokenizer and detokenizer on the embedded model's real files, against the `tokenizers` library.
#![allow(clippy::unwrap_used, reason = "a test's helpers fail as its assertions do")]

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use openai::Tokenizer;
use openai::tokenizer::{EncodeError, LoadError};
use proptest::prelude::*;

const BEGIN: u32 = 8176;

static OURS: LazyLock<Tokenizer> = LazyLock::new(|| Tokenizer::load(&model_dir()).unwrap());
static LIBRARY: LazyLock<tokenizers::Tokenizer> =
    LazyLock::new(|| tokenizers::Tokenizer::from_file(model_dir().join("tokenizer.json")).unwrap());

fn model_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tiny-llama")
}

/// A copy of the model directory's small files, with one of them changed or left out.
struct Changed(PathBuf);

impl Changed {
    fn new(name: &str, file: &str, content: Option<&str>) -> Self {
        let dir = std::env::temp_dir().join(format!("kvferry-openai-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        for other in ["tokenizer.json", "tokenizer_config.json", "config.json"] {
            if other != file {
                std::fs::copy(model_dir().join(other), dir.join(other)).unwrap();
            } else if let Some(content) = content {
                std::fs::write(dir.join(other), content).unwrap();
            }
        }
        Self(dir)
    }
}

impl Drop for Changed {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).unwrap();
    }
}

fn incremental(ids: &[u32]) -> String {
    let mut detokenizer = OURS.detokenizer();
    let deltas: String = ids.iter().map(|&id| detokenizer.push(id)).collect();
    deltas + &detokenizer.finish()
}

#[test]
fn begin_of_text_comes_first_and_once() {
    let ids = OURS.encode("Once upon a time").unwrap();
    assert_eq!(ids[0], BEGIN);
    assert_ne!(ids[1], BEGIN);
    assert_eq!(OURS.encode("<|begin_of_text|>Once upon a time").unwrap(), ids);
    assert_eq!(OURS.encode("").unwrap(), [BEGIN]);
    assert_eq!(OURS.begin_of_text(), Some(BEGIN));
}

#[test]
fn ids_are_those_that_the_librarys_own_template_gives() {
    for text in ["Hello, world!", " leading", "tab\tand\nnewline", "naïve café 🦀", "1234567", "   "] {
        assert_eq!(OURS.encode(text).unwrap(), LIBRARY.encode(text, true).unwrap().get_ids(), "{text:?}");
    }
}

#[test]
fn a_text_that_is_shared_between_threads_gives_the_same_ids() {
    // Files of this repository, each long enough to be cut and with words, numbers, indents and tables.
    let dir = Path::new(env!("CARGO_MANIFEST_DIR"));
    for file in
        ["src/chat.rs", "tests/tokenizer.rs", "../README.md", "../docs/wire-protocol.md", "../Cargo.lock"]
    {
        let text = std::fs::read_to_string(dir.join(file)).unwrap();
        assert!(text.len() > 6000, "{file} is too short to be cut");
        assert_eq!(
            OURS.encode(&text).unwrap(),
            LIBRARY.encode(text.as_str(), true).unwrap().get_ids(),
            "{file}"
        );
    }
}

#[test]
fn special_tokens_give_no_text() {
    let mut ids = OURS.encode("one").unwrap();
    ids.push(8180);
    ids.extend(&OURS.encode(" two").unwrap()[1..]);
    assert_eq!(incremental(&ids), "one two");
}

#[test]
fn a_character_split_over_tokens_comes_whole() {
    let ids = OURS.encode("🦀").unwrap();
    assert!(ids.len() > 2, "the crab must be several tokens for this test: {ids:?}");
    let mut detokenizer = OURS.detokenizer();
    let deltas: Vec<String> = ids[1..].iter().map(|&id| detokenizer.push(id)).collect();
    let (last, before) = deltas.split_last().unwrap();
    assert!(before.iter().all(String::is_empty), "{deltas:?}");
    assert_eq!(last, "🦀");
    assert_eq!(detokenizer.finish(), "");
}

#[test]
fn an_unfinished_character_ends_as_one_replacement() {
    let ids = OURS.encode("🦀").unwrap();
    assert_eq!(incremental(&ids[..ids.len() - 1]), "\u{fffd}");
}

#[test]
fn ids_outside_the_vocabulary_give_no_text() {
    assert_eq!(incremental(&[8192, u32::MAX]), "");
}

#[test]
fn no_text_has_fewer_tokens_than_promised() {
    for text in
        ["<|begin_of_text|>", "<|reserved_special_token_0|>", "                    ", "internationally"]
    {
        assert!(OURS.min_tokens(text.len()) <= OURS.encode(text).unwrap().len(), "{text:?}");
    }
    assert!(OURS.min_tokens(1 << 20) > 1 << 10);
}

#[test]
fn tokens_beyond_the_models_vocabulary_are_refused_by_name() {
    let changed = Changed::new("vocab", "config.json", Some(r#"{"vocab_size": 8180}"#));
    let tokenizer = Tokenizer::load(&changed.0).unwrap();
    assert!(tokenizer.encode("plain").is_ok());
    let token = "<|eot_id|>".to_owned();
    let expected = EncodeError::OutOfVocabulary { token, id: 8180, vocab_size: 8180 };
    assert_eq!(tokenizer.encode("<|eot_id|>"), Err(expected));
}

#[test]
fn a_missing_file_is_named() {
    let changed = Changed::new("missing", "tokenizer_config.json", None);
    let error = Tokenizer::load(&changed.0).unwrap_err();
    assert!(
        matches!(&error, LoadError::Read { path, .. } if path.ends_with("tokenizer_config.json")),
        "{error}"
    );
}

#[test]
fn an_unknown_begin_of_text_is_named() {
    let changed = Changed::new("bos", "tokenizer_config.json", Some(r#"{"bos_token": {"content": "<s>"}}"#));
    let error = Tokenizer::load(&changed.0).unwrap_err().to_string();
    assert!(error.contains("<s>"), "{error}");
}

#[test]
fn begin_of_text_can_be_switched_off() {
    let config = r#"{"bos_token": "<|begin_of_text|>", "add_bos_token": false}"#;
    let changed = Changed::new("no-bos", "tokenizer_config.json", Some(config));
    let tokenizer = Tokenizer::load(&changed.0).unwrap();
    assert_eq!(tokenizer.encode("one").unwrap(), OURS.encode("one").unwrap()[1..]);
}

#[test]
fn a_tokenizer_of_another_kind_is_refused() {
    let text = std::fs::read_to_string(model_dir().join("tokenizer.json")).unwrap();
    let mut json: serde_json::Value = serde_json::from_str(&text).unwrap();
    json["decoder"] = serde_json::json!({"type": "ByteFallback"});
    let changed = Changed::new("decoder", "tokenizer.json", Some(&json.to_string()));
    let error = Tokenizer::load(&changed.0).unwrap_err().to_string();
    assert!(error.contains("ByteLevel"), "{error}");
}

proptest! {
    #[test]
    fn deltas_join_to_what_the_library_decodes_at_once(ids in prop::collection::vec(0u32..8192, 0..80)) {
        let whole = LIBRARY.decode(&ids, true).unwrap();
        prop_assert_eq!(incremental(&ids), &*whole);
        prop_assert_eq!(OURS.decode(&ids), whole);
    }

    #[test]
    fn text_comes_back(text in "(\\PC|[\n\t]){0,60}") {
        prop_assume!(!text.contains("<|"));
        prop_assert_eq!(OURS.decode(&OURS.encode(&text).unwrap()), text);
    }
}
