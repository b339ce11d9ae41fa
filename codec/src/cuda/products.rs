//! Tokens in bands that go through the matrix products together, and the memory of one band: so that scratch does not grow with the
//! prompt.

use std::{ops::Range, sync::Arc};

use gpu::{CUdeviceptr, CudaStream, Device, Element, Gemm, KvView, Operand, Product, PushKernelArg as _};
use half::f16;

use super::{
    buffers::{Grown, pointer},
    codec::CudaCodec,
    kernels::{launch, threads},
    tables::SideTables,
};
use crate::{plan::predictor::Predictor, tokens::Side};

/// Scratch of a band. More makes products larger, and lets less of it stay in the L2 cache.
const BAND_BYTES: usize = 56 << 20;
/// Products have whole multiples of so many rows: cuBLASLt's tiles, and few shapes to find algorithms for.
const ROWS: usize = 128;
const MAX_ROWS: usize = 4_096;

/// A chunk's tokens as kernels find them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tokens {
    pub(super) kv: KvView,
    /// Position in the session of the chunk's first token.
    pub(super) first_token: usize,
    /// Tokens of the chunk.
    pub(super) count: usize,
    /// u32 `[slots]`: chunk token of each slot.
    pub(super) slot_tokens: CUdeviceptr,
    /// u32: ids of the chunk's tokens, after those of `lead` tokens before it.
    pub(super) ids: CUdeviceptr,
    pub(super) lead: usize,
}

/// Memory of one band and its products.
#[derive(Debug)]
pub(super) struct Bands {
    device: Device,
    stream: Arc<CudaStream>,
    gemm: Gemm,
    /// Inputs of the product.
    pub(super) halves: Grown<f16>,
    /// Its outputs.
    pub(super) sums: Grown<f32>,
    /// `[slots, context x token features]`.
    features: Grown<f16>,
    slot_ids: Grown<u32>,
    /// `[tokens, head_dim / 2]`: cosine and sine.
    pub(super) turns: Grown<f32>,
}

impl Bands {
    pub(super) fn new(codec: &CudaCodec, stream: &Arc<CudaStream>) -> gpu::Result<Self> {
        Ok(Self {
            device: codec.device.clone(),
            stream: Arc::clone(stream),
            gemm: Gemm::new(&codec.device, stream)?,
            halves: Grown::new("rows of a band of tokens"),
            sums: Grown::new("products of a band of tokens"),
            features: Grown::new("features of a band of tokens"),
            slot_ids: Grown::new("ids of a band of tokens"),
            turns: Grown::new("RoPE tables of a chunk"),
        })
    }

    /// Slots in bands of about the same size, `row_bytes` a slot.
    pub(super) fn cut(slots: usize, row_bytes: usize) -> Vec<Range<usize>> {
        let most = (BAND_BYTES / row_bytes.max(1) / ROWS * ROWS).clamp(ROWS, MAX_ROWS);
        let count = slots.div_ceil(most).max(1);
        let rows = slots.div_ceil(count).next_multiple_of(ROWS);
        (0..slots).step_by(rows.max(1)).map(|start| start..slots.min(start + rows)).collect()
    }

    /// Rows of a band's products.
    pub(super) fn rows_of(band: &Range<usize>) -> usize {
        band.len().next_multiple_of(ROWS)
    }

    /// Room for bands of `rows` slots of these widths.
    pub(super) fn reserve(&mut self, rows: usize, halves: usize, sums: usize) -> gpu::Result<()> {
        self.halves.reserve(&self.device, &self.stream, rows * halves)?;
        self.sums.reserve(&self.device, &self.stream, rows * sums)?;
        Ok(())
    }

    /// Queues the chunk's RoPE tables.
    pub(super) fn make_turns(&mut self, codec: &CudaCodec, tokens: &Tokens) -> gpu::Result<()> {
        let half = codec.layout.inv_freq.len();
        self.turns.reserve(&self.device, &self.stream, 2 * half * tokens.count)?;
        let (frequencies, turns) = (pointer(&codec.inv_freq), self.turns.pointer());
        let [half_word, first, count] = [half, tokens.first_token, tokens.count].map(|n| n as u32);
        let grid = threads(half * tokens.count, 1);
        // SAFETY: `[half]` frequencies are there, and room for a pair for each token and frequency.
        unsafe {
            launch!(self.stream, codec.functions.turns, grid, frequencies, half_word, first, count, turns)
        }
    }

    /// Queues the features that predictions of a band are made from; both sides place the same.
    pub(super) fn make_features(
        &mut self,
        codec: &CudaCodec,
        predictor: &Predictor,
        tokens: &Tokens,
        band: &Range<usize>,
    ) -> gpu::Result<()> {
        let Some(source) = &codec.features else { return Ok(()) };
        let ids = band.len() * predictor.context;
        self.slot_ids.reserve(&self.device, &self.stream, ids)?;
        self.features.reserve(&self.device, &self.stream, ids * predictor.token_features)?;
        let [slots, context, lead] = [band.len(), predictor.context, tokens.lead].map(|n| n as u32);
        let (of_slots, slot_ids) = (tokens.slots_of(band), self.slot_ids.pointer());
        let (function, grid) = (&codec.functions.slot_ids, threads(ids, 1));
        // SAFETY: the band's slots name tokens of the chunk, for all of which there are ids.
        unsafe {
            launch!(self.stream, function, grid, of_slots, slots, context, tokens.ids, lead, slot_ids)
        }?;
        source.write(&self.stream, slot_ids, ids, self.features.pointer())
    }

    /// Queues the copy of a band's features to column `column` of `halves`, rows of `stride`.
    pub(super) fn place_features(
        &self,
        codec: &CudaCodec,
        predictor: &Predictor,
        tokens: &Tokens,
        band: &Range<usize>,
        (column, stride): (usize, usize),
    ) -> gpu::Result<()> {
        let padded = codec.widths.padded_inputs;
        let rows = self.halves.pointer() + (column * size_of::<f16>()) as u64;
        let [context, width, lead] =
            [predictor.context, predictor.token_features, tokens.lead].map(|n| n as u32);
        let [padded_word, stride] = [padded, stride].map(|n| n as u32);
        let (features, of_slots) = (self.features.pointer(), tokens.slots_of(band));
        let (function, grid) = (&codec.functions.place_features, threads(padded.div_ceil(8), band.len()));
        // SAFETY: rows of `stride` have room for the padded features from the column on.
        unsafe {
            launch!(
                self.stream,
                function,
                grid,
                features,
                of_slots,
                context,
                width,
                lead,
                padded_word,
                rows,
                stride
            )
        }
    }

    /// Queues `coefficients[components, rows] = matrix x halves^T`.
    pub(super) fn project(
        &mut self,
        tables: &SideTables,
        components: usize,
        rows: usize,
        width: usize,
    ) -> gpu::Result<()> {
        let operand = |pointer, element, stride| Operand { pointer, element, stride };
        let product = Product {
            m: components,
            n: rows,
            k: width,
            a: operand(pointer(&tables.matrix), Element::F16, width),
            b: operand(self.halves.pointer(), Element::F16, width),
            b_is_transposed: true,
            out: operand(self.sums.pointer(), Element::F32, rows),
            accumulate: false,
        };
        // SAFETY: `reserve` made room for these shapes, the matrix has at least `components` rows.
        unsafe { self.gemm.multiply(&product) }
    }

    /// Queues `sums[rows, P] = halves x matrix^T` over the first `inner` columns of `halves`, whose rows are `stride` apart.
    pub(super) fn reconstruct(
        &mut self,
        tables: &SideTables,
        (features, inputs): (usize, usize),
        (rows, inner, stride): (usize, usize, usize),
    ) -> gpu::Result<()> {
        let operand = |pointer, element, stride| Operand { pointer, element, stride };
        let product = Product {
            m: rows,
            n: features,
            k: inner,
            a: operand(self.halves.pointer(), Element::F16, stride),
            b: operand(pointer(&tables.matrix), Element::F16, inputs + tables.components),
            b_is_transposed: true,
            out: operand(self.sums.pointer(), Element::F32, features),
            accumulate: false,
        };
        // SAFETY: `reserve` made room for these shapes; `inner` is at most either stride.
        unsafe { self.gemm.multiply(&product) }
    }

    /// RoPE tables for keys, nothing for values.
    pub(super) fn turns_of(&self, side: Side) -> CUdeviceptr {
        if side == Side::Keys { self.turns.pointer() } else { 0 }
    }

    /// Bytes held.
    pub(super) fn bytes(&self) -> usize {
        let halves = self.halves.bytes() + self.features.bytes();
        halves + self.sums.bytes() + self.slot_ids.bytes() + self.turns.bytes()
    }
}

impl Tokens {
    /// The band's part of `slot_tokens`.
    pub(super) fn slots_of(&self, band: &Range<usize>) -> CUdeviceptr {
        self.slot_tokens + (band.start * size_of::<u32>()) as u64
    }
}
