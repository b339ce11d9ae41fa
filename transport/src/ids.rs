//! Identifiers that cross the wire, each its own type so that they cannot be swapped.

use std::fmt;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// One client request, from the router's door to the last token.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct RequestId(pub Uuid);

impl RequestId {
    /// A fresh random id.
    pub fn random() -> Self {
        Self(Uuid::new_v4())
    }
}

/// A reservation on a decode node. Whoever holds it may deliver one KV cache into the reserved slot, once.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Ticket(pub Uuid);

impl Ticket {
    /// A fresh random ticket; 122 random bits, so it cannot be guessed by another request.
    pub fn random() -> Self {
        Self(Uuid::new_v4())
    }
}

/// A cache that a prefill node keeps. Whoever holds it may have the cache delivered to one decode node.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct LeaseId(pub Uuid);

impl LeaseId {
    /// A fresh random lease; 122 random bits, so it cannot be guessed by another request.
    pub fn random() -> Self {
        Self(Uuid::new_v4())
    }
}

/// Tells prompts apart: BLAKE3 over the token ids as little-endian `u32`, first 16 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PromptDigest(pub [u8; 16]);

impl PromptDigest {
    /// The digest of a prompt.
    pub fn of(token_ids: &[u32]) -> Self {
        let mut hasher = blake3::Hasher::new();
        for id in token_ids {
            hasher.update(&id.to_le_bytes());
        }
        let mut digest = [0; 16];
        digest.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
        Self(digest)
    }
}

/// One run of a process, from its start to its end.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct InstanceId(pub Uuid);

impl InstanceId {
    /// A fresh random id.
    pub fn random() -> Self {
        Self(Uuid::new_v4())
    }
}

/// Name of a node, unique in the cluster; a node that comes back under its old name replaces itself.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct NodeId(pub String);

/// Longest node id, in bytes; it becomes a metric label and part of every log line.
const MAX_NODE_ID: usize = 128;

impl NodeId {
    /// Whether it may be used as a name.
    ///
    /// # Errors
    /// What is allowed.
    pub fn check(&self) -> Result<(), String> {
        let (id, length) = (&self.0, self.0.len());
        if (1..=MAX_NODE_ID).contains(&length) && id.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Ok(());
        }
        Err(format!("node id of {length} bytes: 1 to {MAX_NODE_ID} printable ASCII characters are allowed"))
    }
}

macro_rules! show_inner {
    ($($name:ident),*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), self.0)
            }
        }
    )*};
}
show_inner!(RequestId, Ticket, LeaseId, InstanceId, NodeId);
