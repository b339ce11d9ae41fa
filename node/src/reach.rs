//! Streams to other nodes, at their addresses: whoever stands there must be the run of the node that is meant.

use std::net::SocketAddr;
use std::time::Duration;

use transport::ids::{InstanceId, NodeId};
use transport::message::{Failure, FailureKind, Role};
use transport::{Dialer, Peer, Stream};

use crate::failure::fail;

/// A run of a node, and where it is reached.
#[derive(Debug, Clone, Copy)]
pub struct There<'a> {
    /// As what it takes part.
    pub role: Role,
    /// Its name.
    pub node: &'a NodeId,
    /// The run.
    pub instance: InstanceId,
    /// Its address for streams of other nodes.
    pub address: SocketAddr,
}

/// Opens a stream to a node, over the connection that there is or a new one within `deadline`.
///
/// # Errors
/// [`FailureKind::Unreachable`] when the node cannot be reached, or another run of it stands there.
pub async fn open(dialer: &Dialer, there: There<'_>, deadline: Duration) -> Result<Stream, Failure> {
    let opened = match open_once(dialer, there, deadline).await {
        Err(Closed::Stale(peer, _)) => {
            // Perhaps a connection to what stood at this address before; a fresh one tells. Others may have streams on it, and a wish
            // for a run that is gone is no reason to end these.
            dialer.forget(there.address, &peer);
            drop(peer);
            open_once(dialer, there, deadline).await
        }
        outcome => outcome,
    };
    opened.map_err(|(Closed::Dial(reason) | Closed::Stale(_, reason))| {
        let message = format!("cannot reach {} node {}: {reason}", there.role.name(), there.node);
        fail(FailureKind::Unreachable, message)
    })
}

/// Why there is no stream.
enum Closed {
    /// No connection could be had.
    Dial(String),
    /// There was one, but not to whom it should be, or of no use any more.
    Stale(Peer, String),
}

async fn open_once(dialer: &Dialer, there: There<'_>, deadline: Duration) -> Result<Stream, Closed> {
    let address = there.address;
    let peer = dialer.peer(address, deadline).await.map_err(|error| Closed::Dial(error.to_string()))?;
    let found = peer.hello();
    if (&found.node, found.instance) != (there.node, there.instance) {
        let reason = format!("another run of node {} is at {address}", found.node);
        return Err(Closed::Stale(peer, reason));
    }
    match peer.open().await {
        Ok(stream) => Ok(stream),
        Err(error) => Err(Closed::Stale(peer, error.to_string())),
    }
}
