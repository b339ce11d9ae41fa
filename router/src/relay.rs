//! The life of one request in the cluster: reserve, prefill, first token, further tokens. Token ids only; text is
//! made in [`crate::generation`].
//!
//! ```text
//! place ─► Reserve to decode ─► Reserved ─► Prefill to prefill ─► Ready ─► Token.. ─► Finished
//!   ▲                                                              │
//!   └── another node, while may_retry, before the first token ◄── failure: both legs dropped, which resets them
//! ```
//! Caches that are handed over between requests take the first half and the second half of that way: [`keep`].

mod job;
pub(crate) mod keep;

use std::time::Duration;

use openai::KvOptions;
use service::trace::TARGET;
use tokio::time::Instant;
use tracing::{Instrument, Span, debug, info, info_span};
use transport::ids::{NodeId, RequestId, Ticket};
use transport::message::{
    DecodeTarget, Failure, FailureKind, FinishReason, FromDecode, FromPrefill, KvCoding, KvSource, Logprobs,
    Prefill, Request, Reserve, Role, Sampling, Transfer,
};

use crate::api::Pins;
use crate::board::Entry;
use crate::choice::{Bypass, Choice};
use crate::cluster::{Assigned, Cluster, Pair};
use crate::config::Config;
use crate::error::Error;
use crate::handover::KeptCache;
use crate::leg::{Cause, Leg, NodeError, Phase};
use crate::metrics::Metrics;
use crate::policy::{self, PrefillFailure};
use crate::prefixes::Beginning;
use crate::trace;

/// When decode reports a broken transfer, how long prefill is given to say what really happened.
const ROOT_CAUSE_WAIT: Duration = Duration::from_millis(250);

/// Runs requests on the cluster; clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Relay {
    cluster: Cluster,
    metrics: Metrics,
    retries: u32,
    prefill_failure: PrefillFailure,
    reserve: Duration,
    first_token: Duration,
    next_token: Duration,
}

/// A request in token ids.
#[derive(Debug, Clone)]
pub(crate) struct Job {
    pub(crate) request: RequestId,
    pub(crate) token_ids: Vec<u32>,
    pub(crate) max_tokens: u32,
    pub(crate) sampling: Sampling,
    pub(crate) kv: KvOptions,
    pub(crate) pins: Pins,
    /// Where its cache is kept, if it is.
    pub(crate) kept: Option<KeptCache>,
    /// Its line on the board.
    pub(crate) entry: Entry,
    /// When the request arrived, of the sequence that begins at once.
    pub(crate) arrived: Option<std::time::Instant>,
}

/// A generation whose first token is there. Dropped, it is cancelled on the nodes.
#[derive(Debug)]
pub(crate) struct Tokens {
    pub(crate) first: Drawn,
    pub(crate) transfer: Transfer,
    /// How the request came to run where it does.
    pub(crate) choice: Choice,
    pub(crate) entry: Entry,
    decode: Leg,
    deadline: Duration,
}

/// A token, and how likely it was where that was asked for.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Drawn {
    pub(crate) id: u32,
    pub(crate) logprobs: Option<Logprobs>,
}

/// What comes after the first token.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Step {
    Token(Drawn),
    Finished(FinishReason),
}

impl Relay {
    pub(crate) fn new(cluster: Cluster, metrics: Metrics, config: &Config) -> Self {
        Self {
            cluster,
            metrics,
            retries: config.retries,
            prefill_failure: config.prefill_failure,
            reserve: config.reserve_seconds,
            first_token: config.first_token_seconds,
            next_token: config.next_token_seconds,
        }
    }

    /// The cluster that it runs them on.
    pub(crate) fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// Runs a request up to its first token, on other nodes where the first ones cannot.
    pub(crate) async fn begin(&self, job: &Job) -> Result<Tokens, Error> {
        let beginning = Beginning::of(&job.token_ids, job.kv.cache_salt);
        let mut wanted = job.wanted(&beginning);
        let mut avoided: Vec<NodeId> = Vec::new();
        let mut last_error: Option<NodeError> = None;
        loop {
            let pair = match self.cluster.place(&wanted, &avoided) {
                Ok(pair) => pair,
                // Without the nodes that failed there are none; how they failed says more than that.
                Err(unplaceable) => return Err(last_error.map_or_else(|| unplaceable.into(), Error::Node)),
            };
            let names = Names::of(&pair);
            let error = match self.attempt(job, pair, avoided.is_empty() && wanted.local.is_none()).await {
                Ok(tokens) => return Ok(tokens),
                Err(error) => error,
            };
            self.metrics.node_failed(error.role.name(), Error::Node(error.clone()).face().code);
            // There is no other node that keeps it.
            let is_over = job.kept.is_some() && policy::is_prefill_failure(&error);
            if is_over || avoided.len() >= self.retries as usize || !policy::may_retry(&error.cause) {
                if self.prefill_failure == PrefillFailure::Fail
                    || wanted.local.is_some()
                    || !policy::is_prefill_failure(&error)
                {
                    return Err(error.into());
                }
                info!(%error, "a decode node runs the prompt");
                wanted.local = Some(Bypass::PrefillFailed);
                continue;
            }
            info!(%error, "trying other nodes");
            self.metrics.retries.inc();
            avoided.push(names.suspect(&error));
            last_error = Some(error);
        }
    }

    /// One attempt on one pair. Whatever fails, both legs are dropped, and that cancels both sides.
    async fn attempt(&self, job: &Job, pair: Pair, is_first: bool) -> Result<Tokens, NodeError> {
        job.entry.placed(&pair);
        let Pair { decode, prefill, choice } = pair;
        let failed = |phase| move |_: &NodeError| self.metrics.failed(phase);
        let (kv_address, instance) = (decode.kv_address, decode.peer.hello().instance);
        let source = job.source(prefill.is_some(), choice.way);
        let is_kept = matches!(source, KvSource::Kept(_));
        let Reserved { leg: mut decode, ticket, waited } =
            self.reserve(job, decode, source).await.inspect_err(failed("reserve"))?;
        let mut prefill = match prefill {
            None => None,
            Some((node, coding)) => {
                let no_address =
                    || decode.error(Cause::Protocol("it registered without a KV address".into()));
                let address = kv_address.ok_or_else(no_address)?;
                let target = DecodeTarget { node: decode.node().id.clone(), instance, address, ticket };
                let called = self.prefill(job, node, coding, Some(target)).await;
                let called = called.inspect_err(failed("prefill"))?;
                self.metrics.dispatched(job.arrived.filter(|_| is_first), waited);
                Some(called)
            }
        };
        let first = self.await_first_token(&mut decode, prefill.as_mut());
        let first = first.instrument(info_span!(target: TARGET, "first token")).await;
        let (first, transfer) = first.inspect_err(|error| self.metrics.failed(phase_of(error)))?;
        if let Some(prefill) = prefill {
            // The cache is there, so prefill is done but for saying so; the client need not wait for that.
            tokio::spawn(prefill.settle(self.reserve));
        }
        if !is_kept {
            self.cluster.learn(prompt_tokens(job), &decode.node().id, &transfer);
        }
        let (entry, deadline) = (job.entry.clone(), self.next_token);
        Ok(Tokens { first, transfer, choice, entry, decode, deadline })
    }

    async fn reserve(&self, job: &Job, node: Assigned, source: KvSource) -> Result<Reserved, NodeError> {
        let is_local = matches!(source, KvSource::Local { .. });
        let request = Request::Reserve(Reserve {
            request: job.request,
            prompt_tokens: prompt_tokens(job),
            max_tokens: job.max_tokens,
            sampling: job.sampling.clone(),
            prompt_ids: if is_local { Vec::new() } else { job.sampling.penalized(&job.token_ids) },
            source,
            trace: trace::context(&Span::current()),
        });
        let traced = info_span!(target: TARGET, "reserve", otel.kind = "client", decode_node = %node.id);
        let reserved = async {
            let mut leg = Leg::open(node, &request, self.reserve).await?;
            let asked = Instant::now();
            match leg.recv(Phase::Reserve, self.reserve).await? {
                FromDecode::Reserved { ticket } => {
                    debug!("reserved");
                    Ok(Reserved { leg, ticket, waited: asked.elapsed() })
                }
                FromDecode::Fail(failure) => Err(leg.error(Cause::Failed(failure))),
                other => Err(unexpected(&leg, &other)),
            }
        };
        reserved.instrument(traced).await
    }

    async fn prefill(
        &self,
        job: &Job,
        node: Assigned,
        coding: KvCoding,
        target: Option<DecodeTarget>,
    ) -> Result<Leg, NodeError> {
        // Ends with the leg, when prefill has said that it is done.
        let traced = info_span!(target: TARGET, "prefill", otel.kind = "client", prefill_node = %node.id);
        let request = Request::Prefill(Prefill {
            request: job.request,
            token_ids: job.token_ids.clone(),
            cache_salt: job.kv.cache_salt,
            sampling: job.sampling.clone(),
            coding,
            target,
            trace: trace::context(&traced),
        });
        Ok(Leg::open(node, &request, self.reserve).await?.within(traced))
    }

    /// Waits for decode's first token; a failure on either side ends the wait.
    async fn await_first_token(
        &self,
        decode: &mut Leg,
        mut prefill: Option<&mut Leg>,
    ) -> Result<(Drawn, Transfer), NodeError> {
        let end = Instant::now() + self.first_token;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let from_prefill = async {
                match prefill.as_deref_mut() {
                    Some(leg) => prefill_outcome(leg, left).await,
                    None => std::future::pending().await,
                }
            };
            let from_decode = tokio::select! {
                // Decode fails when prefill does; in that order the cause is found first.
                biased;
                outcome = from_prefill => {
                    outcome?;
                    prefill = None;
                    continue;
                }
                message = decode.recv(Phase::FirstToken, left) => message?,
            };
            return match from_decode {
                FromDecode::Ready { first_token: id, logprobs, transfer } => {
                    Ok((Drawn { id, logprobs }, transfer))
                }
                FromDecode::Fail(failure) => Err(root_cause(decode, failure, prefill).await),
                other => Err(unexpected(decode, &other)),
            };
        }
    }
}

/// A slot that is held.
struct Reserved {
    leg: Leg,
    ticket: Ticket,
    /// How long the node was waited for.
    waited: Duration,
}

/// The two nodes of an attempt.
struct Names {
    decode: NodeId,
    prefill: Option<NodeId>,
}

impl Names {
    fn of(pair: &Pair) -> Self {
        Self {
            decode: pair.decode.id.clone(),
            prefill: pair.prefill.as_ref().map(|(node, _coding)| node.id.clone()),
        }
    }

    /// The node to avoid next time: the one that failed, or the one that it could not reach.
    fn suspect(&self, error: &NodeError) -> NodeId {
        let blames_other =
            matches!(&error.cause, Cause::Failed(failure) if failure.kind == FailureKind::Unreachable);
        match (&self.prefill, error.role, blames_other) {
            (Some(_), Role::Prefill, true) => self.decode.clone(),
            (Some(prefill), Role::Decode, true) => prefill.clone(),
            _ => error.node.clone(),
        }
    }
}

/// What a request that has its nodes was at when one of them failed it.
fn phase_of(error: &NodeError) -> &'static str {
    match (&error.cause, error.role) {
        (Cause::Failed(failure), _)
            if matches!(failure.kind, FailureKind::Transfer | FailureKind::Unreachable) =>
        {
            "transfer"
        }
        (_, Role::Prefill) => "prefill",
        _ => "first_token",
    }
}

/// Waits until prefill has delivered, or says why it cannot.
async fn prefill_outcome(leg: &mut Leg, left: Duration) -> Result<(), NodeError> {
    match leg.recv(Phase::FirstToken, left).await? {
        FromPrefill::Prefilled => Ok(()),
        FromPrefill::Fail(failure) => Err(leg.error(Cause::Failed(failure))),
        FromPrefill::Kept(_) => Err(leg.error(Cause::Protocol("Kept came out of turn".into()))),
    }
}

/// Decode sees a broken transfer when prefill has failed; prefill knows better why, if it can still say so.
async fn root_cause(decode: &Leg, failure: Failure, prefill: Option<&mut Leg>) -> NodeError {
    if failure.kind == FailureKind::Transfer
        && let Some(prefill) = prefill
        && let Err(error) = prefill_outcome(prefill, ROOT_CAUSE_WAIT).await
        && !matches!(error.cause, Cause::Deadline { .. })
    {
        return error;
    }
    decode.error(Cause::Failed(failure))
}

fn unexpected(leg: &Leg, message: &FromDecode) -> NodeError {
    let name = match message {
        FromDecode::Reserved { .. } => "Reserved",
        FromDecode::Ready { .. } => "Ready",
        FromDecode::Token { .. } => "Token",
        FromDecode::Finished { .. } => "Finished",
        FromDecode::Fail(_) => "Fail",
    };
    leg.error(Cause::Protocol(format!("{name} came out of turn")))
}

fn prompt_tokens(job: &Job) -> u32 {
    u32::try_from(job.token_ids.len()).unwrap_or(u32::MAX)
}

impl Tokens {
    /// The next token, or the end.
    pub(crate) async fn next(&mut self) -> Result<Step, NodeError> {
        match self.decode.recv(Phase::NextToken, self.deadline).await? {
            FromDecode::Token { id, logprobs } => Ok(Step::Token(Drawn { id, logprobs })),
            FromDecode::Finished { reason } => {
                self.decode.finish();
                Ok(Step::Finished(reason))
            }
            FromDecode::Fail(failure) => Err(self.decode.error(Cause::Failed(failure))),
            other => Err(unexpected(&self.decode, &other)),
        }
    }

    /// When the last of it was read from the node.
    pub(crate) fn read_at(&self) -> std::time::Instant {
        self.decode.read_at()
    }

    /// An error for a node that says what cannot be.
    pub(crate) fn protocol_error(&self, reason: String) -> NodeError {
        self.decode.error(Cause::Protocol(reason))
    }

    /// The node that generates.
    pub(crate) fn decode_node(&self) -> &NodeId {
        &self.decode.node().id
    }
}
