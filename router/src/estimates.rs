//! What was measured by requests that came to a first token: the speed of prompts, links and codecs, and what codecs save.
//! Nothing here is configured; until something was measured, and again when that was long ago, a guess stands in for a
//! codec, and nothing for a node or a link.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use openai::KvCodec;
use transport::ids::NodeId;
use transport::message::{KvMode, Transfer};

use crate::board::LinkView;
use crate::latency::Coder;
use crate::line::{Fit, Line, Mean};
use crate::measured::Gauges;

/// Sinks and window of the transform codecs, coded finely or not at all.
const FIXED_TOKENS: f64 = 132.0;
/// Links given to the board.
const MAX_LINKS: usize = 256;
/// Guessed ratio of these.
const FIXED_RATIO: f64 = 4.0;
/// Guessed share of a tier that the other tokens reach, headers and tables included.
const TIER_SHARE: f64 = 0.7;

/// Everything measured; clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Estimates {
    books: Arc<Mutex<Books>>,
    gauges: Gauges,
}

#[derive(Debug, Default)]
struct Books {
    /// Prompt passes, by the node that ran them: prefill nodes, and decode nodes for local ones.
    prompts: HashMap<NodeId, Fit>,
    /// Bytes per millisecond, from prefill to decode node.
    links: HashMap<(NodeId, NodeId), Mean>,
    /// Raw bytes per millisecond.
    encode: HashMap<Method, Mean>,
    decode: HashMap<Method, Mean>,
    /// Bytes on the wire over the guess for them.
    sizes: HashMap<(Method, u8), Mean>,
}

/// A codec in a mode: another mode cuts other chunks and does other work.
type Method = (KvCodec, KvMode);

/// What is known of a pair of nodes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PairSpeed {
    pub(crate) prefill: Option<Line>,
    pub(crate) local: Option<Line>,
    /// Bytes per millisecond.
    pub(crate) link: Option<f64>,
}

impl Estimates {
    pub(crate) fn new(gauges: Gauges) -> Self {
        Self { books: Arc::default(), gauges }
    }

    /// Takes what a request has shown. Numbers that cannot be are left out: they come from other processes.
    pub(crate) fn record(&self, prompt_tokens: u32, decode: &NodeId, transfer: &Transfer, now: Instant) {
        let mut books = self.books();
        let runner = transfer.prefill_node.as_ref().unwrap_or(decode);
        if let Some(ms) = positive(transfer.prefill.prefill_ms) {
            let run = prompt_tokens.saturating_sub(transfer.prefill.cached_tokens);
            let tokens = f64::from(run.max(1));
            let fit = books.prompts.entry(runner.clone());
            let fit =
                fit.and_modify(|fit| fit.add(tokens, ms, now)).or_insert_with(|| Fit::new(tokens, ms, now));
            if let Some(line) = fit.line(now) {
                self.gauges.prompt(runner, line);
            }
        }
        let (Some(coding), Some(prefill)) = (&transfer.coding, &transfer.prefill_node) else { return };
        if let Some(gbps) = positive(transfer.prefill.link_gbps) {
            // Averaged where it was measured.
            let speed = Mean::new(gbps * 1e9 / 8.0 / 1e3, now);
            books.links.insert((prefill.clone(), decode.clone()), speed);
            self.gauges.link(prefill, decode, gbps);
        }
        let Some(codec) = KvCodec::named(&coding.codec) else { return };
        let (method, raw) = ((codec, coding.mode), transfer.raw_bytes as f64);
        for (stage, ms) in [("encode", transfer.prefill.encode_ms), ("decode", transfer.decode_ms)] {
            let Some(ms) = positive(ms).filter(|_| raw > 0.0) else { continue };
            let speeds = if stage == "encode" { &mut books.encode } else { &mut books.decode };
            let speed = average(speeds, method, raw / ms, now);
            self.gauges.codec(codec, coding.mode, stage, speed * 1e3);
        }
        if transfer.wire_bytes > 0 && raw > 0.0 {
            let wire = transfer.wire_bytes as f64;
            let tier = if codec.is_transform() { coding.tier } else { 0 };
            let size = wire / guess(codec, coding.tier, prompt_tokens.into(), raw);
            average(&mut books.sizes, (method, tier), size, now);
            self.gauges.ratio(codec, coding.mode, tier, raw / wire);
        }
    }

    /// What is known of two nodes.
    pub(crate) fn pair(&self, prefill: &NodeId, decode: &NodeId, now: Instant) -> PairSpeed {
        let books = self.books();
        let line = |node| books.prompts.get(node).and_then(|fit| fit.line(now));
        let link = books.links.get(&(prefill.clone(), decode.clone()));
        PairSpeed { prefill: line(prefill), local: line(decode), link: link.and_then(|link| link.get(now)) }
    }

    /// Links whose speed is known, by the nodes' names; a part of them where they are very many.
    pub(crate) fn links(&self, now: Instant) -> Vec<LinkView> {
        let books = self.books();
        let known = books.links.iter().filter_map(|((prefill, decode), speed)| {
            let (prefill, decode) = (prefill.0.clone(), decode.0.clone());
            speed.get(now).map(|speed| LinkView { prefill, decode, gbps: speed * 8e3 / 1e9 })
        });
        let mut links: Vec<LinkView> = known.collect();
        drop(books);
        links.sort_unstable_by(|a, b| (&a.prefill, &a.decode).cmp(&(&b.prefill, &b.decode)));
        links.truncate(MAX_LINKS);
        links
    }

    /// What is known, or else guessed, of a codec for a prompt whose cache has `raw` bytes. What was not measured in one
    /// mode is taken from the other.
    pub(crate) fn coder(
        &self,
        (codec, mode): Method,
        tier: u8,
        prompt_tokens: u32,
        raw: f64,
        now: Instant,
    ) -> Coder {
        let books = self.books();
        let other = match mode {
            KvMode::Stream => KvMode::After,
            KvMode::After => KvMode::Stream,
        };
        let speed = |speeds: &HashMap<Method, Mean>| {
            let known = |mode| speeds.get(&(codec, mode)).and_then(|speed| speed.get(now));
            known(mode).or_else(|| known(other)).unwrap_or_else(|| guessed_speed(codec))
        };
        let key = |mode| ((codec, mode), if codec.is_transform() { tier } else { 0 });
        let size = |mode| books.sizes.get(&key(mode)).and_then(|size| size.get(now));
        let size = size(mode).or_else(|| size(other)).unwrap_or(1.0);
        let wire_bytes = size * guess(codec, tier, prompt_tokens.into(), raw);
        Coder { codec, mode, encode: speed(&books.encode), decode: speed(&books.decode), wire_bytes }
    }

    /// Forgets a node that has left.
    pub(crate) fn forget(&self, node: &NodeId, now: Instant) {
        let mut books = self.books();
        books.prompts.retain(|id, fit| id != node && fit.line(now).is_some());
        books.links.retain(|(prefill, decode), speed| {
            let stays = prefill != node && decode != node && speed.get(now).is_some();
            if !stays {
                self.gauges.forget_link(prefill, decode);
            }
            stays
        });
        self.gauges.forget_node(node);
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn average<K: Eq + Hash>(means: &mut HashMap<K, Mean>, key: K, value: f64, now: Instant) -> f64 {
    let mean = means.entry(key);
    let mean = mean.and_modify(|mean| mean.add(value, now)).or_insert_with(|| Mean::new(value, now));
    mean.get(now).unwrap_or(value)
}

fn positive(value: f32) -> Option<f64> {
    (value.is_finite() && value > 0.0).then_some(value.into())
}

/// Bytes that a codec is taken to need before it was seen. Measured sizes are kept relative to this, since the part of
/// sinks and window depends on the length.
fn guess(codec: KvCodec, tier: u8, prompt_tokens: f64, raw: f64) -> f64 {
    match codec {
        KvCodec::Auto | KvCodec::Raw => raw,
        KvCodec::Lossless => raw / 1.5,
        KvCodec::Fp8 => raw / 2.4,
        KvCodec::Kvtc | KvCodec::KvtcPaper | KvCodec::KvtcPaperCodedWindow => {
            let fixed = FIXED_TOKENS.min(prompt_tokens) / prompt_tokens.max(1.0);
            raw * (fixed / FIXED_RATIO + (1.0 - fixed) / (TIER_SHARE * f64::from(tier.max(4))))
        }
    }
}

/// Raw bytes per millisecond of a few cores, before anything was measured: rather too fast, so that it is tried.
fn guessed_speed(codec: KvCodec) -> f64 {
    match codec {
        KvCodec::Auto | KvCodec::Raw => 2e6,
        KvCodec::Lossless
        | KvCodec::Fp8
        | KvCodec::Kvtc
        | KvCodec::KvtcPaper
        | KvCodec::KvtcPaperCodedWindow => 2.5e5,
    }
}

#[cfg(test)]
#[path = "estimates_tests.rs"]
mod tests;
