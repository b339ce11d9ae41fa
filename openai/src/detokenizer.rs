//! Token ids to text, one token at a time. A token is a string of bytes and may end inside a character; those bytes
//! wait for the next token, so that no half character is ever handed out.

use std::collections::HashMap;
use std::sync::Arc;

/// What each token writes: bytes by id.
#[derive(Debug)]
pub(crate) struct TokenBytes {
    /// Bytes of all tokens, one after another.
    bytes: Vec<u8>,
    /// Token `id` is `bytes[ends[id - 1]..ends[id]]`; empty for special tokens and unused ids.
    ends: Vec<usize>,
    longest: usize,
}

impl TokenBytes {
    /// The table of a byte-level tokenizer.
    pub(crate) fn of(tokenizer: &tokenizers::Tokenizer) -> Self {
        let added = tokenizer.get_added_tokens_decoder();
        let mut names: Vec<Option<String>> = Vec::new();
        for (name, id) in tokenizer.get_vocab(true) {
            let index = id as usize;
            if names.len() <= index {
                names.resize(index + 1, None);
            }
            names[index] = Some(name).filter(|_| !added.get(&id).is_some_and(|token| token.special));
        }
        let byte_of = byte_alphabet();
        let mut table = Self { bytes: Vec::new(), ends: Vec::with_capacity(names.len()), longest: 0 };
        for name in names {
            let before = table.bytes.len();
            table.bytes.extend(bytes_of(name.as_deref().unwrap_or_default(), &byte_of));
            table.ends.push(table.bytes.len());
            table.longest = table.longest.max(table.bytes.len() - before);
        }
        // A special token is written by its name, so a text of that name alone is one token.
        let special = added.values().map(|token| token.content.len());
        table.longest = special.fold(table.longest, usize::max);
        table
    }

    /// Most bytes of text that one token stands for.
    pub(crate) fn longest(&self) -> usize {
        self.longest
    }

    pub(crate) fn get(&self, id: u32) -> &[u8] {
        let id = id as usize;
        let Some(&end) = self.ends.get(id) else { return &[] };
        let begin = id.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.bytes[begin..end]
    }
}

/// Tokens of the vocabulary are written in the byte alphabet; an added token that is not stands for itself.
fn bytes_of(name: &str, byte_of: &HashMap<char, u8>) -> Vec<u8> {
    let coded: Option<Vec<u8>> = name.chars().map(|c| byte_of.get(&c).copied()).collect();
    coded.unwrap_or_else(|| name.as_bytes().to_vec())
}

/// The printable character that byte-level BPE writes for each byte: itself where it is printable, the characters
/// from U+0100 on for the others, in order (GPT-2's `bytes_to_unicode`).
fn byte_alphabet() -> HashMap<char, u8> {
    let is_printable = |byte: &u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    let printable = (0..=u8::MAX).filter(is_printable).map(|byte| (char::from(byte), byte));
    let others = (0..=u8::MAX).filter(|byte| !is_printable(byte));
    printable.chain(('\u{100}'..).zip(others)).collect()
}

/// Turns the ids of one generation into text; see [`crate::Tokenizer::detokenizer`].
#[derive(Debug)]
pub struct Detokenizer {
    bytes: Arc<TokenBytes>,
    /// An incomplete character, 3 bytes at most.
    pending: Vec<u8>,
}

impl Detokenizer {
    pub(crate) fn new(bytes: Arc<TokenBytes>) -> Self {
        Self { bytes, pending: Vec::new() }
    }

    /// Takes the next token and gives the text it completes: empty for special tokens and while a character is
    /// incomplete. Bytes that can no longer become a character are given as U+FFFD.
    pub fn push(&mut self, id: u32) -> String {
        self.pending.extend_from_slice(self.bytes.get(id));
        let mut text = String::new();
        let mut rest = self.pending.as_slice();
        while let Err(error) = std::str::from_utf8(rest) {
            let (valid, bad) = rest.split_at(error.valid_up_to());
            push_valid(&mut text, valid);
            let Some(length) = error.error_len() else {
                self.pending = bad.to_vec();
                return text;
            };
            text.push(char::REPLACEMENT_CHARACTER);
            rest = &bad[length..];
        }
        push_valid(&mut text, rest);
        self.pending.clear();
        text
    }

    /// What is left when no more tokens come: U+FFFD if the last character is incomplete.
    pub fn finish(&mut self) -> String {
        let incomplete = !std::mem::take(&mut self.pending).is_empty();
        if incomplete { char::REPLACEMENT_CHARACTER.to_string() } else { String::new() }
    }
}

fn push_valid(text: &mut String, bytes: &[u8]) {
    text.push_str(std::str::from_utf8(bytes).expect("bytes were just checked to be UTF-8; this is a bug"));
}
