//! Delivers one prompt's cache: opens the KV stream when the first chunk is coded, sends chunks as they come, and waits
//! for the decode node's word that everything arrived and was verified.

use std::sync::Arc;
use std::time::{Duration, Instant};

use codec::{CodecKind, Coding};
use node::compute::Coder;
use node::failure::{invalid, transfer};
use node::reach::{self, There};
use node::{KvDigest, Served, sampling};
use service::trace::TARGET;
use tokio::sync::mpsc;
use tracing::field::Empty;
use tracing::{Instrument, Span, debug, info, info_span};
use transport::ids::PromptDigest;
use transport::message::{
    DecodeTarget, Failure, KvCoding, KvMode, KvReply, KvStream, Prefill, PrefillStats, Role,
};
use transport::{Dialer, SendError, Stream};

use crate::busy::{Busy, overlap};
use crate::code::{Coded, code};
use crate::engine::{Engine, Prompt, Wanted, engine_gone};
use crate::leases::Cache;
use crate::metrics::{Codec, Metrics};

/// Coded chunks that may wait for the wire.
const CODED_AHEAD: usize = 4;
/// How long to wait for a decode node's words after it stopped a stream.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// What delivering needs; clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Shipper {
    pub(crate) served: Arc<Served>,
    pub(crate) engine: Engine,
    /// Tokens of a chunk that is coded after the prompt.
    pub(crate) after_chunk: usize,
    pub(crate) dialer: Dialer,
    pub(crate) metrics: Metrics,
    pub(crate) dial_deadline: Duration,
    pub(crate) accept_deadline: Duration,
}

impl Shipper {
    /// Runs, codes and delivers a prompt. Dropping the future cancels all three.
    pub(crate) async fn deliver(&self, prefill: Prefill, target: &DecodeTarget) -> Result<(), Failure> {
        let (tokens, coding) = (prefill.token_ids.len(), prefill.coding.clone());
        let (mut coded, _wanted) = self.run(prefill)?;
        // The stream is opened with the first chunk in hand, so that its silence is never the engine's queue.
        let first = coded.recv().await.ok_or_else(engine_gone)?;
        self.ship(target, &coding, tokens, first, coded).await
    }

    /// Runs and codes a prompt, whose chunks are kept for a delivery to come. Dropping the future cancels both.
    pub(crate) async fn keep(&self, prefill: Prefill) -> Result<Cache, Failure> {
        let (tokens, coding) = (prefill.token_ids.len(), prefill.coding.clone());
        let prompt = PromptDigest::of(&prefill.token_ids);
        let (mut coded, _wanted) = self.run(prefill)?;
        let mut chunks = Vec::new();
        while let Some(item) = coded.recv().await {
            match item {
                Coded::Chunk(chunk) => chunks.push(chunk),
                Coded::Done { first, stats, coding: busy, prompt_done } => {
                    return Ok(Cache { prompt, tokens, coding, chunks, first, stats, busy, prompt_done });
                }
                Coded::Failed(failure) => {
                    self.metrics.transfer_failed("compute");
                    return Err(failure);
                }
            }
        }
        Err(engine_gone())
    }

    /// Delivers a cache that was kept.
    pub(crate) async fn deliver_kept(&self, cache: &Cache, target: &DecodeTarget) -> Result<(), Failure> {
        let Cache { chunks, first, stats, busy, prompt_done, .. } = cache.clone();
        let done = Coded::Done { first, stats, coding: busy, prompt_done };
        let mut coded = chunks.into_iter().map(Coded::Chunk).chain([done]);
        let next = coded.next().ok_or_else(engine_gone)?;
        let (out, rest) = mpsc::channel(cache.chunks.len() + 1);
        for item in coded {
            out.try_send(item).map_err(|_full| engine_gone())?;
        }
        self.ship(target, &cache.coding, cache.tokens, next, rest).await
    }

    /// Runs and codes a prompt, as long as what it gives is wanted.
    fn run(&self, prefill: Prefill) -> Result<(mpsc::Receiver<Coded>, Wanted), Failure> {
        let coder = self.coder(&prefill.coding, &prefill.token_ids)?;
        let wanted = Wanted::new();
        let mode = prefill.coding.mode;
        let draws = sampling::draws(&prefill.sampling, &self.served.config, &prefill.token_ids);
        let prompt = Prompt { tokens: prefill.token_ids, salt: prefill.cache_salt, mode, draws };
        let blocks = self.engine.submit(prompt, &wanted)?;
        let (out, coded) = mpsc::channel(CODED_AHEAD);
        let (chunk, span) = (self.after_chunk, Span::current());
        tokio::task::spawn_blocking(move || code(&coder, chunk, &span, blocks, out));
        Ok((coded, wanted))
    }

    /// Ships the chunks, the first of which is there, and counts them.
    async fn ship(
        &self,
        target: &DecodeTarget,
        coding: &KvCoding,
        tokens: usize,
        first: Coded,
        coded: mpsc::Receiver<Coded>,
    ) -> Result<(), Failure> {
        let traced = info_span!(target: TARGET, "ship", decode_node = %target.node, wire_bytes = Empty);
        let sent = self.send(target, coding, tokens, first, coded).instrument(traced);
        let (stats, wire_bytes) = sent.await?;
        self.record(coding, tokens, wire_bytes, stats);
        Ok(())
    }

    /// Sends the chunks and waits until they were accepted.
    async fn send(
        &self,
        target: &DecodeTarget,
        coding: &KvCoding,
        tokens: usize,
        first: Coded,
        coded: mpsc::Receiver<Coded>,
    ) -> Result<(PrefillStats, u64), Failure> {
        let failed = |phase| move |_: &Failure| self.metrics.transfer_failed(phase);
        let mut stream = self.open(target).await.inspect_err(failed("connect"))?;
        let begin = KvStream::Begin {
            ticket: target.ticket,
            coding: coding.clone(),
            prompt_tokens: tokens as u32,
            trace: node::trace::context(&Span::current()),
        };
        let stats = match send_all(&mut stream, begin, first, coded).await {
            Ok(stats) => stats,
            Err(Broken::Ours(failure)) => return Err(failure).inspect_err(failed("compute")),
            Err(Broken::Wire(error)) => {
                return Err(last_words(&mut stream, &error).await).inspect_err(failed("send"));
            }
        };
        self.accepted(&mut stream).await.inspect_err(failed("accept"))?;
        let wire_bytes = stream.sender.bytes_written();
        Span::current().record("wire_bytes", wire_bytes);
        Ok((stats, wire_bytes))
    }

    /// Waits for the decode node's word that the cache is there.
    async fn accepted(&self, stream: &mut Stream) -> Result<(), Failure> {
        match stream.receiver.recv_message::<KvReply>(self.accept_deadline).await {
            Ok(KvReply::Accepted) => Ok(()),
            Ok(KvReply::Fail(failure)) => Err(failure),
            Err(error) => Err(transfer(format!("the decode node did not accept the cache: {error}"))),
        }
    }

    fn coder(&self, coding: &KvCoding, prompt: &[u32]) -> Result<Coder, Failure> {
        let kind: CodecKind = coding.codec.parse().map_err(invalid)?;
        if coding.mode == KvMode::After && kind != CodecKind::Kvtc {
            return Err(invalid(format!(
                "{kind} is coded while the prompt runs; kv_mode \"after\" is for kvtc"
            )));
        }
        let coding = Coding { kind, tier: coding.tier };
        self.served.coder(coding, prompt)
    }

    async fn open(&self, target: &DecodeTarget) -> Result<Stream, Failure> {
        let DecodeTarget { node, instance, address, .. } = target;
        let there = There { role: Role::Decode, node, instance: *instance, address: *address };
        reach::open(&self.dialer, there, self.dial_deadline).await
    }

    fn record(&self, coding: &KvCoding, tokens: usize, wire_bytes: u64, stats: PrefillStats) {
        let raw_bytes = (tokens * self.served.layout.bytes_per_token()) as u64;
        let label = Codec { codec: coding.codec.clone() };
        self.metrics.queue_seconds.observe(f64::from(stats.queue_ms) / 1e3);
        self.metrics.prefill_seconds.observe(f64::from(stats.prefill_ms) / 1e3);
        self.metrics.encode_seconds.observe(f64::from(stats.encode_ms) / 1e3);
        self.metrics.raw_bytes.get_or_create(&label).inc_by(raw_bytes);
        self.metrics.wire_bytes.get_or_create(&label).inc_by(wire_bytes);
        info!(
            codec = coding.codec,
            tier = coding.tier,
            mode = coding.mode.name(),
            raw_bytes,
            wire_bytes,
            queue_ms = stats.queue_ms,
            prefill_ms = stats.prefill_ms,
            cached_tokens = stats.cached_tokens,
            encode_ms = stats.encode_ms,
            overlap = stats.overlap,
            link_gbps = stats.link_gbps,
            "delivered"
        );
    }
}

enum Broken {
    Ours(Failure),
    Wire(SendError),
}

impl From<SendError> for Broken {
    fn from(error: SendError) -> Self {
        Self::Wire(error)
    }
}

async fn send_all(
    stream: &mut Stream,
    begin: KvStream,
    first: Coded,
    mut coded: mpsc::Receiver<Coded>,
) -> Result<PrefillStats, Broken> {
    let (mut digest, mut sending) = (KvDigest::default(), Busy::default());
    let mut next = Some(first);
    stream.sender.send(&begin).await?;
    while let Some(item) = next {
        match item {
            Coded::Chunk(chunk) => {
                digest.add(&chunk);
                let started = Instant::now();
                stream.sender.send_data(chunk).await?;
                sending.since(started);
                debug!("chunk sent");
                next = tokio::select! {
                    item = coded.recv() => item,
                    _ = stream.sender.stopped() => return Err(Broken::Wire(SendError::Closed)),
                };
            }
            Coded::Done { first, stats, coding, prompt_done } => {
                let (chunks, digest) = digest.finish();
                let stats = PrefillStats {
                    overlap: overlap(&[coding, sending], prompt_done),
                    link_gbps: stream.sender.link_gbps().unwrap_or(0.0) as f32,
                    ..stats
                };
                let (first_token, logprobs) = sampling::told(first);
                let end = KvStream::End { chunks, digest, first_token, logprobs, stats };
                stream.sender.send(&end).await?;
                stream.sender.finish()?;
                return Ok(stats);
            }
            Coded::Failed(failure) => return Err(Broken::Ours(failure)),
        }
    }
    Err(Broken::Ours(engine_gone()))
}

/// A decode node that stops a stream says why on its own half.
async fn last_words(stream: &mut Stream, error: &SendError) -> Failure {
    match stream.receiver.recv_message::<KvReply>(LAST_WORDS).await {
        Ok(KvReply::Fail(failure)) => failure,
        _ => transfer(format!("the KV stream broke: {error}")),
    }
}
