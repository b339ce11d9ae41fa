//! What is counted while a coding is measured, and the figures that come of it.

use std::time::Duration;

use serde::Serialize;

use super::subject::Way;

/// Figures of one coding; what was not asked for is none.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Score {
    /// Name of the codec.
    pub codec: &'static str,
    /// Its tier, where it has tiers.
    pub tier: Option<u8>,
    /// `"stream"` or `"after"`.
    pub mode: &'static str,
    /// Prompts asked.
    pub n: Option<u64>,
    /// Share of answers right from the decoded cache.
    pub em: Option<f64>,
    /// Share of answers right from the cache as it was.
    pub em_raw: Option<f64>,
    /// KL divergence from the exact to the decoded cache's next-token distribution, in nats, near the coded cache.
    pub kl: Option<f64>,
    /// Rise of the negative log-likelihood of the text, in nats a token, near the coded cache.
    pub dnll: Option<f64>,
    /// Share of equal likeliest tokens, near the coded cache.
    pub agree: Option<f64>,
    /// As `kl`, farther away.
    pub kl_far: Option<f64>,
    /// As `dnll`, farther away.
    pub dnll_far: Option<f64>,
    /// As `agree`, farther away.
    pub agree_far: Option<f64>,
    /// Later questions asked.
    pub n_later: Option<u64>,
    /// Share of later questions answered right from the decoded cache.
    pub em_later: Option<f64>,
    /// Share of later questions answered right from the cache as it was.
    pub em_later_raw: Option<f64>,
    /// Squared error of the body's keys with RoPE undone, over their squared distance from the prompt's mean.
    pub rel_k: Option<f64>,
    /// The same of the values.
    pub rel_v: Option<f64>,
    /// Raw over coded bytes of the body: no sinks, no window, no headers.
    pub body_ratio: Option<f64>,
    /// Raw bytes of the caches over every byte of their KV streams.
    pub whole_ratio: f64,
    /// Milliseconds to encode a cache, on average.
    pub encode_ms: f64,
    /// Milliseconds to decode a cache, on average.
    pub decode_ms: f64,
}

/// Right answers of so many.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Answers {
    asked: u64,
    right: u64,
    right_raw: u64,
}

impl Answers {
    pub(super) fn add(&mut self, right: bool, right_raw: bool) {
        self.asked += 1;
        self.right += u64::from(right);
        self.right_raw += u64::from(right_raw);
    }

    fn asked(&self) -> Option<u64> {
        (self.asked > 0).then_some(self.asked)
    }
}

/// Difference between predictions, summed over positions.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Divergence {
    /// Positions compared.
    pub(super) positions: u64,
    /// Those whose next token is known.
    pub(super) labelled: u64,
    /// Nats.
    pub(super) kl: f64,
    /// Nats.
    pub(super) dnll: f64,
    /// Positions with the same likeliest token.
    pub(super) agree: u64,
}

impl Divergence {
    pub(super) fn add(&mut self, other: &Self) {
        self.positions += other.positions;
        self.labelled += other.labelled;
        self.kl += other.kl;
        self.dnll += other.dnll;
        self.agree += other.agree;
    }
}

/// A squared error and what it is relative to.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Energy {
    pub(super) error: f64,
    pub(super) signal: f64,
}

/// What the transfers of caches were, summed up.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Transfers {
    pub(super) caches: u32,
    pub(super) raw_bytes: usize,
    pub(super) wire_bytes: usize,
    pub(super) body_raw_bytes: usize,
    pub(super) body_coded_bytes: usize,
    pub(super) encode: Duration,
    pub(super) decode: Duration,
    pub(super) keys: Energy,
    pub(super) values: Energy,
}

impl Transfers {
    pub(super) fn add(&mut self, other: &Self) {
        self.caches += other.caches;
        self.raw_bytes += other.raw_bytes;
        self.wire_bytes += other.wire_bytes;
        self.body_raw_bytes += other.body_raw_bytes;
        self.body_coded_bytes += other.body_coded_bytes;
        self.encode += other.encode;
        self.decode += other.decode;
        for (mine, other) in [(&mut self.keys, other.keys), (&mut self.values, other.values)] {
            mine.error += other.error;
            mine.signal += other.signal;
        }
    }
}

/// Everything counted for one coding.
#[derive(Debug, Clone, Default)]
pub(super) struct Tally {
    pub(super) answers: Answers,
    pub(super) later: Answers,
    pub(super) near: Divergence,
    pub(super) far: Divergence,
    /// Of the prompts.
    pub(super) prompts: Transfers,
    /// Of the texts' beginnings.
    pub(super) texts: Transfers,
}

impl Tally {
    /// Bytes, errors and times are those of the prompts, or of the texts where no prompts were given.
    pub(super) fn score(&self, way: Way) -> Score {
        let transfers = if self.prompts.caches > 0 { &self.prompts } else { &self.texts };
        let each_ms = |total: Duration| total.as_secs_f64() * 1e3 / f64::from(transfers.caches);
        let (answers, later, near, far) = (&self.answers, &self.later, &self.near, &self.far);
        Score {
            codec: way.coding.name(),
            tier: way.coding.tier(),
            mode: way.mode.name(),
            n: answers.asked(),
            em: share(answers.right, answers.asked),
            em_raw: share(answers.right_raw, answers.asked),
            kl: ratio(near.kl, near.positions as f64),
            dnll: ratio(near.dnll, near.labelled as f64),
            agree: share(near.agree, near.positions),
            kl_far: ratio(far.kl, far.positions as f64),
            dnll_far: ratio(far.dnll, far.labelled as f64),
            agree_far: share(far.agree, far.positions),
            n_later: later.asked(),
            em_later: share(later.right, later.asked),
            em_later_raw: share(later.right_raw, later.asked),
            rel_k: ratio(transfers.keys.error, transfers.keys.signal),
            rel_v: ratio(transfers.values.error, transfers.values.signal),
            body_ratio: share(transfers.body_raw_bytes as u64, transfers.body_coded_bytes as u64),
            whole_ratio: transfers.raw_bytes as f64 / transfers.wire_bytes as f64,
            encode_ms: each_ms(transfers.encode),
            decode_ms: each_ms(transfers.decode),
        }
    }
}

/// Codecs without a plan have one way of coding only.
pub(super) fn has_tiers(kind: codec::CodecKind) -> bool {
    kind.needs_plan()
}

fn share(part: u64, whole: u64) -> Option<f64> {
    ratio(part as f64, whole as f64)
}

fn ratio(part: f64, whole: f64) -> Option<f64> {
    (whole > 0.0).then(|| part / whole)
}
