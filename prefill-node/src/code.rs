//! Codes what the engine gives, on a thread of its own: blocks as they come, or the whole cache in pieces once the prompt is
//! done and it is known which of its tokens were read.

use std::time::Instant;

use bytes::Bytes;
use model::Drawn;
use node::compute::{Coder as Codec, Part};
use node::failure::internal;
use node::prompt::pieces;
use node::units::ms;
use service::trace::TARGET;
use tokio::sync::mpsc;
use tracing::field::Empty;
use tracing::{Span, debug, info_span};
use transport::message::{Failure, PrefillStats};

use crate::busy::Busy;
use crate::engine::{FromEngine, Whole};

/// What leaves the coder for one prompt.
#[derive(Debug)]
pub(crate) enum Coded {
    /// The next chunk.
    Chunk(Bytes),
    /// All chunks are out. Overlap and link are for the sender to fill in, who knows when they went.
    Done { first: Drawn, stats: PrefillStats, coding: Busy, prompt_done: Instant },
    /// Engine or codec broke; nothing follows.
    Failed(Failure),
}

/// Nothing more is to be coded: the prompt failed, or nobody wants its chunks any more.
struct Over;

/// Codes one prompt's cache, one that comes whole in pieces of up to `chunk` tokens; ends when the engine does, or when
/// nobody wants the chunks any more. Its own span lies in `span`.
pub(crate) fn code(
    codec: &Codec,
    chunk: usize,
    span: &Span,
    mut blocks: mpsc::Receiver<FromEngine>,
    out: mpsc::Sender<Coded>,
) {
    let mut coder = Coder { codec, out, busy: Busy::default(), traced: Span::none() };
    while let Some(from_engine) = blocks.blocking_recv() {
        if coder.traced.is_none() {
            coder.traced = info_span!(target: TARGET, parent: span, "encode", encode_ms = Empty);
        }
        let _entered = coder.traced.clone().entered();
        if coder.take(from_engine, chunk).is_err() {
            return;
        }
    }
}

struct Coder<'a> {
    codec: &'a Codec,
    out: mpsc::Sender<Coded>,
    busy: Busy,
    /// From the first block to the last, in a trace.
    traced: Span,
}

impl Coder<'_> {
    fn take(&mut self, from_engine: FromEngine, chunk: usize) -> Result<(), Over> {
        match from_engine {
            FromEngine::Block(block) => self.block(&block, None),
            FromEngine::Whole(whole) => self.whole(*whole, chunk),
            FromEngine::Done(done) => {
                let coding = std::mem::take(&mut self.busy);
                self.traced.record("encode_ms", ms(coding.total()));
                let stats = PrefillStats {
                    cached_tokens: done.cached as u32,
                    queue_ms: ms(done.queued),
                    prefill_ms: ms(done.computed),
                    encode_ms: ms(coding.total()),
                    overlap: 0.0,
                    link_gbps: 0.0,
                };
                self.say(Coded::Done { first: done.first, stats, coding, prompt_done: done.at })
            }
            FromEngine::Failed(error) => self.fail(error),
        }
    }

    fn whole(&mut self, whole: Whole, chunk: usize) -> Result<(), Over> {
        let Whole { cache, received } = whole;
        let shifts = match received.shifts() {
            Ok(shifts) => shifts,
            Err(error) => return self.fail(internal(error)),
        };
        for tokens in pieces(cache.len(), chunk) {
            match cache.part(tokens.clone()) {
                Ok(part) => self.block(&part, Some(&shifts[tokens]))?,
                Err(error) => return self.fail(internal(error)),
            }
        }
        Ok(())
    }

    fn block(&mut self, part: &Part, shifts: Option<&[i8]>) -> Result<(), Over> {
        let started = Instant::now();
        let chunk = self.codec.encode(part, shifts);
        self.busy.since(started);
        match chunk {
            Ok(chunk) => {
                debug!(bytes = chunk.len(), "chunk coded");
                self.say(Coded::Chunk(chunk.into()))
            }
            Err(failure) => self.fail(failure),
        }
    }

    fn say(&self, coded: Coded) -> Result<(), Over> {
        self.out.blocking_send(coded).map_err(|_unsent| Over)
    }

    fn fail(&self, failure: Failure) -> Result<(), Over> {
        self.say(Coded::Failed(failure))?;
        Err(Over)
    }
}
