//! What every process of the cluster does, and none should reinvent.
//!
//! | module | holds |
//! |---|---|
//! | [`args`] | flags that all processes share |
//! | [`telemetry`] | logs, as text or JSON; where spans go |
//! | [`trace`], `otlp` | spans of requests over process borders; their export |
//! | [`metrics`], [`exposition`] | the metric registry, bucket bounds; the text that scrapers read |
//! | [`admin`] | `/health`, `/live`, `/ready`, `/metrics` |
//! | [`shutdown`] | signals, drain, grace period |
//! | [`process`] | the outermost layer: logs up, body run, why it failed, told to probes |
//! | [`address`] | `host:port` flags and their resolution |
//! | [`build`] | which build is running |
//!
//! It knows nothing of models, KV caches or requests; each process declares its own settings and metrics.
#![forbid(unsafe_code)]

pub mod address;
pub mod admin;
pub mod args;
pub mod build;
pub mod exposition;
pub mod metrics;
mod otlp;
pub mod process;
pub mod shutdown;
pub mod telemetry;
pub mod trace;

pub use address::HostPort;
pub use admin::Readiness;
pub use args::CommonArgs;
pub use metrics::Registry;
pub use otlp::OtlpError;
pub use shutdown::{Drained, Shutdown};
