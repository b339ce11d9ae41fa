#![doc = include_str!("../README.md")]
//!
//! # Reading order
//! [`encode`](Encoder) and [`decode`](Decoder) list the stages; `stages/` holds one stage and its mirror per file; `format/` is
//! `docs/kv-format.md` in code; `plan/` is the calibrated tables, [`fit`] makes them. `paper/` is kvtc-paper alone.
#![deny(unsafe_code)]

pub mod batch;
mod coding;
#[cfg(feature = "cuda")]
#[allow(unsafe_code)] // launches; every block says why it holds
pub mod cuda;
mod decode;
mod encode;
mod error;
mod exact;
pub mod fit;
mod format;
pub mod importance;
pub mod inspect;
mod kvtc;
mod layout;
mod paper;
mod plan;
mod planes;
mod predict;
pub mod probe;
mod side;
mod stages;
mod tokens;

pub use coding::{CodecKind, Coding, Limits, PAPER_TIERS, TIERS};
pub use decode::Decoder;
pub use encode::Encoder;
pub use error::{Error, Result};
pub use format::FORMAT_VERSION;
pub use layout::{KvBlock, KvLayout, MAX_FEATURES};
pub use paper::{BitGroup, GroupType, PaperSpace};
pub use plan::{MAX_PLAN_BYTES, Plan, PlanId, TierSteps};
pub use predict::TokenFeatures;
pub use tokens::SHIFTS;
