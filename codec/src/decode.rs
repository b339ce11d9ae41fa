//! The decoder: [`crate::Encoder`] backwards, on bytes that nobody vouches for.
//!
//! Identity, counts and lengths are checked before anything is allocated for them, the digest before anything is inflated.

use std::{ops::RangeInclusive, sync::Arc};

use half::bf16;

use crate::{
    coding::{Coding, Limits},
    error::{Error, Result},
    exact,
    format::{
        bytes::Reader,
        chunk::{ChunkHeader, CodecId},
        digest::{split, unseal},
        segments::{self, SEGMENT_BYTES_RANGE},
    },
    kvtc,
    layout::{KvBlock, KvLayout},
    paper,
    plan::{KvtcProfile, Plan, PlanId},
    planes::{fp8, lossless},
    predict::TokenFeatures,
    stages::{deflate::inflate, quantize::Steps},
    tokens::{Roles, SINKS, WINDOW, shift_table_len, unpack_shifts},
};

/// Turns chunks back into stretches of cache.
#[derive(Debug, Clone)]
pub struct Decoder {
    layout: KvLayout,
    model: [u8; 16],
    plan: Option<Arc<Plan>>,
    limits: Limits,
    announced: Option<Coding>,
    features: Option<Arc<dyn TokenFeatures>>,
}

impl Decoder {
    /// A decoder for chunks of one model. Without a plan it reads the codecs that need none.
    ///
    /// # Errors
    /// [`Error::ModelMismatch`] or [`Error::LayoutMismatch`] when the plan is for another model,
    /// [`Error::InvalidArgument`] for a bad layout.
    pub fn new(
        layout: KvLayout,
        model_fingerprint: [u8; 16],
        plan: Option<Arc<Plan>>,
        limits: Limits,
    ) -> Result<Self> {
        layout.validate()?;
        if let Some(plan) = &plan {
            plan.check(&layout, model_fingerprint)?;
        }
        Ok(Self { layout, model: model_fingerprint, plan, limits, announced: None, features: None })
    }

    /// Refuses chunks that are coded otherwise than their sender has announced.
    #[must_use]
    pub fn announced(self, coding: Coding) -> Self {
        Self { announced: Some(coding), ..self }
    }

    /// Tells the decoder what the model knows of a token by its id. Chunks of a plan with a predictor need it.
    #[must_use]
    pub fn predicting(self, features: Arc<dyn TokenFeatures>) -> Self {
        Self { features: Some(features), ..self }
    }

    /// Decodes one chunk.
    ///
    /// # Errors
    /// [`Error::LimitExceeded`], [`Error::Truncated`], [`Error::UnsupportedVersion`], [`Error::UnsupportedCodec`],
    /// [`Error::ModelMismatch`], [`Error::LayoutMismatch`], [`Error::CodingMismatch`], [`Error::PlanMissing`], [`Error::FeaturesMissing`], [`Error::ProfileMissing`], [`Error::PlanMismatch`] or
    /// [`Error::Corrupt`], never a panic, whatever the bytes.
    pub fn decode(&self, bytes: &[u8]) -> Result<KvBlock> {
        let (header, reader) = self.open(bytes)?;
        match (header.codec, &self.plan) {
            (CodecId::Raw, _) => self.decode_raw(&header, reader),
            (CodecId::Lossless, _) => self.decode_lossless(&header, reader),
            (CodecId::Fp8, _) => self.decode_fp8(&header, reader),
            (CodecId::Kvtc, Some(plan)) => self.decode_kvtc(&header, plan.kvtc(), reader),
            (CodecId::KvtcPaper, Some(plan)) => self.decode_paper(&header, plan, reader),
            (CodecId::KvtcPaper | CodecId::Kvtc, None) => {
                Err(Error::PlanMissing { codec: header.kind().name() })
            }
        }
    }

    /// A header that this decoder accepts, and what follows it up to the digest, which is right.
    pub(crate) fn open<'a>(&self, bytes: &'a [u8]) -> Result<(ChunkHeader, Reader<'a>)> {
        let opened = self.open_unverified(bytes)?;
        unseal("chunk", bytes)?;
        Ok(opened)
    }

    /// As [`Self::open`], but the digest is left for the caller to check, with other work under way.
    pub(crate) fn open_unverified<'a>(&self, bytes: &'a [u8]) -> Result<(ChunkHeader, Reader<'a>)> {
        limit("bytes of a chunk", self.limits.max_chunk_bytes, bytes.len() as u64)?;
        let header = ChunkHeader::read_from(&mut Reader::new("chunk", bytes))?;
        self.check(&header)?;
        let mut reader = Reader::new("chunk", split("chunk", bytes)?.0);
        reader.take(ChunkHeader::SIZE)?;
        Ok((header, reader))
    }

    fn check(&self, header: &ChunkHeader) -> Result<()> {
        if header.model != self.model {
            return Err(Error::ModelMismatch { what: "chunk", expected: self.model, got: header.model });
        }
        header.check_layout(&self.layout)?;
        self.check_coding(header)?;
        limit("tokens of a chunk", self.limits.max_tokens, header.tokens.into())?;
        match header.codec {
            CodecId::Kvtc | CodecId::KvtcPaper => self.check_planned(header),
            CodecId::Raw | CodecId::Lossless | CodecId::Fp8 => check_without_plan(header),
        }
    }

    fn check_coding(&self, header: &ChunkHeader) -> Result<()> {
        let got = Coding { kind: header.kind(), tier: header.tier };
        let Some(expected) = self.announced else { return Ok(()) };
        if expected.kind == got.kind && (expected.tier == got.tier || !got.kind.needs_plan()) {
            Ok(())
        } else {
            Err(Error::CodingMismatch { expected, got })
        }
    }

    fn check_planned(&self, header: &ChunkHeader) -> Result<()> {
        let codec = header.kind().name();
        let plan = self.plan.as_ref().ok_or(Error::PlanMissing { codec })?;
        if header.plan != plan.id() {
            return Err(Error::PlanMismatch { expected: plan.id(), got: header.plan });
        }
        if !plan.supports(header.kind()) {
            return Err(Error::ProfileMissing { codec });
        }
        if header.codec == CodecId::KvtcPaper {
            check_paper(header)?;
            return check_roles(header, SINKS, WINDOW, SEGMENT_BYTES_RANGE);
        }
        check_one_step(header)?;
        check_roles(header, plan.kvtc().sinks, WINDOW, SEGMENT_BYTES_RANGE)
    }

    fn decode_lossless(&self, header: &ChunkHeader, reader: Reader<'_>) -> Result<KvBlock> {
        let (first_token, tokens) = (header.first_token as usize, header.tokens as usize);
        let wide = [header.key_escapes, header.value_escapes];
        let planes = self.layout.layers * self.layout.kv_heads;
        if let Some(count) = wide.iter().find(|&&count| count as usize > planes) {
            return Err(Error::corrupt("chunk header", format!("{count} wide planes of {planes}")));
        }
        let len = lossless::payload_len(&self.layout, tokens, wide.iter().sum::<u32>() as usize);
        let payload = read_payload(header, len, reader)?;
        let [keys, values] = lossless::decode(&self.layout, tokens, wide, &payload)?;
        Ok(KvBlock { first_token, tokens, keys, values })
    }

    fn decode_fp8(&self, header: &ChunkHeader, reader: Reader<'_>) -> Result<KvBlock> {
        let (first_token, tokens) = (header.first_token as usize, header.tokens as usize);
        let exact = Roles::of(header.place(), header.sinks, header.window).exact.end;
        let exact_len = exact * self.layout.features() * size_of::<bf16>();
        let len = 2 * exact_len + fp8::payload_len(&self.layout, tokens - exact);
        let payload = read_payload(header, len, reader)?;
        let (exact_bytes, coded) = payload.split_at(2 * exact_len);
        let mut sides = [(); 2].map(|()| vec![bf16::ZERO; tokens * self.layout.features()]);
        for (side, bytes) in sides.iter_mut().zip([&exact_bytes[..exact_len], &exact_bytes[exact_len..]]) {
            exact::restore(bytes, tokens, self.layout.head_dim, 0..exact, side);
        }
        fp8::decode(&self.layout, tokens, exact, coded, &mut sides)?;
        let [keys, values] = sides;
        Ok(KvBlock { first_token, tokens, keys, values })
    }

    fn decode_paper(&self, header: &ChunkHeader, plan: &Plan, reader: Reader<'_>) -> Result<KvBlock> {
        let chunk = paper::chunk::Parts::of(header, plan, &self.layout)?;
        let payload = read_payload(header, chunk.payload_len()?, reader)?;
        chunk.decode(self.features.as_deref(), &payload)
    }

    fn decode_raw(&self, header: &ChunkHeader, mut reader: Reader<'_>) -> Result<KvBlock> {
        let tokens = header.tokens as usize;
        let elements = tokens * self.layout.features();
        check_payload(header, 2 * elements * size_of::<bf16>())?;
        let keys = reader.list(elements, bf16::from_le_bytes)?;
        let values = reader.list(elements, bf16::from_le_bytes)?;
        match reader.remaining() {
            0 => Ok(KvBlock { first_token: header.first_token as usize, tokens, keys, values }),
            extra => Err(Error::corrupt("chunk", format!("{extra} bytes follow the payload"))),
        }
    }

    fn decode_kvtc(
        &self,
        header: &ChunkHeader,
        profile: &KvtcProfile,
        mut reader: Reader<'_>,
    ) -> Result<KvBlock> {
        let parts = kvtc::Parts::of(header, profile, self.layout.features())?;
        let body_shifts = read_shifts(header, &parts.roles, &mut reader)?;
        let len = parts.check_payload(header, self.layout.features())?;
        let payload = read_payload(header, len, reader)?;
        let features = self.features.as_deref();
        kvtc::decode(header, (profile, &parts), &self.layout, features, body_shifts.as_deref(), &payload)
    }
}

fn limit(what: &'static str, limit: usize, got: u64) -> Result<()> {
    if got > limit as u64 { Err(Error::LimitExceeded { what, limit: limit as u64, got }) } else { Ok(()) }
}

/// Fields that mean something in kvtc only must be 0 elsewhere, so that they can get a meaning later.
fn check_without_plan(header: &ChunkHeader) -> Result<()> {
    let escapes = [header.key_escapes, header.value_escapes];
    let is_clean = (header.tier, header.window_tier) == (0, 0)
        && header.steps == Steps::default()
        && header.plan == PlanId::NONE
        && (header.codec == CodecId::Lossless || escapes == [0; 2]);
    if !is_clean {
        let detail = format!("a {} chunk with fields of a kvtc chunk", header.kind());
        return Err(Error::corrupt("chunk header", detail));
    }
    match header.codec {
        CodecId::Raw => check_roles(header, 0, 0, 0..=0),
        CodecId::Lossless => check_roles(header, 0, 0, SEGMENT_BYTES_RANGE),
        CodecId::Fp8 | CodecId::KvtcPaper | CodecId::Kvtc => {
            check_roles(header, SINKS, 0, SEGMENT_BYTES_RANGE)
        }
    }
}

/// Where every token has a shift, the window has no step of its own.
fn check_one_step(header: &ChunkHeader) -> Result<()> {
    let Steps { window_keys, window_values, .. } = header.steps;
    if !header.has_token_shifts || (header.window_tier, window_keys, window_values) == (0, 0, 0) {
        return Ok(());
    }
    Err(Error::corrupt("chunk header", "a window step in a chunk with a shift for every token"))
}

/// The body has no steps and the tier names a bit plan; a raw window has no steps and escapes either.
fn check_paper(header: &ChunkHeader) -> Result<()> {
    let Steps { keys, values, .. } = header.steps;
    let window_fields = (header.window_tier, header.steps, header.key_escapes, header.value_escapes);
    let is_clean =
        (keys, values) == (0, 0) && (header.is_window_coded || window_fields == (0, Steps::default(), 0, 0));
    if !is_clean {
        return Err(Error::corrupt(
            "chunk header",
            format!("a {} chunk with steps or escapes", header.kind()),
        ));
    }
    let known = header.kind().check_tier(header.tier);
    known.map_err(|error| Error::corrupt("chunk header", error.to_string()))
}

fn check_roles(
    header: &ChunkHeader,
    sinks: u16,
    window: u16,
    segment_bytes: RangeInclusive<u32>,
) -> Result<()> {
    let is_right =
        (header.sinks, header.window) == (sinks, window) && segment_bytes.contains(&header.segment_bytes);
    if is_right {
        return Ok(());
    }
    let detail = format!(
        "{} sinks, {} window tokens, segments of {} bytes",
        header.sinks, header.window, header.segment_bytes
    );
    Err(Error::corrupt("chunk header", detail))
}

/// Reads the segments, which end the chunk, and inflates them to `len` bytes.
pub(crate) fn read_payload(header: &ChunkHeader, len: usize, mut reader: Reader<'_>) -> Result<Vec<u8>> {
    check_payload(header, len)?;
    let segment_bytes = header.segment_bytes as usize;
    let segments = segments::read(&mut reader, len, segment_bytes)?;
    let mut payload = vec![0; len];
    inflate(&segments, segment_bytes, &mut payload)?;
    Ok(payload)
}

pub(crate) fn check_payload(header: &ChunkHeader, expected: usize) -> Result<()> {
    if header.payload_bytes == expected as u64 {
        return Ok(());
    }
    let detail = format!("payload of {} bytes, its counts give {expected}", header.payload_bytes);
    Err(Error::corrupt("chunk header", detail))
}

/// The table of shifts between header and segments, if there is one.
pub(crate) fn read_shifts(
    header: &ChunkHeader,
    roles: &Roles,
    reader: &mut Reader<'_>,
) -> Result<Option<Vec<i8>>> {
    if !header.has_shifts {
        return Ok(None);
    }
    let packed = reader.take(shift_table_len(roles.body.len()))?;
    unpack_shifts(packed, roles.body.len()).map(Some)
}
