//! Prompts of any length with an answer that can be checked: facts hidden in filler, then a question about one of them
//! (after the retrieval tasks of RULER, arXiv:2404.06654). Seeded, so that everybody gets the same ones.
//!
//! [`retrieval`] makes the short-answer tasks of demo and bench, [`document`] the families that `kvferry eval` measures.

mod document;
mod needle;
mod words;

use rand::{Rng, RngExt};

pub use document::{Document, Filler, Question, document};
pub use needle::Family;
use words::{ADJECTIVE, NOUN, filler, name, word};

const FACTS: usize = 6;
/// Filler that follows the last fact, in sentences: the question must reach back.
const TAIL_SENTENCES: usize = 18;

/// A prompt that ends in a question, and the answer that the hidden fact gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Task {
    /// Text of the prompt.
    pub prompt: String,
    /// What a model that found the fact says.
    pub answer: String,
}

struct Fact {
    sentence: String,
    question: String,
    answer: String,
}

fn fact(rng: &mut impl Rng) -> Fact {
    let who = name(rng);
    if rng.random::<bool>() {
        let digits = rng.random_range(4..8);
        let code: String = (0..digits).map(|_| char::from(b'0' + rng.random_range(0..10u8))).collect();
        Fact {
            sentence: format!("The access code for {who} is {code}."),
            question: format!("What is the access code for {who}?"),
            answer: code,
        }
    } else {
        let secret = format!("{}-{}", word(rng, ADJECTIVE), word(rng, NOUN));
        Fact {
            sentence: format!("The secret word of {who} is {secret}."),
            question: format!("What is the secret word of {who}?"),
            answer: secret,
        }
    }
}

/// Counts a text's tokens without the begin-of-text token that a whole prompt has.
pub fn text_tokens(tokenizer: &openai::Tokenizer) -> impl Fn(&str) -> usize {
    let begin = usize::from(tokenizer.begin_of_text().is_some());
    move |text| tokenizer.encode(text).map_or(0, |ids| ids.len().saturating_sub(begin))
}

/// A task of about `tokens` tokens by the given measure of text, never more unless the facts alone are.
pub fn retrieval(rng: &mut impl Rng, tokens: usize, count: impl Fn(&str) -> usize) -> Task {
    let facts: Vec<Fact> = (0..FACTS).map(|_| fact(rng)).collect();
    let asked = &facts[rng.random_range(0..FACTS)];
    let question = format!("\n\nQuestion: {}\nAnswer:", asked.question);
    // A sentence is counted with the space that joins it, as tokenizers do.
    let cost = |text: &str| count(&format!(" {text}"));
    let fixed: usize = count(&question) + 1 + facts.iter().map(|f| cost(&f.sentence)).sum::<usize>();
    let mut left = tokens.saturating_sub(fixed);
    let mut sentences = Vec::new();
    loop {
        let sentence = filler(rng);
        match left.checked_sub(cost(&sentence)) {
            Some(rest) => left = rest,
            None => break,
        }
        sentences.push(sentence);
    }
    let last = sentences.len().saturating_sub(TAIL_SENTENCES);
    for fact in &facts {
        sentences.insert(rng.random_range(0..=last), fact.sentence.clone());
    }
    Task { prompt: sentences.join(" ") + &question, answer: asked.answer.clone() }
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
    fn a_task_has_its_length_and_holds_its_answer_far_from_the_end() {
        for seed in 0..20 {
            let task = retrieval(&mut ChaCha8Rng::seed_from_u64(seed), 600, words);
            assert!((500..=600).contains(&words(&task.prompt)), "{}", words(&task.prompt));
            let at = task.prompt.find(&task.answer).unwrap();
            assert!(words(&task.prompt[at..]) > 100);
            assert!(task.prompt.ends_with("\nAnswer:"));
        }
    }

    #[test]
    fn a_seed_gives_the_same_task_again() {
        let task = |seed| retrieval(&mut ChaCha8Rng::seed_from_u64(seed), 300, words);
        assert_eq!(task(3), task(3));
        assert_ne!(task(3), task(4));
    }
}
