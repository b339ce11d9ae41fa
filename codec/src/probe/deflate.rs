//! Stage 6 on CPU and GPU, for tests and benchmarks of the one against the other.

pub use crate::cuda::deflate::{Coded, Deflated, Deflater, Inflater, Payload};
use crate::{error::Result, format::segments::Segment, stages::deflate};

/// Segments of `payload` as the CPU's encoder writes them.
#[must_use]
pub fn deflate_on_cpu(payload: &[u8], breaks: &[usize], segment_bytes: usize) -> Vec<Vec<u8>> {
    deflate::deflate(payload, breaks, segment_bytes)
}

/// One segment as the CPU's decoder reads it.
///
/// # Errors
/// [`Corrupt`](crate::Error::Corrupt) when it does not inflate to exactly `payload` from exactly its bytes.
pub fn inflate_on_cpu(coded: &[u8], payload: &mut [u8]) -> Result<()> {
    let segment = Segment { coded, inflated_len: payload.len() };
    deflate::inflate(&[segment], payload.len(), payload)
}
