//! The outermost layer of a process: logs up, body run, and one last log line that says why it failed.

use std::error::Error;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use tokio::net::TcpListener;

use crate::admin::{self, Readiness};
use crate::args::CommonArgs;
use crate::metrics::Registry;
use crate::shutdown::Shutdown;
use crate::telemetry;

/// Sets up logs and runtime and runs `body`. If it fails, the last log line is `failure` with the whole chain of reasons, and
/// the exit code says so too; with `--linger-seconds` the health at `probed` says it as well, for that long.
pub fn run<E: Error>(
    args: &CommonArgs,
    probed: SocketAddr,
    failure: &str,
    body: impl Future<Output = Result<(), E>>,
) -> ExitCode {
    // Dropped behind the runtime, when the last spans are there.
    let _telemetry = match telemetry::init(args) {
        Ok(telemetry) => telemetry,
        Err(error) => {
            eprintln!("{failure}: {error}");
            return ExitCode::FAILURE;
        }
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!("{failure}: no threads: {error}");
            return ExitCode::FAILURE;
        }
    };
    let Err(error) = runtime.block_on(body) else { return ExitCode::SUCCESS };
    let reason = format!("{failure}: {}", chain(&error));
    tracing::error!("{reason}");
    if !args.linger().is_zero() {
        runtime.block_on(linger(probed, reason, args.linger()));
    }
    ExitCode::FAILURE
}

/// Answers probes with the reason until the time is over or a signal comes.
async fn linger(probed: SocketAddr, reason: String, time: Duration) {
    let readiness = Readiness::starting();
    readiness.set_unready(reason);
    let Ok(shutdown) = Shutdown::on_signals(Duration::ZERO) else { return };
    let serve = async {
        if let Ok(listener) = TcpListener::bind(probed).await {
            let routes = admin::routes(readiness, Registry::new());
            // Whether probes were answered changes nothing any more.
            drop(admin::serve(listener, routes, &shutdown).await);
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = serve => {}
        () = tokio::time::sleep(time) => {}
        () = shutdown.draining() => {}
    }
}

/// An error and what caused it, on one line; causes that the error has already quoted are not said twice.
#[must_use]
pub fn chain(error: &dyn Error) -> String {
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

/// The name that the program was called by, without folders.
#[must_use]
pub fn program() -> String {
    let name = std::env::args_os().next().unwrap_or_default();
    std::path::Path::new(&name)
        .file_stem()
        .map_or_else(|| "kvferry".into(), |stem| stem.to_string_lossy().into_owned())
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
