//! What all requests since the router's start have cost together, and the times to first token of the last ones by
//! codec.

use std::collections::{BTreeMap, VecDeque};

use openai::{KvCodec, KvSource, KvTransfer};
use serde::Serialize;

use crate::board::view::State;

/// Times kept of each codec.
const SAMPLES: usize = 128;
/// Requests whose decode node ran the prompt.
const LOCAL: &str = "local";
const RAW: &str = "raw";

/// The sums.
#[derive(Debug, Default)]
pub(crate) struct Totals {
    counts: Counts,
    codecs: BTreeMap<&'static str, Sums>,
}

/// Requests by what became of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Counts {
    /// Admitted.
    requests: u64,
    running: u64,
    done: u64,
    cancelled: u64,
    failed: u64,
    /// Ended before they were admitted: wrong, too many, or given up.
    refused: u64,
}

#[derive(Debug, Default)]
struct Sums {
    requests: u64,
    raw_bytes: u64,
    wire_bytes: u64,
    ttft_ms: VecDeque<f64>,
}

/// The totals as they are shown.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct TotalsView {
    #[serde(flatten)]
    counts: Counts,
    raw_bytes: u64,
    wire_bytes: u64,
    saved_bytes: i64,
    ratio: Option<f64>,
    ttft: Ttft,
    codecs: Vec<CodecView>,
}

/// Medians of caches sent raw, sent coded, and not sent.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Ttft {
    raw: Median,
    coded: Median,
    local: Median,
}

/// The median of the last times of a kind.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Median {
    p50_ms: Option<f64>,
    samples: usize,
}

/// One codec's share.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct CodecView {
    codec: &'static str,
    requests: u64,
    raw_bytes: u64,
    wire_bytes: u64,
    ratio: Option<f64>,
    ttft: Median,
}

impl Totals {
    pub(crate) fn admitted(&mut self) {
        self.counts.requests += 1;
        self.counts.running += 1;
    }

    pub(crate) fn ended(&mut self, was_admitted: bool, state: State) {
        if !was_admitted {
            self.counts.refused += 1;
            return;
        }
        self.counts.running = self.counts.running.saturating_sub(1);
        match state {
            State::Done => self.counts.done += 1,
            State::Cancelled => self.counts.cancelled += 1,
            State::Placing | State::Prefill | State::Decode | State::Failed => self.counts.failed += 1,
        }
    }

    /// A cache is in place.
    pub(crate) fn transferred(&mut self, transfer: &KvTransfer) {
        let sums = self.codecs.entry(name(transfer)).or_default();
        sums.requests += 1;
        sums.raw_bytes = sums.raw_bytes.saturating_add(transfer.raw_bytes);
        sums.wire_bytes = sums.wire_bytes.saturating_add(transfer.wire_bytes);
        if sums.ttft_ms.len() == SAMPLES {
            sums.ttft_ms.pop_front();
        }
        sums.ttft_ms.push_back(transfer.ttft_ms);
    }

    pub(crate) fn view(&self) -> TotalsView {
        let sum = |bytes: fn(&Sums) -> u64| self.codecs.values().map(bytes).fold(0, u64::saturating_add);
        let (raw_bytes, wire_bytes) = (sum(|sums| sums.raw_bytes), sum(|sums| sums.wire_bytes));
        let median = |class: fn(&str) -> bool| {
            let times =
                self.codecs.iter().filter(|(name, _)| class(name)).flat_map(|(_, sums)| &sums.ttft_ms);
            Median::of(times.copied().collect())
        };
        TotalsView {
            counts: self.counts,
            raw_bytes,
            wire_bytes,
            saved_bytes: i64::try_from(i128::from(raw_bytes) - i128::from(wire_bytes)).unwrap_or(i64::MAX),
            ratio: ratio(raw_bytes, wire_bytes),
            ttft: Ttft {
                raw: median(|name| name == RAW),
                coded: median(|name| name != RAW && name != LOCAL),
                local: median(|name| name == LOCAL),
            },
            codecs: self.codecs.iter().map(|(name, sums)| sums.view(name)).collect(),
        }
    }
}

impl Sums {
    fn view(&self, codec: &'static str) -> CodecView {
        let (requests, raw_bytes, wire_bytes) = (self.requests, self.raw_bytes, self.wire_bytes);
        let ratio = ratio(raw_bytes, wire_bytes);
        let ttft = Median::of(self.ttft_ms.iter().copied().collect());
        CodecView { codec, requests, raw_bytes, wire_bytes, ratio, ttft }
    }
}

impl Median {
    fn of(mut times: Vec<f64>) -> Self {
        times.sort_unstable_by(f64::total_cmp);
        let (samples, half) = (times.len(), times.len() / 2);
        let p50_ms = match samples {
            0 => None,
            n if n % 2 == 1 => Some(times[half]),
            _ => Some(f64::midpoint(times[half - 1], times[half])),
        };
        Self { p50_ms, samples }
    }
}

/// The names come from nodes, so those that this release does not know share one line.
fn name(transfer: &KvTransfer) -> &'static str {
    match (transfer.source, transfer.codec.as_deref()) {
        (KvSource::Local, _) => LOCAL,
        (KvSource::Remote, Some(codec)) => KvCodec::named(codec).map_or("other", KvCodec::as_str),
        (KvSource::Remote, None) => "other",
    }
}

fn ratio(raw: u64, wire: u64) -> Option<f64> {
    (wire > 0).then(|| raw as f64 / wire as f64)
}
