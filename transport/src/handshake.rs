//! What two peers must agree on before the first stream: each says [`Hello`], and a cache that could not be read
//! at the other end is refused now, with both values named, rather than found out in the middle of a request.
//!
//! The dialler opens the first stream and says Hello; the other side compares and answers with its own Hello, or
//! refuses in words. The protocol's version was agreed on before, in TLS (see [`crate::tls::ALPN`]).

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::{ConnectionLost, OpenError, RecvError, SendError};
use crate::frame::Frame;
use crate::message::{Hello, ModelIdentity, Role};
use crate::stream::Stream;

/// Second message on every connection: the dialled side's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// The two fit.
    Welcome(Hello),
    /// They do not.
    Refused {
        /// What differs, as seen by the dialler: "here" is the dialler's value.
        reason: String,
    },
}

/// The first thing found in which two peers differ. "Here" and "there" are as `compare` was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Mismatch {
    /// Different models by name.
    #[error("model differs: here {here:?}, there {there:?}; serve one model on all nodes")]
    ModelId {
        /// Own value.
        here: String,
        /// The peer's.
        there: String,
    },
    /// Different cache shapes.
    #[error(
        "cache layout differs: here {here}, there {there} (layers x KV heads x head dim); serve one model on all nodes"
    )]
    Layout {
        /// Own value.
        here: String,
        /// The peer's.
        there: String,
    },
    /// Different cache element types.
    #[error("cache element type differs: here {here:?}, there {there:?}")]
    KvDtype {
        /// Own value.
        here: String,
        /// The peer's.
        there: String,
    },
    /// Same name, other weights or configuration.
    #[error("weights differ: here {here}, there {there}; copy one model directory to both nodes")]
    Fingerprint {
        /// Own value.
        here: Short,
        /// The peer's.
        there: Short,
    },
    /// Different calibrations.
    #[error("plan differs: here {here}, there {there}; calibrate once and copy the plan to both nodes")]
    Plan {
        /// Own value.
        here: Short,
        /// The peer's.
        there: Short,
    },
    /// No KV format both can speak.
    #[error("no common KV format version: here {here:?}, there {there:?}; run the same release on all nodes")]
    KvFormat {
        /// Own value.
        here: Vec<u16>,
        /// The peer's.
        there: Vec<u16>,
    },
}

/// A digest, shown by its first four bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Short(pub [u8; 16]);

impl fmt::Display for Short {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, ..] = self.0;
        write!(f, "{a:02x}{b:02x}{c:02x}{d:02x}…")
    }
}

/// Whether caches can pass between two peers. Symmetric but for the words.
///
/// A router holds no weights and no plan, so fingerprint and plan count only between nodes. A node
/// without a plan fits any other: plan-free codecs can be spoken.
///
/// # Errors
/// The first difference, with both values and what to do.
pub fn compare(here: &Hello, there: &Hello) -> Result<(), Mismatch> {
    let (ours, theirs) = (&here.model, &there.model);
    if ours.model_id != theirs.model_id {
        return Err(Mismatch::ModelId { here: ours.model_id.clone(), there: theirs.model_id.clone() });
    }
    if layout(ours) != layout(theirs) {
        return Err(Mismatch::Layout { here: show_layout(ours), there: show_layout(theirs) });
    }
    if ours.kv_dtype != theirs.kv_dtype {
        return Err(Mismatch::KvDtype { here: ours.kv_dtype.clone(), there: theirs.kv_dtype.clone() });
    }
    if here.role != Role::Router && there.role != Role::Router {
        compare_contents(ours, theirs)?;
    }
    if !ours.kv_format_versions.iter().any(|version| theirs.kv_format_versions.contains(version)) {
        return Err(Mismatch::KvFormat {
            here: ours.kv_format_versions.clone(),
            there: theirs.kv_format_versions.clone(),
        });
    }
    Ok(())
}

fn compare_contents(ours: &ModelIdentity, theirs: &ModelIdentity) -> Result<(), Mismatch> {
    if ours.fingerprint != theirs.fingerprint {
        return Err(Mismatch::Fingerprint {
            here: Short(ours.fingerprint),
            there: Short(theirs.fingerprint),
        });
    }
    match (ours.plan_id, theirs.plan_id) {
        (Some(here), Some(there)) if here != there => {
            Err(Mismatch::Plan { here: Short(here), there: Short(there) })
        }
        _ => Ok(()),
    }
}

fn layout(model: &ModelIdentity) -> (u32, u32, u32) {
    (model.layers, model.kv_heads, model.head_dim)
}

fn show_layout(model: &ModelIdentity) -> String {
    format!("{} x {} x {}", model.layers, model.kv_heads, model.head_dim)
}

/// How a handshake failed; the endpoint adds the address and closes the connection.
#[derive(Debug)]
pub(crate) enum Failed {
    /// The two do not fit.
    Refused(String),
    /// The connection broke.
    Lost(ConnectionLost),
    /// Something else came than a handshake.
    Protocol(RecvError),
}

impl From<RecvError> for Failed {
    fn from(error: RecvError) -> Self {
        match error {
            RecvError::ConnectionLost(lost) => Self::Lost(lost),
            other => Self::Protocol(other),
        }
    }
}

impl From<SendError> for Failed {
    fn from(error: SendError) -> Self {
        match error {
            SendError::ConnectionLost(lost) => Self::Lost(lost),
            SendError::Stopped { code } => Self::Protocol(RecvError::Reset { code }),
            other => Self::Protocol(RecvError::Malformed { reason: other.to_string() }),
        }
    }
}

impl From<OpenError> for Failed {
    fn from(error: OpenError) -> Self {
        match error {
            OpenError::ConnectionLost(lost) => Self::Lost(lost),
            OpenError::Timeout { after } => Self::Protocol(RecvError::Timeout { after }),
        }
    }
}

/// Longest model id and element type, in bytes.
const MAX_NAME: usize = 256;
/// KV format versions that one process may list.
const MAX_VERSIONS: usize = 64;

/// Bounds what a peer may say of itself, before any of it is kept or shown.
fn check_form(hello: &Hello) -> Result<(), RecvError> {
    let model = &hello.model;
    let fault = if let Err(reason) = hello.node.check() {
        reason
    } else if model.model_id.len().max(model.kv_dtype.len()) > MAX_NAME {
        format!("model id or element type longer than {MAX_NAME} bytes")
    } else if model.kv_format_versions.len() > MAX_VERSIONS {
        format!("{} KV format versions, at most {MAX_VERSIONS} are allowed", model.kv_format_versions.len())
    } else {
        return Ok(());
    };
    Err(RecvError::Malformed { reason: fault })
}

/// The dialler's side, on the stream it has opened.
pub(crate) async fn greet(mut stream: Stream, here: &Hello, deadline: Duration) -> Result<Hello, Failed> {
    stream.sender.send(here).await?;
    stream.sender.finish()?;
    let there = match stream.receiver.recv_message(deadline).await? {
        Answer::Welcome(hello) => hello,
        Answer::Refused { reason } => return Err(Failed::Refused(reason)),
    };
    check_form(&there)?;
    // The other side has compared already; a release that compares less is caught here.
    compare(here, &there).map_err(|mismatch| Failed::Refused(mismatch.to_string()))?;
    Ok(there)
}

/// The dialled side, on the first stream that the dialler opens.
pub(crate) async fn answer(mut stream: Stream, here: &Hello, deadline: Duration) -> Result<Hello, Failed> {
    let there: Hello = stream.receiver.recv_message(deadline).await?;
    let Frame::End = stream.receiver.recv::<Hello>(deadline).await? else {
        return Err(Failed::Protocol(RecvError::Unexpected {
            expected: "the end of the stream",
            got: "more",
        }));
    };
    check_form(&there)?;
    let outcome = compare(here, &there);
    let answer = match &outcome {
        Ok(()) => Answer::Welcome(here.clone()),
        Err(own_words) => {
            let reason =
                compare(&there, here).map_or_else(|theirs| theirs.to_string(), |()| own_words.to_string());
            Answer::Refused { reason }
        }
    };
    stream.sender.send(&answer).await?;
    stream.sender.finish()?;
    if let Err(mismatch) = outcome {
        // The dialler hangs up when it has read the reason; closing before that would cut the answer off.
        stream.sender.stopped().await;
        return Err(Failed::Refused(mismatch.to_string()));
    }
    Ok(there)
}
