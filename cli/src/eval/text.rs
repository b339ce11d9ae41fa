//! Predictions on running text: the beginning of a window is a coded cache, the rest is fed to it token by token as it
//! stands (teacher forcing), and the model's next-token distribution compared with the one from the exact cache.

use anyhow::{Context, ensure};
use half::bf16;
use indicatif::ProgressBar;
use model::{KvCache, LogitsOf};
use rayon::prelude::*;

use super::score::{Divergence, Tally};
use super::subject::{Subject, Way};

/// Positions predicted in one forward call; bounds the logits held at a time.
const PIECE: usize = 64;

/// How windows of text are cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Protocol {
    /// Tokens at a window's beginning whose cache is coded.
    pub cache_tokens: usize,
    /// Tokens fed after them.
    pub ahead_tokens: usize,
    /// How many of those count as near; the others are far.
    pub near_tokens: usize,
}

impl Default for Protocol {
    fn default() -> Self {
        Self { cache_tokens: 2048, ahead_tokens: 512, near_tokens: 64 }
    }
}

impl Protocol {
    /// Tokens of a window.
    pub(super) fn window(&self) -> usize {
        self.cache_tokens + self.ahead_tokens
    }

    /// The texts' tokens, begin-of-text before each, joined and cut into windows without overlap; the first `limit` of them.
    ///
    /// # Errors
    /// When a text cannot be tokenized, the texts do not fill one window, or a window exceeds what the model was made for.
    pub fn windows(
        &self,
        subject: &Subject,
        texts: &[String],
        limit: usize,
    ) -> anyhow::Result<Vec<Vec<u32>>> {
        let (window, made_for) = (self.window(), subject.loaded.llama.config().max_position_embeddings);
        ensure!(
            window <= made_for,
            "a window is {window} tokens (--cache-tokens and --ahead-tokens), the model was made for {made_for}"
        );
        let mut stream = Vec::new();
        for text in texts {
            stream.extend(subject.tokenizer.encode(text)?);
            if stream.len() / window >= limit {
                break;
            }
        }
        let windows: Vec<Vec<u32>> = stream.chunks_exact(window).take(limit).map(<[u32]>::to_vec).collect();
        ensure!(!windows.is_empty(), "the text has {} tokens, one window takes {window}", stream.len());
        Ok(windows)
    }
}

/// Predicts the end of every window from its exact cache and from what each coding leaves of it.
pub(super) fn run(
    subject: &Subject,
    protocol: &Protocol,
    windows: &[Vec<u32>],
    ways: &[Way],
    tallies: &mut [Tally],
    bar: &ProgressBar,
) -> anyhow::Result<()> {
    for (number, window) in (1..).zip(windows) {
        one(subject, protocol, window, ways, tallies).with_context(|| format!("text window {number}"))?;
        bar.inc(1);
    }
    Ok(())
}

fn one(
    subject: &Subject,
    protocol: &Protocol,
    window: &[u32],
    ways: &[Way],
    tallies: &mut [Tally],
) -> anyhow::Result<()> {
    let (beginning, ahead) = window.split_at(protocol.cache_tokens);
    let mut prompt = subject.prefill(beginning.to_vec(), ahead.len())?;
    let vocab = subject.loaded.llama.config().vocab_size;
    let mut exact = Vec::with_capacity(ahead.len() * vocab);
    for tokens in ahead.chunks(PIECE) {
        exact.extend(log_probabilities(subject, &mut prompt.cache, tokens)?);
    }
    for (way, tally) in ways.iter().zip(tallies) {
        let (mut cache, transfers) = subject.transfer(*way, &prompt)?;
        for (piece, tokens) in ahead.chunks(PIECE).enumerate() {
            let decoded = log_probabilities(subject, &mut cache, tokens)?;
            let first = piece * PIECE;
            let exact = exact[first * vocab..].chunks_exact(vocab);
            for (position, (exact, decoded)) in (first..).zip(exact.zip(decoded.chunks_exact(vocab))) {
                let next = ahead.get(position + 1).map(|id| *id as usize);
                let sum = if position < protocol.near_tokens { &mut tally.near } else { &mut tally.far };
                sum.add(&diverge(exact, decoded, next));
            }
        }
        tally.texts.add(&transfers);
    }
    Ok(())
}

/// Feeds `tokens`; log-probabilities of what follows each of them, `[tokens, vocab]`.
fn log_probabilities(
    subject: &Subject,
    cache: &mut KvCache<bf16>,
    tokens: &[u32],
) -> anyhow::Result<Vec<f32>> {
    let mut logits = subject.feed(cache, tokens, LogitsOf::EveryToken)?;
    logits.par_chunks_exact_mut(subject.loaded.llama.config().vocab_size).for_each(|row| {
        let top = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let total: f64 = row.iter().map(|logit| f64::from((logit - top).exp())).sum();
        let norm = top + total.ln() as f32;
        row.iter_mut().for_each(|logit| *logit -= norm);
    });
    Ok(logits)
}

/// One position: log-probabilities `[vocab]` from the exact and from the decoded cache, and the token that follows.
fn diverge(exact: &[f32], decoded: &[f32], next: Option<usize>) -> Divergence {
    let pairs = exact.iter().zip(decoded);
    let kl = pairs.map(|(e, d)| f64::from(e.exp()) * (f64::from(*e) - f64::from(*d))).sum();
    let dnll = next.map_or(0.0, |next| f64::from(exact[next]) - f64::from(decoded[next]));
    Divergence {
        positions: 1,
        labelled: u64::from(next.is_some()),
        kl,
        dnll,
        agree: u64::from(likeliest(exact) == likeliest(decoded)),
    }
}

fn likeliest(row: &[f32]) -> usize {
    let mut best = 0;
    for (index, value) in row.iter().enumerate() {
        if *value > row[best] {
            best = index;
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn divergence_of_known_distributions() {
        let exact = [0.5f32.ln(), 0.25f32.ln(), 0.25f32.ln()];
        let decoded = [0.25f32.ln(), 0.5f32.ln(), 0.25f32.ln()];
        let sum = diverge(&exact, &decoded, Some(0));
        let expected = 0.5 * 2f64.ln() - 0.25 * 2f64.ln();
        assert!((sum.kl - expected).abs() < 1e-6 && (sum.dnll - 2f64.ln()).abs() < 1e-6, "{sum:?}");
        assert_eq!((sum.positions, sum.labelled, sum.agree), (1, 1, 0));
        let same = diverge(&exact, &exact, None);
        assert_eq!(same, Divergence { positions: 1, agree: 1, ..Divergence::default() });
    }
}
