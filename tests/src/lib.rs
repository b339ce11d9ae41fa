//! The whole-cluster test kit: a real cluster in this process ([`Kit`]), the same prompt run without a cluster
//! ([`oracle`]), nodes without a router ([`nodes`]), nodes with faces of their own behind a proxy ([`faces`]), a prefill node that misbehaves on purpose ([`stub`]), the binaries as
//! processes ([`process`]), and what is seen of them from outside: metrics ([`exposition`]) and spans ([`collector`]). The
//! tests themselves sit beside Cargo.toml.
#![forbid(unsafe_code)]

pub mod collector;
pub mod exposition;
pub mod faces;
pub mod kit;
pub mod nodes;
pub mod oracle;
pub mod process;
pub mod stub;

pub use kit::Kit;
