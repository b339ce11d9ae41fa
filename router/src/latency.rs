//! How long a request takes from dispatch to its first token, for every way in which it may run, and which way is taken:
//! arithmetic over what was measured, and nothing else. Times are in milliseconds.

use openai::KvCodec;
use transport::message::KvMode;

use crate::line::Line;

/// Ways whose times differ by less are equally fast: a share of the least...
const TIE_SHARE: f64 = 0.05;
/// ...or so many milliseconds.
const TIE_MS: f64 = 2.0;
/// A second best that costs more than this times the best is not worth a look.
const EXPLORE_UP_TO: f64 = 1.5;

/// A way in which a request may run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// The decode node runs the prompt.
    Local,
    /// A prefill node runs it and ships the cache.
    Split { codec: KvCodec, mode: KvMode },
}

impl Way {
    /// As it is called in reasons and metric labels.
    pub(crate) fn name(self) -> String {
        match self {
            Self::Local => "local".to_owned(),
            Self::Split { codec, mode: KvMode::Stream } => codec.to_string(),
            Self::Split { codec, mode } => format!("{codec}/{}", mode.name()),
        }
    }

    /// How much of the cache is lost: less is better.
    fn loss(self) -> u8 {
        match self {
            Self::Local | Self::Split { codec: KvCodec::Auto | KvCodec::Raw | KvCodec::Lossless, .. } => 0,
            Self::Split { codec: KvCodec::Fp8, .. } => 1,
            Self::Split {
                codec: KvCodec::Kvtc | KvCodec::KvtcPaper | KvCodec::KvtcPaperCodedWindow, ..
            } => 2,
        }
    }
}

/// What is known of a request and of the pair of nodes that it would run on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Setting {
    pub(crate) prompt_tokens: f64,
    /// Of these, those that the prefill node need not run.
    pub(crate) cached_tokens: f64,
    pub(crate) raw_bytes: f64,
    /// Tokens of a chunk that streams, and of one that is coded after the prompt.
    pub(crate) chunk_tokens: f64,
    pub(crate) after_chunk_tokens: f64,
    /// Wait for the prefill node's engine.
    pub(crate) queue_ms: f64,
    /// The prefill node, and the decode node where it has run prompts.
    pub(crate) prefill: Line,
    pub(crate) local: Option<Line>,
    /// Bytes per millisecond between the two.
    pub(crate) link: f64,
    /// Requests that the decode node works on.
    pub(crate) decode_in_flight: f64,
}

/// What is known of one way of coding: bytes of raw cache per millisecond, and what a prompt's cache becomes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Coder {
    pub(crate) codec: KvCodec,
    pub(crate) mode: KvMode,
    pub(crate) encode: f64,
    pub(crate) decode: f64,
    pub(crate) wire_bytes: f64,
}

/// What a way would come to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Forecast {
    pub(crate) way: Way,
    /// From dispatch to first token.
    pub(crate) ms: f64,
    /// The same, with the time that it takes from other requests.
    pub(crate) cost: f64,
    pub(crate) wire_bytes: f64,
}

impl Setting {
    /// Shipping the cache. Every chunk is coded, sent and decoded while the next one computes, or, *after* the prompt, while
    /// the next one is coded.
    pub(crate) fn split(&self, coder: &Coder) -> Forecast {
        let prefill = self.prefill.ms(self.prompt_tokens - self.cached_tokens);
        let encode = self.raw_bytes / coder.encode;
        let wire = coder.wire_bytes / self.link;
        let decode = self.raw_bytes / coder.decode;
        let chunks = |tokens: f64| (self.prompt_tokens / tokens.max(1.0)).ceil().max(1.0);
        let ms = self.queue_ms
            + match coder.mode {
                KvMode::Stream => pipeline(&[prefill, encode, wire, decode], chunks(self.chunk_tokens)),
                KvMode::After => prefill + pipeline(&[encode, wire, decode], chunks(self.after_chunk_tokens)),
            };
        let way = Way::Split { codec: coder.codec, mode: coder.mode };
        Forecast { way, ms, cost: ms, wire_bytes: coder.wire_bytes }
    }

    /// Running the prompt on the decode node, which takes its time from every generation there: it counts once more for
    /// each of them, and for one at least, since there will be others. A node that has run no prompt yet is taken to be as
    /// fast as the prefill node.
    pub(crate) fn local(&self) -> Forecast {
        let ms = self.local.unwrap_or(self.prefill).ms(self.prompt_tokens);
        let cost = ms * (1.0 + self.decode_in_flight.max(1.0));
        Forecast { way: Way::Local, ms, cost, wire_bytes: 0.0 }
    }
}

/// Time of equal chunks in a pipeline, given each stage's time for all of them: the first chunk goes through every stage,
/// then the slowest stage sets the pace.
fn pipeline(stages: &[f64], chunks: f64) -> f64 {
    let slowest = stages.iter().copied().fold(0.0, f64::max);
    stages.iter().sum::<f64>() / chunks + slowest * (chunks - 1.0) / chunks
}

/// The way that costs least; of those that cost about the same the one that loses least, and of these the cheapest, then the
/// one with the fewest bytes. To explore is to take the cheapest of the others instead, where it is not far off: what is not used is not
/// measured. None of nothing.
pub(crate) fn choose(forecasts: &[Forecast], explore: bool) -> Option<Forecast> {
    let least = forecasts.iter().map(|forecast| forecast.cost).reduce(f64::min)?;
    let tied = least + (TIE_SHARE * least).max(TIE_MS);
    let by_loss = |a: &&Forecast, b: &&Forecast| {
        let by_cost = a.cost.total_cmp(&b.cost).then(a.wire_bytes.total_cmp(&b.wire_bytes));
        a.way.loss().cmp(&b.way.loss()).then(by_cost)
    };
    let best = forecasts.iter().filter(|forecast| forecast.cost <= tied).min_by(by_loss)?;
    let others = forecasts.iter().filter(|forecast| forecast.way != best.way);
    let second = others.min_by(|a, b| a.cost.total_cmp(&b.cost));
    let second = second.filter(|second| explore && second.cost <= EXPLORE_UP_TO * best.cost);
    Some(*second.unwrap_or(best))
}

#[cfg(test)]
#[path = "latency_tests.rs"]
mod tests;
