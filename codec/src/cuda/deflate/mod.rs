//! Stage 6 on the device: payloads to raw DEFLATE segments and back, one thread block per segment. The twin is `stages/deflate.rs`: whatever
//! one side writes the other reads, and both refuse the same bytes; what they write differs.

mod deflater;
mod inflater;

pub use deflater::{Deflated, Deflater};
pub use inflater::Inflater;

use gpu::CUdeviceptr;

/// A payload in device memory.
#[derive(Debug, Clone, Copy)]
pub struct Payload {
    /// Its first byte; at a multiple of 16 it goes faster.
    pub pointer: CUdeviceptr,
    /// Its length.
    pub bytes: usize,
    /// Inflated bytes of every segment but the last.
    pub segment_bytes: usize,
}

impl Payload {
    /// How many segments it is cut into.
    #[must_use]
    pub fn segments(&self) -> usize {
        self.bytes.div_ceil(self.segment_bytes)
    }
}

/// Segments in device memory, one after the other.
#[derive(Debug, Clone, Copy)]
pub struct Coded<'a> {
    /// The first segment's first byte.
    pub pointer: CUdeviceptr,
    /// Where each ends, from there: on the host.
    pub ends: &'a [u32],
}
