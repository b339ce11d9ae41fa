//! kvtc's stages on the way back.

use std::{ops::Range, sync::Arc};

use gpu::{CudaStream, KvView, PushKernelArg as _};
use half::f16;

use super::opened::Opened;
use crate::cuda::{
    buffers::{Grown, GrownPinned, copy, pointer},
    codec::{CudaCodec, Tables},
    deflate::{Coded, Inflater, Payload},
    kernels::{blocks, launch, one_block, threads},
    order::SideOrder,
    products::{Bands, Tokens},
    stopwatch::Stopwatch,
    tables::BLOCK,
};
use crate::{
    decode::read_shifts,
    error::{Error, Result},
    format::{
        bytes::Reader,
        chunk::ChunkHeader,
        digest::unseal,
        segments::{self, Segment},
    },
    kvtc::{self, sent_exactly},
    plan::KvtcProfile,
    stages::deflate::inflate,
    tokens::Side,
};

/// Entries that a block of `kvtc_escape_find` looks at.
const ENTRIES_PER_BLOCK: usize = 4_096;

/// What kvtc needs.
#[derive(Debug)]
pub(in crate::cuda) struct Work {
    tables: Tables,
    bands: Bands,
    words: Grown<u32>,
    host_words: GrownPinned<u32>,
    host_flag: GrownPinned<u32>,
    coded: Grown<u8>,
    pub(in crate::cuda) inflater: Inflater,
    payload: Grown<u8>,
    host_bytes: GrownPinned<u8>,
    /// Of keys and of values: sums of gaps, and where entries lead.
    spans: [Grown<u64>; 2],
    found: [Grown<u64>; 2],
    pub(in crate::cuda) stopwatch: Stopwatch,
}

/// What kernels find where.
struct Layout {
    tokens: Tokens,
    orders: [SideOrder; 2],
    /// Where packed symbols and escape lists begin in the payload.
    packed: [u64; 2],
    lists: [u64; 2],
    entries: [usize; 2],
}

/// Segments that hold the first `bytes` of a payload, inflated on the host: what decides where everything lies.
fn inflate_head(segments: &[Segment<'_>], segment_bytes: usize, bytes: usize) -> Result<Vec<u8>> {
    let head = &segments[..bytes.div_ceil(segment_bytes)];
    let mut out = vec![0; head.iter().map(|segment| segment.inflated_len).sum()];
    inflate(head, segment_bytes, &mut out)?;
    Ok(out)
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
            words: Grown::new("the order of a chunk"),
            host_words: GrownPinned::new(),
            host_flag: GrownPinned::new(),
            coded: Grown::new("a chunk's segments"),
            inflater: Inflater::new(&codec.device, stream)?,
            payload: Grown::new("a payload"),
            host_bytes: GrownPinned::new(),
            spans: [Grown::new("sums of escapes"), Grown::new("sums of escapes")],
            found: [Grown::new("escapes"), Grown::new("escapes")],
            stopwatch: Stopwatch::default(),
        })
    }

    /// A chunk, opened, to the pages.
    pub(in crate::cuda) fn decode(
        &mut self,
        codec: &CudaCodec,
        stream: &Arc<CudaStream>,
        profile: &KvtcProfile,
        header: ChunkHeader,
        (bytes, mut reader): (&[u8], Reader<'_>),
        kv: KvView,
    ) -> Result<()> {
        self.stopwatch.start(&codec.device, stream)?;
        let parts = kvtc::Parts::of(&header, profile, codec.widths.features)?;
        let body_shifts = read_shifts(&header, &parts.roles, &mut reader)?;
        let len = parts.check_payload(&header, codec.widths.features)?;
        let segment_bytes = header.segment_bytes as usize;
        let segments = segments::read(&mut reader.clone(), len, segment_bytes)?;
        self.inflate(codec, stream, reader, segment_bytes, len)?;
        // The device inflates meanwhile, into memory of its own; nothing is written to the pages before the digest is known to be right.
        let (digest, head) = rayon::join(
            || unseal("chunk", bytes),
            || inflate_head(&segments, segment_bytes, parts.ids + parts.shifts),
        );
        digest?;
        let head = head?;
        let job = Opened::of(codec, (profile, parts), header, (&head, body_shifts.as_deref()), kv)?;
        self.stopwatch.mark(&codec.device, stream, "inflate")?;
        let layout = self.lay_out(codec, stream, &job)?;
        self.put_exact(codec, stream, &job)?;
        self.find_escapes(codec, stream, &layout)?;
        self.stopwatch.mark(&codec.device, stream, "escapes")?;
        self.bands.make_turns(codec, &layout.tokens)?;
        let widths = codec.widths;
        let stride = widths.padded_inputs + job.needed();
        let row_bytes =
            (stride + widths.inputs) * size_of::<f16>() + widths.padded_features * size_of::<f32>();
        for band in Bands::cut(job.slots.tokens.len(), row_bytes) {
            self.band(codec, stream, &job, &layout, (&band, stride))?;
        }
        self.check_flag(codec, stream)
    }

    /// Queues the upload of the segments and their inflation.
    fn inflate(
        &mut self,
        codec: &CudaCodec,
        stream: &Arc<CudaStream>,
        mut reader: Reader<'_>,
        segment_bytes: usize,
        len: usize,
    ) -> Result<()> {
        let ends = reader.list(len.div_ceil(segment_bytes), u32::from_le_bytes)?;
        let coded = reader.take(reader.remaining())?;
        let host = self.host_bytes.reserve(&codec.device, coded.len())?;
        copy(coded, &mut host.as_mut_slice()?[..coded.len()]);
        host.copy_to(stream, coded.len(), self.coded.reserve(&codec.device, stream, coded.len())?)?;
        self.payload.reserve(&codec.device, stream, len)?;
        let coded = Coded { pointer: self.coded.pointer(), ends: &ends };
        let payload = Payload { pointer: self.payload.pointer(), bytes: len, segment_bytes };
        self.inflater.inflate(stream, coded, payload)
    }

    /// Uploads what the kernels are told.
    fn lay_out(&mut self, codec: &CudaCodec, stream: &Arc<CudaStream>, job: &Opened<'_>) -> Result<Layout> {
        let (words, slots, sides, ids) = job.words();
        self.host_words.upload(&codec.device, stream, &words.all, &mut self.words)?;
        let (base, place) = (self.words.pointer(), job.header.place());
        let before = (job.parts.ids + job.parts.shifts + 2 * job.parts.exact) as u64;
        let packed = [before, before + job.sides[0].len as u64].map(|at| self.payload.pointer() + at);
        let lists =
            [0, 1].map(|side| packed[side] + job.sides[side].order.packed_len(job.sides[side].space) as u64);
        Ok(Layout {
            tokens: Tokens {
                kv: job.kv,
                first_token: place.first_token,
                count: place.tokens,
                slot_tokens: base + slots.tokens,
                ids: base + ids,
                lead: job.lead(),
            },
            orders: [0, 1].map(|side| sides[side].at(base, pointer(&self.tables[side].log_sigma))),
            packed,
            lists,
            entries: [job.header.key_escapes as usize, job.header.value_escapes as usize],
        })
    }

    /// Queues the exact tokens, and the plan's first row where the chunk starts with it.
    fn put_exact(&self, codec: &CudaCodec, stream: &Arc<CudaStream>, job: &Opened<'_>) -> gpu::Result<()> {
        let starts_with_first = job.header.starts_with_first;
        let tokens = sent_exactly(&job.parts.roles, starts_with_first);
        let kv = job.kv;
        if let (true, Some(first)) = (starts_with_first, &codec.first) {
            let (row, grid) = (pointer(&first.rows), threads(codec.widths.features, 2));
            // SAFETY: the plan's row has `[2, P]` elements, and the view holds the chunk, which starts at token 0.
            unsafe { launch!(stream, codec.functions.put_first, grid, kv, row) }?;
        }
        if tokens.is_empty() {
            return Ok(());
        }
        let elements = tokens.len() * codec.widths.features;
        let first = job.header.first_token as usize + tokens.start;
        let [first, count, elements_word] = [first, tokens.len(), elements].map(|n| n as u32);
        let from = self.payload.pointer() + (job.parts.ids + job.parts.shifts) as u64;
        let grid = threads(elements, 2);
        // SAFETY: the view holds the chunk's tokens, and the payload two bytes an element and side from there on.
        unsafe { launch!(stream, codec.functions.put_exact, grid, kv, first, count, elements_word, from) }
    }

    /// Queues what finds the symbols that escapes replace.
    fn find_escapes(
        &mut self,
        codec: &CudaCodec,
        stream: &Arc<CudaStream>,
        layout: &Layout,
    ) -> gpu::Result<()> {
        let (span, scan, find) =
            (&codec.functions.escape_spans, &codec.functions.scan_spans, &codec.functions.escape_find);
        for side in 0..2 {
            let (entries, list, order) = (layout.entries[side], layout.lists[side], layout.orders[side]);
            if entries == 0 {
                continue;
            }
            let block_count = entries.div_ceil(ENTRIES_PER_BLOCK);
            self.spans[side].reserve(&codec.device, stream, block_count)?;
            self.found[side].reserve(&codec.device, stream, entries)?;
            let (spans, found, flag) =
                (self.spans[side].pointer(), self.found[side].pointer(), self.words.pointer());
            let [entries, sums] = [entries, block_count].map(|n| n as u32);
            let grid = blocks(block_count, 1);
            // SAFETY: the payload holds the list, whose length was checked; the buffers were just made for it.
            unsafe {
                launch!(stream, span, grid, list, entries, spans)?;
                launch!(stream, scan, one_block(), spans, sums)?;
                launch!(stream, find, grid, order, list, entries, spans, found, flag)?;
            }
        }
        Ok(())
    }

    /// Queues one band of tokens, both sides.
    fn band(
        &mut self,
        codec: &CudaCodec,
        stream: &Arc<CudaStream>,
        job: &Opened<'_>,
        layout: &Layout,
        (band, stride): (&Range<usize>, usize),
    ) -> Result<()> {
        let widths = codec.widths;
        let rows = Bands::rows_of(band);
        self.bands.reserve(rows, stride, widths.padded_features)?;
        if let Some(predictor) = &job.profile.predictor {
            self.bands.make_features(codec, predictor, &layout.tokens, band)?;
            self.bands.place_features(codec, predictor, &layout.tokens, band, (0, stride))?;
            self.stopwatch.mark(&codec.device, stream, "features")?;
        }
        for side in [Side::Keys, Side::Values] {
            let needed = job.slots.needed(band.clone(), &job.sides[side as usize].order.kept);
            // A product needs something to sum over.
            let needed = if widths.padded_inputs == 0 { needed.max(BLOCK) } else { needed };
            self.unpack(codec, stream, side, layout, (band, needed, stride))?;
            self.stopwatch.mark(&codec.device, stream, "unpack")?;
            let tables = &self.tables[side as usize];
            let inner = widths.padded_inputs + needed;
            let shape = (widths.padded_features, widths.padded_inputs);
            self.bands.reconstruct(tables, shape, (rows, inner, stride))?;
            self.stopwatch.mark(&codec.device, stream, "reconstruct")?;
            self.scatter(codec, stream, side, &layout.tokens, band)?;
            self.stopwatch.mark(&codec.device, stream, "scatter")?;
        }
        Ok(())
    }

    fn unpack(
        &self,
        codec: &CudaCodec,
        stream: &Arc<CudaStream>,
        side: Side,
        layout: &Layout,
        (band, components, stride): (&Range<usize>, usize, usize),
    ) -> gpu::Result<()> {
        if components == 0 {
            return Ok(());
        }
        let column = codec.widths.padded_inputs * size_of::<f16>();
        let rows = self.bands.halves.pointer() + column as u64;
        let (order, packed) = (layout.orders[side as usize], layout.packed[side as usize]);
        let scale = pointer(&self.tables[side as usize].scale);
        let [first, slots, stride, entries] =
            [band.start, band.len(), stride, layout.entries[side as usize]].map(|n| n as u32);
        let flag = self.words.pointer();
        let (unpack, apply) = (&codec.functions.unpack, &codec.functions.escape_apply);
        let grid = blocks(components / BLOCK, band.len().div_ceil(32));
        // SAFETY: the order is that of this chunk, whose packed symbols and entries were checked to lie in the payload.
        unsafe {
            launch!(stream, unpack, grid, order, packed, first, slots, scale, rows, stride, flag)?;
            if entries > 0 {
                let (found, grid) = (self.found[side as usize].pointer(), threads(entries as usize, 1));
                launch!(stream, apply, grid, order, found, entries, first, slots, scale, rows, stride)?;
            }
        }
        Ok(())
    }

    fn scatter(
        &self,
        codec: &CudaCodec,
        stream: &Arc<CudaStream>,
        side: Side,
        tokens: &Tokens,
        band: &Range<usize>,
    ) -> gpu::Result<()> {
        let tables = &self.tables[side as usize];
        let (scatter, width) = codec.functions.scatter.of(codec.layout.inv_freq.len());
        let units = codec.widths.features / 2 / width;
        let (of_slots, turns, mean) =
            (tokens.slots_of(band), self.bands.turns_of(side), pointer(&tables.mean));
        let (rows, inverse, value) = (self.bands.sums.pointer(), tables.row_scale, side as u32);
        let [first, stride] = [tokens.first_token, codec.widths.padded_features].map(|n| n as u32);
        let (kv, grid) = (tokens.kv, threads(units, band.len()));
        // SAFETY: the view's pages hold the chunk's tokens, which was checked, and slots name no others.
        unsafe {
            launch!(stream, scatter, grid, kv, value, of_slots, first, turns, mean, inverse, rows, stride)
        }
    }

    /// Waits, and asks whether kernels found anything wrong.
    fn check_flag(&mut self, codec: &CudaCodec, stream: &Arc<CudaStream>) -> Result<()> {
        let host = self.host_flag.reserve(&codec.device, 1)?;
        if let Some(words) = self.words.memory() {
            host.copy_from(stream, 1, words)?;
        }
        stream.synchronize().map_err(gpu::Error::from)?;
        self.inflater.check(stream)?;
        if host.as_slice()?[0] == 0 {
            return Ok(());
        }
        Err(Error::corrupt(
            "packed symbols",
            "a byte is outside of its packing's range, or an escape of the symbols",
        ))
    }

    pub(in crate::cuda) fn bytes(&self) -> usize {
        let escapes = self.spans.iter().chain(&self.found).map(Grown::bytes).sum::<usize>();
        escapes + self.bands.bytes() + self.words.bytes() + self.payload.bytes() + self.coded.bytes()
    }
}
