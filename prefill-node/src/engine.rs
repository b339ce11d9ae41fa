//! The one thread that runs the model: prompts in order of arrival, chunk by chunk.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use codec::importance;
use model::{Drawn, Draws};
use node::compute::{Cache, Part, Received, Runner};
use node::failure::{EngineFault, fail, internal};
use node::prompt::{Progress, PromptPass, pieces};
use node::units::ms;
use node::{Served, StartError};
use prometheus_client::metrics::gauge::Gauge;
use service::Shutdown;
use service::trace::TARGET;
use tokio::sync::mpsc;
use tracing::field::Empty;
use tracing::{Span, debug, info_span};
use transport::message::{Failure, FailureKind, KvMode};

use crate::metrics::Metrics;
use crate::prefix::{self, PrefixCache, Salt};

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

/// A prompt to be run.
#[derive(Debug)]
pub(crate) struct Prompt {
    pub(crate) tokens: Vec<u32>,
    /// Whose caches it may share.
    pub(crate) salt: Salt,
    pub(crate) mode: KvMode,
    pub(crate) draws: Draws,
}

/// A prompt's cache, and what is known of its tokens.
#[derive(Debug)]
pub(crate) struct Whole {
    pub(crate) cache: Arc<Cache>,
    pub(crate) received: Received,
}

/// A prompt that went through the model.
#[derive(Debug, Clone)]
pub(crate) struct Done {
    pub(crate) first: Drawn,
    /// Tokens that another prompt had left.
    pub(crate) cached: usize,
    pub(crate) queued: Duration,
    pub(crate) computed: Duration,
    /// When its last forward pass ended.
    pub(crate) at: Instant,
}

struct Job {
    prompt: Prompt,
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

/// What the engine is told.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Settings {
    /// Tokens of a prompt that run at once.
    pub(crate) chunk: usize,
    /// Prompts that may wait.
    pub(crate) queue: usize,
    /// Tokens of prompts that are kept for those that begin alike.
    pub(crate) prefix_cache_tokens: usize,
}

/// Handle to the engine's thread, which ends with the last handle.
#[derive(Debug, Clone)]
pub(crate) struct Engine {
    jobs: mpsc::Sender<Job>,
    chunk: usize,
    waiting: Gauge,
}

impl Engine {
    /// Starts the thread.
    pub(crate) fn start(
        served: Arc<Served>,
        settings: Settings,
        metrics: Metrics,
        shutdown: Shutdown,
    ) -> Result<Self, StartError> {
        let Settings { chunk, queue, prefix_cache_tokens } = settings;
        let (jobs, mut queue) = mpsc::channel::<Job>(queue);
        let runner = served.runner().map_err(|failure| StartError::Flag(failure.message))?;
        let waiting = metrics.waiting.clone();
        let kept = PrefixCache::new(prefix_cache_tokens);
        let mut machine = Machine { runner, served, chunk, kept, metrics };
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
        prompt: Prompt,
        wanted: &Wanted,
    ) -> Result<mpsc::Receiver<FromEngine>, Failure> {
        // Room for every block, those that need not run cut on their own, and the end, so that a slow link never holds the engine.
        let (out, receiver) = mpsc::channel(prompt.tokens.len().div_ceil(self.chunk) + 3);
        let (arrived, wanted) = (Instant::now(), Arc::downgrade(&wanted.0));
        let (queued, span) = (Some(Waiting::new(&self.waiting)), Span::current());
        let job = Job { prompt, arrived, wanted, out, queued, span };
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
    kept: PrefixCache,
    metrics: Metrics,
}

impl Machine {
    fn run_prompt(&mut self, job: &Job) -> Result<(), Failure> {
        let queued = job.arrived.elapsed();
        if job.wanted.strong_count() == 0 {
            return Ok(());
        }
        let prompt = &job.prompt;
        let traced = info_span!(
            target: TARGET, parent: &job.span, "forward",
            prompt_tokens = prompt.tokens.len(), cached_tokens = Empty, queue_ms = ms(queued),
        );
        let _entered = traced.enter();
        let mut cache = self.begin(prompt)?;
        let cached = cache.len();
        traced.record("cached_tokens", cached);
        if prompt.mode == KvMode::Stream {
            for range in pieces(cached, self.chunk) {
                drop(job.out.try_send(FromEngine::Block(cache.part(range).map_err(internal)?)));
            }
        }
        let mut pass = self.pass(prompt);
        let Some((first, computed)) = self.run(job, &mut pass, &mut cache)? else { return Ok(()) };
        let (at, cache) = (Instant::now(), Arc::new(cache));
        if let Some(received) = pass.into_received() {
            let whole = Whole { cache: Arc::clone(&cache), received };
            drop(job.out.try_send(FromEngine::Whole(Box::new(whole))));
        }
        drop(job.out.try_send(FromEngine::Done(Done { first, cached, queued, computed, at })));
        self.kept.keep(prompt.salt, &prompt.tokens, cache);
        self.metrics.prefix.kept.set(self.kept.tokens() as i64);
        Ok(())
    }

    /// Runs what of the prompt the cache does not hold, chunk by chunk; none if nobody wants it any more.
    fn run(
        &mut self,
        job: &Job,
        pass: &mut PromptPass,
        cache: &mut Cache,
    ) -> Result<Option<(Drawn, Duration)>, Failure> {
        let mut computed = Duration::ZERO;
        while job.wanted.strong_count() > 0 {
            let started = Instant::now();
            let (range, progress) = self.runner.advance(pass, cache, &job.prompt.draws).map_err(internal)?;
            computed += started.elapsed();
            self.metrics.prompt_tokens.inc_by(range.len() as u64);
            debug!(start = range.start, end = range.end, "chunk of the prompt computed");
            // A receiver that is gone is noticed at the loop's head.
            if job.prompt.mode == KvMode::Stream {
                drop(job.out.try_send(FromEngine::Block(cache.part(range).map_err(internal)?)));
            }
            if let Progress::FirstToken(first) = progress {
                return Ok(Some((first, computed)));
            }
        }
        Ok(None)
    }

    /// A cache for a prompt, with what another has left of its beginning.
    fn begin(&mut self, prompt: &Prompt) -> Result<Cache, Failure> {
        let tokens = prompt.tokens.len();
        // These have to run: the attention of the last queries is summed up, and the last token's logits are drawn from.
        let run = if prompt.mode == KvMode::After { importance::QUERIES } else { 1 };
        let found = self.kept.longest(prompt.salt, &prompt.tokens);
        let usable = |common: usize| self.served.shareable(common.min(tokens.saturating_sub(run)));
        let found = found.map(|(cache, common)| (cache, usable(common)));
        let mut found = found.filter(|(_, shared)| *shared >= prefix::FEWEST);
        loop {
            let cache = match &found {
                Some((cache, shared)) => self.served.cache_after(cache, *shared, tokens),
                None => self.served.cache(tokens),
            };
            match cache {
                // On a GPU what is kept lies in the pages that prompts need, and so does, last of all, what was found.
                Err(failure) if failure.kind == FailureKind::Busy => {
                    if !self.kept.evict() && found.take().is_none() {
                        return Err(failure);
                    }
                }
                Err(failure) => return Err(failure),
                Ok(cache) => {
                    self.metrics.prefix.looked_up(tokens, cache.len());
                    self.metrics.prefix.kept.set(self.kept.tokens() as i64);
                    return Ok(cache);
                }
            }
        }
    }

    fn pass(&self, prompt: &Prompt) -> PromptPass {
        let tokens = prompt.tokens.clone();
        match prompt.mode {
            KvMode::Stream => PromptPass::new(tokens, self.chunk),
            KvMode::After => PromptPass::new(tokens, self.served.long_chunk(self.chunk))
                .collecting(self.served.layer_weights()),
        }
    }
}
