//! Words that were tokenized before. Most of a text is words that every text has, and to look one up takes a tenth of the time
//! that it takes to split a text by regular expression and to merge its bytes.

use std::collections::HashMap;
use std::sync::{PoisonError, RwLock};

use tokenizers::{Encoding, Tokenizer};

use crate::pieces;

/// Words kept at most, ten to twenty megabytes; they are forgotten together when there are more, so that texts full of words that never
/// come again do no lasting harm.
const MOST: usize = 1 << 16;
/// Longer words seldom come again, in bytes.
const LONGEST: usize = 48;
/// Words that are looked up, and tokenized where they are new, at a time: an encoding on its way takes far more memory than its ids.
const GROUP: usize = 2_048;
/// New words that are kept of one text: others wait for the lock meanwhile.
const LEARNED: usize = 4_096;

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
        let (mut ids, mut left) = (Vec::with_capacity(text.len() / 4 + 4), LEARNED);
        let mut words = pieces::words(text).peekable();
        while words.peek().is_some() {
            self.encode_group(tokenizer, words.by_ref().take(GROUP), &mut left, &mut ids)?;
        }
        Ok(ids)
    }

    /// Appends the ids of some words, and keeps up to `left` new ones.
    fn encode_group<'a>(
        &self,
        tokenizer: &Tokenizer,
        group: impl Iterator<Item = &'a str>,
        left: &mut usize,
        ids: &mut Vec<u32>,
    ) -> tokenizers::Result<()> {
        let (mut found, mut words, mut new) = (vec![], vec![], vec![]);
        {
            let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
            let mut seen = HashMap::new();
            for word in group {
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
            ids.append(&mut found);
            return Ok(());
        }
        let encoded = tokenizer.encode_batch_fast(new.clone(), false)?;
        self.learn(&new, &encoded, left);
        let mut found = found.into_iter();
        for word in words {
            match word {
                Word::Known(count) => ids.extend(found.by_ref().take(count)),
                Word::New(at) => ids.extend_from_slice(encoded[at].get_ids()),
            }
        }
        Ok(())
    }

    fn learn(&self, new: &[&str], encoded: &[Encoding], left: &mut usize) {
        let short = new.iter().zip(encoded).filter(|(word, _)| word.len() <= LONGEST).take(*left);
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        for (word, encoding) in short {
            if known.len() == MOST {
                known.clear();
            }
            known.insert((*word).into(), encoding.get_ids().into());
            *left -= 1;
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
            prop_assert_eq!(pieces::words(&text).collect::<String>(), text.clone());
            let expected = whole(&text);
            prop_assert_eq!(words.encode(&LIBRARY, &text).unwrap(), expected.clone(), "new words");
            prop_assert_eq!(words.encode(&LIBRARY, &text).unwrap(), expected, "known words");
        }
    }

    #[test]
    fn a_long_text_has_the_ids_of_the_whole_and_few_of_its_words_are_kept() {
        let words = Words::default();
        let text: Vec<String> =
            (0..3 * GROUP).map(|i| format!("{}{}", number(i), [",", "", "!"][i % 3])).collect();
        let text = text.join(" ");
        for _ in 0..2 {
            assert_eq!(words.encode(&LIBRARY, &text).unwrap(), whole(&text));
        }
        // The second time goes on learning where the first had stopped.
        assert_eq!(words.known.read().unwrap().len(), 3 * GROUP);
        let once = Words::default();
        once.encode(&LIBRARY, &text).unwrap();
        assert_eq!(once.known.read().unwrap().len(), LEARNED);
    }

    /// A word for each number.
    fn number(i: usize) -> String {
        (0..5).map(|digit| char::from(b'a' + (i >> (4 * digit) & 15) as u8)).collect()
    }

    #[test]
    fn no_more_words_are_kept_than_have_room() {
        let words = Words::default();
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
