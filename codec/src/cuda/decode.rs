//! Chunks, whose bytes nobody vouches for, to pages, on the device: the mirror is [`super::CudaEncoder`], the reference
//! [`crate::Decoder`].

use std::{ops::Range, sync::Arc};

use gpu::{CUdeviceptr, CudaSlice, CudaStream, KvView, Pinned, PushKernelArg as _};
use rayon::prelude::*;

use super::{
    block::BlockCopy,
    buffers::{Grown, GrownPinned, pointer},
    chunk::{Chunk, Upload, Uploaded},
    codec::{CudaCodec, Direction, Tables},
    deflate::{Coded, Inflater, Payload},
    encode::check_ids,
    features::HostFeatures,
    kernels::{blocks, launch, threads},
    listed::{ListedEscapes, coefficients_of},
    order::SideOrder,
    products::{Bands, Tokens},
    stopwatch::Stopwatch,
    tables::BLOCK,
};
use crate::{
    coding::{Coding, Limits},
    decode::{Decoder, check_payload, read_shifts},
    error::{Error, Result},
    format::{
        bytes::Reader,
        chunk::{ChunkHeader, CodecId},
        segments::{self, Segment},
    },
    kvtc::{Parts, read_ids, sent_exactly, shifts_of},
    plan::KvtcProfile,
    side::SidePart,
    stages::{deflate::inflate, escape::ESCAPE_BYTES},
    tokens::{Group, Shifts, Side, groups},
};

/// Slots of a block of `kvtc_unpack`.
const UNPACK_SLOTS: usize = 32;
/// Words that kernels set where bytes are wrong: packed symbols, escape lists.
const STATE: usize = 2;

/// Decodes chunks into pages of a device, one after the other; several may work at once.
#[derive(Debug)]
pub struct CudaDecoder {
    codec: Arc<CudaCodec>,
    stream: Arc<CudaStream>,
    tables: Option<Tables>,
    bands: Bands,
    upload: Upload,
    state: CudaSlice<u32>,
    host_state: Pinned<u32>,
    host_coded: GrownPinned<u8>,
    coded: Grown<u8>,
    payload: Grown<u8>,
    escapes: [ListedEscapes; 2],
    inflater: Inflater,
    block: BlockCopy,
    watch: Stopwatch,
}

/// A kvtc chunk, cut into its parts.
struct Opened<'a> {
    header: &'a ChunkHeader,
    profile: &'a KvtcProfile,
    parts: Parts<'a>,
    groups: Vec<Group>,
    ids: Vec<u32>,
    /// Keys and values: what their bytes are.
    sides: [SidePart<'a>; 2],
    payload_bytes: usize,
}

impl CudaDecoder {
    pub(super) fn new(codec: Arc<CudaCodec>) -> Result<Self> {
        let stream = codec.device.stream()?;
        let tables = codec.tables(Direction::Decoding, &stream)?;
        let components = tables.iter().flat_map(|tables| tables.iter()).map(|side| side.components).max();
        let stride = codec.widths.padded_inputs + components.unwrap_or(0);
        let row_bytes = stride * size_of::<half::f16>() + codec.widths.padded_features * size_of::<f32>();
        Ok(Self {
            bands: Bands::new(&codec, &stream, row_bytes)?,
            upload: Upload::new(&codec.device),
            state: codec.device.zeros(&stream, "a decoder's state", STATE)?,
            host_state: Pinned::zeros(&codec.device, STATE)?,
            host_coded: GrownPinned::new(),
            coded: Grown::new("a chunk"),
            payload: Grown::new("a payload"),
            escapes: [(); 2].map(|()| ListedEscapes::new()),
            inflater: Inflater::new(&codec.device, &stream)?,
            block: BlockCopy::new(),
            watch: Stopwatch::default(),
            tables,
            stream,
            codec,
        })
    }

    /// Decodes one chunk to the places of its tokens in a session's pages, and says which those are; what [`Decoder::decode`] makes of it,
    /// up to the tolerance of the module's documentation. After an error the chunk's tokens hold anything; no others are touched. Waits
    /// for the outcome.
    ///
    /// # Errors
    /// As [`Decoder::decode`]; [`Error::LimitExceeded`] for tokens beyond the pages; [`Error::Gpu`] when the device fails.
    pub fn decode(
        &mut self,
        bytes: &[u8],
        limits: Limits,
        announced: Option<Coding>,
        kv: KvView,
    ) -> Result<Range<usize>> {
        let codec = Arc::clone(&self.codec);
        let mut decoder = Decoder::new(codec.layout.clone(), codec.model, codec.plan.clone(), limits)?;
        if let Some(coding) = announced {
            decoder = decoder.announced(coding);
        }
        let (header, reader) = decoder.open(bytes)?;
        let first = header.first_token as usize;
        let tokens = first..first + header.tokens as usize;
        codec.check_view(&kv, tokens.end)?;
        // An earlier call may have ended early, with copies in flight.
        self.stream.synchronize().map_err(gpu::Error::from)?;
        match (header.codec, &codec.plan, self.tables.clone()) {
            (CodecId::Kvtc, Some(plan), Some(tables)) => {
                self.decode_kvtc(&header, plan.kvtc(), &tables, reader, kv)?;
            }
            _ => self.decode_on_host(decoder, bytes, &kv)?,
        }
        Ok(tokens)
    }

    /// Measures how long stages take from now on, see [`Self::stages`].
    pub fn measure(&mut self, is_on: bool) {
        self.watch.switch(is_on);
    }

    /// Milliseconds of the last chunk's stages on the device, if they were measured.
    ///
    /// # Errors
    /// When the driver fails.
    pub fn stages(&self) -> Result<Vec<(&'static str, f32)>> {
        Ok(self.watch.stages()?)
    }

    /// Device memory held beside the plan's tables, in bytes: it grows with the longest chunk.
    #[must_use]
    pub fn scratch_bytes(&self) -> usize {
        let escapes: usize = self.escapes.iter().map(ListedEscapes::bytes).sum();
        self.bands.bytes() + self.upload.bytes() + self.coded.bytes() + self.payload.bytes() + escapes
    }

    fn decode_on_host(&mut self, decoder: Decoder, bytes: &[u8], kv: &KvView) -> Result<()> {
        let block = match &self.codec.features {
            None => decoder.decode(bytes),
            Some(features) => {
                let known =
                    Arc::new(HostFeatures::new(Arc::clone(features), &self.codec.device, &self.stream));
                let block = decoder.predicting(Arc::clone(&known) as _).decode(bytes);
                known.failure().map_or(block, |error| Err(error.into()))
            }
        };
        self.block.put(&self.codec, &self.stream, kv, &block?)
    }

    fn decode_kvtc(
        &mut self,
        header: &ChunkHeader,
        profile: &KvtcProfile,
        tables: &Tables,
        mut reader: Reader<'_>,
        kv: KvView,
    ) -> Result<()> {
        self.watch.start(&self.codec.device, &self.stream)?;
        let features = self.codec.layout.features();
        let parts = Parts::of(header, profile, features)?;
        let body_shifts = read_shifts(header, &parts.roles, &mut reader)?;
        let len = parts.check_payload(header, features)?;
        check_payload(header, len)?;
        let segments = segments::read(&mut reader, len, header.segment_bytes as usize)?;
        self.queue_inflate(&segments, header.segment_bytes as usize, len)?;
        // The host needs the first bytes only, and has them before the device has all.
        let prefix = inflated_prefix(&segments, header.segment_bytes as usize, parts.ids + parts.shifts)?;
        let opened = self.open(header, profile, parts, body_shifts.as_deref(), &prefix, len)?;
        let outcome = self.queue_rows(&opened, tables, kv);
        self.host_state.copy_from(&self.stream, STATE, &self.state)?;
        self.stream.synchronize().map_err(gpu::Error::from)?;
        self.inflater.check(&self.stream)?;
        outcome?;
        match self.host_state.as_slice()?[..STATE] {
            [0, 0] => Ok(()),
            [0, _] => Err(Error::corrupt("escape list", "an escape points past the symbols")),
            _ => Err(Error::corrupt("packed symbols", "a byte is outside the range of its class")),
        }
    }

    /// Queues coded bytes to the device and from there to the payload.
    fn queue_inflate(&mut self, segments: &[Segment<'_>], segment_bytes: usize, len: usize) -> Result<()> {
        let (device, stream) = (&self.codec.device, &self.stream);
        let bytes: usize = segments.iter().map(|segment| segment.coded.len()).sum();
        let host = self.host_coded.reserve(device, bytes)?;
        let mut to = &mut host.as_mut_slice()?[..bytes];
        let pieces = segments.iter().map(|segment| {
            let piece = to.split_off_mut(..segment.coded.len());
            (piece.expect("there is room for all of them; this is a bug"), segment.coded)
        });
        pieces
            .collect::<Vec<_>>()
            .into_par_iter()
            .with_min_len(16)
            .for_each(|(to, from)| to.copy_from_slice(from));
        host.copy_to(stream, bytes, self.coded.reserve(device, stream, bytes)?)?;
        let ends: Vec<u32> = segments
            .iter()
            .scan(0, |end, segment| {
                *end += segment.coded.len() as u32;
                Some(*end)
            })
            .collect();
        self.payload.reserve(device, stream, len + 16)?;
        self.stream.memset_zeros(&mut self.state).map_err(gpu::Error::from)?;
        self.watch.mark(device, stream, "upload_ms")?;
        let payload = Payload { pointer: self.payload.pointer(), bytes: len, segment_bytes };
        self.inflater.inflate(stream, Coded { pointer: self.coded.pointer(), ends: &ends }, payload)?;
        Ok(self.watch.mark(device, stream, "inflate_ms")?)
    }

    /// Cuts the payload by its first bytes, ids and shifts.
    fn open<'a>(
        &self,
        header: &'a ChunkHeader,
        profile: &'a KvtcProfile,
        parts: Parts<'a>,
        body_shifts: Option<&[i8]>,
        prefix: &[u8],
        payload_bytes: usize,
    ) -> Result<Opened<'a>> {
        let (id_bytes, shift_bytes) = prefix.split_at(parts.ids);
        let mut ids = Vec::new();
        if let Some(predictor) = &profile.predictor {
            let features = self.codec.features.as_ref().ok_or(Error::FeaturesMissing)?;
            ids = read_ids(id_bytes, predictor.id_bytes);
            check_ids(&ids, features.vocabulary())?;
        }
        let all = header.has_token_shifts.then(|| shifts_of(shift_bytes)).transpose()?;
        let shifts = match (&all, body_shifts) {
            (Some(all), _) => Shifts::All(all),
            (None, Some(body)) => Shifts::Body(body),
            (None, None) => Shifts::None,
        };
        let groups = groups(&parts.roles, shifts);
        let keys = SidePart::of(profile, Side::Keys, &header.steps, &groups, header.key_escapes)?;
        let values = SidePart::of(profile, Side::Values, &header.steps, &groups, header.value_escapes)?;
        let expected = prefix.len() + 2 * parts.exact + keys.len + values.len;
        if expected != payload_bytes {
            let detail = format!("payload of {payload_bytes} bytes, its counts give {expected}");
            return Err(Error::corrupt("chunk header", detail));
        }
        Ok(Opened { header, profile, parts, groups, ids, sides: [keys, values], payload_bytes })
    }

    /// Queues everything between payload and pages.
    fn queue_rows(&mut self, opened: &Opened<'_>, tables: &Tables, kv: KvView) -> Result<()> {
        let (codec, stream) = (Arc::clone(&self.codec), Arc::clone(&self.stream));
        let orders = [&opened.sides[0].order, &opened.sides[1].order];
        let chunk =
            Chunk::of(opened.profile, opened.header.place(), &opened.groups, orders, &opened.ids, &[]);
        let at = chunk.upload(&mut self.upload, &stream)?;
        let tokens = chunk.tokens(at, kv);
        self.bands.make_turns(&codec, &tokens)?;
        self.put_exact(opened, kv)?;
        let mut starts = [0u64; 2];
        let mut start = self.payload.pointer()
            + (opened.payload_bytes - opened.sides[0].len - opened.sides[1].len) as u64;
        for side in [Side::Keys, Side::Values] {
            let (i, part) = (side as usize, &opened.sides[side as usize]);
            starts[i] = start;
            let entries = escape_entries(opened.header, side);
            let list = start + (part.len - entries * ESCAPE_BYTES) as u64;
            let invalid = pointer(&self.state) + size_of::<u32>() as u64;
            let order = chunk.order(at, side, &tables[i]);
            self.escapes[i].find(&codec, &stream, order, (list, entries), invalid)?;
            start += part.len as u64;
        }
        self.watch.mark(&codec.device, &stream, "escapes_ms")?;
        self.queue_bands(opened, tables, &chunk, at, &tokens, starts)
    }

    fn queue_bands(
        &mut self,
        opened: &Opened<'_>,
        tables: &Tables,
        chunk: &Chunk,
        at: Uploaded,
        tokens: &Tokens,
        packed: [CUdeviceptr; 2],
    ) -> Result<()> {
        let codec = Arc::clone(&self.codec);
        for band in self.bands.cut(chunk.slots.tokens.len()) {
            if let Some(predictor) = &opened.profile.predictor {
                self.bands.make_features(&codec, predictor, tokens, &band)?;
            }
            for side in [Side::Keys, Side::Values] {
                let i = side as usize;
                let components = chunk.slots.needed(band.clone(), &opened.sides[i].order.kept);
                let order = chunk.order(at, side, &tables[i]);
                self.queue_band(opened.profile, tables, side, order, tokens, &band, components, packed[i])?;
            }
        }
        Ok(())
    }

    #[allow(clippy::too_many_arguments)] // one band's parts, split up by the caller
    fn queue_band(
        &mut self,
        profile: &KvtcProfile,
        tables: &Tables,
        side: Side,
        order: SideOrder,
        tokens: &Tokens,
        band: &Range<usize>,
        components: usize,
        packed: CUdeviceptr,
    ) -> gpu::Result<()> {
        let (codec, table) = (Arc::clone(&self.codec), &tables[side as usize]);
        let (inputs, features) = (codec.widths.padded_inputs, codec.widths.padded_features);
        let (stride, rows) = (inputs + table.components, Bands::rows_of(band));
        self.bands.reserve(rows, stride, features)?;
        if let Some(predictor) = &profile.predictor {
            self.bands.place_features(&codec, predictor, tokens, band, (0, stride))?;
        }
        // Without predictor a product needs at least one column.
        let components = components.max(if inputs == 0 { BLOCK } else { 0 });
        self.unpack(&codec, order, table, band, components, (packed, stride))?;
        let coefficients = (coefficients_of(&self.bands, inputs), stride);
        self.escapes[side as usize].apply(&codec, &self.stream, order, table, band, coefficients)?;
        self.watch.mark(&codec.device, &self.stream, "unpack_ms")?;
        self.bands.reconstruct(table, (features, inputs), rows, inputs + components)?;
        self.watch.mark(&codec.device, &self.stream, "reconstruct_ms")?;
        self.scatter(&codec, side, tables, tokens, band)?;
        self.watch.mark(&codec.device, &self.stream, "scatter_ms")
    }

    fn unpack(
        &self,
        codec: &CudaCodec,
        order: SideOrder,
        table: &super::tables::SideTables,
        band: &Range<usize>,
        components: usize,
        (packed, stride): (CUdeviceptr, usize),
    ) -> gpu::Result<()> {
        if components == 0 {
            return Ok(());
        }
        let (rows, scale) = (coefficients_of(&self.bands, codec.widths.padded_inputs), pointer(&table.scale));
        let [slot0, slots, stride] = [band.start, band.len(), stride].map(|n| n as u32);
        let (function, invalid) = (&codec.functions.unpack, pointer(&self.state));
        let grid = blocks(components / BLOCK, band.len().div_ceil(UNPACK_SLOTS));
        // SAFETY: the packed symbols are as long as the order asks; rows have room for the components.
        unsafe {
            launch!(self.stream, function, grid, order, packed, slot0, slots, scale, rows, stride, invalid)
        }
    }

    fn scatter(
        &self,
        codec: &CudaCodec,
        side: Side,
        tables: &Tables,
        tokens: &Tokens,
        band: &Range<usize>,
    ) -> gpu::Result<()> {
        let (table, half) = (&tables[side as usize], codec.layout.head_dim / 2);
        let (function, each) = codec.functions.scatter.of(half);
        let units = codec.layout.layers * codec.layout.kv_heads * half / each;
        let (kv, value, turns) = (tokens.kv, side as u32, self.bands.turns_of(side));
        let (of_slots, first) = (tokens.slots_of(band), tokens.first_token as u32);
        let (mean, inverse, rows) = (pointer(&table.mean), table.row_scale, self.bands.sums.pointer());
        let (stride, grid) = (codec.widths.padded_features as u32, threads(units, band.len()));
        // SAFETY: slots name tokens of the chunk, which lie in the view's pages; rows are as long as the stride.
        unsafe {
            launch!(
                self.stream,
                function,
                grid,
                kv,
                value,
                of_slots,
                first,
                turns,
                mean,
                inverse,
                rows,
                stride
            )
        }
    }

    /// Queues the tokens that are not coded.
    fn put_exact(&self, opened: &Opened<'_>, kv: KvView) -> Result<()> {
        let (codec, features) = (&self.codec, self.codec.layout.features());
        let has_first = opened.header.starts_with_first;
        if let (true, Some(first)) = (has_first, &codec.first) {
            let (function, row) = (&codec.functions.put_first, pointer(&first.rows));
            // SAFETY: the first token lies in the view's pages, the row has `2 x P` elements.
            unsafe { launch!(self.stream, function, threads(features, 2), kv, row) }?;
        }
        let sent = sent_exactly(&opened.parts.roles, has_first);
        if sent.is_empty() {
            return Ok(());
        }
        let elements = sent.len() * features;
        let first = opened.header.first_token + sent.start as u32;
        let from = self.payload.pointer() + (opened.parts.ids + opened.parts.shifts) as u64;
        let (function, count, words) = (&codec.functions.put_exact, sent.len() as u32, elements as u32);
        // SAFETY: the tokens lie in the view's pages, the payload holds four bytes an element from there on.
        unsafe { launch!(self.stream, function, threads(elements, 2), kv, first, count, words, from) }?;
        Ok(())
    }
}

fn escape_entries(header: &ChunkHeader, side: Side) -> usize {
    match side {
        Side::Keys => header.key_escapes as usize,
        Side::Values => header.value_escapes as usize,
    }
}

/// The payload's first `bytes` bytes.
fn inflated_prefix(segments: &[Segment<'_>], segment_bytes: usize, bytes: usize) -> Result<Vec<u8>> {
    let count = bytes.div_ceil(segment_bytes).min(segments.len());
    let len = segments[..count].iter().map(|segment| segment.inflated_len).sum();
    let mut prefix = vec![0; len];
    inflate(&segments[..count], segment_bytes, &mut prefix)?;
    prefix.truncate(bytes);
    if prefix.len() < bytes {
        return Err(Error::corrupt("chunk header", format!("payload of {len} bytes, {bytes} come first")));
    }
    Ok(prefix)
}
