//! Takes nodes that dial in: each connection is served by one task, from registration over heartbeats to the end.

use std::time::Duration;

use tokio::task::JoinSet;
use tracing::{Instrument, debug, info, info_span, warn};
use transport::message::{Control, Register};
use transport::{CloseCode, Endpoint, Peer, Receiver, RecvError};

use crate::cluster::{Cluster, MAX_NODES, Membership};

/// Accepts nodes until the endpoint closes; the tasks end with this one.
pub(crate) async fn accept(endpoint: Endpoint, cluster: Cluster, silence: Duration) {
    let mut nodes = JoinSet::new();
    while let Some(outcome) = endpoint.accept().await {
        while nodes.try_join_next().is_some() {}
        match outcome {
            Ok(peer) if nodes.len() < MAX_NODES => {
                let span = info_span!("node", node = %peer.hello().node, role = peer.hello().role.name());
                nodes.spawn(serve(peer, cluster.clone(), silence).instrument(span));
            }
            Ok(peer) => peer.close(CloseCode::BUSY, "the router has as many connections as it takes"),
            Err(error) => warn!(%error, "a node could not connect"),
        }
    }
}

/// One node from its registration to its end.
async fn serve(peer: Peer, cluster: Cluster, silence: Duration) {
    let mut control = match tokio::time::timeout(silence, peer.accept()).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(lost)) => return debug!(%lost, "left before it registered"),
        Err(_elapsed) => return refuse(&peer, CloseCode::SILENT, "no control stream was opened in time"),
    };
    let register = match control.receiver.recv_message(silence).await {
        Ok(Control::Register(register)) => register,
        Ok(Control::Heartbeat(_)) => {
            return refuse(&peer, CloseCode::PROTOCOL, "the first message must be a registration");
        }
        Err(error) => return refuse(&peer, close_code(&error), &error.to_string()),
    };
    let Register { max_sessions, kv_capacity_tokens, kv_address, .. } = register;
    let membership = match cluster.join(peer.clone(), register) {
        Ok(membership) => membership,
        Err(error) => return refuse(&peer, CloseCode::REFUSED, &error.to_string()),
    };
    info!(remote = %peer.remote_address(), max_sessions, kv_capacity_tokens, ?kv_address, "joined");
    let error = heartbeats(&mut control.receiver, &membership, silence).await;
    drop(membership);
    if peer.close_reason().is_none() {
        peer.close(close_code(&error), &error.to_string());
    }
    info!(reason = %error, "left");
}

/// Takes heartbeats until they stop, and says why they did.
async fn heartbeats(receiver: &mut Receiver, membership: &Membership, silence: Duration) -> RecvError {
    loop {
        match receiver.recv_message(silence).await {
            Ok(Control::Heartbeat(load)) => membership.heartbeat(load),
            Ok(Control::Register(_)) => {
                return RecvError::Unexpected { expected: "a heartbeat", got: "a second registration" };
            }
            Err(error) => return error,
        }
    }
}

fn refuse(peer: &Peer, code: CloseCode, reason: &str) {
    warn!(remote = %peer.remote_address(), reason, "refused a node");
    peer.close(code, reason);
}

fn close_code(error: &RecvError) -> CloseCode {
    match error {
        RecvError::Timeout { .. } => CloseCode::SILENT,
        RecvError::Reset { .. } | RecvError::ConnectionLost(_) | RecvError::Closed => CloseCode::DONE,
        _ => CloseCode::PROTOCOL,
    }
}
