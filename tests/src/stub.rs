//! A prefill node under the test's control: it computes a real cache, then delivers it as the test says.

use std::sync::Arc;

use bytes::Bytes;
use codec::{CodecKind, Coding, Encoder};
use half::bf16;
use model::{Draws, KvCache};
use node::prompt::{Progress, export};
use node::{KvDigest, Loaded, NodeArgs, Offer, PrefillFailure, PromptPass, Runtime, Served};
use service::Shutdown;
use tokio::sync::mpsc;
use transport::message::{KvCoding, KvMode, KvStream, Load, Prefill, PrefillStats, Register, Request, Role};
use transport::{Identity, Stream};

use crate::kit::{PATIENCE, model_dir};

const CHUNK: usize = 256;

/// A prompt that the router sent to the stub, with the stream its answer belongs on.
#[derive(Debug)]
pub struct Job {
    /// The request.
    pub prefill: Prefill,
    /// The router's stream; dropping it fails the request.
    pub router: Stream,
}

/// The stub. It takes requests only when the test asks for them.
#[derive(Debug)]
pub struct StubPrefill {
    /// Its surroundings.
    pub runtime: Runtime,
    jobs: mpsc::Receiver<Job>,
}

/// A whole prompt's cache, coded raw, with what ends its stream.
#[derive(Debug)]
pub struct Delivery {
    /// Chunks in order.
    pub chunks: Vec<Bytes>,
    /// The closing message that belongs to them.
    pub end: KvStream,
}

impl StubPrefill {
    /// Joins a router as a prefill node.
    ///
    /// # Panics
    /// When it cannot start.
    pub async fn join(loaded: &Arc<Loaded>, router: std::net::SocketAddr, identity: &Identity) -> Self {
        let args = NodeArgs::local(&model_dir(), router);
        let shutdown = Shutdown::new(std::time::Duration::from_secs(1));
        let served = Arc::new(Served::on_host(Arc::clone(loaded)));
        let runtime = Runtime::bind(&args, Role::Prefill, served, identity, shutdown);
        let mut runtime = runtime.await.expect("the stub starts");
        let register = Register {
            kv_address: None,
            max_session_tokens: 8192,
            kv_capacity_tokens: 8192,
            max_sessions: 8,
            chunk_tokens: CHUNK as u32,
            after_chunk_tokens: 0,
            prefix_cache_tokens: 0,
        };
        let (sender, jobs) = mpsc::channel(8);
        let take = move |mut router: Stream| {
            let sender = sender.clone();
            tokio::spawn(async move {
                if let Ok(Request::Prefill(prefill)) = router.receiver.recv_message(PATIENCE).await {
                    drop(sender.send(Job { prefill, router }).await);
                }
            });
        };
        let offer =
            Offer { register, load: Load::default, serve: take, prefill_failure: PrefillFailure::Fail };
        runtime.join(&args, offer).await.expect("the stub has no face");
        Self { runtime, jobs }
    }

    /// The next request.
    ///
    /// # Panics
    /// When none comes in time.
    pub async fn job(&mut self) -> Job {
        tokio::time::timeout(PATIENCE, self.jobs.recv())
            .await
            .expect("a request in time")
            .expect("the stub runs")
    }

    /// Opens the KV stream for a job and sends its first message.
    ///
    /// # Panics
    /// When the decode node cannot be reached.
    pub async fn open(&self, prefill: &Prefill) -> Stream {
        let target = prefill.target.as_ref().expect("the router names a decode node");
        let peer = self.runtime.endpoint.connect(target.address).await.expect("decode is reached");
        let mut stream = peer.open().await.expect("a stream opens");
        let begin = KvStream::Begin {
            ticket: target.ticket,
            coding: KvCoding { codec: "raw".into(), tier: 32, mode: KvMode::Stream },
            prompt_tokens: prefill.token_ids.len() as u32,
            trace: None,
        };
        stream.sender.send(&begin).await.expect("the stream begins");
        stream
    }
}

/// Runs a job's prompt and codes its cache raw.
///
/// # Panics
/// When the model or the codec refuses it.
#[must_use]
pub fn compute(loaded: &Loaded, prefill: &Prefill) -> Delivery {
    let tokens = &prefill.token_ids;
    let mut cache = KvCache::<bf16>::new(loaded.llama.config(), tokens.len());
    let mut pass = PromptPass::new(tokens.clone(), CHUNK);
    let coding = Coding { kind: CodecKind::Raw, tier: 32 };
    let encoder = Encoder::new(loaded.layout.clone(), loaded.llama.fingerprint(), None, coding, tokens.len());
    let (encoder, mut digest, mut chunks) =
        (encoder.expect("raw needs no plan"), KvDigest::default(), Vec::new());
    loop {
        let (range, progress) =
            pass.advance(&loaded.llama, &mut cache, &Draws::GREEDY).expect("the prompt runs");
        let block = export(&cache, range).expect("the range is there");
        let chunk = Bytes::from(encoder.encode(&block).expect("the block is coded"));
        digest.add(&chunk);
        chunks.push(chunk);
        if let Progress::FirstToken(first) = progress {
            let (count, digest) = digest.finish();
            let end = KvStream::End {
                chunks: count,
                digest,
                first_token: first.token,
                logprobs: None,
                stats: PrefillStats::default(),
            };
            return Delivery { chunks, end };
        }
    }
}
