//! One request on the decode node as an explicit state machine. The session owns its slot, so that every way out of the
//! machine, a dropped task included, frees the room, counts the end once and logs one line.
//!
//! ```text
//! Reserved ─► Receiving ─► Ready ─► Decoding ─► Done
//!     └───────────┴─────────┴──────────┴──────► Failed   (also by drop)
//! ```
//! A local prefill goes from Reserved to Ready directly.

use model::{Config, Draws};
use tracing::{Span, info};
use transport::ids::RequestId;
use transport::message::{FinishReason, KvSource, Reserve, Sampling};

use crate::metrics::{InState, Metrics};
use crate::slots::Slot;

/// Where a session stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// The slot is held, nothing has arrived.
    Reserved,
    /// Chunks of the cache are arriving.
    Receiving,
    /// The cache is complete and verified.
    Ready,
    /// Part of the batch.
    Decoding,
    /// Ended well.
    Done,
    /// Ended otherwise.
    Failed,
}

impl State {
    fn name(self) -> &'static str {
        match self {
            Self::Reserved => "reserved",
            Self::Receiving => "receiving",
            Self::Ready => "ready",
            Self::Decoding => "decoding",
            Self::Done => "done",
            Self::Failed => "failed",
        }
    }

    fn is_end(self) -> bool {
        matches!(self, Self::Done | Self::Failed)
    }

    /// Whether the machine has this transition.
    fn leads_to(self, next: Self) -> bool {
        match next {
            Self::Reserved => false,
            Self::Receiving => self == Self::Reserved,
            Self::Ready => matches!(self, Self::Reserved | Self::Receiving),
            Self::Decoding => self == Self::Ready,
            Self::Done => matches!(self, Self::Ready | Self::Decoding),
            Self::Failed => !self.is_end(),
        }
    }
}

/// One request's session.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) request: RequestId,
    pub(crate) slot: Slot,
    /// What was asked for, as it came.
    pub(crate) asked: Sampling,
    /// How its tokens are drawn.
    pub(crate) draws: Draws,
    /// Tokens that end it.
    pub(crate) ends: Vec<u32>,
    pub(crate) prompt_tokens: usize,
    pub(crate) max_tokens: usize,
    /// Tokens given out, the first one included.
    pub(crate) generated: usize,
    /// Of the request, in which those of its cache's arrival lie.
    pub(crate) span: Span,
    state: State,
    metrics: Metrics,
}

impl Session {
    pub(crate) fn new(reserve: &Reserve, config: &Config, slot: Slot, metrics: Metrics) -> Self {
        let asked = &reserve.sampling;
        let prompt = match &reserve.source {
            KvSource::Local { token_ids } => token_ids,
            KvSource::Remote | KvSource::Kept(_) => &reserve.prompt_ids,
        };
        let session = Self {
            request: reserve.request,
            slot,
            asked: asked.clone(),
            draws: node::sampling::draws(asked, config, prompt),
            ends: node::sampling::ends(asked, config),
            prompt_tokens: reserve.prompt_tokens as usize,
            max_tokens: reserve.max_tokens as usize,
            generated: 0,
            span: Span::current(),
            state: State::Reserved,
            metrics,
        };
        session.gauge(State::Reserved, 1);
        session
    }

    /// Takes note of a token that is given out; whether it is the last one, and why.
    pub(crate) fn push(&mut self, token: u32) -> Option<FinishReason> {
        self.generated += 1;
        self.draws.push(token);
        let is_full = self.generated >= self.max_tokens;
        match self.ends.contains(&token) {
            true => Some(FinishReason::Stop),
            false => is_full.then_some(FinishReason::Length),
        }
    }

    /// Moves on.
    ///
    /// # Panics
    /// On a transition that the machine does not have: that is a bug.
    pub(crate) fn advance(&mut self, next: State) {
        assert!(self.state.leads_to(next), "session went from {:?} to {next:?}; this is a bug", self.state);
        self.gauge(self.state, -1);
        self.gauge(next, i64::from(!next.is_end()));
        self.state = next;
    }

    fn gauge(&self, state: State, by: i64) {
        if !state.is_end() {
            self.metrics.sessions.get_or_create(&InState { state: state.name() }).inc_by(by);
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let last = self.state;
        if !last.is_end() {
            self.advance(State::Failed);
        }
        self.metrics.sessions_ended.get_or_create(&InState { state: self.state.name() }).inc();
        info!(
            request_id = %self.request,
            state = self.state.name(),
            last_state = last.name(),
            prompt_tokens = self.prompt_tokens,
            generated = self.generated,
            "session ended"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [State; 6] =
        [State::Reserved, State::Receiving, State::Ready, State::Decoding, State::Done, State::Failed];

    #[test]
    fn an_ended_session_goes_nowhere_and_nothing_returns_to_the_start() {
        for next in ALL {
            assert!(!State::Done.leads_to(next) && !State::Failed.leads_to(next));
            assert!(!next.leads_to(State::Reserved));
        }
    }

    #[test]
    fn no_step_is_made_on_a_cache_that_is_not_ready() {
        let before_decoding: Vec<_> = ALL.into_iter().filter(|s| s.leads_to(State::Decoding)).collect();
        assert_eq!(before_decoding, [State::Ready]);
    }
}
