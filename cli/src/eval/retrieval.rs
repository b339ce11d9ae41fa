//! Answers from the decoded cache beside answers from the cache as it was.
//!
//! Greedy continuations, cut at the newline (a chat's at its end token), trimmed, right if equal to the row's answer. Later
//! questions go on the same cache: the right answer so far, a newline and the question are fed, and graded alike.

use anyhow::{Context, ensure};
use half::bf16;
use indicatif::ProgressBar;
use model::{KvCache, LogitsOf, Sampling};
use tracing::debug;

use super::rows::{Input, PromptRow};
use super::score::Tally;
use super::subject::{Subject, Way};

/// Tokens that a continuation may be longer than the right answer: enough to see that it went on where it should have ended.
const SPARE_TOKENS: usize = 8;

/// A row as token ids.
struct Asked {
    prompt: Vec<u32>,
    is_chat: bool,
    questions: Vec<Question>,
}

/// One question: what is fed after the one before, and what counts as right.
struct Question {
    fed: Vec<u32>,
    answer: String,
    max_tokens: usize,
}

/// Asks every row, once on the cache as it was and once for each coding.
pub(super) fn run(
    subject: &Subject,
    rows: &[PromptRow],
    ways: &[Way],
    tallies: &mut [Tally],
    bar: &ProgressBar,
) -> anyhow::Result<()> {
    for row in rows {
        one(subject, row, ways, tallies).with_context(|| format!("prompt of line {}", row.line))?;
        bar.inc(1);
    }
    Ok(())
}

fn one(subject: &Subject, row: &PromptRow, ways: &[Way], tallies: &mut [Tally]) -> anyhow::Result<()> {
    let asked = Asked::of(subject, row)?;
    let room = asked.room();
    let (needed, limit) = (asked.prompt.len() + room, subject.loaded.llama.config().max_position_embeddings);
    ensure!(needed <= limit, "prompt and answers take {needed} tokens, the model was made for {limit}");
    let mut prompt = subject.prefill(asked.prompt.clone(), room)?;
    let first_token = prompt.first_token;
    let exact = asked.answers(subject, &mut prompt.cache, first_token)?;
    prompt.cache.set_len(prompt.ids.len())?;
    for (way, tally) in ways.iter().zip(tallies) {
        let (mut cache, transfers) = subject.transfer(*way, &prompt)?;
        let answers = asked.answers(subject, &mut cache, first_token)?;
        let graded = asked.questions.iter().zip(answers.iter().zip(&exact));
        for (index, (question, (decoded, exact))) in graded.enumerate() {
            debug!(line = row.line, coding = %way.coding, question = index, right = question.answer, exact, decoded, "answered");
            let counted = if index == 0 { &mut tally.answers } else { &mut tally.later };
            counted.add(*decoded == question.answer, *exact == question.answer);
        }
        tally.prompts.add(&transfers);
    }
    Ok(())
}

impl Asked {
    fn of(subject: &Subject, row: &PromptRow) -> anyhow::Result<Self> {
        let (prompt, is_chat) = match &row.input {
            Input::Text(text) => (subject.tokenizer.encode(text)?, false),
            Input::Chat(messages) => {
                let template = subject.template.as_ref().context("messages need a chat template")?;
                (subject.tokenizer.encode(&template.render(messages, true)?)?, true)
            }
        };
        let limit = |answer: &str| anyhow::Ok(subject.continuation(answer)?.len() + SPARE_TOKENS);
        let mut answer = &row.answer;
        let mut questions =
            vec![Question { fed: Vec::new(), answer: answer.clone(), max_tokens: limit(answer)? }];
        for later in &row.later {
            // In the pieces in which the transcript would have grown.
            let pieces = [format!(" {answer}"), "\n".into(), later.text.clone()];
            let pieces = pieces.iter().map(|piece| subject.continuation(piece));
            let fed = pieces.collect::<anyhow::Result<Vec<_>>>()?.concat();
            answer = &later.answer;
            questions.push(Question { fed, answer: answer.clone(), max_tokens: limit(answer)? });
        }
        Ok(Self { prompt, is_chat, questions })
    }

    /// Tokens that may stand after the prompt at most.
    fn room(&self) -> usize {
        let mut fed = 0;
        let after = self.questions.iter().map(|question| {
            fed += question.fed.len();
            fed + question.max_tokens
        });
        after.max().unwrap_or_default()
    }

    /// Answers to all questions from a cache that holds the prompt, after which `first` was drawn.
    fn answers(
        &self,
        subject: &Subject,
        cache: &mut KvCache<bf16>,
        mut first: u32,
    ) -> anyhow::Result<Vec<String>> {
        let mut answers = Vec::new();
        for question in &self.questions {
            if !question.fed.is_empty() {
                let logits = subject.feed(cache, &question.fed, LogitsOf::LastToken)?;
                first = Sampling::GREEDY.draw(&logits, cache.len());
            }
            let asked = cache.len();
            let text = self.go_on(subject, cache, first, question.max_tokens)?;
            cache.set_len(asked)?; // what was said is replaced by what is right
            answers.push(text);
        }
        Ok(answers)
    }

    fn go_on(
        &self,
        subject: &Subject,
        cache: &mut KvCache<bf16>,
        first: u32,
        max_tokens: usize,
    ) -> anyhow::Result<String> {
        let ends = &subject.loaded.llama.config().eos_token_ids;
        let mut detokenizer = subject.tokenizer.detokenizer();
        let (mut text, mut token) = (String::new(), first);
        for _ in 0..max_tokens {
            text.push_str(&detokenizer.push(token));
            if ends.contains(&token) || (!self.is_chat && text.contains('\n')) {
                break;
            }
            let logits = subject.feed(cache, &[token], LogitsOf::LastToken)?;
            token = Sampling::GREEDY.draw(&logits, cache.len());
        }
        let said = if self.is_chat { &text } else { text.split('\n').next().unwrap_or_default() };
        Ok(said.trim().to_owned())
    }
}
