//! Both sides' escape lists of an encoder: symbols too large for their class, sorted and laid out on the device.

use std::sync::Arc;

use gpu::{CUdeviceptr, CudaStream, Device, PushKernelArg as _};

use super::{
    buffers::Grown,
    kernels::{Functions, blocks, launch, one_block, threads},
};

/// Words of a bitmap that a block of `kvtc_escape_ranks` looks at.
const WORDS_PER_BLOCK: usize = 1_024;
/// Escapes that there is room for from the start, as a share of the symbols; calibrated plans have one in a hundred or fewer.
const EXPECTED: usize = 16;

/// One side's list.
#[derive(Debug)]
pub(super) struct EscapeList {
    /// A bit for each symbol that escapes.
    bits: Grown<u32>,
    ranks: Grown<u32>,
    sums: Grown<u32>,
    /// (position, value), as they were found.
    found: Grown<u64>,
    sorted: Grown<u64>,
    places: Grown<u32>,
    symbols: usize,
    capacity: usize,
}

/// What `kvtc_pack` adds escapes to.
#[derive(Debug, Clone, Copy)]
pub(super) struct EscapeSink {
    pub(super) bits: CUdeviceptr,
    pub(super) found: CUdeviceptr,
    pub(super) capacity: u32,
}

impl EscapeList {
    pub(super) fn new() -> Self {
        Self {
            bits: Grown::new("a map of escapes"),
            ranks: Grown::new("ranks of escapes"),
            sums: Grown::new("sums of escapes"),
            found: Grown::new("escapes"),
            sorted: Grown::new("sorted escapes"),
            places: Grown::new("places of escapes"),
            symbols: 0,
            capacity: 0,
        }
    }

    /// Makes room for the escapes among `symbols` symbols, for `known` of them if a first attempt has counted them.
    pub(super) fn start(
        &mut self,
        device: &Device,
        stream: &Arc<CudaStream>,
        symbols: usize,
        known: usize,
    ) -> gpu::Result<EscapeSink> {
        self.symbols = symbols;
        self.capacity = (symbols / EXPECTED).max(1_024).max(known).min(symbols.max(1));
        let words = symbols.div_ceil(32);
        let bits = self.bits.zeros(device, stream, words)?;
        self.ranks.reserve(device, stream, words)?;
        self.sums.reserve(device, stream, words.div_ceil(WORDS_PER_BLOCK))?;
        self.found.reserve(device, stream, self.capacity)?;
        self.sorted.reserve(device, stream, self.capacity)?;
        self.places.reserve(device, stream, self.capacity)?;
        Ok(EscapeSink { bits, found: self.found.pointer(), capacity: self.capacity as u32 })
    }

    /// Queues what sorts the list, once all of it was found; `count` and `entries` are words on the device.
    pub(super) fn sort(
        &self,
        functions: &Functions,
        stream: &Arc<CudaStream>,
        count: CUdeviceptr,
        entries: CUdeviceptr,
    ) -> gpu::Result<()> {
        if self.symbols == 0 {
            return Ok(());
        }
        let words = self.symbols.div_ceil(32);
        let block_count = words.div_ceil(WORDS_PER_BLOCK);
        let (bits, ranks, sums) = (self.bits.pointer(), self.ranks.pointer(), self.sums.pointer());
        let (found, sorted, places) = (self.found.pointer(), self.sorted.pointer(), self.places.pointer());
        let [words, sum_count, capacity] = [words, block_count, self.capacity].map(|n| n as u32);
        let many = threads(self.capacity.min(1 << 18), 1);
        let (rank, scan, sort, place) =
            (&functions.escape_ranks, &functions.scan_sums, &functions.escape_sort, &functions.escape_places);
        // SAFETY: `start` made room for this many words, blocks and escapes; kernels stop where the count is larger.
        unsafe {
            launch!(stream, rank, blocks(block_count, 1), bits, words, ranks, sums)?;
            launch!(stream, scan, one_block(), sums, sum_count)?;
            launch!(stream, sort, many, found, count, capacity, bits, ranks, sums, sorted)?;
            launch!(stream, place, one_block(), sorted, count, capacity, places, entries)
        }
    }

    /// Whether there was room for `count` escapes.
    pub(super) fn holds(&self, count: u32) -> bool {
        count as usize <= self.capacity
    }

    /// Queues the list itself: four planes of `entries` bytes at `to`.
    pub(super) fn write(
        &self,
        functions: &Functions,
        stream: &Arc<CudaStream>,
        count: u32,
        entries: u32,
        to: CUdeviceptr,
    ) -> gpu::Result<()> {
        if count == 0 {
            return Ok(());
        }
        let (sorted, places) = (self.sorted.pointer(), self.places.pointer());
        let grid = threads(count as usize, 1);
        // SAFETY: `sort` has filled both for `count` escapes, and `to` has room for the list.
        unsafe { launch!(stream, functions.escape_write, grid, sorted, count, places, entries, to) }
    }

    /// Bytes held.
    pub(super) fn bytes(&self) -> usize {
        let words = self.bits.bytes() + self.ranks.bytes() + self.sums.bytes() + self.places.bytes();
        words + self.found.bytes() + self.sorted.bytes()
    }
}
