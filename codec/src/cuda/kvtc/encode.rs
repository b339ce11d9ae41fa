//! kvtc's stages on the way to a chunk.

use std::{ops::Range, sync::Arc};

use gpu::{CudaStream, KvView, PushKernelArg as _};
use half::f16;

use super::job::{COUNTS, Count, Job, Parts};
use crate::cuda::{
    buffers::{Grown, GrownPinned, copy, pointer},
    codec::{CudaCodec, Tables},
    deflate::{Deflated, Deflater, Payload},
    escapes::{EscapeList, EscapeSink},
    kernels::{blocks, launch, threads},
    order::SideOrder,
    products::{Bands, Tokens},
    stopwatch::Stopwatch,
};
use crate::{
    error::{Error, Result},
    format::{
        bytes::Write as _,
        chunk::ChunkHeader,
        digest::{DIGEST_BYTES, seal},
    },
    kvtc::sent_exactly,
    stages::escape::ESCAPE_BYTES,
    tokens::Side,
};

/// Components that a block of `kvtc_pack` looks at.
const PACK_COMPONENTS: usize = 16;
/// Packed symbols of a side start on such a boundary.
const ALIGN: usize = 256;

/// What kvtc needs.
#[derive(Debug)]
pub(in crate::cuda) struct Work {
    tables: Tables,
    bands: Bands,
    escapes: [EscapeList; 2],
    words: Grown<u32>,
    host_words: GrownPinned<u32>,
    host_counts: GrownPinned<u32>,
    packed: Grown<u32>,
    payload: Grown<u8>,
    host_head: GrownPinned<u8>,
    deflater: Deflater,
    pub(in crate::cuda) stopwatch: Stopwatch,
}

impl Work {
    pub(in crate::cuda) fn new(
        codec: &CudaCodec,
        stream: &Arc<CudaStream>,
        tables: Tables,
    ) -> gpu::Result<Self> {
        Ok(Self {
            bands: Bands::new(codec, stream)?,
            tables,
            escapes: [EscapeList::new(), EscapeList::new()],
            words: Grown::new("the order of a chunk"),
            host_words: GrownPinned::new(),
            host_counts: GrownPinned::new(),
            packed: Grown::new("packed symbols"),
            payload: Grown::new("a payload"),
            host_head: GrownPinned::new(),
            deflater: Deflater::new(&codec.device, stream)?,
            stopwatch: Stopwatch::default(),
        })
    }

    /// Rows to a chunk.
    pub(in crate::cuda) fn encode(
        &mut self,
        codec: &CudaCodec,
        stream: &Arc<CudaStream>,
        job: Job<'_>,
        ids: &[u32],
    ) -> Result<Vec<u8>> {
        let mut counts = self.symbols(codec, stream, &job, ids, [0; 2])?;
        let escaped = [Count::Escaped, Count::EscapedValues].map(|count| counts[count as usize]);
        if (0..2).any(|side| !self.escapes[side].holds(escaped[side])) {
            // Data that the plan does not fit at all: once more, with room for what was counted.
            counts = self.symbols(codec, stream, &job, ids, escaped.map(|count| count as usize))?;
        }
        let bad = counts[Count::NotFinite as usize];
        if bad != u32::MAX {
            return Err(Error::not_finite(bad as usize));
        }
        let (header, bytes, breaks) = self.assemble(codec, stream, job, &counts)?;
        self.deflate(codec, stream, header, bytes, &breaks)
    }

    /// Queues everything up to packed symbols and escapes, and waits for the counts. `known` are escapes counted before.
    fn symbols(
        &mut self,
        codec: &CudaCodec,
        stream: &Arc<CudaStream>,
        job: &Job<'_>,
        ids: &[u32],
        known: [usize; 2],
    ) -> Result<[u32; COUNTS.len()]> {
        self.stopwatch.start(&codec.device, stream)?;
        let (words, parts) = job.words(ids);
        self.host_words.upload(&codec.device, stream, &words.all, &mut self.words)?;
        let value_symbols = job.packed[0].next_multiple_of(ALIGN);
        self.packed.zeros(&codec.device, stream, (value_symbols + job.packed[1]).div_ceil(4))?;
        let mut sinks = Vec::with_capacity(2);
        for (side, list) in self.escapes.iter_mut().enumerate() {
            sinks.push(list.start(&codec.device, stream, job.orders[side].symbols, known[side])?);
        }
        self.stopwatch.mark(&codec.device, stream, "set up")?;
        let base = self.words.pointer();
        let tokens = Tokens {
            kv: job.kv,
            first_token: job.place.first_token,
            count: job.place.tokens,
            slot_tokens: base + parts.slots.tokens,
            ids: base + parts.ids,
            lead: parts.lead,
        };
        self.bands.make_turns(codec, &tokens)?;
        let widths = codec.widths;
        let inputs = widths.padded_features + widths.padded_inputs + widths.inputs;
        let row_bytes = inputs * size_of::<f16>() + job.needed() * size_of::<f32>();
        for band in Bands::cut(job.slots.tokens.len(), row_bytes) {
            self.band(codec, stream, job, &tokens, (&parts, &sinks), &band)?;
        }
        if job.may_start_with_first {
            self.compare_first(codec, stream, job.kv)?;
        }
        let count = |count: Count| base + (count as usize * size_of::<u32>()) as u64;
        let [escaped, entries] = [
            [Count::Escaped, Count::EscapedValues].map(count),
            [Count::Entries, Count::EntriesValues].map(count),
        ];
        for side in 0..2 {
            self.escapes[side].sort(&codec.functions, stream, escaped[side], entries[side])?;
        }
        self.stopwatch.mark(&codec.device, stream, "escapes")?;
        self.counts(codec, stream)
    }

    fn counts(&mut self, codec: &CudaCodec, stream: &Arc<CudaStream>) -> Result<[u32; COUNTS.len()]> {
        let host = self.host_counts.reserve(&codec.device, COUNTS.len())?;
        if let Some(words) = self.words.memory() {
            host.copy_from(stream, COUNTS.len(), words)?;
        }
        stream.synchronize().map_err(gpu::Error::from)?;
        let mut counts = COUNTS;
        counts.copy_from_slice(&host.as_slice()?[..COUNTS.len()]);
        Ok(counts)
    }

    /// Queues one band of tokens, both sides.
    fn band(
        &mut self,
        codec: &CudaCodec,
        stream: &Arc<CudaStream>,
        job: &Job<'_>,
        tokens: &Tokens,
        (parts, sinks): (&Parts, &[EscapeSink]),
        band: &Range<usize>,
    ) -> Result<()> {
        let widths = codec.widths;
        let stride = widths.padded_features + widths.padded_inputs;
        self.bands.reserve(Bands::rows_of(band), stride, job.needed())?;
        if let Some(predictor) = &job.profile().predictor {
            self.bands.make_features(codec, predictor, tokens, band)?;
            self.bands.place_features(codec, predictor, tokens, band, (widths.padded_features, stride))?;
            self.stopwatch.mark(&codec.device, stream, "features")?;
        }
        for side in [Side::Keys, Side::Values] {
            self.gather(codec, stream, side, tokens, band, stride)?;
            self.stopwatch.mark(&codec.device, stream, "gather")?;
            let needed = job.slots.needed(band.clone(), &job.orders[side as usize].kept);
            if needed == 0 {
                continue;
            }
            let tables = &self.tables[side as usize];
            self.bands.project(tables, needed, Bands::rows_of(band), stride)?;
            self.stopwatch.mark(&codec.device, stream, "project")?;
            let order = parts.sides[side as usize].at(self.words.pointer(), pointer(&tables.log_sigma));
            let packed = [0, job.packed[0].next_multiple_of(ALIGN)][side as usize] as u64;
            self.pack(codec, stream, side, (order, sinks[side as usize]), packed, (band, needed))?;
            self.stopwatch.mark(&codec.device, stream, "pack")?;
        }
        Ok(())
    }

    fn gather(
        &self,
        codec: &CudaCodec,
        stream: &Arc<CudaStream>,
        side: Side,
        tokens: &Tokens,
        band: &Range<usize>,
        stride: usize,
    ) -> gpu::Result<()> {
        let tables = &self.tables[side as usize];
        let (gather, width) = codec.functions.gather.of(codec.layout.inv_freq.len());
        let units = codec.widths.features / 2 / width;
        let (of_slots, turns, mean) =
            (tokens.slots_of(band), self.bands.turns_of(side), pointer(&tables.mean));
        let (rows, bad) = (self.bands.halves.pointer(), self.words.pointer());
        let (first, stride, value) = (tokens.first_token as u32, stride as u32, side as u32);
        let (kv, scale, grid) = (tokens.kv, tables.row_scale, threads(units, band.len()));
        // SAFETY: the view's pages hold the chunk's tokens, which was checked; the band has room for its rows.
        unsafe {
            launch!(stream, gather, grid, kv, value, of_slots, first, turns, mean, scale, rows, stride, bad)
        }
    }

    fn pack(
        &self,
        codec: &CudaCodec,
        stream: &Arc<CudaStream>,
        side: Side,
        (order, sink): (SideOrder, EscapeSink),
        packed: u64,
        (band, components): (&Range<usize>, usize),
    ) -> gpu::Result<()> {
        let [stride, first, slots, needed] =
            [Bands::rows_of(band), band.start, band.len(), components].map(|n| n as u32);
        let (y, scale) = (self.bands.sums.pointer(), pointer(&self.tables[side as usize].scale));
        let packed = self.packed.pointer() + packed;
        let counter = [Count::Escaped, Count::EscapedValues][side as usize] as usize;
        let count = self.words.pointer() + (counter * size_of::<u32>()) as u64;
        let EscapeSink { bits, found, capacity } = sink;
        let grid = blocks(band.len().div_ceil(256), components.div_ceil(PACK_COMPONENTS));
        let function = &codec.functions.pack;
        // SAFETY: the order is that of this chunk, for whose symbols `packed` and the escapes' map were made.
        unsafe {
            launch!(
                stream, function, grid, order, y, stride, first, slots, needed, scale, packed, bits, found,
                capacity, count
            )
        }
    }

    fn compare_first(&self, codec: &CudaCodec, stream: &Arc<CudaStream>, kv: KvView) -> gpu::Result<()> {
        let Some(first) = &codec.first else { return Ok(()) };
        let differs = self.words.pointer() + (Count::Differs as usize * size_of::<u32>()) as u64;
        let (row, [keys, values], grid) =
            (pointer(&first.rows), first.tolerances, threads(codec.widths.features, 2));
        // SAFETY: the plan's row has `[2, P]` elements, and the view holds token 0.
        unsafe { launch!(stream, codec.functions.compare_first, grid, kv, row, keys, values, differs) }
    }

    /// Queues the payload's making from its parts; its header but for `payload_bytes`, its length, and where statistics change.
    fn assemble(
        &mut self,
        codec: &CudaCodec,
        stream: &Arc<CudaStream>,
        job: Job<'_>,
        counts: &[u32; COUNTS.len()],
    ) -> Result<(ChunkHeader, usize, Vec<usize>)> {
        let starts_with_first = job.may_start_with_first && counts[Count::Differs as usize] == 0;
        let entries = [Count::Entries, Count::EntriesValues].map(|count| counts[count as usize]);
        let escaped = [Count::Escaped, Count::EscapedValues].map(|count| counts[count as usize]);
        let exact = sent_exactly(&job.roles, starts_with_first);
        let exact_bytes = exact.len() * codec.widths.features;
        let lists = entries.map(|entries| entries as usize * ESCAPE_BYTES);
        let sides = job.head.len() + 4 * exact_bytes;
        let len = sides + job.packed.iter().sum::<usize>() + lists.iter().sum::<usize>();
        let mut breaks = job.breaks.clone();
        breaks.extend((1..=4).map(|part| job.head.len() + part * exact_bytes));
        let payload = self.payload.reserve(&codec.device, stream, len)?;
        let host = self.host_head.reserve(&codec.device, job.head.len())?;
        host.as_mut_slice()?[..job.head.len()].copy_from_slice(&job.head);
        host.copy_to(stream, job.head.len(), payload)?;
        let base = self.payload.pointer();
        take_exact(codec, stream, (job.kv, job.place.first_token), exact, base + job.head.len() as u64)?;
        let mut at = sides;
        let mut from = 0;
        for side in [Side::Keys, Side::Values] {
            let (bytes, order) = (job.packed[side as usize], &job.orders[side as usize]);
            self.copy_packed(stream, from..from + bytes, at)?;
            let mut end = at;
            breaks.extend(order.runs.iter().map(|run| {
                let packing = job.profile().space(side).classes.tables[run.table].packing;
                end += packing.packed_len(run.symbols.len());
                end
            }));
            from = (from + bytes).next_multiple_of(ALIGN);
            at += bytes;
            let list = &self.escapes[side as usize];
            list.write(
                &codec.functions,
                stream,
                escaped[side as usize],
                entries[side as usize],
                base + at as u64,
            )?;
            at += lists[side as usize];
            breaks.push(at);
        }
        self.stopwatch.mark(&codec.device, stream, "assemble")?;
        let [key_escapes, value_escapes] = entries;
        Ok((ChunkHeader { starts_with_first, key_escapes, value_escapes, ..job.header }, len, breaks))
    }

    fn copy_packed(&mut self, stream: &Arc<CudaStream>, from: Range<usize>, to: usize) -> Result<()> {
        let (Some(packed), Some(payload)) = (self.packed.memory(), self.payload.memory_mut()) else {
            return Ok(());
        };
        if from.is_empty() {
            return Ok(());
        }
        // SAFETY: any bytes are u8, and the buffer has four for each word.
        let Some(bytes) = (unsafe { packed.transmute::<u8>(packed.num_bytes()) }) else { return Ok(()) };
        let mut to = payload.slice_mut(to..to + from.len());
        Ok(stream.memcpy_dtod(&bytes.slice(from), &mut to).map_err(gpu::Error::from)?)
    }

    /// The payload to a chunk: header, table of segments, segments, digest.
    fn deflate(
        &mut self,
        codec: &CudaCodec,
        stream: &Arc<CudaStream>,
        mut header: ChunkHeader,
        len: usize,
        breaks: &[usize],
    ) -> Result<Vec<u8>> {
        header.payload_bytes = len as u64;
        let segment_bytes = header.segment_bytes as usize;
        let payload = Payload { pointer: self.payload.pointer(), bytes: len, segment_bytes };
        self.deflater.deflate(stream, payload, breaks)?;
        self.stopwatch.mark(&codec.device, stream, "deflate")?;
        let Deflated { ends, coded } = self.deflater.download(stream)?;
        let before = ChunkHeader::SIZE + size_of_val(ends);
        let mut out = Vec::with_capacity(before + coded.len() + DIGEST_BYTES);
        header.write_to(&mut out);
        out.put_all(ends, u32::to_le_bytes);
        out.resize(before + coded.len(), 0);
        copy(coded, &mut out[before..]);
        seal(&mut out);
        Ok(out)
    }

    pub(in crate::cuda) fn bytes(&self) -> usize {
        let lists = self.escapes.iter().map(EscapeList::bytes).sum::<usize>();
        lists + self.bands.bytes() + self.words.bytes() + self.packed.bytes() + self.payload.bytes()
    }
}

/// Queues the copy of exact tokens to the payload.
fn take_exact(
    codec: &CudaCodec,
    stream: &Arc<CudaStream>,
    (kv, first_token): (KvView, usize),
    tokens: Range<usize>,
    to: u64,
) -> gpu::Result<()> {
    if tokens.is_empty() {
        return Ok(());
    }
    let elements = tokens.len() * codec.widths.features;
    let [first, count, elements_word] =
        [first_token + tokens.start, tokens.len(), elements].map(|n| n as u32);
    let grid = threads(elements, 2);
    // SAFETY: the view's pages hold the tokens, the payload has room for two bytes an element and side.
    unsafe { launch!(stream, codec.functions.take_exact, grid, kv, first, count, elements_word, to) }
}
