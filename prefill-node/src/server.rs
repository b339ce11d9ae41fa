//! Takes prompts from the router: checks, admits or refuses, and answers when the cache was delivered. A stream that the
//! router resets cancels its prompt.

use std::sync::Arc;
use std::time::Duration;

use node::failure::{fail, invalid};
use node::{Admitted, Capacity, Runtime, Served, trace};
use service::Shutdown;
use service::trace::TARGET;
use tracing::{Instrument, Span, info, info_span, warn};
use transport::ids::NodeId;
use transport::message::{Failure, FailureKind, FinishReason, FromPrefill, Kept, Load, Prefill, Request};
use transport::{Dialer, Stream};

use crate::config::Config;
use crate::engine::{Engine, Settings};
use crate::leases::Leases;
use crate::metrics::{Metrics, Outcome};
use crate::ship::Shipper;

/// How long a peer may take to say what a stream is for.
pub(crate) const REQUEST_DEADLINE: Duration = Duration::from_secs(5);

/// The node's request handling; clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Server {
    pub(crate) node: NodeId,
    served: Arc<Served>,
    pub(crate) shipper: Shipper,
    pub(crate) leases: Leases,
    capacity: Capacity,
    max_tokens: usize,
    metrics: Metrics,
    pub(crate) shutdown: Shutdown,
}

impl Server {
    pub(crate) fn new(config: &Config, runtime: &Runtime, dialer: Dialer) -> Result<Self, node::StartError> {
        let admitted = config.node.max_num_seqs;
        let metrics = Metrics::new(&runtime.registry, &runtime.served.model_id);
        let (served, chunk) = (Arc::clone(&runtime.served), config.node.chunk_tokens as usize);
        let prefix_cache_tokens = config.prefix_cache(&served) as usize;
        let settings = Settings { chunk, queue: admitted as usize, prefix_cache_tokens };
        let engine = Engine::start(served, settings, metrics.clone(), runtime.shutdown.clone())?;
        let shipper = Shipper {
            served: Arc::clone(&runtime.served),
            engine,
            after_chunk: config.after_chunk(runtime.served.layout.bytes_per_token()),
            dialer,
            metrics: metrics.clone(),
            dial_deadline: config.dial_deadline(),
            accept_deadline: config.accept_deadline(),
        };
        Ok(Self {
            node: runtime.id.clone(),
            served: Arc::clone(&runtime.served),
            shipper,
            leases: Leases::new(config.lease_time(), metrics.clone(), runtime.shutdown.clone()),
            capacity: Capacity::new(admitted, config.node.kv_capacity_tokens),
            max_tokens: config.node.max_session_tokens(&runtime.served) as usize,
            metrics,
            shutdown: runtime.shutdown.clone(),
        })
    }

    /// How busy the node is, for heartbeats.
    pub(crate) fn load(&self) -> impl Fn() -> Load + Send + Sync + 'static {
        let (metrics, capacity) = (self.metrics.clone(), self.capacity.clone());
        move || Load {
            running: u32::try_from(metrics.running.get() - metrics.waiting.get()).unwrap_or(0),
            waiting: u32::try_from(metrics.waiting.get()).unwrap_or(0),
            kept: u32::try_from(metrics.leases_active.get()).unwrap_or(0),
            kv_used_tokens: capacity.used_tokens(),
            ..Load::default()
        }
    }

    /// Takes a request stream; the work goes on in a task of its own.
    pub(crate) fn serve(&self, stream: Stream) {
        let server = self.clone();
        self.shutdown.spawn(async move { server.answer(stream).await });
    }

    async fn answer(self, mut stream: Stream) {
        let prefill = match stream.receiver.recv_message::<Request>(REQUEST_DEADLINE).await {
            Ok(Request::Prefill(prefill)) => prefill,
            Ok(Request::Reserve(_) | Request::Deliver(_)) => {
                let refusal = invalid("this is a prefill node; of a router it takes prompts only");
                drop(stream.sender.send(&FromPrefill::Fail(refusal)).await);
                return;
            }
            Err(error) => {
                warn!(%error, "a request stream broke before it said what it is for");
                return;
            }
        };
        let span = info_span!("prefill", request_id = %prefill.request, tokens = prefill.token_ids.len());
        let traced = span.in_scope(|| self.prefill_span(&prefill));
        let cancelled = stream.sender.stopped();
        let work = self.run(prefill);
        let outcome = async {
            tokio::select! {
                result = work => Some(result),
                _ = cancelled => None,
            }
        };
        let outcome = outcome.instrument(traced.clone()).instrument(span.clone()).await;
        self.record(&span, &traced, &outcome);
        drop(traced);
        let Some(result) = outcome else { return };
        let reply = result.unwrap_or_else(FromPrefill::Fail);
        // A node that drains closes its connections with its last task: not before the router has everything.
        let is_told = match stream.sender.send(&reply).await {
            Ok(()) => stream.sender.deliver(node::LAST_WORDS_DEADLINE).await.is_ok(),
            Err(_) => false,
        };
        if let (false, FromPrefill::Kept(kept)) = (is_told, reply) {
            // Nobody knows the lease.
            self.leases.give_up(kept.lease);
        }
    }

    /// The prompt in the request's trace.
    fn prefill_span(&self, prefill: &Prefill) -> Span {
        let span = info_span!(
            target: TARGET, "prefill",
            otel.kind = "server", node = %self.node, request = %prefill.request,
            prompt_tokens = prefill.token_ids.len(), codec = prefill.coding.codec,
        );
        trace::adopt(&span, prefill.trace);
        span
    }

    async fn run(&self, mut prefill: Prefill) -> Result<FromPrefill, Failure> {
        if self.shutdown.is_draining() {
            return Err(fail(FailureKind::Draining, "the prefill node is shutting down"));
        }
        self.check(&prefill)?;
        let admitted = self.capacity.admit(prefill.token_ids.len() as u32)?;
        let _running = Running::new(&self.metrics);
        match prefill.target.take() {
            Some(target) => self.shipper.deliver(prefill, &target).await.map(|()| FromPrefill::Prefilled),
            None => self.keep(prefill, admitted).await.map(FromPrefill::Kept),
        }
    }

    /// Runs a prompt and keeps its cache, in the room that the prompt was admitted to.
    async fn keep(&self, prefill: Prefill, admitted: Admitted) -> Result<Kept, Failure> {
        let ends = node::sampling::ends(&prefill.sampling, &self.served.config);
        let cache = self.shipper.keep(prefill).await?;
        let (first_token, logprobs) = node::sampling::told(cache.first.clone());
        let is_end = ends.contains(&first_token);
        let reason = if is_end { FinishReason::Stop } else { FinishReason::Length };
        let stats = cache.stats;
        let (lease, expires) = self.leases.keep(cache, admitted);
        Ok(Kept { lease, expires, first_token, logprobs, reason, stats })
    }

    fn check(&self, prefill: &Prefill) -> Result<(), Failure> {
        let (tokens, vocab) = (&prefill.token_ids, self.served.config.vocab_size);
        if tokens.is_empty() || tokens.len() > self.max_tokens {
            let (n, max) = (tokens.len(), self.max_tokens);
            return Err(invalid(format!("the prompt has {n} tokens, this node takes 1 to {max}")));
        }
        match tokens.iter().find(|id| **id as usize >= vocab) {
            Some(id) => Err(invalid(format!("token {id} is outside of the vocabulary of {vocab}"))),
            None => node::sampling::check(&prefill.sampling, vocab),
        }
    }

    fn record(&self, span: &Span, traced: &Span, outcome: &Option<Result<FromPrefill, Failure>>) {
        let _entered = span.enter();
        let name = match outcome {
            Some(Ok(FromPrefill::Kept(kept))) => {
                info!(lease = %kept.lease, "kept for a decode node");
                "kept".to_owned()
            }
            Some(Ok(_)) => "delivered".to_owned(),
            Some(Err(failure)) => {
                warn!(kind = ?failure.kind, "prefill failed: {}", failure.message);
                service::trace::fail(traced, &failure.message);
                format!("{:?}", failure.kind).to_lowercase()
            }
            None => {
                info!("cancelled by the router");
                "cancelled".to_owned()
            }
        };
        self.metrics.prompts.get_or_create(&Outcome { outcome: name }).inc();
    }
}

/// Counts a prompt as running for as long as it lives.
struct Running<'a>(&'a Metrics);

impl<'a> Running<'a> {
    fn new(metrics: &'a Metrics) -> Self {
        metrics.running.inc();
        Self(metrics)
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.running.dec();
    }
}
