//! The texts of a corpus as documents of tokens: as they are, or with facts hidden in them and questions at the end.

use openai::{ChatMessage, ChatTemplate, Tokenizer};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::prompts::{Family, Filler, document, text_tokens};

/// Longest document of the short half, in tokens.
const SHORT_TOKENS: usize = 1024;
/// Shorter documents say nothing about long contexts.
const MIN_TOKENS: usize = 64;
/// Lengths of documents with questions, in tokens, and what the questions take beside them.
const ASKED_TOKENS: [usize; 3] = [1024, 2048, 4096];
const QUESTION_TOKENS: usize = 200;
/// Questions asked of a document.
const QUESTIONS: usize = 3;
/// One in so many has sentences of our grammar for filler instead of the corpus.
const SENTENCES_EVERY: usize = 4;

/// Documents cut so that of the plain ones half of the tokens come from short ones and half from long ones.
#[derive(Debug)]
pub(super) struct Documents<'a> {
    texts: &'a [String],
    next: usize,
    tokenizer: &'a Tokenizer,
    template: Option<&'a ChatTemplate>,
    long_tokens: usize,
    /// Share of the tokens that come with questions.
    asked_share: f64,
    rng: ChaCha8Rng,
    short_seen: usize,
    long_seen: usize,
    asked_seen: usize,
    asked: usize,
}

impl<'a> Documents<'a> {
    /// Over `texts` in their order; no document exceeds `long_tokens`. With questions they are chats in turns if there is a template.
    pub(super) fn new(
        texts: &'a [String],
        tokenizer: &'a Tokenizer,
        template: Option<&'a ChatTemplate>,
        long_tokens: usize,
        (asked_share, seed): (f64, u64),
    ) -> Self {
        let rng = ChaCha8Rng::seed_from_u64(seed);
        let seen = 0;
        Self {
            texts,
            next: 0,
            tokenizer,
            template,
            long_tokens,
            asked_share,
            rng,
            short_seen: seen,
            long_seen: seen,
            asked_seen: seen,
            asked: seen,
        }
    }

    /// Next document's tokens, none when the texts are used up.
    pub(super) fn next(&mut self) -> anyhow::Result<Option<Vec<u32>>> {
        while self.next < self.texts.len() {
            let seen = self.asked_seen + self.short_seen + self.long_seen;
            let wants_questions = (self.asked_seen as f64) < self.asked_share * (seen + 1) as f64;
            let tokens = if wants_questions { self.with_questions()? } else { self.plain()? };
            if tokens.len() < MIN_TOKENS {
                continue;
            }
            let is_long = tokens.len() > SHORT_TOKENS;
            let seen = match (wants_questions, is_long) {
                (true, _) => &mut self.asked_seen,
                (false, true) => &mut self.long_seen,
                (false, false) => &mut self.short_seen,
            };
            *seen += tokens.len();
            return Ok(Some(tokens));
        }
        Ok(None)
    }

    /// Tokens so far: of documents with questions, and of all.
    pub(super) fn seen(&self) -> (usize, usize) {
        (self.asked_seen, self.asked_seen + self.short_seen + self.long_seen)
    }

    /// The texts that no document was made from yet.
    pub(super) fn rest(&self) -> &'a [String] {
        &self.texts[self.next.min(self.texts.len())..]
    }

    fn plain(&mut self) -> anyhow::Result<Vec<u32>> {
        let mut tokens = self.tokenizer.encode(&self.texts[self.next])?;
        self.next += 1;
        let want_long = self.long_seen < self.short_seen;
        tokens.truncate(if want_long { self.long_tokens } else { SHORT_TOKENS.min(self.long_tokens) });
        Ok(tokens)
    }

    /// The next texts with facts hidden in them, and questions with their answers.
    fn with_questions(&mut self) -> anyhow::Result<Vec<u32>> {
        let wanted = ASKED_TOKENS[self.rng.random_range(0..ASKED_TOKENS.len())];
        let wanted = wanted.min(self.long_tokens).saturating_sub(QUESTION_TOKENS);
        let family = Family::ALL[self.rng.random_range(0..Family::ALL.len())];
        let count = text_tokens(self.tokenizer);
        self.asked += 1;
        let lines = if self.asked.is_multiple_of(SENTENCES_EVERY) { Vec::new() } else { self.lines(wanted)? };
        let filler = if lines.is_empty() { Filler::Sentences } else { Filler::Lines(&lines) };
        let made = document(&mut self.rng, family, wanted, filler, count);
        let questions = made.questions.iter().take(QUESTIONS);
        let text = match self.template.filter(|_| self.asked.is_multiple_of(2)) {
            Some(template) => {
                let mut messages = Vec::new();
                let mut before = format!("{}\n\n", made.body);
                for question in questions {
                    let message = |role: &str, content| ChatMessage { role: role.into(), content };
                    messages.push(message("user", std::mem::take(&mut before) + &question.text));
                    messages.push(message("assistant", question.answer.clone()));
                }
                template.render(&messages, false)?
            }
            None => {
                let asked = questions.map(|q| format!("\n\nQuestion: {}\nAnswer: {}\n", q.text, q.answer));
                made.body + &asked.collect::<String>()
            }
        };
        let mut tokens = self.tokenizer.encode(&text)?;
        tokens.truncate(self.long_tokens);
        Ok(tokens)
    }

    /// Lines of the next texts, of `wanted` tokens or a few more.
    fn lines(&mut self, wanted: usize) -> anyhow::Result<Vec<String>> {
        let (mut lines, mut seen) = (Vec::new(), 0);
        while seen < wanted && self.next < self.texts.len() {
            let text = &self.texts[self.next];
            self.next += 1;
            seen += self.tokenizer.encode(text)?.len();
            lines.extend(text.lines().filter(|line| !line.trim().is_empty()).map(str::to_owned));
        }
        Ok(lines)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn documents(share: f64) -> (Vec<Vec<u32>>, Tokenizer) {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tiny-llama");
        let (tokenizer, template) =
            (Tokenizer::load(&dir).unwrap(), ChatTemplate::load(&dir).unwrap().unwrap());
        let texts: Vec<String> = (0..80)
            .map(|i| format!("Line {i} of a text about nothing in particular.\n").repeat(40))
            .collect();
        let mut all = Documents::new(&texts, &tokenizer, Some(&template), 3000, (share, 7));
        let mut made = Vec::new();
        while let Some(tokens) = all.next().unwrap() {
            made.push(tokens);
        }
        (made, tokenizer)
    }

    #[test]
    fn the_share_of_questions_is_kept_and_half_of_them_are_chats() {
        let (made, tokenizer) = documents(0.5);
        let texts: Vec<String> = made.iter().map(|tokens| tokenizer.decode(tokens)).collect();
        let asks = |text: &str| text.contains("Question: ") || text.contains("assistant");
        let asked: usize = made.iter().zip(&texts).filter(|(_, text)| asks(text)).map(|(t, _)| t.len()).sum();
        let all: usize = made.iter().map(Vec::len).sum();
        assert!((0.4..0.65).contains(&(asked as f64 / all as f64)), "{asked} of {all}");
        assert!(texts.iter().any(|text| text.contains("\nAnswer: ")));
        assert!(made.iter().all(|tokens| (MIN_TOKENS..=3000).contains(&tokens.len())));
    }

    #[test]
    fn without_a_share_texts_stay_as_they_are() {
        let (made, tokenizer) = documents(0.0);
        assert_eq!(made.len(), 80);
        assert!(made.iter().all(|tokens| !tokenizer.decode(tokens).contains("Question")));
    }
}
