//! `kvtc` on the device: the mirror images of [`crate::kvtc`] and [`crate::side`], for all tokens of a band at once.
//!
//! `job` and `opened` are what the host derives of a chunk before kernels run, `encode` and `decode` queue them.

pub(super) mod decode;
pub(super) mod encode;
mod job;
mod opened;

pub(super) use job::Job;
