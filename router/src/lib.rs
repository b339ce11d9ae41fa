//! The front door of the cluster: takes OpenAI requests, places each on a prefill and a decode node, streams the tokens
//! back as text.
//!
//! ```text
//! client ─HTTP─► app ─► api ─► sequences ─► relay ─QUIC─► decode, prefill
//!                        │                    ▲
//!                        ▼                    └─ policy ◄─ cluster ◄─ nodes ◄─QUIC─ nodes dial in
//! client ◄─ sse, or whole ◄─ generation ◄─ tokens
//! ```
//!
//! | file | holds |
//! |---|---|
//! | [`Config`], [`RouterModel`] | what it is told |
//! | `app`, `access`, `listener`, `openapi` | HTTP: routes, who may call them, over what, their description |
//! | `api`, `sse` | what each route takes and answers |
//! | `sequences`, `transfers` | all that one request generates; its report |
//! | `relay`, `leg`, `generation` | one sequence: on the cluster, on one node, as text |
//! | `handover` | caches that one request leaves to another: `kv_transfer_params` |
//! | `cluster`, `nodes`, `policy` | who is there, how they come and go, who is chosen |
//! | `choice`, `latency` | how a cache is coded and sent; the arithmetic behind it |
//! | `estimates`, `line`, `measured` | what requests have shown: speeds and sizes, their averages, their gauges |
//! | `board`, `page` | the last requests as they run, over HTTP; the page at `/` that shows them |
//! | `error`, `metrics`, `vllm`, `load` | how things fail; what is counted, under our names and under vLLM's |
//! | `trace` | a request's spans, from the client's `traceparent` to the nodes |
//!
//! It holds no weights and no caches, and it never sees a cache's bytes: those go from prefill to decode.
#![forbid(unsafe_code)]

mod access;
mod api;
mod app;
mod board;
mod choice;
mod cluster;
pub mod command;
mod config;
mod error;
mod estimates;
mod generation;
mod handover;
mod latency;
mod leg;
mod line;
mod listener;
mod load;
mod measured;
mod metrics;
mod model;
mod nodes;
mod openapi;
mod page;
mod policy;
mod prefixes;
mod relay;
mod sequences;
mod sse;
mod start;
mod trace;
mod transfers;
mod vllm;

pub use config::Config;
pub use model::{ModelError, RouterModel};
pub use policy::{LocalPrefill, PrefillFailure};
pub use start::{Running, StartError, start};
