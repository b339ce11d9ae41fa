//! The whole-cluster test kit: a real cluster in this process ([`Kit`]), the same prompt run without a cluster
//! ([`oracle`]), and a prefill node that misbehaves on purpose ([`stub`]). The tests themselves sit beside Cargo.toml.
#![forbid(unsafe_code)]

pub mod kit;
pub mod oracle;
pub mod stub;

pub use kit::Kit;
