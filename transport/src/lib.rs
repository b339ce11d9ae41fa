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
//! | [`ids`], [`message`], `sampling`, [`frame`] | what crosses the wire; no I/O in these four |
//! | [`tls`] | certificates: who may take part |
//! | [`endpoint`], `admission` | the UDP socket: dial, accept; one handshake under its deadline |
//! | [`handshake`] | what two peers must agree on before the first stream |
//! | [`peer`], [`dialer`] | one connection; one connection per address, with backoff |
//! | [`stream`] | frames in and out, deadlines, cancellation by reset |
//! | [`shaper`] | a link of a given speed, for demonstrations and measurements |
//! | `meter` | how fast the path to a peer really is |
//! | [`error`], [`stats`] | one error per operation; counters as plain values |
//!
//! Two nodes of one cluster, one stream between them:
//!
//! ```
//! use std::net::Ipv4Addr;
//! use std::time::Duration;
//!
//! use transport::ids::NodeId;
//! use transport::message::{FromDecode, Hello, ModelIdentity, Role};
//! use transport::{Authority, Endpoint, EndpointConfig, Frame};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let model = ModelIdentity {
//!     model_id: "tiny-llama".into(),
//!     fingerprint: [7; 16],
//!     kv_dtype: "bf16".into(),
//!     layers: 4,
//!     kv_heads: 2,
//!     head_dim: 64,
//!     plan_id: None,
//!     kv_format_versions: vec![1],
//! };
//! let authority = Authority::new()?;
//! let bind = |name: &str, role| -> Result<Endpoint, Box<dyn std::error::Error>> {
//!     let hello = Hello::new(NodeId(name.into()), role, model.clone());
//!     let any_port = (Ipv4Addr::LOCALHOST, 0).into();
//!     Ok(Endpoint::bind(any_port, &authority.issue(name)?, hello, EndpointConfig::default())?)
//! };
//! let (router, decode) = (bind("router", Role::Router)?, bind("decode-1", Role::Decode)?);
//!
//! // The decode node dials; the router opens a stream back.
//! let address = router.local_addr()?;
//! let (dialled, accepted) = tokio::join!(decode.connect(address), router.accept());
//! let (to_router, to_decode) = (dialled?, accepted.ok_or("closed")??);
//! assert_eq!(to_decode.hello().node.0, "decode-1");
//!
//! let mut asking = to_decode.open().await?;
//! asking.sender.send(&"a request").await?;
//! asking.sender.finish()?;
//! let mut answering = to_router.accept().await?;
//! answering.sender.send(&FromDecode::Token { id: 300, logprobs: None }).await?;
//! answering.sender.finish()?;
//!
//! let answer = asking.receiver.recv::<FromDecode>(Duration::from_secs(5)).await?;
//! assert_eq!(answer, Frame::Message(FromDecode::Token { id: 300, logprobs: None }));
//! # Ok(())
//! # }
//! ```
//!
//! What it is not: it knows no codec, no model and no scheduling, and it never retries a request.
#![forbid(unsafe_code)]

mod admission;
pub mod dialer;
pub mod endpoint;
pub mod error;
pub mod frame;
mod handover;
pub mod handshake;
pub mod ids;
pub mod message;
mod meter;
pub mod peer;
pub mod probe;
mod sampling;
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
pub use tls::{Authority, Identity, IdentityError};
