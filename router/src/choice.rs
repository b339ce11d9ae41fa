//! Which way a request takes on the pair of nodes that was found for it: as the client asked, or, for `kv_codec: "auto"`,
//! the way that [`crate::latency`] forecasts as best from what [`crate::estimates`] has seen.

use std::time::Instant;

use openai::{KvCodec, KvMode as Wish};
use transport::message::KvMode;

use crate::estimates::Estimates;
use crate::latency::{Coder, Forecast, Setting, Way, choose};
use crate::policy::{Candidate, LocalPrefill, Rules, Wanted};

/// Prompts up to here are all attention sinks and window, of which coding saves little: without measurements they travel
/// raw, which measures the link best.
const SHORT_TOKENS: u32 = 132;

/// The way taken, and how it came to be.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Choice {
    pub(crate) way: Way,
    pub(crate) reason: Reason,
    /// From dispatch to first token, in milliseconds, as far as it can be told.
    pub(crate) predicted_ms: Option<f64>,
    /// Why a cache is not coded or not shipped, where the client left that open.
    pub(crate) bypass_reason: Option<String>,
    /// The same, as one of a few classes.
    pub(crate) bypass: Option<Bypass>,
    /// Expected wait for the prefill node.
    pub(crate) queue_ms: Option<f64>,
}

/// Why a way was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reason {
    /// The client named the codec.
    Asked,
    /// There was no other.
    Only,
    /// Node or link have not been measured, or not lately.
    Unmeasured,
    /// It was forecast as the best.
    Predicted,
    /// It was forecast as the second best, and its measurements are wanted.
    Explored,
}

impl Reason {
    /// As a metric label.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Asked => "asked",
            Self::Only => "only",
            Self::Unmeasured => "unmeasured",
            Self::Predicted => "predicted",
            Self::Explored => "explored",
        }
    }
}

/// Why a cache is not coded or not shipped, where the client left that open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bypass {
    /// Decode nodes run all prompts.
    LocalAlways,
    /// There is none that could take the prompt.
    NoPrefillNode,
    /// Prefill has failed elsewhere, and the operator wants it here then.
    PrefillFailed,
    /// The decode node has the prompt done sooner.
    LocalQuicker,
    /// Raw is there sooner than coded.
    LinkFast,
    /// Coded is hardly there sooner than raw.
    NoGain,
    /// Nothing was measured, and kvtc cannot be spoken.
    NoPlan,
    /// Nothing was measured, and the prompt has little to code.
    ShortPrompt,
    /// The second best way, for its measurements.
    Explored,
}

impl Bypass {
    /// Every class.
    pub(crate) const ALL: [Self; 9] = [
        Self::LocalAlways,
        Self::NoPrefillNode,
        Self::PrefillFailed,
        Self::LocalQuicker,
        Self::LinkFast,
        Self::NoGain,
        Self::NoPlan,
        Self::ShortPrompt,
        Self::Explored,
    ];

    /// Whether the decode node may have run the prompt for it.
    pub(crate) fn may_be_local(self) -> bool {
        matches!(
            self,
            Self::LocalAlways
                | Self::NoPrefillNode
                | Self::PrefillFailed
                | Self::LocalQuicker
                | Self::Explored
        )
    }

    /// As a metric label.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::LocalAlways => "local_always",
            Self::NoPrefillNode => "no_prefill_node",
            Self::PrefillFailed => "prefill_failed",
            Self::LocalQuicker => "local_quicker",
            Self::LinkFast => "link_fast",
            Self::NoGain => "no_gain",
            Self::NoPlan => "no_plan",
            Self::ShortPrompt => "short_prompt",
            Self::Explored => "explored",
        }
    }

    /// In words.
    fn words(self) -> &'static str {
        match self {
            Self::LocalAlways => "decode nodes run all prompts (--local-prefill always)",
            Self::NoPrefillNode => "no prefill node can take it now",
            Self::PrefillFailed => "prefill failed (--prefill-failure local)",
            Self::LocalQuicker => "running the prompt on the decode node is quicker",
            Self::LinkFast => "link is fast",
            Self::NoGain => "coding would gain next to nothing",
            Self::NoPlan => "the pair was not measured yet, and has no calibrated plan",
            Self::ShortPrompt => "the pair was not measured yet, and so short a prompt has little to code",
            Self::Explored => "tried for its measurements",
        }
    }
}

impl Choice {
    /// The decode node runs the prompt, since nothing else is possible or allowed.
    pub(crate) fn local(why: Bypass) -> Self {
        Self::new(Way::Local, Reason::Only).bypassing(why, why.words().to_owned())
    }

    /// A prefill node keeps the cache already, and has coded it.
    pub(crate) fn kept(codec: KvCodec, mode: KvMode) -> Self {
        Self::new(Way::Split { codec, mode }, Reason::Asked)
    }

    fn bypassing(self, bypass: Bypass, words: String) -> Self {
        Self { bypass: Some(bypass), bypass_reason: Some(words), ..self }
    }

    fn new(way: Way, reason: Reason) -> Self {
        Self { way, reason, predicted_ms: None, bypass_reason: None, bypass: None, queue_ms: None }
    }
}

/// How a cache is coded that waits for a decode node which is not known yet: as asked, otherwise as small as can be without
/// measurements.
pub(crate) fn for_keeping(wanted: &Wanted<'_>, has_plan: bool) -> (KvCodec, KvMode) {
    match wanted.kv.codec {
        KvCodec::Auto if has_plan && wanted.prompt_tokens > SHORT_TOKENS => {
            (KvCodec::Kvtc, mode_of(KvCodec::Kvtc, wanted.kv.mode))
        }
        KvCodec::Auto => (KvCodec::Lossless, KvMode::Stream),
        codec => (codec, mode_of(codec, wanted.kv.mode)),
    }
}

/// When a cache is coded whose codec is given.
fn mode_of(codec: KvCodec, wish: Wish) -> KvMode {
    match (codec, wish) {
        (KvCodec::Kvtc, Wish::Auto | Wish::After) => KvMode::After,
        _ => KvMode::Stream,
    }
}

/// Decides for a request on a pair of nodes; to `explore` is to try the second best.
pub(crate) fn decide(
    wanted: &Wanted<'_>,
    rules: &Rules,
    (prefill, decode): (&Candidate, &Candidate),
    estimates: &Estimates,
    explore: bool,
) -> Choice {
    let now = Instant::now();
    let outlook =
        Outlook { wanted, estimates, now, setting: setting(wanted, rules, prefill, decode, estimates, now) };
    let has_plan = prefill.has_plan && decode.has_plan;
    let choice = match wanted.kv.codec {
        KvCodec::Auto => outlook.auto(has_plan, rules.local_prefill == LocalPrefill::Auto, explore),
        codec => outlook.asked(codec),
    };
    Choice { queue_ms: outlook.setting.map(|setting| setting.queue_ms), ..choice }
}

/// What is known of the pair; none unless both the prefill node and the link were measured.
fn setting(
    wanted: &Wanted<'_>,
    rules: &Rules,
    prefill: &Candidate,
    decode: &Candidate,
    estimates: &Estimates,
    now: Instant,
) -> Option<Setting> {
    let pair = estimates.pair(&prefill.node, &decode.node, now);
    let line = pair.prefill?;
    Some(Setting {
        prompt_tokens: wanted.prompt_tokens.into(),
        cached_tokens: prefill.cached_tokens.min(wanted.prompt_tokens).into(),
        raw_bytes: f64::from(wanted.prompt_tokens) * f64::from(rules.bytes_per_token),
        chunk_tokens: prefill.chunk_tokens.into(),
        after_chunk_tokens: prefill.after_chunk_tokens.into(),
        queue_ms: f64::from(prefill.assigned) * line.mean_ms,
        prefill: line,
        local: pair.local,
        link: pair.link?,
        decode_in_flight: decode.assigned.into(),
    })
}

struct Outlook<'a> {
    wanted: &'a Wanted<'a>,
    estimates: &'a Estimates,
    now: Instant,
    setting: Option<Setting>,
}

impl Outlook<'_> {
    fn coder(&self, setting: &Setting, codec: KvCodec, mode: KvMode) -> Coder {
        let (tier, tokens) = (self.wanted.kv.tier, self.wanted.prompt_tokens);
        self.estimates.coder((codec, mode), tier, tokens, setting.raw_bytes, self.now)
    }

    fn asked(&self, codec: KvCodec) -> Choice {
        let mode = mode_of(codec, self.wanted.kv.mode);
        let predicted = |setting: &Setting| setting.split(&self.coder(setting, codec, mode)).ms;
        let predicted_ms = self.setting.as_ref().map(predicted);
        Choice { predicted_ms, ..Choice::new(Way::Split { codec, mode }, Reason::Asked) }
    }

    fn auto(&self, has_plan: bool, may_be_local: bool, explore: bool) -> Choice {
        let Some(setting) = &self.setting else { return self.unmeasured(has_plan) };
        let mut ways = vec![
            (KvCodec::Raw, KvMode::Stream),
            (KvCodec::Lossless, KvMode::Stream),
            (KvCodec::Fp8, KvMode::Stream),
        ];
        if has_plan {
            ways.extend(self.kvtc_modes().iter().map(|mode| (KvCodec::Kvtc, *mode)));
        }
        let split = ways.into_iter().map(|(codec, mode)| setting.split(&self.coder(setting, codec, mode)));
        let forecasts: Vec<_> = split.chain(may_be_local.then(|| setting.local())).collect();
        let (Some(best), Some(chosen)) = (choose(&forecasts, false), choose(&forecasts, explore)) else {
            return self.unmeasured(has_plan);
        };
        let reason = if chosen.way == best.way { Reason::Predicted } else { Reason::Explored };
        let choice = Choice { predicted_ms: Some(chosen.ms), ..Choice::new(chosen.way, reason) };
        match bypass(&chosen, &forecasts, reason) {
            Some((why, words)) => choice.bypassing(why, words),
            None => choice,
        }
    }

    /// What teaches something and is never far off: kvtc after the prompt, which has the fewest bytes.
    fn unmeasured(&self, has_plan: bool) -> Choice {
        let why = match (has_plan, self.wanted.prompt_tokens <= SHORT_TOKENS) {
            (false, _) => Bypass::NoPlan,
            (true, true) => Bypass::ShortPrompt,
            (true, false) => {
                let mode = self.kvtc_modes().last().copied().unwrap_or_default();
                return Choice::new(Way::Split { codec: KvCodec::Kvtc, mode }, Reason::Unmeasured);
            }
        };
        let raw = Way::Split { codec: KvCodec::Raw, mode: KvMode::Stream };
        Choice::new(raw, Reason::Unmeasured).bypassing(why, why.words().to_owned())
    }

    fn kvtc_modes(&self) -> &'static [KvMode] {
        match self.wanted.kv.mode {
            Wish::Auto => &[KvMode::Stream, KvMode::After],
            Wish::Stream => &[KvMode::Stream],
            Wish::After => &[KvMode::After],
        }
    }
}

/// Why the cache is not coded, or not shipped; nothing for one that is coded.
fn bypass(chosen: &Forecast, forecasts: &[Forecast], reason: Reason) -> Option<(Bypass, String)> {
    let is_coded = |way| matches!(way, Way::Split { codec, .. } if codec != KvCodec::Raw);
    if is_coded(chosen.way) {
        return None;
    }
    let others = forecasts.iter().filter(|other| other.way != chosen.way);
    let others = others.filter(|other| chosen.way == Way::Local || is_coded(other.way));
    let other = others.min_by(|a, b| a.cost.total_cmp(&b.cost))?;
    let why = match (reason, chosen.way) {
        (Reason::Explored, _) => Bypass::Explored,
        (_, Way::Local) => Bypass::LocalQuicker,
        _ if chosen.ms <= other.ms => Bypass::LinkFast,
        _ => Bypass::NoGain,
    };
    let (words, name, ms) = (why.words(), chosen.way.name(), chosen.ms);
    Some((why, format!("{words}: {name} predicted {ms:.0} ms, {} {:.0} ms", other.way.name(), other.ms)))
}

#[cfg(test)]
#[path = "choice_tests.rs"]
mod tests;
