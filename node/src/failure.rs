//! Short ways to say what went wrong, in the words that travel to the router.

use service::Shutdown;
use transport::message::{Failure, FailureKind};

/// Ends the process when an engine's thread panics: a node that cannot compute must not stay in the cluster.
#[derive(Debug)]
pub struct EngineFault(Shutdown);

impl EngineFault {
    /// To be held by the engine's thread for as long as it runs.
    #[must_use]
    pub fn watch(shutdown: Shutdown) -> Self {
        Self(shutdown)
    }
}

impl Drop for EngineFault {
    fn drop(&mut self) {
        if std::thread::panicking() {
            tracing::error!("the engine has panicked, which is a bug; the node ends");
            self.0.end();
        }
    }
}

/// A failure of the given kind.
pub fn fail(kind: FailureKind, message: impl std::fmt::Display) -> Failure {
    Failure { kind, message: message.to_string() }
}

/// The request itself is wrong.
pub fn invalid(message: impl std::fmt::Display) -> Failure {
    fail(FailureKind::Invalid, message)
}

/// A fault of ours.
pub fn internal(message: impl std::fmt::Display) -> Failure {
    fail(FailureKind::Internal, message)
}

/// What arrived was not what was promised.
pub fn transfer(message: impl std::fmt::Display) -> Failure {
    fail(FailureKind::Transfer, message)
}
