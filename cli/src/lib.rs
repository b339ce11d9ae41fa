//! The `kvferry` command as a library: a cluster in one process and everything around it. The binary only parses flags.
#![forbid(unsafe_code)]

pub mod bench;
pub mod calibrate;
pub mod certs;
mod client;
pub mod cluster;
pub mod demo;
pub mod health;
pub mod output;
pub mod prompts;
