//! Pages to chunks, on the device: the mirror is [`super::CudaDecoder`], the reference [`crate::Encoder`].

use std::{ops::Range, sync::Arc};

use gpu::{CudaSlice, CudaStream, KvView, Pinned, PushKernelArg as _, copy_on_device};

use super::{
    block::{BlockCopy, joined},
    buffers::{Grown, pointer},
    chunk::{Chunk, Upload, Uploaded},
    codec::{CudaCodec, Direction, Tables},
    deflate::{Deflater, Payload},
    escapes::{EscapeList, EscapeSink},
    features::HostFeatures,
    kernels::{blocks, launch, threads},
    order::SideOrder,
    products::{Bands, Tokens},
    stopwatch::Stopwatch,
};
use crate::{
    coding::{CodecKind, Coding},
    encode::Encoder,
    error::{Error, Result},
    format::{
        bytes::Write as _,
        chunk::ChunkHeader,
        digest::{DIGEST_BYTES, seal},
        segments::SEGMENT_BYTES,
    },
    kvtc::{header_of, id_range, sent_exactly, write_ids},
    plan::{KvtcProfile, Plan},
    stages::{escape::ESCAPE_BYTES, order::Order},
    tokens::{Place, Roles, Shifts, Side, WINDOW, groups},
};

/// Components of a thread of `kvtc_pack`.
const COMPONENTS_PER_THREAD: usize = 16;
/// Words of state that kernels leave: the first token that is not finite, then per side escapes and entries of their list.
const STATE: usize = 5;
const NO_TOKEN: u32 = u32::MAX;

/// Codes stretches of caches that lie in a device's pages, one after the other; several may work at once.
#[derive(Debug)]
pub struct CudaEncoder {
    codec: Arc<CudaCodec>,
    stream: Arc<CudaStream>,
    tables: Option<Tables>,
    bands: Bands,
    upload: Upload,
    state: CudaSlice<u32>,
    host_state: Pinned<u32>,
    packed: [Grown<u32>; 2],
    escapes: [EscapeList; 2],
    payload: Grown<u8>,
    deflater: Deflater,
    block: BlockCopy,
    watch: Stopwatch,
}

/// One chunk to be coded.
struct Job<'a> {
    plan: &'a Plan,
    tier: u8,
    place: Place,
    kv: KvView,
    ids: &'a [u32],
    /// One per token of the chunk.
    shifts: Option<&'a [i8]>,
}

/// What becomes of a chunk's symbols.
struct Coded {
    /// Per side: escapes, and entries of their list.
    escapes: [[u32; 2]; 2],
}

impl CudaEncoder {
    pub(super) fn new(codec: Arc<CudaCodec>) -> Result<Self> {
        let stream = codec.device.stream()?;
        let tables = codec.tables(Direction::Encoding, &stream)?;
        let width = codec.widths.padded_features + codec.widths.padded_inputs;
        let components = tables.iter().flat_map(|tables| tables.iter()).map(|side| side.components).max();
        let row_bytes = width * size_of::<half::f16>() + components.unwrap_or(0) * size_of::<f32>();
        Ok(Self {
            bands: Bands::new(&codec, &stream, row_bytes)?,
            upload: Upload::new(&codec.device),
            state: codec.device.zeros(&stream, "an encoder's state", STATE)?,
            host_state: Pinned::zeros(&codec.device, STATE)?,
            packed: [(); 2].map(|()| Grown::new("packed symbols")),
            escapes: [(); 2].map(|()| EscapeList::new()),
            payload: Grown::new("a payload"),
            deflater: Deflater::new(&codec.device, &stream)?,
            block: BlockCopy::new(),
            watch: Stopwatch::default(),
            tables,
            stream,
            codec,
        })
    }

    /// Codes `tokens` of a session's cache as one self-contained chunk; what [`Encoder::encode_with_shifts`] makes of the same block, up
    /// to symbols whose coefficients are on a border within the tolerance of the module's documentation. `ids` are those of the whole
    /// prompt, `shifts` those of the chunk's tokens. The tokens must have been computed; waits for the outcome.
    ///
    /// # Errors
    /// As [`Encoder::new`], [`Encoder::predicting`] and [`Encoder::encode_with_shifts`]; [`Error::LimitExceeded`] for tokens beyond the
    /// pages; [`Error::Gpu`] when the device fails.
    pub fn encode(
        &mut self,
        coding: Coding,
        ids: &[u32],
        kv: KvView,
        tokens: Range<usize>,
        shifts: Option<&[i8]>,
    ) -> Result<Vec<u8>> {
        let codec = Arc::clone(&self.codec);
        let encoder = Encoder::new(codec.layout.clone(), codec.model, codec.plan.clone(), coding, ids.len())?;
        encoder.check_place(tokens.start, tokens.len(), shifts)?;
        codec.check_view(&kv, tokens.end)?;
        // An earlier call may have ended early, with copies in flight.
        self.stream.synchronize().map_err(gpu::Error::from)?;
        let place = Place { first_token: tokens.start, tokens: tokens.len(), prompt_tokens: ids.len() };
        match (coding.kind, &codec.plan, self.tables.clone()) {
            (CodecKind::Kvtc, Some(plan), Some(tables)) => {
                let job = Job { plan, tier: coding.tier, place, kv, ids, shifts };
                self.encode_kvtc(&job, &tables, encoder.header(place))
            }
            _ => self.encode_on_host(encoder, ids, &kv, place),
        }
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
        let packed: usize = self.packed.iter().map(Grown::bytes).sum();
        let escapes: usize = self.escapes.iter().map(EscapeList::bytes).sum();
        self.bands.bytes()
            + self.upload.bytes()
            + packed
            + escapes
            + self.payload.bytes()
            + self.deflater.bytes()
    }

    fn encode_on_host(
        &mut self,
        encoder: Encoder,
        ids: &[u32],
        kv: &KvView,
        place: Place,
    ) -> Result<Vec<u8>> {
        let block = self.block.take(&self.codec, &self.stream, kv, place)?;
        let Some(features) = &self.codec.features else { return encoder.encode(&block) };
        let known = Arc::new(HostFeatures::new(Arc::clone(features), &self.codec.device, &self.stream));
        let chunk = encoder.predicting(Arc::clone(&known) as _, Arc::from(ids))?.encode(&block);
        known.failure().map_or(chunk, |error| Err(error.into()))
    }

    fn encode_kvtc(&mut self, job: &Job<'_>, tables: &Tables, header: ChunkHeader) -> Result<Vec<u8>> {
        self.watch.start(&self.codec.device, &self.stream)?;
        let profile = job.plan.kvtc();
        let has_first = self.starts_with_first(job, profile)?;
        let roles = Roles::of(job.place, profile.sinks, WINDOW);
        let shifts = job.shifts.map(|shifts| &shifts[roles.coded()]);
        let (ids, prefix, mut breaks) = self.prefix(job, profile, shifts)?;
        let groups = groups(&roles, shifts.map_or(Shifts::None, Shifts::All));
        let header = ChunkHeader {
            starts_with_first: has_first,
            ..header_of(job.plan, job.tier, shifts.is_some(), header)
        };
        let orders = [Side::Keys, Side::Values]
            .map(|side| Order::of(profile.space(side), side, &header.steps, &groups));
        let chunk = Chunk::of(profile, job.place, &groups, [&orders[0], &orders[1]], ids, &prefix);
        let at = chunk.upload(&mut self.upload, &self.stream)?;
        let coded = self.code_bands(profile, tables, &chunk, at, &orders, job.kv)?;
        let exact = sent_exactly(&roles, has_first);
        let exact_len = exact.len() * self.codec.layout.features() * 2;
        breaks.extend((1..=4).map(|part| prefix.len() + part * exact_len / 2));
        let start = prefix.len() + 2 * exact_len;
        let bytes = self.lay_out(profile, &coded, &orders, start, &mut breaks)?;
        let payload =
            Payload { pointer: self.payload.pointer(), bytes, segment_bytes: SEGMENT_BYTES as usize };
        self.put_prefix(at, prefix.len(), job.kv, job.place.first_token + exact.start, exact.len())?;
        let header = ChunkHeader {
            key_escapes: coded.escapes[0][1],
            value_escapes: coded.escapes[1][1],
            payload_bytes: bytes as u64,
            ..header
        };
        self.finish(&header, payload, breaks)
    }

    /// Whether the chunk begins a prompt with the row that the plan holds.
    fn starts_with_first(&mut self, job: &Job<'_>, profile: &KvtcProfile) -> Result<bool> {
        let (Some(plan_row), Some(row)) = (&profile.first, &self.codec.first) else { return Ok(false) };
        if job.place.first_token > 0 || profile.sinks == 0 || job.ids[0] != plan_row.token {
            return Ok(false);
        }
        let features = self.codec.layout.features();
        self.stream.memset_zeros(&mut self.state).map_err(gpu::Error::from)?;
        let [keys, values] = row.tolerances;
        let (function, kv) = (&self.codec.functions.compare_first, job.kv);
        let (rows, differs) = (pointer(&row.rows), pointer(&self.state));
        // SAFETY: the first token lies in the view's pages, the row has `2 x P` elements.
        unsafe { launch!(self.stream, function, threads(features, 2), kv, rows, keys, values, differs) }?;
        Ok(self.read_state()?[0] == 0)
    }

    /// Ids that predictions look at, the bytes that the payload starts with, and where statistics change in them.
    fn prefix<'a>(
        &self,
        job: &Job<'a>,
        profile: &KvtcProfile,
        shifts: Option<&[i8]>,
    ) -> Result<(&'a [u32], Vec<u8>, Vec<usize>)> {
        let (mut bytes, mut breaks) = (Vec::new(), Vec::new());
        let mut ids: &[u32] = &[];
        if let Some(predictor) = &profile.predictor {
            let features = self.codec.features.as_ref().ok_or(Error::FeaturesMissing)?;
            ids = &job.ids[id_range(predictor, &job.place)];
            check_ids(ids, features.vocabulary())?;
            write_ids(ids, predictor.id_bytes, &mut bytes, &mut breaks);
        }
        if let Some(shifts) = shifts {
            bytes.extend(shifts.iter().map(|&shift| shift as u8));
            breaks.push(bytes.len());
        }
        Ok((ids, bytes, breaks))
    }

    /// Everything up to sorted escapes, a second time with more room for them where there was too little.
    fn code_bands(
        &mut self,
        profile: &KvtcProfile,
        tables: &Tables,
        chunk: &Chunk,
        at: Uploaded,
        orders: &[Order; 2],
        kv: KvView,
    ) -> Result<Coded> {
        let tokens = chunk.tokens(at, kv);
        self.bands.make_turns(&self.codec, &tokens)?;
        let mut known = [0; 2];
        for _ in 0..2 {
            let mut init = [0; STATE];
            init[0] = NO_TOKEN;
            self.stream.memcpy_htod(&init, &mut self.state).map_err(gpu::Error::from)?;
            self.queue_bands(profile, tables, chunk, at, &tokens, orders, known)?;
            let state = self.read_state()?;
            if state[0] != NO_TOKEN {
                return Err(Error::not_finite(state[0] as usize));
            }
            let escapes = [[state[1], state[2]], [state[3], state[4]]];
            if (0..2).all(|side| self.escapes[side].holds(escapes[side][0])) {
                return Ok(Coded { escapes });
            }
            known = escapes.map(|[count, _]| count as usize);
        }
        Err(gpu::Error::Driver("escapes were counted differently the second time".into()).into())
    }

    #[allow(clippy::too_many_arguments)] // one chunk's parts, split up by the caller
    fn queue_bands(
        &mut self,
        profile: &KvtcProfile,
        tables: &Tables,
        chunk: &Chunk,
        at: Uploaded,
        tokens: &Tokens,
        orders: &[Order; 2],
        known: [usize; 2],
    ) -> gpu::Result<()> {
        let (codec, stream) = (Arc::clone(&self.codec), Arc::clone(&self.stream));
        let mut sinks = Vec::with_capacity(2);
        for side in [Side::Keys, Side::Values] {
            let (order, i) = (&orders[side as usize], side as usize);
            let words = order.packed_len(profile.space(side)).div_ceil(4);
            self.packed[i].zeros(&codec.device, &stream, words)?;
            sinks.push(self.escapes[i].start(&codec.device, &stream, order.symbols, known[i])?);
        }
        for band in self.bands.cut(chunk.slots.tokens.len()) {
            if let Some(predictor) = &profile.predictor {
                self.bands.make_features(&codec, predictor, tokens, &band)?;
            }
            for side in [Side::Keys, Side::Values] {
                let i = side as usize;
                let components = chunk.slots.needed(band.clone(), &orders[i].kept);
                if components > 0 {
                    let order = chunk.order(at, side, &tables[i]);
                    self.queue_band(profile, tables, side, order, tokens, &band, components, sinks[i])?;
                }
            }
        }
        for (i, list) in self.escapes.iter().enumerate() {
            let count = pointer(&self.state) + ((1 + 2 * i) * size_of::<u32>()) as u64;
            list.sort(&codec.functions, &stream, count, count + size_of::<u32>() as u64)?;
        }
        self.watch.mark(&codec.device, &stream, "escapes_ms")
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
        sink: EscapeSink,
    ) -> gpu::Result<()> {
        let (codec, i) = (Arc::clone(&self.codec), side as usize);
        let width = codec.widths.padded_features + codec.widths.padded_inputs;
        let rows = Bands::rows_of(band);
        self.bands.reserve(rows, width, components)?;
        self.gather(&codec, side, tables, tokens, band, width)?;
        if let Some(predictor) = &profile.predictor {
            let place = (codec.widths.padded_features, width);
            self.bands.place_features(&codec, predictor, tokens, band, place)?;
        }
        self.watch.mark(&codec.device, &self.stream, "gather_ms")?;
        self.bands.project(&tables[i], components, rows, width)?;
        self.watch.mark(&codec.device, &self.stream, "project_ms")?;
        let (y, packed) = (self.bands.sums.pointer(), self.packed[i].pointer());
        let scale = pointer(&tables[i].scale);
        let count = pointer(&self.state) + ((1 + 2 * i) * size_of::<u32>()) as u64;
        let [stride, slot0, slots] = [rows, band.start, band.len()].map(|n| n as u32);
        let grid = blocks(band.len().div_ceil(256), components.div_ceil(COMPONENTS_PER_THREAD));
        let (components, function) = (components as u32, &codec.functions.pack);
        let EscapeSink { bits, found, capacity } = sink;
        // SAFETY: `y` is [components, rows] with room for the band's slots; packed symbols and the escapes' map have room for all symbols.
        unsafe {
            launch!(
                self.stream,
                function,
                grid,
                order,
                y,
                stride,
                slot0,
                slots,
                components,
                scale,
                packed,
                bits,
                found,
                capacity,
                count
            )?;
        }
        self.watch.mark(&codec.device, &self.stream, "pack_ms")
    }

    fn gather(
        &self,
        codec: &CudaCodec,
        side: Side,
        tables: &Tables,
        tokens: &Tokens,
        band: &Range<usize>,
        width: usize,
    ) -> gpu::Result<()> {
        let table = &tables[side as usize];
        let half = codec.layout.head_dim / 2;
        let (function, each) = codec.functions.gather.of(half);
        let units = codec.layout.layers * codec.layout.kv_heads * half / each;
        let (of_slots, first) = (tokens.slots_of(band), tokens.first_token as u32);
        let (kv, value, turns) = (tokens.kv, side as u32, self.bands.turns_of(side));
        let (mean, alpha, rows) = (pointer(&table.mean), table.row_scale, self.bands.halves.pointer());
        let (stride, bad) = (width as u32, pointer(&self.state));
        let grid = threads(units, band.len());
        // SAFETY: slots name tokens of the chunk, which lie in the view's pages; `halves` has room for rows of this stride.
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
                alpha,
                rows,
                stride,
                bad
            )
        }
    }

    /// Puts symbols and escapes of both sides into the payload from `start` on; its length.
    fn lay_out(
        &mut self,
        profile: &KvtcProfile,
        coded: &Coded,
        orders: &[Order; 2],
        start: usize,
        breaks: &mut Vec<usize>,
    ) -> Result<usize> {
        let packed =
            [Side::Keys, Side::Values].map(|side| orders[side as usize].packed_len(profile.space(side)));
        let listed = coded.escapes.map(|[_, entries]| entries as usize * ESCAPE_BYTES);
        let bytes = start + packed.iter().chain(&listed).sum::<usize>();
        // Kernels read whole words past the end.
        self.payload.reserve(&self.codec.device, &self.stream, bytes + 16)?;
        let mut to = start;
        for side in [Side::Keys, Side::Values] {
            let (i, space) = (side as usize, profile.space(side));
            let mut end = to;
            breaks.extend(orders[i].runs.iter().map(|run| {
                end += space.classes.tables[run.table].packing.packed_len(run.symbols.len());
                end
            }));
            let target = self.payload.pointer() + to as u64;
            // SAFETY: room for both was just made; the packed symbols are a buffer of their own.
            unsafe { copy_on_device(&self.stream, self.packed[i].pointer(), target, packed[i])? };
            let ([count, entries], list) = (coded.escapes[i], target + packed[i] as u64);
            self.escapes[i].write(&self.codec.functions, &self.stream, count, entries, list)?;
            to += packed[i] + listed[i];
            breaks.push(to);
        }
        Ok(bytes)
    }

    /// Puts ids, shifts and exact tokens at the payload's start.
    fn put_prefix(
        &self,
        at: Uploaded,
        prefix: usize,
        kv: KvView,
        first_exact: usize,
        exact: usize,
    ) -> gpu::Result<()> {
        let start = self.payload.pointer();
        // SAFETY: the upload holds the prefix, and the payload has room for it.
        unsafe { copy_on_device(&self.stream, at.prefix, start, prefix)? };
        if exact > 0 {
            let elements = exact * self.codec.layout.features();
            let (to, function) = (start + prefix as u64, &self.codec.functions.take_exact);
            let (first, count, words) = (first_exact as u32, exact as u32, elements as u32);
            // SAFETY: the tokens lie in the view's pages, the payload has room for four bytes an element.
            unsafe { launch!(self.stream, function, threads(elements, 2), kv, first, count, words, to) }?;
        }
        Ok(())
    }

    /// Deflates the payload and puts the chunk together.
    fn finish(&mut self, header: &ChunkHeader, payload: Payload, mut breaks: Vec<usize>) -> Result<Vec<u8>> {
        self.watch.mark(&self.codec.device, &self.stream, "lay_out_ms")?;
        breaks.dedup();
        breaks.retain(|&at| at > 0 && at < payload.bytes);
        self.deflater.deflate(&self.stream, payload, &breaks)?;
        self.watch.mark(&self.codec.device, &self.stream, "deflate_ms")?;
        let coded = self.deflater.download(&self.stream)?;
        let table = size_of_val(coded.ends);
        let mut head = Vec::with_capacity(ChunkHeader::SIZE + table + coded.coded.len() + DIGEST_BYTES);
        header.write_to(&mut head);
        head.put_all(coded.ends, u32::to_le_bytes);
        let mut out = joined(head, coded.coded, DIGEST_BYTES);
        seal(&mut out);
        Ok(out)
    }

    /// Waits for the state that kernels left.
    fn read_state(&mut self) -> gpu::Result<[u32; STATE]> {
        self.host_state.copy_from(&self.stream, STATE, &self.state)?;
        self.stream.synchronize()?;
        let mut state = [0; STATE];
        state.copy_from_slice(&self.host_state.as_slice()?[..STATE]);
        Ok(state)
    }
}

/// Refuses ids that nothing is known of.
pub(super) fn check_ids(ids: &[u32], vocabulary: usize) -> Result<()> {
    match ids.iter().find(|&&id| id as usize >= vocabulary) {
        Some(id) => {
            Err(Error::corrupt("token ids", format!("{id} is outside of the vocabulary of {vocabulary}")))
        }
        None => Ok(()),
    }
}
