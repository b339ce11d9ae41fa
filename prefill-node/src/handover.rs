//! Takes decode nodes that come for caches which this node keeps: each stream names a lease and where its cache is to go, and
//! is answered when it has arrived there.

use std::net::IpAddr;

use node::failure::invalid;
use node::trace;
use service::address;
use service::trace::TARGET;
use tracing::{Instrument, debug, info, info_span, warn};
use transport::message::{Deliver, Failure, FromPrefill, Request, Role};
use transport::{CloseCode, Endpoint, Peer, Stream};

use crate::server::{REQUEST_DEADLINE, Server};

impl Server {
    /// Accepts decode nodes until the endpoint closes.
    pub(crate) async fn accept_peers(self, endpoint: Endpoint) {
        while let Some(accepted) = endpoint.accept().await {
            match accepted {
                Ok(peer) if peer.hello().role == Role::Decode => {
                    tokio::spawn(self.clone().accept_streams(peer));
                }
                Ok(peer) => {
                    warn!(node = %peer.hello().node, "only decode nodes dial a prefill node");
                    peer.close(CloseCode::PROTOCOL, "only decode nodes dial a prefill node");
                }
                Err(error) => warn!(%error, "a peer was not let in"),
            }
        }
    }

    async fn accept_streams(self, peer: Peer) {
        let (node, address) = (peer.hello().node.clone(), peer.remote_address());
        debug!(%node, %address, "decode node connected");
        loop {
            match peer.accept().await {
                Ok(stream) => {
                    let server = self.clone();
                    self.shutdown.spawn(async move { server.hand_over(stream, address.ip()).await });
                }
                Err(lost) => {
                    debug!(%node, reason = %lost, "decode node disconnected");
                    return;
                }
            }
        }
    }

    /// Answers a decode node that is seen at `seen`. When it resets its stream, the delivery ends.
    async fn hand_over(self, mut stream: Stream, seen: IpAddr) {
        let deliver = match stream.receiver.recv_message::<Request>(REQUEST_DEADLINE).await {
            Ok(Request::Deliver(deliver)) => deliver,
            Ok(Request::Reserve(_) | Request::Prefill(_)) => {
                let refusal = invalid("of a decode node this node takes requests to deliver only");
                drop(stream.sender.send(&FromPrefill::Fail(refusal)).await);
                return;
            }
            Err(error) => {
                warn!(%error, "a decode node's stream broke before it said what it is for");
                return;
            }
        };
        let span = info_span!("handover", request_id = %deliver.request, lease = %deliver.lease);
        let traced = info_span!(
            target: TARGET, parent: &span, "handover",
            otel.kind = "server", node = %self.node, request = %deliver.request,
        );
        trace::adopt(&traced, deliver.trace);
        let cancelled = stream.sender.stopped();
        let work = self.deliver_kept(deliver, seen).instrument(traced).instrument(span.clone());
        let result = tokio::select! {
            result = work => result,
            _ = cancelled => return span.in_scope(|| info!("cancelled by the decode node")),
        };
        if let Err(failure) = &result {
            span.in_scope(|| warn!(kind = ?failure.kind, "not delivered: {}", failure.message));
        }
        let reply = result.map_or_else(FromPrefill::Fail, |()| FromPrefill::Prefilled);
        if stream.sender.send(&reply).await.is_ok() {
            drop(stream.sender.deliver(node::LAST_WORDS_DEADLINE).await);
        }
    }

    async fn deliver_kept(&self, deliver: Deliver, seen: IpAddr) -> Result<(), Failure> {
        let taken = self.leases.take(deliver.lease, deliver.prompt)?;
        let mut target = deliver.target;
        target.address = address::reachable(target.address, seen);
        self.shipper.deliver_kept(taken.cache(), &target).await?;
        taken.accepted();
        Ok(())
    }
}
