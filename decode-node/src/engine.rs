//! The one thread that runs the model: one step for all ready sessions together, then one chunk of a local prompt, if
//! there is one, so that neither starves the other (continuous batching).

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use model::Drawn;
use node::compute::{Runner, Step};
use node::failure::{EngineFault, internal};
use node::prompt::{Progress, PromptPass};
use node::units::ms;
use node::{Served, StartError};
use service::Shutdown;
use tokio::sync::mpsc;
use transport::message::{Failure, FinishReason, PrefillStats};

use crate::metrics::Metrics;
use crate::session::{Session, State};

/// What leaves the engine for one session, in this order.
#[derive(Debug)]
pub(crate) enum Event {
    /// A local prompt is done.
    Prefilled { first: Drawn, stats: PrefillStats },
    /// The next token.
    Token(Drawn),
    /// The last one was sent.
    Finished(FinishReason),
    /// The session is lost.
    Failed(Failure),
}

/// Work for the engine. Dropping the events' receiver cancels it at the next step.
struct Job {
    session: Session,
    start: Start,
    out: mpsc::Sender<Event>,
}

enum Start {
    /// The cache holds the prompt; continue after this token.
    Continue { first_token: u32 },
    /// Run the prompt first.
    Local { pass: Box<PromptPass>, arrived: Instant, queued: Option<Duration>, computed: Duration },
}

/// A session in the batch.
struct Active {
    session: Session,
    last: u32,
    out: mpsc::Sender<Event>,
}

/// Handle to the engine's thread, which ends with the last handle.
#[derive(Debug, Clone)]
pub(crate) struct Engine {
    jobs: mpsc::Sender<Job>,
    chunk: usize,
}

impl Engine {
    /// Starts the thread; `sessions` is the most that can be alive at once.
    pub(crate) fn start(
        served: &Served,
        chunk: usize,
        sessions: usize,
        metrics: Metrics,
        shutdown: Shutdown,
    ) -> Result<Self, StartError> {
        let (jobs, waiting) = mpsc::channel(sessions);
        let runner = served.runner().map_err(|failure| StartError::Flag(failure.message))?;
        let mut batch = Batch { runner, metrics, active: Vec::new(), local: VecDeque::new() };
        std::thread::Builder::new()
            .name("decode-engine".into())
            .spawn(move || {
                let _fault = EngineFault::watch(shutdown);
                batch.run(waiting);
            })
            .map_err(|e| StartError::Flag(format!("cannot start the engine's thread: {e}")))?;
        Ok(Self { jobs, chunk })
    }

    /// Continues a session whose cache is ready.
    pub(crate) async fn decode(&self, session: Session, first_token: u32) -> mpsc::Receiver<Event> {
        self.submit(session, Start::Continue { first_token }).await
    }

    /// Runs a session's prompt here, then continues it.
    pub(crate) async fn prefill_and_decode(
        &self,
        session: Session,
        tokens: Vec<u32>,
    ) -> mpsc::Receiver<Event> {
        let pass = Box::new(PromptPass::new(tokens, self.chunk));
        let start = Start::Local { pass, arrived: Instant::now(), queued: None, computed: Duration::ZERO };
        self.submit(session, start).await
    }

    async fn submit(&self, session: Session, start: Start) -> mpsc::Receiver<Event> {
        // Room for everything a session can say, so that a slow router never holds the batch.
        let (out, events) = mpsc::channel(session.max_tokens + 3);
        let gone = self.jobs.send(Job { session, start, out }).await;
        // A send fails only when the thread has died; the closed channel tells the caller.
        drop(gone);
        events
    }
}

struct Batch {
    runner: Runner,
    metrics: Metrics,
    active: Vec<Active>,
    local: VecDeque<Job>,
}

impl Batch {
    fn run(&mut self, mut jobs: mpsc::Receiver<Job>) {
        loop {
            if self.active.is_empty() && self.local.is_empty() {
                match jobs.blocking_recv() {
                    Some(job) => self.admit(job),
                    None => return,
                }
            }
            while let Ok(job) = jobs.try_recv() {
                self.admit(job);
            }
            self.step();
            self.prefill_chunk();
        }
    }

    fn admit(&mut self, job: Job) {
        match job.start {
            Start::Continue { first_token } => self.activate(job.session, first_token, job.out),
            Start::Local { .. } => self.local.push_back(job),
        }
    }

    /// Puts a session with its first token into the batch, unless that token ends it.
    fn activate(&mut self, mut session: Session, first_token: u32, out: mpsc::Sender<Event>) {
        match session.push(first_token) {
            Some(reason) => finish(session, reason, &out),
            None => {
                session.advance(State::Decoding);
                self.active.push(Active { session, last: first_token, out });
            }
        }
    }

    /// One token for every session in the batch.
    fn step(&mut self) {
        self.active.retain(|a| !a.out.is_closed());
        if self.active.is_empty() {
            return;
        }
        let started = Instant::now();
        let mut batch: Vec<_> = self
            .active
            .iter_mut()
            .map(|a| Step { token: a.last, draws: &a.session.draws, cache: &mut a.session.slot.cache })
            .collect();
        let drawn = match self.runner.step(&mut batch) {
            Ok(drawn) => drawn,
            Err(error) => return self.fail_all(&error),
        };
        self.metrics.steps.inc();
        self.metrics.step_seconds.observe(started.elapsed().as_secs_f64());
        self.metrics.generated_tokens.inc_by(self.active.len() as u64);
        for (mut active, drawn) in std::mem::take(&mut self.active).into_iter().zip(drawn) {
            active.last = drawn.token;
            let end = active.session.push(drawn.token);
            // A closed channel is found at the next step's head.
            drop(active.out.try_send(Event::Token(drawn)));
            match end {
                Some(reason) => finish(active.session, reason, &active.out),
                None => self.active.push(active),
            }
        }
    }

    /// A step that fails says nothing about which session is at fault: all of them end, none gets a wrong token.
    fn fail_all(&mut self, error: &model::Error) {
        for active in self.active.drain(..) {
            drop(active.out.try_send(Event::Failed(internal(error))));
        }
    }

    /// One chunk of the oldest local prompt.
    fn prefill_chunk(&mut self) {
        self.local.retain(|job| !job.out.is_closed());
        let Some(mut job) = self.local.pop_front() else { return };
        let Start::Local { pass, arrived, queued, computed } = &mut job.start else { return };
        queued.get_or_insert_with(|| arrived.elapsed());
        let started = Instant::now();
        let session = &mut job.session;
        match self.runner.advance(pass, &mut session.slot.cache, &session.draws) {
            Err(error) => drop(job.out.try_send(Event::Failed(internal(error)))),
            Ok((range, progress)) => {
                *computed += started.elapsed();
                self.metrics.local_prefill_tokens.inc_by(range.len() as u64);
                let Progress::FirstToken(first) = progress else {
                    return self.local.push_front(job);
                };
                let stats = PrefillStats {
                    cached_tokens: 0,
                    queue_ms: ms(queued.unwrap_or_default()),
                    prefill_ms: ms(*computed),
                    encode_ms: 0.0,
                    overlap: 0.0,
                    link_gbps: 0.0,
                };
                session.advance(State::Ready);
                let first_token = first.token;
                drop(job.out.try_send(Event::Prefilled { first, stats }));
                self.activate(job.session, first_token, job.out);
            }
        }
    }
}

fn finish(mut session: Session, reason: FinishReason, out: &mpsc::Sender<Event>) {
    session.advance(State::Done);
    // The slot is free before anybody hears that the session is over.
    drop(session);
    drop(out.try_send(Event::Finished(reason)));
}
