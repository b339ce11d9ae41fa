//! The one thread that runs the model: prompts in order of arrival, chunk by chunk.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use model::{Drawn, Draws};
use node::compute::{Cache, Part, Received, Runner};
use node::failure::{EngineFault, fail, internal};
use node::prompt::{Progress, PromptPass};
use node::units::ms;
use node::{Served, StartError};
use prometheus_client::metrics::gauge::Gauge;
use service::Shutdown;
use service::trace::TARGET;
use tokio::sync::mpsc;
use tracing::{Span, debug, info_span};
use transport::message::{Failure, FailureKind, KvMode};

use crate::metrics::Metrics;

/// What leaves the engine for one prompt, in this order: blocks or the whole cache, then the end; nothing more after a
/// failure.
#[derive(Debug)]
pub(crate) enum FromEngine {
    /// A chunk's cache, while the next one computes.
    Block(Part),
    /// The prompt's cache, handed over rather than copied, and the attention that each token received.
    Whole(Box<Whole>),
    /// The prompt is done.
    Done(Done),
    /// The model refused or broke.
    Failed(Failure),
}

/// A prompt's cache, and what is known of its tokens.
#[derive(Debug)]
pub(crate) struct Whole {
    pub(crate) cache: Cache,
    pub(crate) received: Received,
}

/// A prompt that went through the model.
#[derive(Debug, Clone)]
pub(crate) struct Done {
    pub(crate) first: Drawn,
    pub(crate) queued: Duration,
    pub(crate) computed: Duration,
    /// When its last forward pass ended.
    pub(crate) at: Instant,
}

struct Job {
    tokens: Vec<u32>,
    mode: KvMode,
    draws: Draws,
    arrived: Instant,
    wanted: Weak<()>,
    out: mpsc::Sender<FromEngine>,
    /// Counts it as waiting until it is begun or dropped.
    queued: Option<Waiting>,
    /// The request's span, in which the engine's own lie.
    span: Span,
}

/// One prompt that waits.
struct Waiting(Gauge);

impl Waiting {
    fn new(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// Somebody wants a prompt's result; dropping it cancels the prompt, queued or running.
#[derive(Debug)]
pub(crate) struct Wanted(Arc<()>);

impl Wanted {
    pub(crate) fn new() -> Self {
        Self(Arc::new(()))
    }
}

/// Handle to the engine's thread, which ends with the last handle.
#[derive(Debug, Clone)]
pub(crate) struct Engine {
    jobs: mpsc::Sender<Job>,
    chunk: usize,
    waiting: Gauge,
}

impl Engine {
    /// Starts the thread; `queue` prompts may wait.
    pub(crate) fn start(
        served: Arc<Served>,
        chunk: usize,
        queue: usize,
        metrics: Metrics,
        shutdown: Shutdown,
    ) -> Result<Self, StartError> {
        let (jobs, mut queue) = mpsc::channel::<Job>(queue);
        let runner = served.runner().map_err(|failure| StartError::Flag(failure.message))?;
        let waiting = metrics.waiting.clone();
        let mut machine = Machine { runner, served, chunk, metrics };
        let run = move || {
            let _fault = EngineFault::watch(shutdown);
            while let Some(mut job) = queue.blocking_recv() {
                job.queued = None;
                let failed = machine.run_prompt(&job).err();
                if let Some(error) = failed {
                    // The receiver may be gone: then nobody wants to know.
                    drop(job.out.try_send(FromEngine::Failed(error)));
                }
            }
        };
        std::thread::Builder::new()
            .name("prefill-engine".into())
            .spawn(run)
            .map_err(|e| StartError::Flag(format!("cannot start the engine's thread: {e}")))?;
        Ok(Self { jobs, chunk, waiting })
    }

    /// Queues a prompt. Dropping `wanted` cancels it, at the next chunk if it runs already.
    pub(crate) fn submit(
        &self,
        tokens: Vec<u32>,
        mode: KvMode,
        draws: Draws,
        wanted: &Wanted,
    ) -> Result<mpsc::Receiver<FromEngine>, Failure> {
        // Room for every block and the end, so that a slow link never holds the engine.
        let (out, receiver) = mpsc::channel(tokens.len().div_ceil(self.chunk) + 2);
        let (arrived, wanted) = (Instant::now(), Arc::downgrade(&wanted.0));
        let (queued, span) = (Some(Waiting::new(&self.waiting)), Span::current());
        let job = Job { tokens, mode, draws, arrived, wanted, out, queued, span };
        match self.jobs.try_send(job) {
            Ok(()) => Ok(receiver),
            Err(mpsc::error::TrySendError::Full(_)) => {
                Err(fail(FailureKind::Busy, "the prefill queue is full (--max-num-seqs)"))
            }
            Err(mpsc::error::TrySendError::Closed(_)) => Err(engine_gone()),
        }
    }
}

/// For faults that only a bug can cause.
pub(crate) fn engine_gone() -> Failure {
    fail(FailureKind::Internal, "the engine stopped without a result")
}

/// What the engine's thread works with.
struct Machine {
    runner: Runner,
    served: Arc<Served>,
    chunk: usize,
    metrics: Metrics,
}

impl Machine {
    fn run_prompt(&mut self, job: &Job) -> Result<(), Failure> {
        let queued = job.arrived.elapsed();
        if job.wanted.strong_count() == 0 {
            return Ok(());
        }
        let traced = info_span!(
            target: TARGET, parent: &job.span, "forward",
            prompt_tokens = job.tokens.len(), queue_ms = ms(queued),
        );
        let _entered = traced.enter();
        let mut computed = Duration::ZERO;
        let mut cache = self.served.cache(job.tokens.len())?;
        let mut pass = self.pass(job);
        while job.wanted.strong_count() > 0 {
            let started = Instant::now();
            let (range, progress) =
                self.runner.advance(&mut pass, &mut cache, &job.draws).map_err(internal)?;
            computed += started.elapsed();
            self.metrics.prompt_tokens.inc_by(range.len() as u64);
            let at = Instant::now();
            debug!(start = range.start, end = range.end, "chunk of the prompt computed");
            // A receiver that is gone is noticed at the loop's head.
            if job.mode == KvMode::Stream {
                drop(job.out.try_send(FromEngine::Block(cache.part(range).map_err(internal)?)));
            }
            if let Progress::FirstToken(first) = progress {
                if let Some(received) = pass.into_received() {
                    drop(job.out.try_send(FromEngine::Whole(Box::new(Whole { cache, received }))));
                }
                drop(job.out.try_send(FromEngine::Done(Done { first, queued, computed, at })));
                break;
            }
        }
        Ok(())
    }

    fn pass(&self, job: &Job) -> PromptPass {
        match job.mode {
            KvMode::Stream => PromptPass::new(job.tokens.clone(), self.chunk),
            KvMode::After => PromptPass::new(job.tokens.clone(), self.served.long_chunk(self.chunk))
                .collecting(self.served.layer_weights()),
        }
    }
}
