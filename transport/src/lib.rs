//! Typed messages over QUIC; KV is opaque bytes here.
#![forbid(unsafe_code)]

pub mod ids;
pub mod message;
