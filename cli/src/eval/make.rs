//! Data of one's own, so that a table can be reproduced without anybody's files: prompts after our grammar, filler and text
//! sampled from the model itself.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use indicatif::ProgressBar;
use openai::ChatMessage;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;
use serde_json::json;

use super::rows::Later;
use super::sample::Sampler;
use super::subject::Subject;
use super::text::Protocol;
use crate::prompts::{Document, Family, Filler, document, text_tokens};

/// Lengths of prompts, in tokens, in turns.
const PROMPT_TOKENS: [usize; 4] = [1000, 2000, 3000, 4000];
/// Later questions of a prompt.
const LATER: usize = 3;
/// Documents sampled for filler at most; prompts share them.
const FILLER_DOCUMENTS: usize = 16;
/// Tokens that a prompt's question and answers may take beside its document.
const QUESTION_TOKENS: usize = 400;

/// A row as [`super::rows::read_prompts`] reads it.
#[derive(Serialize)]
struct Row<'a> {
    id: String,
    kind: &'static str,
    family: &'a str,
    tokens: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    messages: Option<Vec<ChatMessage>>,
    answer: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    later: Vec<Later>,
}

/// Writes `count` prompts: families, forms, fillers and lengths in turns.
///
/// # Errors
/// When the model fails or the file cannot be written.
pub(super) fn prompts(
    subject: &Subject,
    count: usize,
    seed: u64,
    out: &Path,
    bar: &ProgressBar,
) -> anyhow::Result<()> {
    let wanted = (0..count).filter(|index| is_sampled(*index)).count().min(FILLER_DOCUMENTS);
    bar.set_length((wanted + count) as u64);
    let texts = Sampler::new(subject, seed).documents(wanted, Protocol::default().cache_tokens, bar)?;
    let lines = texts.iter().flat_map(|text| text.lines()).filter(|line| !line.trim().is_empty());
    let lines: Vec<String> = lines.map(str::to_owned).collect();
    write_lines(out, |file| {
        for index in 0..count {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            rng.set_stream(index as u64);
            let row = row(subject, index, seed, &lines, &mut rng)?;
            writeln!(file, "{}", serde_json::to_string(&row)?)?;
            bar.inc(1);
        }
        Ok(())
    })
}

/// Whether a prompt's filler is the model's text, and not sentences of our grammar.
fn is_sampled(index: usize) -> bool {
    index / 2 % 2 == 1
}

fn row<'a>(
    subject: &Subject,
    index: usize,
    seed: u64,
    lines: &[String],
    rng: &mut impl Rng,
) -> anyhow::Result<Row<'a>> {
    let family = Family::ALL[index % Family::ALL.len()];
    let limit = subject.loaded.llama.config().max_position_embeddings.saturating_sub(QUESTION_TOKENS);
    let tokens = PROMPT_TOKENS[index / 4 % PROMPT_TOKENS.len()].min(limit);
    let filler = if is_sampled(index) { Filler::Lines(lines) } else { Filler::Sentences };
    let count = text_tokens(&subject.tokenizer);
    let Document { body, questions } = document(rng, family, tokens, filler, &count);
    let mut questions = questions.into_iter();
    let asked = questions.next().context("a document without a question; this is a bug")?;
    let is_chat = index % 2 == 1 && subject.template.is_some();
    let framed = |question: &str| format!("\n\nQuestion: {question}\nAnswer:");
    let (prompt, messages, later) = if is_chat {
        let content = format!("{body}\n\n{}", asked.text);
        (None, Some(vec![ChatMessage { role: "user".into(), content }]), Vec::new())
    } else {
        let later = questions.take(LATER).map(|q| Later { text: framed(&q.text), answer: q.answer });
        (Some(body + &framed(&asked.text)), None, later.collect())
    };
    let text = match (&prompt, &messages, &subject.template) {
        (None, Some(messages), Some(template)) => template.render(messages, true)?,
        (prompt, ..) => prompt.clone().unwrap_or_default(),
    };
    Ok(Row {
        id: format!("{seed}-{index}"),
        kind: if is_chat { "chat" } else { "completion" },
        family: family.as_str(),
        tokens: subject.tokenizer.encode(&text)?.len(),
        prompt,
        messages,
        answer: asked.answer,
        later,
    })
}

/// Writes text sampled from the model, enough for `count` windows.
///
/// # Errors
/// When the model fails or the file cannot be written.
pub(super) fn text(
    subject: &Subject,
    protocol: &Protocol,
    count: usize,
    seed: u64,
    out: &Path,
    bar: &ProgressBar,
) -> anyhow::Result<()> {
    let wanted = count * protocol.window();
    bar.set_length(wanted as u64);
    let mut sampler = Sampler::new(subject, seed);
    let mut seen = 0;
    write_lines(out, |file| {
        while seen < wanted {
            for text in sampler.wave(protocol.window())? {
                // Counted as it will be read: text may have fewer tokens than were sampled.
                seen += subject.tokenizer.encode(&text)?.len();
                writeln!(file, "{}", json!({ "text": text }))?;
            }
            bar.set_position(seen as u64);
        }
        Ok(())
    })
}

/// Writes beside the target and renames, so that nobody reads half a file.
fn write_lines(
    out: &Path,
    write: impl FnOnce(&mut BufWriter<File>) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let beside: PathBuf = out.with_extension("partial");
    let cannot = || format!("cannot write {}", out.display());
    let mut file = BufWriter::new(File::create(&beside).with_context(cannot)?);
    write(&mut file)?;
    file.flush().with_context(cannot)?;
    std::fs::rename(&beside, out).with_context(cannot)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::read_prompts;

    fn subject() -> Subject {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tiny-llama");
        let mut subject = Subject::load(&dir, None).unwrap();
        subject.template = openai::ChatTemplate::load(&dir).unwrap();
        subject
    }

    #[test]
    fn made_prompts_are_read_back_and_a_seed_gives_them_again() {
        let (subject, dir) = (subject(), tempfile::tempdir().unwrap());
        let make = |name: &str, seed| {
            let out = dir.path().join(name);
            prompts(&subject, 2, seed, &out, &ProgressBar::hidden()).unwrap();
            (std::fs::read_to_string(&out).unwrap(), read_prompts(&out, 9).unwrap())
        };
        let (text, rows) = make("a.jsonl", 5);
        assert_eq!(text, make("b.jsonl", 5).0);
        assert_ne!(text, make("c.jsonl", 6).0);
        assert_eq!((rows[0].later.len(), rows[1].later.len()), (LATER, 0));
        for line in text.lines() {
            let tokens = serde_json::from_str::<serde_json::Value>(line).unwrap()["tokens"].as_u64().unwrap();
            assert!((900..1100).contains(&tokens), "{tokens}");
        }
    }

    #[test]
    fn sampled_text_fills_its_windows() {
        let (subject, dir) = (subject(), tempfile::tempdir().unwrap());
        let out = dir.path().join("text.jsonl");
        let protocol = Protocol { cache_tokens: 40, ahead_tokens: 24, near_tokens: 8 };
        text(&subject, &protocol, 3, 1, &out, &ProgressBar::hidden()).unwrap();
        let texts = crate::eval::read_texts(&out).unwrap();
        assert_eq!(protocol.windows(&subject, &texts, 3).unwrap().len(), 3);
    }
}
