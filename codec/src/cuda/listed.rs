//! Both sides' escape lists of a decoder: what each entry replaces, found on the device before any band is decoded.

use std::sync::Arc;

use gpu::{CUdeviceptr, CudaStream, PushKernelArg as _};

use super::{
    buffers::Grown,
    codec::CudaCodec,
    kernels::{blocks, launch, one_block, threads},
    order::SideOrder,
    products::Bands,
    tables::SideTables,
};

/// Entries that a block looks at: `ENTRIES_PER_BLOCK` of the kernels.
const ENTRIES_PER_BLOCK: usize = 4_096;

/// One side's list.
#[derive(Debug)]
pub(super) struct ListedEscapes {
    sums: Grown<u64>,
    /// `struct Found` of each entry.
    found: Grown<u64>,
    entries: usize,
}

impl ListedEscapes {
    pub(super) fn new() -> Self {
        Self { sums: Grown::new("spans of escapes"), found: Grown::new("escapes"), entries: 0 }
    }

    /// Queues the search; `list` is four planes of `entries` bytes. A position outside of the symbols sets the word at `invalid`.
    pub(super) fn find(
        &mut self,
        codec: &CudaCodec,
        stream: &Arc<CudaStream>,
        order: SideOrder,
        (list, entries): (CUdeviceptr, usize),
        invalid: CUdeviceptr,
    ) -> gpu::Result<()> {
        self.entries = entries;
        if entries == 0 {
            return Ok(());
        }
        let block_count = entries.div_ceil(ENTRIES_PER_BLOCK);
        self.sums.reserve(&codec.device, stream, block_count)?;
        self.found.reserve(&codec.device, stream, entries)?;
        let (sums, found) = (self.sums.pointer(), self.found.pointer());
        let [entries, count] = [entries, block_count].map(|n| n as u32);
        let functions = &codec.functions;
        // SAFETY: the list has that many entries, and there is room for what is found of each.
        unsafe {
            launch!(stream, functions.escape_spans, blocks(block_count, 1), list, entries, sums)?;
            launch!(stream, functions.scan_spans, one_block(), sums, count)?;
            let grid = blocks(block_count, 1);
            launch!(stream, functions.escape_find, grid, order, list, entries, sums, found, invalid)
        }
    }

    /// Queues the replacement of a band's coefficients, which begin at `rows`, rows of `stride`.
    pub(super) fn apply(
        &self,
        codec: &CudaCodec,
        stream: &Arc<CudaStream>,
        order: SideOrder,
        tables: &SideTables,
        band: &std::ops::Range<usize>,
        (rows, stride): (CUdeviceptr, usize),
    ) -> gpu::Result<()> {
        if self.entries == 0 {
            return Ok(());
        }
        let (found, scale) = (self.found.pointer(), super::buffers::pointer(&tables.scale));
        let [entries, slot0, slots, stride] =
            [self.entries, band.start, band.len(), stride].map(|n| n as u32);
        let (function, grid) = (&codec.functions.escape_apply, threads(self.entries, 1));
        // SAFETY: entries name slots and components of the order, or none; rows of the band have room for all that it codes.
        unsafe { launch!(stream, function, grid, order, found, entries, slot0, slots, scale, rows, stride) }
    }

    /// Bytes held.
    pub(super) fn bytes(&self) -> usize {
        self.sums.bytes() + self.found.bytes()
    }
}

/// Where a band's coefficients stand in the rows of `bands`: behind `inputs` features.
pub(super) fn coefficients_of(bands: &Bands, inputs: usize) -> CUdeviceptr {
    bands.halves.pointer() + (inputs * size_of::<half::f16>()) as u64
}
