//! One connection to one peer that has passed the handshake.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::error::{CloseCode, ConnectionLost, OpenError};
use crate::message::Hello;
use crate::meter::LinkMeter;
use crate::shaper::LinkShaper;
use crate::stats::PeerStats;
use crate::stream::Stream;

/// A peer with which streams can be opened, by either side. Clones share the connection; when the last clone and
/// the last stream are gone, it closes.
#[derive(Debug, Clone)]
pub struct Peer {
    connection: quinn::Connection,
    hello: Arc<Hello>,
    settings: StreamSettings,
    meter: LinkMeter,
}

/// What every stream of an endpoint shares.
#[derive(Debug, Clone)]
pub(crate) struct StreamSettings {
    pub(crate) link: LinkShaper,
    pub(crate) write_timeout: Duration,
    pub(crate) open_timeout: Duration,
}

impl Peer {
    pub(crate) fn new(connection: quinn::Connection, hello: Hello, settings: StreamSettings) -> Self {
        let meter = LinkMeter::new(connection.clone());
        Self { connection, hello: Arc::new(hello), settings, meter }
    }

    /// What the peer said of itself.
    pub fn hello(&self) -> &Hello {
        &self.hello
    }

    /// Where its packets come from.
    pub fn remote_address(&self) -> SocketAddr {
        self.connection.remote_address()
    }

    /// Opens a stream. The peer learns of it with the first frame sent.
    ///
    /// # Errors
    /// [`OpenError::Timeout`] if the peer's limit on concurrent streams stays exhausted for the endpoint's
    /// `open_timeout`.
    pub async fn open(&self) -> Result<Stream, OpenError> {
        let after = self.settings.open_timeout;
        match tokio::time::timeout(after, self.connection.open_bi()).await {
            Ok(Ok(halves)) => Ok(self.stream(halves)),
            Ok(Err(lost)) => Err(OpenError::ConnectionLost(lost.into())),
            Err(_elapsed) => Err(OpenError::Timeout { after }),
        }
    }

    /// Waits for the next stream that the peer opens; ends with the connection.
    ///
    /// # Errors
    /// Why the connection is gone.
    pub async fn accept(&self) -> Result<Stream, ConnectionLost> {
        Ok(self.stream(self.connection.accept_bi().await?))
    }

    /// Waits until the connection is gone, and says why. Does not borrow the peer, but counts as a clone.
    pub fn closed(&self) -> impl Future<Output = ConnectionLost> + Send + 'static {
        let connection = self.connection.clone();
        async move { connection.closed().await.into() }
    }

    /// Why the connection is gone, or none while it lives.
    pub fn close_reason(&self) -> Option<ConnectionLost> {
        self.connection.close_reason().map(Into::into)
    }

    /// Closes the connection at once, all streams included. The peer is told the code and as much of the reason as
    /// fits a packet.
    pub fn close(&self, code: CloseCode, reason: &str) {
        self.connection.close(code.to_wire(), reason.as_bytes());
    }

    /// What QUIC counted.
    pub fn stats(&self) -> PeerStats {
        self.connection.stats().into()
    }

    /// Tells two connections apart, also between the same two nodes.
    pub fn connection_id(&self) -> usize {
        self.connection.stable_id()
    }

    fn stream(&self, halves: (quinn::SendStream, quinn::RecvStream)) -> Stream {
        let StreamSettings { link, write_timeout, .. } = self.settings.clone();
        Stream::new(halves, link, self.meter.clone(), write_timeout)
    }
}
