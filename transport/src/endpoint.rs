//! One UDP socket from which peers are dialled and on which they are accepted.
//!
//! Handshakes of dialling peers run beside each other, each under a deadline and all under one bound, in a task
//! that ends with the endpoint; [`Endpoint::accept`] only hands out those who have passed. Under pressure new
//! diallers must first prove that they own their address (QUIC Retry), beyond the bound they are turned away.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use quinn::congestion::CubicConfig;
use quinn::{AckFrequencyConfig, Incoming, MtuDiscoveryConfig, TransportConfig, VarInt};
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::{AbortHandle, JoinSet};
use tracing::debug;

use crate::admission::Context;
use crate::error::{AcceptError, BindError, CloseCode, ConnectError};
use crate::message::{Hello, Role};
use crate::peer::{Peer, StreamSettings};
use crate::shaper::LinkShaper;
use crate::tls::{self, Identity};

/// Largest UDP payload that path MTU discovery tries, for jumbo frames. quinn hands up to ten datagrams to the
/// system at once (UDP segmentation offload), and a send above 65,507 bytes is lost as a whole.
const MAX_DATAGRAM_BYTES: u16 = 6500;

/// Packets that the peer of a decode node may let come in before it acknowledges them (draft-ietf-quic-ack-frequency); those
/// out of order and those that nothing follows for 25 ms it acknowledges all the same. With QUIC's own every other packet, a
/// router spends as much on acknowledging tokens as on reading them. Prefill nodes ask for nothing: a cache begins with
/// fewer packets than that, and would wait.
const ACKNOWLEDGED_AT_ONCE: u32 = 10;

/// Socket buffer asked for: 3 ms at 10 Gb/s.
const SOCKET_BUFFER_BYTES: usize = 4 << 20;

/// Settings of an endpoint. The defaults suit links of 1 to 100 Gb/s.
#[derive(Debug, Clone)]
pub struct EndpointConfig {
    /// A peer from which nothing was heard for so long is gone.
    pub idle_timeout: Duration,
    /// A connection on which nothing happens says something so often; well below the idle timeout.
    pub keep_alive: Duration,
    /// Time from the first packet to the end of the handshake, for diallers and dialled.
    pub handshake_timeout: Duration,
    /// How long a peer may take no bytes before a send gives up.
    pub write_timeout: Duration,
    /// How long to wait when the peer's limit on concurrent streams is exhausted.
    pub open_timeout: Duration,
    /// Streams that a peer may have open at once on one connection.
    pub max_concurrent_streams: u32,
    /// Handshakes of diallers that run at once, and accepted peers that wait to be fetched.
    pub max_pending_handshakes: usize,
    /// Bytes that a peer may have in flight to us on one stream.
    pub stream_window: u32,
    /// Bytes that a peer may have in flight to us on all streams of one connection.
    pub connection_window: u32,
    /// A simulated link that everything sent from this endpoint goes through.
    pub link: LinkShaper,
}

impl Default for EndpointConfig {
    fn default() -> Self {
        Self {
            idle_timeout: Duration::from_secs(20),
            keep_alive: Duration::from_secs(5),
            handshake_timeout: Duration::from_secs(5),
            write_timeout: Duration::from_secs(20),
            open_timeout: Duration::from_secs(5),
            max_concurrent_streams: 1024,
            max_pending_handshakes: 64,
            stream_window: 16 << 20,
            connection_window: 64 << 20,
            link: LinkShaper::unshaped(),
        }
    }
}

/// A bound endpoint. Clones share it; the socket closes when the last clone and the last peer are gone.
#[derive(Debug, Clone)]
pub struct Endpoint {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    context: Context,
    peers: Mutex<mpsc::Receiver<Result<Peer, AcceptError>>>,
    accept_loop: AbortHandle,
}

impl Endpoint {
    /// Binds a UDP socket and starts to take handshakes. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// The socket, the certificates, or a setting out of range.
    pub fn bind(
        address: SocketAddr,
        identity: &Identity,
        hello: Hello,
        config: EndpointConfig,
    ) -> Result<Self, BindError> {
        let quic = bind_quic(address, identity, &config, hello.role)?;
        let streams = StreamSettings {
            link: config.link,
            write_timeout: config.write_timeout,
            open_timeout: config.open_timeout,
        };
        let context =
            Context { quic, hello: Arc::new(hello), streams, handshake_timeout: config.handshake_timeout };
        let (accepted, peers) = mpsc::channel(config.max_pending_handshakes.max(1));
        let accept_loop =
            tokio::spawn(take_incoming(context.clone(), config.max_pending_handshakes, accepted));
        let shared = Shared { context, peers: Mutex::new(peers), accept_loop: accept_loop.abort_handle() };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Where the socket is bound, with the port that the system chose if 0 was asked for.
    ///
    /// # Errors
    /// What the system said.
    pub fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.shared.context.quic.local_addr()
    }

    /// What this process says of itself.
    pub fn hello(&self) -> &Hello {
        &self.shared.context.hello
    }

    /// Dials a peer and shakes hands, within the handshake timeout.
    ///
    /// # Errors
    /// See [`ConnectError`]; [`ConnectError::is_permanent`] tells whether to try again.
    pub async fn connect(&self, address: SocketAddr) -> Result<Peer, ConnectError> {
        self.shared.context.dial(address).await
    }

    /// The next peer that has dialled in and passed the handshake, or how one failed to; none after
    /// [`Endpoint::close`]. Safe to call from several tasks.
    pub async fn accept(&self) -> Option<Result<Peer, AcceptError>> {
        self.shared.peers.lock().await.recv().await
    }

    /// Closes all connections and takes no more, then waits until the peers know, for `grace` at most.
    pub async fn close(&self, code: CloseCode, reason: &str, grace: Duration) {
        let quic = &self.shared.context.quic;
        quic.close(code.to_wire(), reason.as_bytes());
        if tokio::time::timeout(grace, quic.wait_idle()).await.is_err() {
            debug!(?grace, "peers did not confirm the close in time");
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.accept_loop.abort();
    }
}

/// Takes diallers until the socket closes; handshakes run in tasks that end with this one.
async fn take_incoming(context: Context, limit: usize, accepted: mpsc::Sender<Result<Peer, AcceptError>>) {
    let permits = Arc::new(Semaphore::new(limit));
    let mut handshakes = JoinSet::new();
    while let Some(incoming) = context.quic.accept().await {
        while handshakes.try_join_next().is_some() {}
        let Ok(permit) = Arc::clone(&permits).try_acquire_owned() else {
            debug!(remote = %incoming.remote_address(), limit, "too many handshakes at once, refused one");
            incoming.refuse();
            continue;
        };
        if permits.available_permits() < limit / 2
            && incoming.may_retry()
            && !incoming.remote_address_validated()
        {
            // Fails only for those who have just been excluded.
            let _ = incoming.retry();
            continue;
        }
        handshakes.spawn(hand_over(context.clone(), incoming, accepted.clone(), permit));
    }
}

/// Runs one handshake and hands the outcome to [`Endpoint::accept`].
async fn hand_over(
    context: Context,
    incoming: Incoming,
    accepted: mpsc::Sender<Result<Peer, AcceptError>>,
    _permit: OwnedSemaphorePermit,
) {
    let outcome = context.admit(incoming).await;
    let peer = outcome.as_ref().ok().cloned();
    if accepted.send_timeout(outcome, context.handshake_timeout).await.is_err()
        && let Some(peer) = peer
    {
        peer.close(CloseCode::BUSY, "nobody fetched the connection in time");
    }
}

/// The socket with our TLS and transport settings.
fn bind_quic(
    address: SocketAddr,
    identity: &Identity,
    config: &EndpointConfig,
    role: Role,
) -> Result<quinn::Endpoint, BindError> {
    let transport = Arc::new(transport_config(config, role)?);
    let mut server = tls::server_config(identity)?;
    server.transport_config(Arc::clone(&transport));
    let mut client = tls::client_config(identity)?;
    client.transport_config(transport);
    let mut receive = quinn::EndpointConfig::default();
    receive
        .max_udp_payload_size(MAX_DATAGRAM_BYTES)
        .map_err(|_| setting("max_udp_payload_size", MAX_DATAGRAM_BYTES))?;
    let in_socket = |source| BindError::Socket { address, source };
    let socket = UdpSocket::bind(address).map_err(in_socket)?;
    widen_buffers(&socket);
    let runtime = Arc::new(quinn::TokioRuntime);
    let mut quic = quinn::Endpoint::new(receive, Some(server), socket, runtime).map_err(in_socket)?;
    quic.set_default_client_config(client);
    Ok(quic)
}

/// Asks for socket buffers that hold a burst; with the usual 208 KiB a fast sender overruns the receiver, and QUIC
/// takes that for congestion. The system may grant less (on Linux `net.core.rmem_max` and `wmem_max`).
fn widen_buffers(socket: &UdpSocket) {
    let socket = socket2::SockRef::from(socket);
    for set in [socket2::Socket::set_recv_buffer_size, socket2::Socket::set_send_buffer_size] {
        if let Err(error) = set(&socket, SOCKET_BUFFER_BYTES) {
            debug!(%error, bytes = SOCKET_BUFFER_BYTES, "socket buffer not widened");
        }
    }
    debug!(receive = ?socket.recv_buffer_size(), send = ?socket.send_buffer_size(), "socket buffers");
}

fn transport_config(config: &EndpointConfig, role: Role) -> Result<TransportConfig, BindError> {
    let idle = config
        .idle_timeout
        .try_into()
        .map_err(|_| setting("idle_timeout", format!("{:?}", config.idle_timeout)))?;
    let mut mtu = MtuDiscoveryConfig::default();
    mtu.upper_bound(MAX_DATAGRAM_BYTES);
    let mut fewer = AckFrequencyConfig::default();
    fewer.ack_eliciting_threshold(VarInt::from_u32(ACKNOWLEDGED_AT_ONCE));
    let mut transport = TransportConfig::default();
    transport
        .max_idle_timeout(Some(idle))
        .keep_alive_interval(Some(config.keep_alive))
        .max_concurrent_bidi_streams(VarInt::from_u32(config.max_concurrent_streams))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .stream_receive_window(VarInt::from_u32(config.stream_window))
        .receive_window(VarInt::from_u32(config.connection_window))
        .send_window(u64::from(config.connection_window))
        .datagram_receive_buffer_size(None)
        .mtu_discovery_config(Some(mtu))
        .ack_frequency_config((role == Role::Decode).then_some(fewer))
        .congestion_controller_factory(Arc::new(CubicConfig::default()));
    Ok(transport)
}

fn setting(setting: &'static str, value: impl ToString) -> BindError {
    BindError::Setting { setting, value: value.to_string() }
}
