//! What a prefill and a decode node share: the loaded model with its plan, the identity both hold up to their peers,
//! membership in the router's cluster, a router of its own where it is asked directly, how much it takes on at once, and the
//! prompt pass (which a decode node runs for local prefills).
//!
//! It is no server: each node crate has its own, on top of this.
#![deny(unsafe_code)]

pub mod args;
pub mod capacity;
pub mod compute;
pub mod digest;
pub mod face;
pub mod failure;
pub mod features;
mod gauges;
pub mod link;
pub mod loaded;
pub mod membership;
pub mod process;
pub mod prompt;
pub mod reach;
pub mod runtime;
pub mod sampling;
pub mod trace;
pub mod units;

/// How long the router may take to have a request's last words.
pub const LAST_WORDS_DEADLINE: std::time::Duration = std::time::Duration::from_secs(2);

pub use args::NodeArgs;
pub use capacity::{Admitted, Capacity};
pub use compute::{DeviceChoice, Served};
pub use digest::KvDigest;
pub use loaded::{LoadError, Loaded};
pub use membership::Membership;
pub use prompt::PromptPass;
pub use router::PrefillFailure;
pub use runtime::{Offer, Runtime, StartError};
