//! The `kvferry` command as a library: a cluster in one process and everything around it. Start reading
//! at [`command`].
#![forbid(unsafe_code)]

pub mod bench;
pub mod calibrate;
pub mod certs;
mod client;
pub mod cluster;
pub mod command;
pub mod demo;
pub mod eval;
pub mod health;
pub mod inspect;
pub mod output;
mod plot;
pub mod prompts;
pub mod synth;
