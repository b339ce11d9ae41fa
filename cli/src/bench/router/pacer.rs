//! Sends tokens at their times, from a thread of its own: the runtime's timers have a grain of a millisecond, which would
//! make bursts of tokens that no stream asked for.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tokio::runtime::Handle;
use transport::Sender;
use transport::message::{FinishReason, FromDecode};

use super::track::Track;

const SEED: u64 = 29;

/// A generation whose first token was sent.
#[derive(Debug)]
pub(super) struct Generating {
    pub(super) sender: Sender,
    pub(super) track: Arc<Track>,
    /// Tokens that are still to come.
    pub(super) left: u32,
}

/// Gives generations their tokens until it and its clones are dropped.
#[derive(Debug, Clone)]
pub(super) struct Pacer {
    newcomers: mpsc::Sender<Generating>,
}

/// A generation and when its next token is due.
struct Due {
    at: Instant,
    generating: Generating,
}

impl Pacer {
    /// A token of every generation each `interval`; the first one after a random part of it. Texts are made of `ids`.
    pub(super) fn start(interval: Duration, ids: Arc<[u32]>) -> std::io::Result<Self> {
        let (newcomers, queue) = mpsc::channel();
        let runtime = Handle::current();
        let pace = move || run(&queue, interval, &ids, &runtime);
        std::thread::Builder::new().name("pacer".into()).spawn(pace)?;
        Ok(Self { newcomers })
    }

    pub(super) fn take(&self, generating: Generating) {
        // Fails only when the thread has panicked, and then nothing is measured any more.
        let _ = self.newcomers.send(generating);
    }
}

fn run(queue: &mpsc::Receiver<Generating>, interval: Duration, ids: &[u32], runtime: &Handle) {
    let mut rng = ChaCha8Rng::seed_from_u64(SEED);
    let mut waiting: BinaryHeap<Reverse<Due>> = BinaryHeap::new();
    loop {
        let next = waiting.peek().map(|Reverse(due)| due.at);
        let newcomer = match next {
            Some(at) => queue.recv_timeout(at.saturating_duration_since(Instant::now())),
            None => queue.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        match newcomer {
            Ok(generating) => {
                let at = Instant::now() + interval.mul_f64(rng.random_range(0.0..1.0));
                waiting.push(Reverse(Due { at, generating }));
            }
            Err(RecvTimeoutError::Timeout) => {
                let Some(Reverse(mut due)) = waiting.pop() else { continue };
                if runtime.block_on(step(&mut due.generating, ids)) {
                    due.at += interval;
                    waiting.push(Reverse(due));
                }
            }
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

/// One more token, and the end behind the last one. False when there is nothing left to send.
async fn step(generating: &mut Generating, ids: &[u32]) -> bool {
    let Generating { sender, track, left } = generating;
    let id = ids[*left as usize % ids.len()];
    track.hand();
    let sent = sender.send(&FromDecode::Token { id, logprobs: None }).await;
    *left -= 1;
    // A failure is a client that has left.
    if sent.is_err() || *left > 0 {
        return sent.is_ok();
    }
    if sender.send(&FromDecode::Finished { reason: FinishReason::Length }).await.is_ok() {
        // What was sent is delivered all the same.
        let _ = sender.finish();
    }
    false
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        self.at == other.at
    }
}

impl Eq for Due {}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Due {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.at.cmp(&other.at)
    }
}
