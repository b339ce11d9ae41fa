//! The codec `kvtc`: what goes into its payload, and in which order. Rows to symbols and back is [`crate::side`]'s work.
//!
//! `docs/kv-format.md`, section 4, is this folder in words.

mod decode;
mod encode;
mod known;

pub(crate) use decode::{Opened, Parts, decode, shifts_of};
#[cfg(feature = "cuda")]
pub(crate) use encode::header_of;
pub(crate) use encode::{Job, Payload, encode, known_of};
pub(crate) use known::{Known, write_ids};
#[cfg(feature = "cuda")]
pub(crate) use known::{SAME_ROW, id_range, read_ids, sent_exactly};
