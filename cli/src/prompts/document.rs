//! A document with several facts in it and questions about some of them, as `kvferry eval --make-prompts` writes it.

use rand::seq::SliceRandom;
use rand::{Rng, RngExt};

use super::needle::{Family, Needle, needle};
use super::words::filler;

/// Facts of a document.
const FACTS: usize = 6;
/// Tokens after the last fact at least: the questions must reach back beyond the codec's window.
const TAIL_TOKENS: usize = 220;

/// What stands between the facts.
#[derive(Debug, Clone, Copy)]
pub enum Filler<'a> {
    /// Sentences of our own grammar.
    Sentences,
    /// Lines of other text, from a random one on and around.
    Lines(&'a [String]),
}

/// A question and what a model that found the fact says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// The question, without decoration.
    pub text: String,
    /// Its answer.
    pub answer: String,
}

/// Filler with facts in it, and a question for each fact in random order; the first is of the family asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// Facts and filler.
    pub body: String,
    /// A question for each fact.
    pub questions: Vec<Question>,
}

/// A document of about `tokens` tokens by `count`, with a fact of `family` and others of any family.
pub fn document(
    rng: &mut impl Rng,
    family: Family,
    tokens: usize,
    filler: Filler<'_>,
    count: impl Fn(&str) -> usize,
) -> Document {
    let needles = needles(rng, family);
    let facts: usize = needles.iter().flat_map(|needle| &needle.sentences).map(|s| count(s)).sum();
    let lines = lines(rng, filler, tokens.saturating_sub(facts), &count);
    let mut tail = 0;
    let after = lines.iter().rev().take_while(|line| {
        let more = tail < TAIL_TOKENS;
        tail += count(line);
        more
    });
    let last_place = lines.len() - after.count();
    let mut slots = vec![Vec::new(); last_place + 1];
    for needle in &needles {
        let mut places: Vec<usize> =
            needle.sentences.iter().map(|_| rng.random_range(0..=last_place)).collect();
        places.sort_unstable();
        for (sentence, place) in needle.sentences.iter().zip(places) {
            slots[place].push(sentence);
        }
    }
    let mut body = String::new();
    for place in 0..=lines.len() {
        for sentence in slots.get(place).into_iter().flatten() {
            body.push_str(sentence);
            body.push(if rng.random_bool(0.2) { '\n' } else { ' ' });
        }
        body.push_str(lines.get(place).map_or("", String::as_str));
    }
    let questions = needles.into_iter().map(|n| Question { text: n.question, answer: n.answer });
    Document { body, questions: questions.collect() }
}

/// The fact of `family` first, then others, in random order and with different questions.
fn needles(rng: &mut impl Rng, family: Family) -> Vec<Needle> {
    let mut needles = vec![needle(rng, family)];
    while needles.len() < FACTS {
        let family = Family::ALL[rng.random_range(0..Family::ALL.len())];
        let other = needle(rng, family);
        if needles.iter().all(|known| known.question != other.question) {
            needles.push(other);
        }
    }
    needles[1..].shuffle(rng);
    needles
}

fn lines(rng: &mut impl Rng, kind: Filler<'_>, tokens: usize, count: &impl Fn(&str) -> usize) -> Vec<String> {
    let start = match kind {
        Filler::Lines(lines) if !lines.is_empty() => rng.random_range(0..lines.len()),
        _ => 0,
    };
    let mut made = Vec::new();
    let mut seen = 0;
    loop {
        let line = match kind {
            Filler::Lines(lines) if !lines.is_empty() => {
                format!("{}\n", lines[(start + made.len()) % lines.len()])
            }
            _ => filler(rng) + " ",
        };
        seen += count(&line);
        if seen > tokens {
            return made;
        }
        made.push(line);
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;

    fn words(text: &str) -> usize {
        text.split_whitespace().count()
    }

    #[test]
    fn facts_stand_far_from_the_end_and_questions_differ() {
        for (seed, family) in (0..).zip(Family::ALL) {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            let made = document(&mut rng, family, 900, Filler::Sentences, words);
            assert!((800..=920).contains(&words(&made.body)), "{}", words(&made.body));
            assert_eq!(made.questions.len(), FACTS);
            let mut texts: Vec<&str> = made.questions.iter().map(|q| q.text.as_str()).collect();
            texts.sort_unstable();
            texts.dedup();
            assert_eq!(texts.len(), FACTS);
            for question in &made.questions {
                let first = question.answer.split(", ").next().unwrap().trim_start_matches("In ");
                let at = made.body.find(first).unwrap();
                assert!(words(&made.body[at..]) >= TAIL_TOKENS, "{question:?}");
            }
        }
    }

    #[test]
    fn other_text_is_taken_from_a_random_line_and_around() {
        let text: Vec<String> = (0..40).map(|n| format!("line {n} of some other text")).collect();
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let made = document(&mut rng, Family::Hex, 500, Filler::Lines(&text), words);
        assert!(made.body.contains("line 0 of some other text\n"));
        assert!(made.body.contains("line 39 of some other text\n"));
    }
}
