//! A text in pieces that tokenize on their own.
//!
//! Llama 3 first splits a text into words with one regular expression and then looks at each word alone. None of the expression's
//! branches goes on over a space after a letter, a digit or a sign, and those that begin with a space do so wherever one follows such
//! a character. So a text may be cut there: the left piece ends as it would have, the right one begins as it would have. Nothing of the
//! expression looks further than that (`\s+(?!\S)` sees one character, behind spaces only). ASCII alone is cut at, which says for certain
//! what is a space and what is not.

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

/// The text in pieces, cut before every space that a word or a run of signs begins with.
#[must_use = "iterators do nothing until they are used"]
pub(crate) fn words(text: &str) -> impl Iterator<Item = &str> {
    let bytes = text.as_bytes();
    let begins = |at: &usize| {
        bytes[*at] == b' ' && bytes[at - 1].is_ascii_graphic() && bytes[at + 1].is_ascii_graphic()
    };
    let mut cuts = (1..bytes.len().saturating_sub(1)).filter(begins).chain([bytes.len()]);
    let mut start = 0;
    std::iter::from_fn(move || {
        let end = cuts.next()?;
        let word = &text[start..end];
        start = end;
        Some(word)
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_word_begins_with_the_space_before_it() {
        for (text, expected) in [
            ("one two, 3 (four) five", &["one", " two,", " 3", " (four)", " five"][..]),
            ("two  spaces\n and lines", &["two  spaces\n and", " lines"]),
            ("caf\u{e9} au lait ", &["caf\u{e9} au", " lait "]),
            (" ", &[" "]),
            ("", &[""]),
        ] {
            assert_eq!(words(text).collect::<Vec<_>>(), expected);
        }
    }

    #[test]
    fn a_tokenizer_that_splits_in_another_way_is_left_whole() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/tiny-llama/tokenizer.json");
        let plain: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
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
