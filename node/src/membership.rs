//! Membership in the router's cluster: dial, register, heartbeat, take the router's request streams; when the
//! connection is lost, dial again.

use std::sync::Arc;
use std::time::Duration;

use service::{HostPort, Readiness, Shutdown};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use tracing::{info, warn};
use transport::message::{Control, Load, Register};
use transport::{CloseCode, ConnectionLost, Endpoint, Peer, Stream};

/// Time between heartbeats.
pub const HEARTBEAT: Duration = Duration::from_secs(1);
/// Wait between attempts to reach the router: short, since a node without a router is of no use.
const RETRY: Duration = Duration::from_millis(500);
/// Wait after a refusal that only a person can mend.
const RETRY_REFUSED: Duration = Duration::from_secs(5);
const RESOLVE_DEADLINE: Duration = Duration::from_secs(5);

/// A node's place in the cluster.
#[derive(Debug)]
pub struct Membership {
    /// The node's endpoint.
    pub endpoint: Endpoint,
    /// Where the router is.
    pub router: HostPort,
    /// What the node offers.
    pub register: Register,
    /// Told why the node is not part of the cluster, while it is not.
    pub readiness: Readiness,
    /// The process's shutdown.
    pub shutdown: Shutdown,
}

impl Membership {
    /// Keeps the node in the cluster until the shutdown's end; hands each request stream to `serve`, which must not
    /// block. Draining nodes say so and stay connected, so that running requests finish; they refuse new ones in `serve`.
    pub async fn run(self, load: impl Fn() -> Load + Send + Sync + 'static, serve: impl Fn(Stream)) {
        let load = Arc::new(load);
        let ended = self.shutdown.ended();
        tokio::pin!(ended);
        loop {
            let attempt = async {
                match self.join().await {
                    Ok(peer) => {
                        let (reason, retry) = self.attend(&peer, &*load, &serve).await;
                        if self.shutdown.is_draining() {
                            return (reason, retry); // the end was asked for
                        }
                        warn!(router = %self.router, %reason, "lost the router, dialling again");
                        (reason, retry)
                    }
                    Err((reason, retry)) => {
                        warn!(router = %self.router, %reason, "cannot join the cluster, trying again");
                        (reason, retry)
                    }
                }
            };
            let again = tokio::select! {
                (reason, retry) = attempt => {
                    self.readiness.set_unready(format!("not in the cluster: {reason}"));
                    Instant::now() + retry
                }
                () = &mut ended => return,
            };
            tokio::select! {
                () = sleep_until(again) => {}
                () = &mut ended => return,
            }
        }
    }

    async fn join(&self) -> Result<Peer, (String, Duration)> {
        let address = self.router.resolve(RESOLVE_DEADLINE).await.map_err(|e| (e.to_string(), RETRY))?;
        self.endpoint.connect(address).await.map_err(|error| {
            let retry = if error.is_permanent() { RETRY_REFUSED } else { RETRY };
            (error.to_string(), retry)
        })
    }

    /// Registers and serves until the connection is gone; says why it is, and how long to stay away.
    async fn attend(
        &self,
        peer: &Peer,
        load: &(dyn Fn() -> Load + Send + Sync),
        serve: &impl Fn(Stream),
    ) -> (String, Duration) {
        let reason = self.serve_peer(peer, load, serve).await;
        match peer.close_reason() {
            // Another node has this one's name, or the router will not have it: only a person can mend that.
            Some(ConnectionLost::ClosedByPeer { code: CloseCode::REPLACED | CloseCode::REFUSED, reason }) => {
                (format!("{reason} (is --node-id unique?)"), RETRY_REFUSED)
            }
            Some(lost) => (lost.to_string(), RETRY),
            None => (reason, RETRY),
        }
    }

    async fn serve_peer(
        &self,
        peer: &Peer,
        load: &(dyn Fn() -> Load + Send + Sync),
        serve: &impl Fn(Stream),
    ) -> String {
        let mut control = match peer.open().await {
            Ok(stream) => stream.sender,
            Err(error) => return error.to_string(),
        };
        if let Err(error) = control.send(&Control::Register(self.register.clone())).await {
            return error.to_string();
        }
        info!(router = %self.router, node = %self.endpoint.hello().node, "joined the cluster");
        self.readiness.set_ready();
        let draining = self.shutdown.draining();
        tokio::pin!(draining);
        let mut drains = false;
        let mut heartbeat = interval(HEARTBEAT);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                stream = peer.accept() => match stream {
                    Ok(stream) => serve(stream),
                    Err(lost) => return lost.to_string(),
                },
                _ = heartbeat.tick() => {
                    let load = Load { is_draining: drains, ..load() };
                    if let Err(error) = control.send(&Control::Heartbeat(load)).await {
                        return error.to_string();
                    }
                }
                () = &mut draining, if !drains => {
                    drains = true;
                    heartbeat.reset_immediately(); // the router should know before it places another request
                    self.readiness.set_unready("draining");
                }
            }
        }
    }
}
