//! Asks a prefill node for a cache that it keeps. It comes as every other does, on a KV stream of that node's; here only the
//! node's word is waited for.

use std::net::SocketAddr;
use std::time::Duration;

use node::failure::{invalid, transfer};
use node::reach::{self, There};
use service::Shutdown;
use service::trace::TARGET;
use tokio::sync::oneshot;
use tokio::task::AbortHandle;
use tracing::{Instrument, Span, info_span};
use transport::Dialer;
use transport::ids::{InstanceId, NodeId, RequestId, Ticket};
use transport::message::{DecodeTarget, Deliver, Failure, FailureKind, FromPrefill, Holder, Request, Role};

/// How long reaching a prefill node may take.
const DIAL_DEADLINE: Duration = Duration::from_secs(5);

/// What asking needs; clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Fetcher {
    pub(crate) dialer: Dialer,
    pub(crate) node: NodeId,
    pub(crate) instance: InstanceId,
    /// Where KV streams reach this node; an unspecified IP address where it does not know that itself.
    pub(crate) address: SocketAddr,
}

/// A delivery that was asked for; called off when dropped.
#[derive(Debug)]
pub(crate) struct Asked {
    failed: oneshot::Receiver<Failure>,
    task: Option<AbortHandle>,
}

impl Asked {
    /// Why it failed; nothing, for ever, when it did not.
    pub(crate) async fn failure(&mut self) -> Failure {
        match (&mut self.failed).await {
            Ok(failure) => failure,
            Err(_delivered) => std::future::pending().await,
        }
    }

    /// The cache is here. The prefill node may still say so: hanging up would look to it like a delivery that failed.
    pub(crate) fn has_come(mut self) {
        self.task = None;
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
        }
    }
}

impl Fetcher {
    /// Has a cache delivered against a ticket, within `deadline`.
    pub(crate) fn ask(
        &self,
        request: RequestId,
        holder: Holder,
        ticket: Ticket,
        deadline: Duration,
        shutdown: &Shutdown,
    ) -> Asked {
        let (fail, failed) = oneshot::channel();
        let (fetcher, span) = (self.clone(), Span::current());
        let fetch = async move {
            if let Err(failure) = fetcher.fetch(request, &holder, ticket, deadline).await {
                // Nobody may be left to be told.
                drop(fail.send(failure));
            }
        };
        Asked { failed, task: Some(shutdown.spawn(fetch.instrument(span)).abort_handle()) }
    }

    async fn fetch(
        &self,
        request: RequestId,
        holder: &Holder,
        ticket: Ticket,
        deadline: Duration,
    ) -> Result<(), Failure> {
        let Holder { node, instance, address, lease, prompt } = holder;
        let traced = info_span!(target: TARGET, "fetch", otel.kind = "client", prefill_node = %node);
        let Self { node: here, instance: run, address: reached, .. } = self.clone();
        let target = DecodeTarget { node: here, instance: run, address: reached, ticket };
        let trace = node::trace::context(&traced);
        let deliver = Request::Deliver(Deliver { request, lease: *lease, prompt: *prompt, target, trace });
        let there = There { role: Role::Prefill, node, instance: *instance, address: *address };
        let asked = async {
            let mut stream = reach::open(&self.dialer, there, DIAL_DEADLINE).await?;
            let broke =
                |error: &dyn std::fmt::Display| transfer(format!("prefill node {node} was lost: {error}"));
            stream.sender.send(&deliver).await.map_err(|error| broke(&error))?;
            match stream.receiver.recv_message::<FromPrefill>(deadline).await {
                Ok(FromPrefill::Prefilled) => Ok(()),
                Ok(FromPrefill::Fail(Failure { kind, message })) => {
                    // Whatever keeps that node from delivering, here it is a cache that does not come.
                    let told = format!("prefill node {node}: {message}");
                    Err(if kind == FailureKind::Invalid { invalid(told) } else { transfer(told) })
                }
                Ok(FromPrefill::Kept(_)) => Err(broke(&"Kept came out of turn")),
                Err(error) => Err(broke(&error)),
            }
        };
        asked.instrument(traced).await
    }
}
