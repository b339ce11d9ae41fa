//! How a process ends: a first signal drains (no new work, what runs may finish within the grace period), a second
//! signal or the end of the grace period ends what is left.
//!
//! ```text
//! running ── signal or drain() ──► draining ── tasks done, grace over, or second signal ──► ended
//! ```
//!
//! Tasks that have to finish are spawned with [`Shutdown::spawn`]; loops that take new work stop at
//! [`Shutdown::draining`].

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::signal;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

/// One process's shutdown; clones share it.
#[derive(Debug, Clone)]
pub struct Shutdown {
    drain: CancellationToken,
    end: CancellationToken,
    tasks: TaskTracker,
    /// Tasks that were dropped before they had finished.
    cut: Arc<AtomicUsize>,
    grace: Duration,
}

/// How the drain went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drained {
    /// All tasks have finished by themselves.
    Complete,
    /// So many were ended: the grace period was over, or a second signal came.
    Cut {
        /// Tasks that had not finished.
        tasks: usize,
    },
}

impl Shutdown {
    /// A shutdown that only [`Shutdown::drain`] begins; for tests and for nodes inside another process.
    pub fn new(grace: Duration) -> Self {
        Self {
            drain: CancellationToken::new(),
            end: CancellationToken::new(),
            tasks: TaskTracker::new(),
            cut: Arc::default(),
            grace,
        }
    }

    /// A shutdown that SIGINT and SIGTERM begin, and that a second one of them ends at once.
    ///
    /// # Errors
    /// If the system gives no signal handlers.
    pub fn on_signals(grace: Duration) -> std::io::Result<Self> {
        let shutdown = Self::new(grace);
        let mut signals = Signals::new()?;
        let watched = shutdown.clone();
        tokio::spawn(async move {
            let name = signals.next().await;
            info!(signal = name, ?grace, "draining; a second signal ends at once");
            watched.drain();
            let name = signals.next().await;
            warn!(signal = name, "ending at once");
            watched.end();
        });
        Ok(shutdown)
    }

    /// Begins the drain.
    pub fn drain(&self) {
        self.drain.cancel();
    }

    /// Ends at once, without waiting for tasks.
    pub fn end(&self) {
        self.drain.cancel();
        self.end.cancel();
    }

    /// Whether new work is to be refused.
    pub fn is_draining(&self) -> bool {
        self.drain.is_cancelled()
    }

    /// Resolves when new work is to be refused.
    pub fn draining(&self) -> impl Future<Output = ()> + Send + 'static {
        self.drain.clone().cancelled_owned()
    }

    /// Resolves when everything is to stop.
    pub fn ended(&self) -> impl Future<Output = ()> + Send + 'static {
        self.end.clone().cancelled_owned()
    }

    /// Runs a task that the drain waits for, and that is dropped when everything is to stop.
    pub fn spawn<F>(&self, task: F) -> JoinHandle<Option<F::Output>>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let (end, cut) = (self.end.clone(), Arc::clone(&self.cut));
        self.tasks.spawn(async move {
            let output = end.run_until_cancelled_owned(task).await;
            if output.is_none() {
                cut.fetch_add(1, Ordering::Relaxed);
            }
            output
        })
    }

    /// Waits for the drain to begin, then for the tasks within the grace period, then ends what is left.
    pub async fn finished(&self) -> Drained {
        self.drain.cancelled().await;
        self.tasks.close();
        tokio::select! {
            () = self.tasks.wait() => {}
            () = self.end.cancelled() => {}
            () = tokio::time::sleep(self.grace) => {}
        }
        self.end();
        self.tasks.wait().await;
        match self.cut.load(Ordering::Relaxed) {
            0 => Drained::Complete,
            tasks => Drained::Cut { tasks },
        }
    }
}

/// SIGINT and SIGTERM; elsewhere Ctrl-C.
struct Signals {
    #[cfg(unix)]
    interrupt: signal::unix::Signal,
    #[cfg(unix)]
    terminate: signal::unix::Signal,
}

#[cfg(unix)]
impl Signals {
    fn new() -> std::io::Result<Self> {
        use signal::unix::{SignalKind, signal};
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.terminate.recv() => "SIGTERM",
        }
    }
}

#[cfg(not(unix))]
impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {})
    }

    async fn next(&mut self) -> &'static str {
        if signal::ctrl_c().await.is_err() {
            // Without a handler no signal will ever come; the process can still be drained from within.
            std::future::pending::<()>().await;
        }
        "Ctrl-C"
    }
}
