//! The `kvferry` command: demo, certs, calibrate, bench. It starts nodes in-process and is the one place that may
//! depend on everything.
#![forbid(unsafe_code)]

pub mod bench;
pub mod calibrate;
pub mod certs;
pub mod cluster;
pub mod demo;
pub mod prompts;
