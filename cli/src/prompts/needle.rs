//! Facts to hide, by family: what kind of answer they ask for.

use std::fmt;

use rand::seq::IndexedRandom;
use rand::{Rng, RngExt};

use super::words::{ADJECTIVE, NOUN, PLACE, filler, name, thing, word};

/// Kinds of facts, from one that sits in one place to ones that must be pieced together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// A code of digits.
    Number,
    /// Two words.
    Words,
    /// Eight hexadecimal digits.
    Hex,
    /// Where something is.
    Place,
    /// A whole sentence.
    Note,
    /// A number behind up to three names.
    Variable,
    /// Two or three numbers from different places, in their order.
    Multi,
}

impl Family {
    /// Every family.
    pub const ALL: [Self; 7] =
        [Self::Number, Self::Words, Self::Hex, Self::Place, Self::Note, Self::Variable, Self::Multi];

    /// Its name in files and tables.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Number => "number",
            Self::Words => "words",
            Self::Hex => "hex",
            Self::Place => "place",
            Self::Note => "note",
            Self::Variable => "variable",
            Self::Multi => "multi",
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A fact: its sentences in the order in which they must stand, and the question for it.
#[derive(Debug, Clone)]
pub(super) struct Needle {
    pub(super) sentences: Vec<String>,
    pub(super) question: String,
    pub(super) answer: String,
}

/// A fact of `family`.
pub(super) fn needle(rng: &mut impl Rng, family: Family) -> Needle {
    let one = |sentence, question, answer| Needle { sentences: vec![sentence], question, answer };
    match family {
        Family::Number => {
            let (who, code) = (name(rng), number(rng));
            let sentence = format!("The access code for {who} is {code}.");
            one(sentence, format!("What is the access code for {who}?"), code)
        }
        Family::Words => {
            let (who, secret) = (name(rng), format!("{}-{}", word(rng, ADJECTIVE), word(rng, NOUN)));
            let sentence = format!("The secret word of {who} is {secret}.");
            one(sentence, format!("What is the secret word of {who}?"), secret)
        }
        Family::Hex => {
            let (what, serial) = (thing(rng), letters(rng, "0123456789abcdef", 8));
            let sentence = format!("The serial number of the {what} is {serial}.");
            one(sentence, format!("What is the serial number of the {what}?"), serial)
        }
        Family::Place => {
            let (who, what) = (name(rng), thing(rng));
            let place = PLACE.choose(rng).copied().unwrap_or_default();
            let sentence = format!("{who} keeps the {what} in the {place}.");
            one(sentence, format!("Where does {who} keep the {what}?"), format!("In the {place}"))
        }
        Family::Note => {
            let (number, text) = (rng.random_range(1..1000), filler(rng));
            one(format!("Note {number}: {text}"), format!("What does note {number} say?"), text)
        }
        Family::Variable => variable(rng),
        Family::Multi => multi(rng),
    }
}

fn variable(rng: &mut impl Rng) -> Needle {
    const CAPITALS: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZ";
    let (hops, value) = (rng.random_range(1..=3), number(rng));
    let names: Vec<String> = (0..hops).map(|_| letters(rng, CAPITALS, 3)).collect();
    let mut sentences = Vec::new();
    let mut last = value.clone();
    for name in &names {
        sentences.push(format!("VAR {name} = {last}."));
        last = format!("VAR {name}");
    }
    Needle { sentences, question: format!("What is the value of {last}?"), answer: value }
}

fn multi(rng: &mut impl Rng) -> Needle {
    let who = name(rng);
    let count = rng.random_range(2..=3);
    let values: Vec<String> = (0..count).map(|_| number(rng)).collect();
    Needle {
        sentences: values.iter().map(|value| format!("A lucky number of {who} is {value}.")).collect(),
        question: format!("What are all the lucky numbers of {who}?"),
        answer: values.join(", "),
    }
}

/// Four to seven digits.
fn number(rng: &mut impl Rng) -> String {
    let digits = rng.random_range(4..8);
    letters(rng, "0123456789", digits)
}

fn letters(rng: &mut impl Rng, alphabet: &str, count: usize) -> String {
    let alphabet = alphabet.as_bytes();
    (0..count).map(|_| char::from(alphabet[rng.random_range(0..alphabet.len())])).collect()
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;

    #[test]
    fn every_family_hides_its_answer_in_its_sentences() {
        for seed in 0..50 {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            for family in Family::ALL {
                let Needle { sentences, answer, .. } = needle(&mut rng, family);
                let text = sentences.join(" ");
                let parts = answer.trim_start_matches("In ").split(", ");
                let hidden = if family == Family::Multi {
                    parts.collect()
                } else {
                    vec![answer.trim_start_matches("In ")]
                };
                for part in hidden {
                    assert!(text.contains(part), "{family}: {answer} in {text}");
                }
            }
        }
    }

    #[test]
    fn a_variable_is_named_by_the_last_of_its_chain() {
        for seed in 0..20 {
            let Needle { sentences, question, answer } = variable(&mut ChaCha8Rng::seed_from_u64(seed));
            assert!(sentences[0].ends_with(&format!("= {answer}.")));
            let last = sentences.last().unwrap().split(" =").next().unwrap();
            assert!(question.contains(last), "{question} {sentences:?}");
        }
    }
}
