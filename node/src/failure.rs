//! Short ways to say what went wrong, in the words that travel to the router.

use transport::message::{Failure, FailureKind};

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
