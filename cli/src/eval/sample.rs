//! Documents sampled from the model at temperature 1, several side by side.

use anyhow::{Context, ensure};
use half::bf16;
use indicatif::ProgressBar;
use model::{KvCache, LogitsOf, Sampling, Sequence};

use super::subject::Subject;

/// Documents sampled side by side: a step reads the weights once for all of them.
const LANES: usize = 8;
/// A shorter document is a false start.
const MIN_CHARS: usize = 64;
/// Waves without one document of use before the model is given up.
const MAX_EMPTY_WAVES: usize = 8;

/// A sequence of documents that depends on the seed alone.
#[derive(Debug)]
pub(super) struct Sampler<'a> {
    subject: &'a Subject,
    seed: u64,
    sampled: u64,
}

/// One document on its way.
struct Lane {
    sampling: Sampling,
    cache: KvCache<bf16>,
    tokens: Vec<u32>,
    is_done: bool,
}

impl<'a> Sampler<'a> {
    pub(super) fn new(subject: &'a Subject, seed: u64) -> Self {
        Self { subject, seed, sampled: 0 }
    }

    /// The next `count` documents of at most `tokens` tokens.
    pub(super) fn documents(
        &mut self,
        count: usize,
        tokens: usize,
        bar: &ProgressBar,
    ) -> anyhow::Result<Vec<String>> {
        let mut documents = Vec::new();
        while documents.len() < count {
            let wave = self.wave(tokens)?;
            bar.inc(wave.len().min(count - documents.len()) as u64);
            documents.extend(wave);
        }
        documents.truncate(count);
        Ok(documents)
    }

    /// The next few documents, at least one.
    pub(super) fn wave(&mut self, tokens: usize) -> anyhow::Result<Vec<String>> {
        for _ in 0..MAX_EMPTY_WAVES {
            let texts = self.run(tokens)?;
            if !texts.is_empty() {
                return Ok(texts);
            }
        }
        anyhow::bail!("the model ends every text at once, so nothing can be sampled from it")
    }

    fn run(&mut self, tokens: usize) -> anyhow::Result<Vec<String>> {
        let (llama, tokenizer) = (&self.subject.loaded.llama, &self.subject.tokenizer);
        let config = llama.config();
        let begin = tokenizer.begin_of_text().context("a model without begin-of-text cannot start a text")?;
        let room = tokens.min(config.max_position_embeddings);
        ensure!(room > 1, "the model was made for {} tokens only", config.max_position_embeddings);
        let mut lanes: Vec<Lane> = (0..LANES as u64)
            .map(|lane| Lane {
                sampling: self.sampling(self.sampled + lane),
                cache: KvCache::new(config, room),
                tokens: vec![begin],
                is_done: false,
            })
            .collect();
        self.sampled += LANES as u64;
        while lanes.iter().any(|lane| !lane.is_done) {
            let mut running: Vec<&mut Lane> = lanes.iter_mut().filter(|lane| !lane.is_done).collect();
            let mut batch: Vec<Sequence<'_, bf16>> = running
                .iter_mut()
                .map(|lane| Sequence {
                    cache: &mut lane.cache,
                    tokens: &lane.tokens[lane.tokens.len() - 1..],
                    received: None,
                })
                .collect();
            let logits = llama.forward(&mut batch, LogitsOf::LastToken)?;
            for (lane, logits) in running.iter_mut().zip(logits.chunks_exact(config.vocab_size)) {
                let token = lane.sampling.draw(logits, lane.tokens.len());
                lane.is_done = config.eos_token_ids.contains(&token) || lane.tokens.len() == room;
                if !lane.is_done {
                    lane.tokens.push(token);
                }
            }
        }
        let texts = lanes.iter().map(|lane| tokenizer.decode(&lane.tokens));
        Ok(texts.filter(|text| text.chars().count() >= MIN_CHARS).collect())
    }

    /// A document's draws: the seeds of two runs never meet.
    fn sampling(&self, document: u64) -> Sampling {
        let seed = self.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(document);
        Sampling { temperature: 1.0, seed, ..Sampling::GREEDY }
    }
}
