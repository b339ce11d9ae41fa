//! Typed messages over QUIC with mutual TLS; KV is opaque bytes here.
//!
//! ```text
//!            dials, keeps the connection                     dials, opens a KV stream per request
//!   node  ───────────────────────────────► router   prefill ─────────────────────────────────────► decode
//!         ◄─ request streams, same connection ─
//! ```
//!
//! Who dials does not decide who opens streams: a node dials the router, so that nobody has to know the node's
//! address, and the router opens its request streams back over that connection.
//!
//! | file | holds |
//! |---|---|
//! | [`ids`], [`message`], [`frame`] | what crosses the wire; no I/O in these three |
//! | [`tls`] | certificates: who may take part |
//! | [`endpoint`], `admission` | the UDP socket: dial, accept; one handshake under its deadline |
//! | [`handshake`] | what two peers must agree on before the first stream |
//! | [`peer`], [`dialer`] | one connection; one connection per address, with backoff |
//! | [`stream`] | frames in and out, deadlines, cancellation by reset |
//! | [`shaper`] | a link of a given speed, for demonstrations and measurements |
//! | [`error`], [`stats`] | one error per operation; counters as plain values |
//!
//! What it is not: it knows no codec, no model and no scheduling, and it never retries a request.
#![forbid(unsafe_code)]

mod admission;
pub mod dialer;
pub mod endpoint;
pub mod error;
pub mod frame;
pub mod handshake;
pub mod ids;
pub mod message;
pub mod peer;
pub mod shaper;
pub mod stats;
pub mod stream;
pub mod tls;

pub use dialer::{Backoff, Dialer};
pub use endpoint::{Endpoint, EndpointConfig};
pub use error::{
    AcceptError, BindError, CloseCode, ConnectError, ConnectionLost, OpenError, RecvError, SendError,
    StreamCode,
};
pub use frame::Frame;
pub use peer::Peer;
pub use shaper::LinkShaper;
pub use stats::PeerStats;
pub use stream::{Receiver, SendEnd, Sender, Stream};
pub use tls::{Authority, Identity};
