//! The outermost layer of a process: logs up, body run, and one last log line that says why it failed.

use std::error::Error;
use std::process::ExitCode;

use crate::args::CommonArgs;
use crate::telemetry;

/// Sets up the logs and runs `body`. If it fails, the last log line is `failure` with the whole chain of reasons, and
/// the exit code says so too.
pub async fn run<E: Error>(
    args: &CommonArgs,
    failure: &str,
    body: impl Future<Output = Result<(), E>>,
) -> ExitCode {
    if let Err(error) = telemetry::init(args) {
        eprintln!("{failure}: {error}");
        return ExitCode::FAILURE;
    }
    match body.await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{failure}: {}", chain(&error));
            ExitCode::FAILURE
        }
    }
}

/// An error and what caused it, on one line; causes that the error has already quoted are not said twice.
fn chain(error: &dyn Error) -> String {
    let mut said = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let words = cause.to_string();
        if !said.contains(&words) {
            said.push_str(": ");
            said.push_str(&words);
        }
        source = cause.source();
    }
    said
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot open the model")]
    struct Outer {
        source: std::io::Error,
    }

    #[derive(Debug, thiserror::Error)]
    #[error("cannot start: {0}")]
    struct Quoting(#[source] std::io::Error);

    #[test]
    fn every_cause_is_said_once() {
        let cause = || std::io::Error::other("disk on fire");
        assert_eq!(chain(&Outer { source: cause() }), "cannot open the model: disk on fire");
        assert_eq!(chain(&Quoting(cause())), "cannot start: disk on fire");
    }
}
