//! The whole-cluster test kit: a real cluster in this process ([`Kit`]), the same prompt run without a cluster
//! ([`oracle`]), nodes without a router ([`nodes`]), a prefill node that misbehaves on purpose ([`stub`]), and the binaries as processes ([`process`]). The
//! tests themselves sit beside Cargo.toml.
#![forbid(unsafe_code)]

pub mod kit;
pub mod nodes;
pub mod oracle;
pub mod process;
pub mod stub;

pub use kit::Kit;
