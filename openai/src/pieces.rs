//! A long text in pieces that tokenize on their own, so that several cores can share the work.
//!
//! Llama 3 first splits a text into words with one regular expression and then looks at each word alone. No word has a
//! space behind a letter, so between an ASCII letter and a space every text may be cut; the right piece then begins as a
//! word does, with the space. Nothing of the expression looks further than that (`\s+(?!\S)` sees one character, and the
//! left piece ends with a letter).

use serde_json::Value;

/// The expression of Llama 3's `tokenizer.json`, for which the above holds.
const LLAMA_3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Whether texts may be cut for a tokenizer, given its `tokenizer.json`: it splits as Llama 3 does, changes nothing
/// before that, and no token of its own reaches over a space.
pub(crate) fn may_cut(tokenizer: &Value) -> bool {
    let steps = match &tokenizer["pre_tokenizer"] {
        sequence if sequence["type"] == "Sequence" => sequence["pretokenizers"].as_array(),
        _ => None,
    };
    let [split, bytes] = steps.map_or(&[][..], Vec::as_slice) else { return false };
    let splits_words = split["type"] == "Split"
        && split["pattern"]["Regex"] == LLAMA_3
        && split["behavior"] == "Isolated"
        && split["invert"] == false;
    let adds_nothing =
        bytes["type"] == "ByteLevel" && bytes["add_prefix_space"] == false && bytes["use_regex"] == false;
    let added = tokenizer["added_tokens"].as_array();
    let stays_within_words = |token: &Value| {
        let plain = ["single_word", "lstrip", "rstrip"].iter().all(|flag| token[*flag] == false);
        plain && token["content"].as_str().is_some_and(|content| !content.contains(char::is_whitespace))
    };
    tokenizer["normalizer"].is_null()
        && tokenizer["truncation"].is_null()
        && tokenizer["padding"].is_null()
        && splits_words
        && adds_nothing
        && added.is_none_or(|added| added.iter().all(stays_within_words))
}

/// The text in pieces of at least `least` bytes, but for the last, cut where that changes nothing.
pub(crate) fn cut(mut text: &str, least: usize) -> Vec<&str> {
    let mut pieces = Vec::with_capacity(text.len() / least.max(1) + 1);
    while let Some(at) = first_cut(text.as_bytes(), least.max(1)) {
        let (piece, rest) = text.split_at(at);
        pieces.push(piece);
        text = rest;
    }
    pieces.push(text);
    pieces
}

/// The first place at or behind `least` where the text may be cut, before its last `least` bytes.
fn first_cut(text: &[u8], least: usize) -> Option<usize> {
    let last = text.len().checked_sub(least)?;
    (least..last).find(|&at| {
        text[at - 1].is_ascii_alphabetic() && text[at] == b' ' && text[at + 1].is_ascii_alphabetic()
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;
    use std::sync::LazyLock;

    use super::*;

    fn path() -> std::path::PathBuf {
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tiny-llama/tokenizer.json")
    }

    static LIBRARY: LazyLock<tokenizers::Tokenizer> =
        LazyLock::new(|| tokenizers::Tokenizer::from_file(path()).unwrap());

    fn ids(text: &str) -> Vec<u32> {
        LIBRARY.encode_fast(text, false).unwrap().get_ids().to_vec()
    }

    proptest! {
        #[test]
        fn pieces_have_the_ids_of_the_whole(text in "(\\PC|[a-z ',.0-9\n\t]{1,8}|<\\|eot_id\\|>| é| [a-z]'s ){0,40}", least in 1usize..20) {
            let pieces = cut(&text, least);
            prop_assert_eq!(pieces.concat(), text.clone());
            prop_assert_eq!(pieces.into_iter().flat_map(ids).collect::<Vec<_>>(), ids(&text));
        }
    }

    #[test]
    fn cuts_lie_between_a_letter_and_a_space() {
        assert_eq!(cut("one two three four five six", 5), ["one two", " three", " four", " five six"]);
        assert_eq!(cut("1 2 3 4 5 6 7 8", 2), ["1 2 3 4 5 6 7 8"]);
        assert_eq!(cut("", 4), [""]);
    }

    #[test]
    fn a_tokenizer_that_splits_in_another_way_is_left_whole() {
        let plain: Value = serde_json::from_slice(&std::fs::read(path()).unwrap()).unwrap();
        assert!(may_cut(&plain));
        let changes: [(&str, Value); 5] = [
            ("/normalizer", json!({"type": "NFC"})),
            ("/pre_tokenizer/pretokenizers/0/pattern/Regex", json!(r"\w+|\W+")),
            ("/pre_tokenizer/pretokenizers/1/add_prefix_space", json!(true)),
            ("/added_tokens/0/rstrip", json!(true)),
            ("/added_tokens/0/content", json!("New York")),
        ];
        for (pointer, value) in changes {
            let mut changed = plain.clone();
            *changed.pointer_mut(pointer).unwrap() = value;
            assert!(!may_cut(&changed), "{pointer}");
        }
    }
}
