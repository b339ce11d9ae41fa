//! The one thread that runs the model: prompts in order of arrival, chunk by chunk.

use std::sync::Arc;
use std::time::{Duration, Instant};

use codec::KvBlock;
use half::bf16;
use model::{KvCache, Sampling};
use node::prompt::{Progress, PromptPass, export};
use node::{Loaded, StartError};
use tokio::sync::mpsc;

/// What leaves the engine for one prompt, in this order: blocks, then the end; nothing more after a failure.
#[derive(Debug)]
pub(crate) enum FromEngine {
    /// A chunk's cache.
    Block(KvBlock),
    /// The prompt is done.
    Done { first_token: u32, queued: Duration, computed: Duration },
    /// The model refused or broke.
    Failed(model::Error),
}

struct Job {
    tokens: Vec<u32>,
    sampling: Sampling,
    arrived: Instant,
    out: mpsc::Sender<FromEngine>,
}

/// Handle to the engine's thread, which ends with the last handle.
#[derive(Debug, Clone)]
pub(crate) struct Engine {
    jobs: mpsc::Sender<Job>,
    chunk: usize,
}

impl Engine {
    /// Starts the thread; `queue` prompts may wait.
    pub(crate) fn start(loaded: Arc<Loaded>, chunk: usize, queue: usize) -> Result<Self, StartError> {
        let (jobs, mut waiting) = mpsc::channel::<Job>(queue);
        let run = move || {
            while let Some(job) = waiting.blocking_recv() {
                let failed = run_prompt(&loaded, chunk, &job).err();
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
        Ok(Self { jobs, chunk })
    }

    /// Queues a prompt. Dropping the receiver cancels it at the next chunk.
    ///
    /// Returns none when the queue is full.
    pub(crate) fn submit(&self, tokens: Vec<u32>, sampling: Sampling) -> Option<mpsc::Receiver<FromEngine>> {
        // Room for every block and the end, so that a slow link never holds the engine.
        let (out, receiver) = mpsc::channel(tokens.len().div_ceil(self.chunk) + 2);
        let job = Job { tokens, sampling, arrived: Instant::now(), out };
        self.jobs.try_send(job).ok().map(|()| receiver)
    }
}

fn run_prompt(loaded: &Loaded, chunk: usize, job: &Job) -> model::Result<()> {
    let queued = job.arrived.elapsed();
    let mut computed = Duration::ZERO;
    let mut cache = KvCache::<bf16>::new(loaded.llama.config(), job.tokens.len());
    let pass = PromptPass::new(job.tokens.clone(), chunk);
    while !job.out.is_closed() {
        let started = Instant::now();
        let (range, progress) = pass.advance(&loaded.llama, &mut cache, &job.sampling)?;
        computed += started.elapsed();
        // A receiver that is gone is noticed at the loop's head.
        drop(job.out.try_send(FromEngine::Block(export(&cache, range)?)));
        if let Progress::FirstToken(first_token) = progress {
            drop(job.out.try_send(FromEngine::Done { first_token, queued, computed }));
            break;
        }
    }
    Ok(())
}
