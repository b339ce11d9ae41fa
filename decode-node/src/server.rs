//! Takes reservations from the router and answers each on its stream: reserved, ready, tokens, finished. A stream that
//! the router resets cancels everything behind it.

use std::sync::Arc;
use std::time::Duration;

use node::failure::{fail, internal, invalid};
use node::{Capacity, Runtime, Served, StartError, sampling, trace};
use service::Shutdown;
use service::trace::TARGET;
use tokio::sync::mpsc;
use tracing::field::Empty;
use tracing::{Instrument, Span, info, info_span, warn};
use transport::ids::{NodeId, RequestId, Ticket};
use transport::message::{
    Failure, FailureKind, FromDecode, Holder, KvSource, Load, Request, Reserve, Transfer,
};
use transport::{Backoff, Dialer, SendError, Sender, Stream};

use crate::config::Config;
use crate::engine::{Engine, Event};
use crate::fetch::{Asked, Fetcher};
use crate::metrics::Metrics;
use crate::session::Session;
use crate::slots::SlotPool;
use crate::tickets::{Delivered, Tickets};

/// How long the router may take to say what a stream is for.
const REQUEST_DEADLINE: Duration = Duration::from_secs(5);
/// How long the engine may take for one token; far above any step, below forever.
const ENGINE_DEADLINE: Duration = Duration::from_secs(120);

/// The node's request handling; clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Server {
    node: NodeId,
    served: Arc<Served>,
    slots: SlotPool,
    pub(crate) tickets: Tickets,
    engine: Engine,
    fetcher: Fetcher,
    pub(crate) metrics: Metrics,
    max_session_tokens: u32,
    transfer_deadline: Duration,
    shutdown: Shutdown,
}

/// Why a request ended before its last token.
enum Broken {
    Failed(Failure),
    Router(SendError),
}

impl From<Failure> for Broken {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl From<SendError> for Broken {
    fn from(error: SendError) -> Self {
        Self::Router(error)
    }
}

impl Server {
    pub(crate) fn new(config: &Config, runtime: &Runtime) -> Result<Self, StartError> {
        let metrics = Metrics::new(&runtime.registry);
        let served = Arc::clone(&runtime.served);
        let (sessions, chunk) = (config.node.max_num_seqs, config.node.chunk_tokens as usize);
        let shutdown = runtime.shutdown.clone();
        let engine = Engine::start(&served, chunk, sessions as usize, metrics.clone(), shutdown)?;
        metrics.limits(sessions, config.node.kv_capacity_tokens);
        let capacity = Capacity::new(sessions, config.node.kv_capacity_tokens);
        let fetcher = Fetcher {
            dialer: Dialer::new(runtime.endpoint.clone(), Backoff::default()),
            node: runtime.id.clone(),
            instance: runtime.endpoint.hello().instance,
            address: config.kv_address(runtime),
        };
        Ok(Self {
            node: runtime.id.clone(),
            slots: SlotPool::new(Arc::clone(&served), capacity, metrics.clone()),
            tickets: Tickets::new(metrics.tickets_open.clone()),
            engine,
            fetcher,
            metrics,
            max_session_tokens: config.node.max_session_tokens(&served),
            transfer_deadline: config.transfer_deadline(),
            shutdown: runtime.shutdown.clone(),
            served,
        })
    }

    /// How busy the node is, for heartbeats.
    pub(crate) fn load(&self) -> impl Fn() -> Load + Send + Sync + 'static {
        let metrics = self.metrics.clone();
        let count = move |state| {
            let gauge = metrics.sessions.get_or_create(&crate::metrics::InState { state }).get();
            u32::try_from(gauge).unwrap_or(0)
        };
        let used = self.metrics.kv_used_tokens.clone();
        move || Load {
            running: count("ready") + count("decoding"),
            waiting: count("reserved") + count("receiving"),
            kv_used_tokens: u32::try_from(used.get()).unwrap_or(0),
            ..Load::default()
        }
    }

    /// Takes a request stream; the work goes on in a task of its own.
    pub(crate) fn serve(&self, stream: Stream) {
        let server = self.clone();
        self.shutdown.spawn(async move { server.answer(stream).await });
    }

    async fn answer(self, mut stream: Stream) {
        let reserve = match stream.receiver.recv_message::<Request>(REQUEST_DEADLINE).await {
            Ok(Request::Reserve(reserve)) => reserve,
            Ok(Request::Prefill(_) | Request::Deliver(_)) => {
                let refusal = invalid("this is a decode node; prompts run on prefill nodes");
                drop(stream.sender.send(&FromDecode::Fail(refusal)).await);
                return;
            }
            Err(error) => {
                warn!(%error, "a request stream broke before it said what it is for");
                return;
            }
        };
        let span = info_span!("decode", request_id = %reserve.request);
        let traced = span.in_scope(|| self.session_span(&reserve));
        let cancelled = stream.sender.stopped();
        let work = self.run(reserve, &mut stream.sender).instrument(traced.clone()).instrument(span.clone());
        let result = tokio::select! {
            result = work => result,
            _ = cancelled => return span.in_scope(|| info!("cancelled by the router")),
        };
        let last = match result {
            Ok(finished) => finished,
            Err(Broken::Failed(failure)) => {
                span.in_scope(|| warn!(kind = ?failure.kind, "decode failed: {}", failure.message));
                service::trace::fail(&traced, &failure.message);
                FromDecode::Fail(failure)
            }
            Err(Broken::Router(error)) => return span.in_scope(|| info!(%error, "the router is gone")),
        };
        drop(traced);
        if stream.sender.send(&last).await.is_ok() {
            // A node that drains closes its connections with its last task: not before the router has everything.
            drop(stream.sender.deliver(node::LAST_WORDS_DEADLINE).await);
        }
    }

    /// The session in the request's trace.
    fn session_span(&self, reserve: &Reserve) -> Span {
        let span = info_span!(
            target: TARGET, "session",
            otel.kind = "server", node = %self.node, request = %reserve.request,
            prompt_tokens = reserve.prompt_tokens,
        );
        trace::adopt(&span, reserve.trace);
        span
    }

    /// The life of one request up to its last message.
    async fn run(&self, reserve: Reserve, router: &mut Sender) -> Result<FromDecode, Broken> {
        let session = self.reserve(&reserve)?;
        let Reserve { request, source, .. } = reserve;
        match source {
            KvSource::Remote => self.run_remote(session, None, router).await,
            KvSource::Kept(holder) => self.run_remote(session, Some((request, holder)), router).await,
            KvSource::Local { token_ids } => {
                router.send(&FromDecode::Reserved { ticket: Ticket::random() }).await?;
                let raw_bytes = (token_ids.len() * self.served.layout.bytes_per_token()) as u64;
                let events = self.engine.prefill_and_decode(session, token_ids).await;
                self.relay(events, Some(raw_bytes), router).instrument(generate_span()).await
            }
        }
    }

    /// The same, with a cache that a prefill node delivers, which has to be asked for it if it keeps it already.
    async fn run_remote(
        &self,
        session: Session,
        kept: Option<(RequestId, Holder)>,
        router: &mut Sender,
    ) -> Result<FromDecode, Broken> {
        let Delivered { session, first_token, logprobs, transfer } =
            self.await_cache(session, kept, router).await?;
        self.metrics.record(&transfer);
        let events = self.engine.decode(session, first_token).await;
        router.send(&FromDecode::Ready { first_token, logprobs, transfer }).await?;
        self.relay(events, None, router).instrument(generate_span()).await
    }

    fn reserve(&self, reserve: &Reserve) -> Result<Session, Failure> {
        if self.shutdown.is_draining() {
            return Err(fail(FailureKind::Draining, "the decode node is shutting down"));
        }
        let (prompt, max) = (reserve.prompt_tokens, reserve.max_tokens);
        let total = prompt.saturating_add(max);
        if prompt == 0 || max == 0 || total > self.max_session_tokens {
            let limit = self.max_session_tokens;
            let message =
                format!("{prompt} prompt tokens and {max} to generate, this node takes {limit} together");
            return Err(invalid(message));
        }
        self.check_draws(reserve)?;
        let slot = self.slots.reserve(total)?;
        Ok(Session::new(reserve, &self.served.config, slot, self.metrics.clone()))
    }

    /// Whether tokens can be drawn as asked, after the prompt or what the node is told of it.
    fn check_draws(&self, reserve: &Reserve) -> Result<(), Failure> {
        let (asked, prompt, vocab) =
            (&reserve.sampling, reserve.prompt_tokens as usize, self.served.config.vocab_size);
        sampling::check(asked, vocab)?;
        if asked.min_tokens > reserve.max_tokens {
            let (min, max) = (asked.min_tokens, reserve.max_tokens);
            return Err(invalid(format!("min_tokens {min} is more than the {max} tokens to generate")));
        }
        match &reserve.source {
            KvSource::Remote | KvSource::Kept(_) => {
                sampling::check_penalized(asked, &reserve.prompt_ids, prompt, vocab)
            }
            KvSource::Local { .. } if !reserve.prompt_ids.is_empty() => {
                Err(invalid("prompt_ids are for prompts that another node runs"))
            }
            KvSource::Local { token_ids } => {
                if token_ids.len() != prompt || token_ids.iter().any(|id| *id as usize >= vocab) {
                    return Err(invalid("the prompt's token ids do not fit its length or the vocabulary"));
                }
                Ok(())
            }
        }
    }

    async fn await_cache(
        &self,
        session: Session,
        kept: Option<(RequestId, Holder)>,
        router: &mut Sender,
    ) -> Result<Delivered, Broken> {
        let mut reservation = self.tickets.file(session);
        let ticket = reservation.ticket;
        router.send(&FromDecode::Reserved { ticket }).await?;
        let (deadline, shutdown) = (self.transfer_deadline, &self.shutdown);
        let mut asked =
            kept.map(|(request, holder)| self.fetcher.ask(request, holder, ticket, deadline, shutdown));
        let refused = async {
            match &mut asked {
                Some(asked) => asked.failure().await,
                None => std::future::pending().await,
            }
        };
        let waited = tokio::select! {
            // A cache that cannot be read fails here and there: here it is known why.
            biased;
            waited = tokio::time::timeout(deadline, &mut reservation.delivered) => waited,
            failure = refused => return Err(failure.into()),
        };
        let late = |_| {
            fail(FailureKind::Timeout, format!("no complete cache within {deadline:?} (--transfer-seconds)"))
        };
        let lost = |_| fail(FailureKind::Transfer, "the KV stream was dropped");
        let delivered = waited.map_err(late)?.map_err(lost)??;
        asked.into_iter().for_each(Asked::has_come);
        Ok(delivered)
    }

    /// Passes events on until the last. A local prompt is announced with its size when it is done.
    async fn relay(
        &self,
        mut events: mpsc::Receiver<Event>,
        local_raw_bytes: Option<u64>,
        router: &mut Sender,
    ) -> Result<FromDecode, Broken> {
        loop {
            let late = |_| fail(FailureKind::Timeout, "the engine did not step in time");
            let event = tokio::time::timeout(ENGINE_DEADLINE, events.recv()).await.map_err(late)?;
            match event.ok_or_else(|| internal("the engine stopped without a result"))? {
                Event::Prefilled { first, stats } => {
                    Span::current().record("local_prefill_ms", stats.prefill_ms);
                    let transfer = Transfer {
                        coding: None,
                        prefill_node: None,
                        raw_bytes: local_raw_bytes.unwrap_or(0),
                        wire_bytes: 0,
                        wire_ms: 0.0,
                        decode_ms: 0.0,
                        prefill: stats,
                    };
                    let (first_token, logprobs) = sampling::told(first);
                    router.send(&FromDecode::Ready { first_token, logprobs, transfer }).await?;
                }
                Event::Token(drawn) => {
                    let (id, logprobs) = sampling::told(drawn);
                    router.send(&FromDecode::Token { id, logprobs }).await?;
                }
                Event::Finished(reason) => return Ok(FromDecode::Finished { reason }),
                Event::Failed(failure) => return Err(failure.into()),
            }
        }
    }
}

/// What the engine does for a request, in a trace.
fn generate_span() -> Span {
    info_span!(target: TARGET, "generate", local_prefill_ms = Empty)
}
