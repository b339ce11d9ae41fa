//! Takes KV streams from prefill nodes: ticket, chunks, end; verifies; and hands the session back to the request that
//! waits for it. When that request is gone, the stream is stopped and the prefill node stops computing.

use std::sync::Arc;
use std::time::Duration;

use codec::{CodecKind, Coding};
use node::failure::{fail, internal, invalid, transfer};
use node::units::ms;
use node::{KvDigest, Served, sampling, trace};
use service::Shutdown;
use service::trace::TARGET;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tracing::field::Empty;
use tracing::{Instrument, Span, debug, info_span, warn};
use transport::ids::NodeId;
use transport::message::{
    Failure, FailureKind, KvCoding, KvReply, KvStream, Logprobs, PrefillStats, Role, TraceContext, Transfer,
};
use transport::{Endpoint, Frame, Peer, Receiver, RecvError, Stream};

use crate::import::{self, Imported};
use crate::metrics::Metrics;
use crate::session::{Session, State};
use crate::tickets::{Delivered, Pending, Tickets};

/// How long a prefill node may take to say what a stream is for.
const BEGIN_DEADLINE: Duration = Duration::from_secs(5);

/// What receiving needs; clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Intake {
    pub(crate) served: Arc<Served>,
    pub(crate) tickets: Tickets,
    pub(crate) metrics: Metrics,
    pub(crate) silence: Duration,
    pub(crate) shutdown: Shutdown,
}

/// A delivery that has begun.
struct Begun {
    pending: Pending,
    announced: KvCoding,
    coding: Coding,
    trace: Option<TraceContext>,
}

/// A stream that brings no cache, and the phase that failed.
type Lost = (&'static str, Failure);

/// A stream that ended as it should.
struct Complete {
    first_token: u32,
    logprobs: Option<Logprobs>,
    stats: PrefillStats,
    decoded: Duration,
}

impl Intake {
    /// Accepts prefill nodes until the endpoint closes.
    pub(crate) async fn accept_peers(self, endpoint: Endpoint) {
        while let Some(accepted) = endpoint.accept().await {
            match accepted {
                Ok(peer) if peer.hello().role == Role::Prefill => {
                    tokio::spawn(self.clone().accept_streams(peer));
                }
                Ok(peer) => {
                    warn!(node = %peer.hello().node, "only prefill nodes deliver here");
                    peer.close(transport::CloseCode::PROTOCOL, "only prefill nodes deliver to a decode node");
                }
                Err(error) => warn!(%error, "a peer was not let in"),
            }
        }
    }

    async fn accept_streams(self, peer: Peer) {
        let node = peer.hello().node.clone();
        debug!(%node, address = %peer.remote_address(), "prefill node connected");
        loop {
            match peer.accept().await {
                Ok(stream) => {
                    let (intake, node) = (self.clone(), node.clone());
                    self.shutdown.spawn(async move { intake.receive(stream, node).await });
                }
                Err(lost) => {
                    debug!(%node, reason = %lost, "prefill node disconnected");
                    return;
                }
            }
        }
    }

    async fn receive(self, mut stream: Stream, node: NodeId) {
        let begun = match self.begin(&mut stream.receiver).await {
            Ok(begun) => begun,
            Err(failure) => {
                self.metrics.transfer_failed("begin");
                return refuse(stream, failure).await;
            }
        };
        let traced = info_span!(
            target: TARGET, parent: &begun.pending.session.span, "receive",
            prefill_node = %node, codec = begun.announced.codec, wire_bytes = Empty,
        );
        trace::link(&traced, begun.trace);
        self.take(begun, stream, node).instrument(traced).await;
    }

    async fn take(self, begun: Begun, mut stream: Stream, node: NodeId) {
        let Begun { pending: Pending { session, mut outcome }, announced, coding, .. } = begun;
        let prompt_tokens = session.prompt_tokens;
        let (chunks, import) = import::start(Arc::clone(&self.served), session, coding);
        let result = tokio::select! {
            result = self.take_chunks(&mut stream.receiver, chunks, import) => result,
            // Dropping the stream stops it: the prefill node learns at once.
            () = outcome.closed() => return,
        };
        match result {
            Ok((mut session, complete)) => {
                session.advance(State::Ready);
                let transfer = Transfer {
                    coding: Some(announced),
                    prefill_node: Some(node),
                    raw_bytes: (prompt_tokens * self.served.layout.bytes_per_token()) as u64,
                    wire_bytes: stream.receiver.bytes_read(),
                    wire_ms: ms(stream.receiver.receive_time()),
                    decode_ms: ms(complete.decoded),
                    prefill: complete.stats,
                };
                Span::current().record("wire_bytes", transfer.wire_bytes);
                let Complete { first_token, logprobs, .. } = complete;
                let delivered = Delivered { session, first_token, logprobs, transfer };
                if outcome.send(Ok(delivered)).is_err() {
                    return; // the request is gone; dropping the stream says so
                }
                if stream.sender.send(&KvReply::Accepted).await.is_ok() {
                    drop(stream.sender.finish());
                }
            }
            Err((phase, failure)) => {
                self.metrics.transfer_failed(phase);
                service::trace::fail(&Span::current(), &failure.message);
                drop(outcome.send(Err(failure.clone())));
                refuse(stream, failure).await;
            }
        }
    }

    async fn begin(&self, receiver: &mut Receiver) -> Result<Begun, Failure> {
        let first = receiver.recv_message::<KvStream>(BEGIN_DEADLINE).await;
        let KvStream::Begin { ticket, coding: announced, prompt_tokens, trace } = first.map_err(transfer)?
        else {
            return Err(invalid("a KV stream begins with its ticket"));
        };
        let kind: CodecKind = announced.codec.parse().map_err(invalid)?;
        let coding = Coding { kind, tier: announced.tier };
        let unknown = || invalid("this ticket is unknown, used or was given up");
        let mut pending = self.tickets.take(ticket).ok_or_else(unknown)?;
        let reserved = pending.session.prompt_tokens;
        if prompt_tokens as usize != reserved {
            let failure = invalid(format!("{prompt_tokens} prompt tokens announced, {reserved} reserved"));
            drop(pending.outcome.send(Err(failure.clone())));
            return Err(failure);
        }
        pending.session.advance(State::Receiving);
        Ok(Begun { pending, announced, coding, trace })
    }

    async fn take_chunks(
        &self,
        receiver: &mut Receiver,
        chunks: mpsc::Sender<bytes::Bytes>,
        import: JoinHandle<Imported>,
    ) -> Result<(Session, Complete), Lost> {
        let receive = |failure| ("receive", failure);
        let mut digest = KvDigest::default();
        let end = loop {
            let frame = tokio::select! {
                frame = receiver.recv::<KvStream>(self.silence) => frame,
                () = chunks.closed() => break None, // the import has failed, and says why below
            };
            match frame {
                Ok(Frame::Data(chunk)) => {
                    debug!(bytes = chunk.len(), "chunk received");
                    digest.add(&chunk);
                    if chunks.send(chunk).await.is_err() {
                        break None;
                    }
                }
                Ok(Frame::Message(KvStream::End { chunks, digest, first_token, logprobs, stats })) => {
                    break Some((chunks, digest, first_token, logprobs, stats));
                }
                Ok(Frame::Message(KvStream::Begin { .. })) => {
                    return Err(receive(invalid("a KV stream begins once")));
                }
                Ok(Frame::End) => {
                    return Err(receive(transfer("the KV stream ended without its closing message")));
                }
                Err(error @ RecvError::Timeout { .. }) => {
                    return Err(receive(fail(FailureKind::Timeout, error)));
                }
                Err(error) => return Err(receive(transfer(format!("the KV stream broke: {error}")))),
            }
        };
        drop(chunks);
        let imported = import.await.map_err(internal).flatten();
        let (session, decoded) = imported.map_err(|failure| ("decode", failure))?;
        let early = || ("decode", internal("the import stopped early"));
        let (count, sum, first_token, logprobs, stats) = end.ok_or_else(early)?;
        let verify = |what: String| ("verify", transfer(what));
        if digest.finish() != (count, sum) {
            return Err(verify("the digest over the chunks differs from the sender's".into()));
        }
        let vocab = self.served.config.vocab_size;
        if first_token as usize >= vocab {
            return Err(verify(format!("first token {first_token} is outside of the vocabulary")));
        }
        sampling::check_told(&session.asked, logprobs.as_ref(), vocab).map_err(verify)?;
        Ok((session, Complete { first_token, logprobs, stats, decoded }))
    }
}

/// Says why a stream is not taken, then drops it, which stops its sender.
async fn refuse(mut stream: Stream, failure: Failure) {
    warn!(kind = ?failure.kind, "KV stream refused: {}", failure.message);
    if stream.sender.send(&KvReply::Fail(failure)).await.is_ok() {
        drop(stream.sender.finish());
    }
}
