//! One handshake from the first packet to a [`Peer`], for the dialler and the dialled, under its deadline.
//!
//! Whatever goes wrong closes the connection with a code and words, and becomes one error with the address in it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use quinn::{ConnectionError, Incoming};

use crate::error::{AcceptError, CloseCode, ConnectError, ConnectionLost};
use crate::handshake::{self, Failed};
use crate::message::Hello;
use crate::meter::LinkMeter;
use crate::peer::{Peer, StreamSettings};
use crate::stream::Stream;
use crate::tls;

/// What every handshake of an endpoint needs.
#[derive(Debug, Clone)]
pub(crate) struct Context {
    pub(crate) quic: quinn::Endpoint,
    pub(crate) hello: Arc<Hello>,
    pub(crate) streams: StreamSettings,
    pub(crate) handshake_timeout: Duration,
}

impl Context {
    pub(crate) async fn dial(&self, address: SocketAddr) -> Result<Peer, ConnectError> {
        let connecting = self
            .quic
            .connect(address, tls::SERVER_NAME)
            .map_err(|e| ConnectError::Address { address, reason: e.to_string() })?;
        let after = self.handshake_timeout;
        match tokio::time::timeout(after, self.greet(connecting)).await {
            Ok(outcome) => outcome.map_err(|failed| connect_error(failed, address)),
            Err(_elapsed) => Err(ConnectError::Timeout { address, after }),
        }
    }

    async fn greet(&self, connecting: quinn::Connecting) -> Result<Peer, Broken> {
        let connection = connecting.await?;
        let guard = CloseUnlessDone::new(connection.clone());
        let stream = self.stream(&connection, connection.open_bi().await?);
        match handshake::greet(stream, &self.hello, self.handshake_timeout).await {
            Ok(hello) => Ok(Peer::new(guard.done(), hello, self.streams.clone())),
            Err(failed) => Err(guard.fail(failed)),
        }
    }

    pub(crate) async fn admit(&self, incoming: Incoming) -> Result<Peer, AcceptError> {
        let remote = incoming.remote_address();
        let after = self.handshake_timeout;
        match tokio::time::timeout(after, self.answer(incoming)).await {
            Ok(outcome) => outcome.map_err(|failed| accept_error(failed, remote)),
            Err(_elapsed) => Err(AcceptError::Timeout { remote, after }),
        }
    }

    async fn answer(&self, incoming: Incoming) -> Result<Peer, Broken> {
        let connection = incoming.await?;
        let guard = CloseUnlessDone::new(connection.clone());
        let stream = self.stream(&connection, connection.accept_bi().await?);
        match handshake::answer(stream, &self.hello, self.handshake_timeout).await {
            Ok(hello) => Ok(Peer::new(guard.done(), hello, self.streams.clone())),
            Err(failed) => Err(guard.fail(failed)),
        }
    }

    fn stream(
        &self,
        connection: &quinn::Connection,
        halves: (quinn::SendStream, quinn::RecvStream),
    ) -> Stream {
        let StreamSettings { link, write_timeout, .. } = self.streams.clone();
        Stream::new(halves, link, LinkMeter::new(connection.clone()), write_timeout)
    }
}

/// Closes a connection that is dropped before its handshake is over, also when the deadline drops it.
struct CloseUnlessDone {
    connection: quinn::Connection,
    done: bool,
}

impl CloseUnlessDone {
    fn new(connection: quinn::Connection) -> Self {
        Self { connection, done: false }
    }

    fn done(mut self) -> quinn::Connection {
        self.done = true;
        self.connection.clone()
    }

    fn fail(mut self, failed: Failed) -> Broken {
        self.done = true;
        let close = |code: CloseCode, reason: &str| self.connection.close(code.to_wire(), reason.as_bytes());
        match failed {
            Failed::Refused(reason) => {
                close(CloseCode::REFUSED, &reason);
                Broken::Handshake(Failed::Refused(reason))
            }
            // The connection knows more than the stream: which alert it was.
            Failed::Lost(lost) => match self.connection.close_reason() {
                Some(reason) => Broken::Connection(reason),
                None => Broken::Handshake(Failed::Lost(lost)),
            },
            Failed::Protocol(error) => {
                close(CloseCode::HANDSHAKE, &error.to_string());
                Broken::Handshake(Failed::Protocol(error))
            }
        }
    }
}

impl Drop for CloseUnlessDone {
    fn drop(&mut self) {
        if !self.done {
            self.connection.close(CloseCode::HANDSHAKE.to_wire(), b"the handshake was not completed in time");
        }
    }
}

/// Where a handshake broke.
enum Broken {
    /// In QUIC or TLS.
    Connection(ConnectionError),
    /// In our own handshake.
    Handshake(Failed),
}

impl From<ConnectionError> for Broken {
    fn from(error: ConnectionError) -> Self {
        Self::Connection(error)
    }
}

/// A broken connection, sorted by what to do about it.
enum Cause {
    Refused(String),
    Version,
    Tls(String),
    Lost(ConnectionLost),
}

fn cause(error: ConnectionError) -> Cause {
    let (error_code, text) = match &error {
        ConnectionError::TransportError(e) => (u64::from(e.code), e.to_string()),
        ConnectionError::ConnectionClosed(e) => (u64::from(e.error_code), format!("the peer said: {e}")),
        ConnectionError::ApplicationClosed(e) if CloseCode::from_wire(e.error_code) == CloseCode::REFUSED => {
            return Cause::Refused(String::from_utf8_lossy(&e.reason).into_owned());
        }
        _ => return Cause::Lost(error.into()),
    };
    match tls::explain_alert(error_code) {
        _ if error_code == tls::NO_APPLICATION_PROTOCOL => Cause::Version,
        Some(meaning) => Cause::Tls(format!("{meaning} ({text})")),
        None => Cause::Lost(error.into()),
    }
}

fn connect_error(broken: Broken, address: SocketAddr) -> ConnectError {
    match broken {
        Broken::Connection(error) => match cause(error) {
            Cause::Refused(reason) => ConnectError::Refused { address, reason },
            Cause::Version => ConnectError::Version { address },
            Cause::Tls(reason) => ConnectError::Tls { address, reason },
            Cause::Lost(lost) => ConnectError::Lost { address, lost },
        },
        Broken::Handshake(Failed::Refused(reason)) => ConnectError::Refused { address, reason },
        Broken::Handshake(Failed::Lost(lost)) => ConnectError::Lost { address, lost },
        Broken::Handshake(Failed::Protocol(error)) => ConnectError::Protocol { address, error },
    }
}

fn accept_error(broken: Broken, remote: SocketAddr) -> AcceptError {
    match broken {
        Broken::Connection(error) => match cause(error) {
            Cause::Refused(reason) => AcceptError::Refused { remote, reason },
            Cause::Version => AcceptError::Version { remote },
            Cause::Tls(reason) => AcceptError::Tls { remote, reason },
            Cause::Lost(lost) => AcceptError::Lost { remote, lost },
        },
        Broken::Handshake(Failed::Refused(reason)) => AcceptError::Refused { remote, reason },
        Broken::Handshake(Failed::Lost(lost)) => AcceptError::Lost { remote, lost },
        Broken::Handshake(Failed::Protocol(error)) => AcceptError::Protocol { remote, error },
    }
}
