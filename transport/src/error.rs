//! One error per operation, and the codes with which streams and connections are closed.
//!
//! All of them but [`BindError`] are `Clone` and comparable, since one failure is often told to several waiters.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use quinn::VarInt;

use crate::frame::FrameError;

macro_rules! codes {
    ($(#[$doc:meta])* $name:ident { $($(#[$code_doc:meta])* $code:ident = $value:literal, $text:literal;)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub struct $name(pub u32);

        impl $name {
            $($(#[$code_doc])* pub const $code: Self = Self($value);)*

            pub(crate) fn from_wire(code: VarInt) -> Self {
                Self(u32::try_from(code.into_inner()).unwrap_or(u32::MAX))
            }

            pub(crate) fn to_wire(self) -> VarInt {
                VarInt::from_u32(self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self.0 {
                    $($value => f.write_str($text),)*
                    other => write!(f, "code {other}"),
                }
            }
        }
    };
}

codes! {
    /// Why one direction of a stream was reset (by its sender) or stopped (by its receiver).
    StreamCode {
        /// Whoever held the stream dropped it: the request was cancelled or has failed elsewhere.
        CANCELLED = 1, "cancelled";
        /// A deadline passed.
        DEADLINE = 2, "deadline passed";
        /// The bytes were not what the protocol allows.
        MALFORMED = 3, "malformed";
        /// The process is shutting down.
        DRAINING = 4, "draining";
        /// A fault inside the process.
        INTERNAL = 5, "internal fault";
    }
}

codes! {
    /// Why a connection was closed.
    CloseCode {
        /// Nothing more to say.
        DONE = 0, "done";
        /// The handshake compared the two sides and they do not fit.
        REFUSED = 1, "refused";
        /// The handshake was not completed as the protocol says, or not in time.
        HANDSHAKE = 2, "handshake failed";
        /// More handshakes than the process takes at once.
        BUSY = 3, "busy";
        /// The process is shutting down.
        DRAINING = 4, "draining";
        /// The node has come back over another connection, which replaces this one.
        REPLACED = 5, "replaced by a newer connection";
        /// No heartbeat in time.
        SILENT = 6, "no heartbeat in time";
        /// The peer broke the protocol.
        PROTOCOL = 7, "protocol broken";
    }
}

/// Why a connection is gone.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectionLost {
    /// Nothing was heard for the idle timeout, keep-alives included.
    #[error("nothing heard from the peer within the idle timeout")]
    TimedOut,
    /// The peer closed it.
    #[error("closed by the peer ({code}): {reason}")]
    ClosedByPeer {
        /// Its code.
        code: CloseCode,
        /// Its words.
        reason: String,
    },
    /// This process closed it.
    #[error("closed here: silent for too long, replaced, or shutting down")]
    ClosedHere,
    /// The peer does not know the connection any more; it was probably restarted.
    #[error("reset by the peer, which has probably been restarted")]
    Reset,
    /// QUIC or TLS gave up.
    #[error("transport failure: {reason}")]
    Transport {
        /// What it said.
        reason: String,
    },
}

impl From<quinn::ConnectionError> for ConnectionLost {
    fn from(error: quinn::ConnectionError) -> Self {
        match error {
            quinn::ConnectionError::TimedOut => Self::TimedOut,
            quinn::ConnectionError::LocallyClosed => Self::ClosedHere,
            quinn::ConnectionError::Reset => Self::Reset,
            quinn::ConnectionError::ApplicationClosed(close) => Self::ClosedByPeer {
                code: CloseCode::from_wire(close.error_code),
                reason: String::from_utf8_lossy(&close.reason).into_owned(),
            },
            other => Self::Transport { reason: other.to_string() },
        }
    }
}

/// The endpoint could not be set up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    /// The socket.
    #[error("cannot bind UDP {address}: {source}")]
    Socket {
        /// The address asked for.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The certificates.
    #[error("cannot use the certificates: {0}")]
    Tls(#[from] crate::tls::IdentityError),
    /// A setting outside what QUIC can express.
    #[error("{setting} = {value} is out of range")]
    Setting {
        /// Field of the endpoint's configuration.
        setting: &'static str,
        /// Its value.
        value: String,
    },
}

/// No connection to a peer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The two sides do not fit; trying again gives the same.
    #[error("{address} and this node do not fit: {reason}")]
    Refused {
        /// The address dialled.
        address: SocketAddr,
        /// What differs, with both values, and what to do.
        reason: String,
    },
    /// A certificate was not accepted, by either side.
    #[error("no trust between this node and {address}: {reason}")]
    Tls {
        /// The address dialled.
        address: SocketAddr,
        /// Whose certificate, and why.
        reason: String,
    },
    /// The peer speaks another version of the protocol.
    #[error("{address} does not speak {}; run the same release on all nodes", crate::tls::ALPN_TEXT)]
    Version {
        /// The address dialled.
        address: SocketAddr,
    },
    /// The deadline passed.
    #[error("no answer from {address} within {after:?}; is it running, and is UDP let through?")]
    Timeout {
        /// The address dialled.
        address: SocketAddr,
        /// The deadline.
        after: Duration,
    },
    /// The connection broke before the handshake was over.
    #[error("connection to {address} lost during the handshake: {lost}")]
    Lost {
        /// The address dialled.
        address: SocketAddr,
        /// Why.
        lost: ConnectionLost,
    },
    /// The peer answered something that is not a handshake.
    #[error("{address} broke the handshake: {error}")]
    Protocol {
        /// The address dialled.
        address: SocketAddr,
        /// What came.
        error: RecvError,
    },
    /// The address cannot be dialled from here.
    #[error("cannot dial {address}: {reason}")]
    Address {
        /// The address.
        address: SocketAddr,
        /// Why.
        reason: String,
    },
}

impl ConnectError {
    /// Whether trying again is pointless until somebody changes a configuration.
    pub fn is_permanent(&self) -> bool {
        matches!(self, Self::Refused { .. } | Self::Tls { .. } | Self::Version { .. } | Self::Address { .. })
    }
}

/// A peer dialled in and did not become one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AcceptError {
    /// The two sides do not fit; the peer was told.
    #[error("refused {remote}: {reason}")]
    Refused {
        /// Who dialled.
        remote: SocketAddr,
        /// What differs, with both values, and what to do.
        reason: String,
    },
    /// The peer speaks another version of the protocol.
    #[error("{remote} does not speak {}; run the same release on all nodes", crate::tls::ALPN_TEXT)]
    Version {
        /// Who dialled.
        remote: SocketAddr,
    },
    /// A certificate was not accepted, by either side.
    #[error("no trust between this node and {remote}: {reason}")]
    Tls {
        /// Who dialled.
        remote: SocketAddr,
        /// Whose certificate, and why.
        reason: String,
    },
    /// The handshake was not over in time.
    #[error("{remote} did not complete the handshake within {after:?}")]
    Timeout {
        /// Who dialled.
        remote: SocketAddr,
        /// The deadline.
        after: Duration,
    },
    /// The connection broke before the handshake was over.
    #[error("connection from {remote} lost during the handshake: {lost}")]
    Lost {
        /// Who dialled.
        remote: SocketAddr,
        /// Why.
        lost: ConnectionLost,
    },
    /// The peer sent something that is not a handshake.
    #[error("{remote} broke the handshake: {error}")]
    Protocol {
        /// Who dialled.
        remote: SocketAddr,
        /// What came.
        error: RecvError,
    },
}

/// No new stream.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The peer allows no more streams at once.
    #[error("the peer allowed no further stream within {after:?}")]
    Timeout {
        /// The wait.
        after: Duration,
    },
    /// The connection is gone.
    #[error("connection lost: {0}")]
    ConnectionLost(#[from] ConnectionLost),
}

/// A frame was not sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SendError {
    /// The receiver wants no more.
    #[error("stopped by the receiver: {code}")]
    Stopped {
        /// Its reason.
        code: StreamCode,
    },
    /// The receiver took nothing for too long.
    #[error("the receiver took no bytes for {after:?}")]
    Stalled {
        /// The write timeout.
        after: Duration,
    },
    /// The connection is gone.
    #[error("connection lost: {0}")]
    ConnectionLost(#[from] ConnectionLost),
    /// The frame is too large or cannot be encoded; nothing was written.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The stream was finished or reset before, or an earlier send was cancelled in the middle of a frame.
    #[error("the stream is closed for sending")]
    Closed,
}

/// A frame was not received.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RecvError {
    /// The deadline passed; the stream can still be read from.
    #[error("no whole frame within {after:?}")]
    Timeout {
        /// The deadline.
        after: Duration,
    },
    /// The sender gave up.
    #[error("reset by the sender: {code}")]
    Reset {
        /// Its reason.
        code: StreamCode,
    },
    /// The connection is gone.
    #[error("connection lost: {0}")]
    ConnectionLost(#[from] ConnectionLost),
    /// A frame above the limit was announced; nothing was set aside for it.
    #[error("frame of {announced} bytes announced, the limit is {limit}")]
    TooLarge {
        /// Length in the header.
        announced: usize,
        /// Limit of the frame's kind.
        limit: usize,
    },
    /// The bytes are not frames, or not the expected message.
    #[error("malformed: {reason}")]
    Malformed {
        /// What is wrong with them.
        reason: String,
    },
    /// The stream ended inside a frame.
    #[error("stream ended inside a frame, {missing} bytes missing at least")]
    Truncated {
        /// Bytes that were certainly still to come.
        missing: usize,
    },
    /// Another kind of frame than the one asked for.
    #[error("expected {expected}, got {got}")]
    Unexpected {
        /// Kind asked for.
        expected: &'static str,
        /// Kind that came.
        got: &'static str,
    },
    /// The stream was stopped here, or failed before.
    #[error("the stream is closed for receiving")]
    Closed,
}

impl From<FrameError> for RecvError {
    fn from(error: FrameError) -> Self {
        match error {
            FrameError::TooLarge { announced, limit } => Self::TooLarge { announced, limit },
            FrameError::Truncated { missing } => Self::Truncated { missing },
            other => Self::Malformed { reason: other.to_string() },
        }
    }
}
