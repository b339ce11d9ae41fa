//! Words that were tokenized before. Most of a text is words that every text has, and to look one up takes a tenth of the time
//! that it takes to split a text by regular expression and to merge its bytes.

use std::collections::HashMap;
use std::sync::{PoisonError, RwLock};

use tokenizers::{Encoding, Tokenizer};

use crate::pieces;

/// Words kept at most, some ten megabytes; they are forgotten together when there are more, so that texts full of words that never come
/// again do no lasting harm.
const MOST: usize = 1 << 16;
/// Longer words seldom come again, in bytes.
const LONGEST: usize = 48;

/// The words' ids.
#[derive(Debug, Default)]
pub(crate) struct Words {
    known: RwLock<HashMap<Box<str>, Box<[u32]>>>,
}

/// A text's word, in order.
enum Word {
    /// Its ids, as many of all that were found.
    Known(usize),
    /// Which of the new words it is.
    New(usize),
}

impl Words {
    /// The ids of a text that may be cut into words ([`pieces::may_cut`]).
    pub(crate) fn encode(&self, tokenizer: &Tokenizer, text: &str) -> tokenizers::Result<Vec<u32>> {
        let (mut found, mut words, mut new) = (Vec::with_capacity(text.len() / 4 + 4), vec![], vec![]);
        {
            let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
            let mut seen = HashMap::new();
            for word in pieces::words(text) {
                if let Some(ids) = known.get(word) {
                    found.extend_from_slice(ids);
                    words.push(Word::Known(ids.len()));
                    continue;
                }
                words.push(Word::New(*seen.entry(word).or_insert_with(|| {
                    new.push(word);
                    new.len() - 1
                })));
            }
        }
        if new.is_empty() {
            return Ok(found);
        }
        let encoded = tokenizer.encode_batch_fast(new.clone(), false)?;
        self.learn(&new, &encoded);
        let (mut ids, mut found) = (Vec::with_capacity(text.len() / 4 + 4), found.into_iter());
        for word in words {
            match word {
                Word::Known(count) => ids.extend(found.by_ref().take(count)),
                Word::New(at) => ids.extend_from_slice(encoded[at].get_ids()),
            }
        }
        Ok(ids)
    }

    fn learn(&self, new: &[&str], encoded: &[Encoding]) {
        let short = new.iter().zip(encoded).filter(|(word, _)| word.len() <= LONGEST);
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        for (word, encoding) in short {
            if known.len() == MOST {
                known.clear();
            }
            known.insert((*word).into(), encoding.get_ids().into());
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use std::sync::LazyLock;

    use super::*;

    static LIBRARY: LazyLock<Tokenizer> = LazyLock::new(|| {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/tiny-llama/tokenizer.json");
        Tokenizer::from_file(path).unwrap()
    });

    fn whole(text: &str) -> Vec<u32> {
        LIBRARY.encode_fast(text, false).unwrap().get_ids().to_vec()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]
        #[test]
        fn words_have_the_ids_of_the_whole_text(text in "(\\PC|[a-zA-Z ',.0-9\n\t!(]{1,8}|<\\|eot_id\\|>| é| [a-z]'s |\u{3000}|[a-z]{50} ){0,40}") {
            let words = Words::default();
            prop_assert_eq!(pieces::words(&text).concat(), text.clone());
            let expected = whole(&text);
            prop_assert_eq!(words.encode(&LIBRARY, &text).unwrap(), expected.clone(), "new words");
            prop_assert_eq!(words.encode(&LIBRARY, &text).unwrap(), expected, "known words");
        }
    }

    #[test]
    fn no_more_words_are_kept_than_have_room() {
        let words = Words::default();
        let number = |i: usize| {
            (0..5).map(|digit| char::from(b'a' + (i >> (4 * digit) & 15) as u8)).collect::<String>()
        };
        for start in (0..MOST + 3_000).step_by(2_048) {
            let text: Vec<String> = (start..start + 2_048).map(number).collect();
            words.encode(&LIBRARY, &text.join(" ")).unwrap();
            assert!(words.known.read().unwrap().len() <= MOST);
        }
        let long = format!("{} end", "x".repeat(LONGEST));
        assert_eq!(words.encode(&LIBRARY, &long).unwrap(), whole(&long));
        let known = words.known.read().unwrap();
        assert!(!known.is_empty() && known.keys().all(|word| word.len() <= LONGEST));
    }
}
