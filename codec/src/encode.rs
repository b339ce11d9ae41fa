//! The encoder: start reading here. [`Encoder::encode`] is the pipeline, one stage per line; [`crate::Decoder`] is its mirror.

use std::sync::Arc;

use half::bf16;

use crate::{
    coding::{CodecKind, Coding},
    error::{Error, Result},
    exact,
    format::{
        bytes::Write,
        chunk::{ChunkHeader, CodecId},
        digest::{DIGEST_BYTES, seal},
        segments::{self, SEGMENT_BYTES},
    },
    kvtc,
    layout::{KvBlock, KvLayout},
    paper,
    plan::{Plan, PlanId},
    planes::{fp8, lossless},
    predict::TokenFeatures,
    stages::{deflate::deflate, quantize::Steps},
    tokens::{Place, Roles, SHIFTS, SINKS},
};

/// Turns stretches of one prompt's cache into chunks.
#[derive(Debug, Clone)]
pub struct Encoder {
    layout: KvLayout,
    model: [u8; 16],
    plan: Option<Arc<Plan>>,
    coding: Coding,
    prompt_tokens: usize,
    known: Option<Known>,
}

/// What the other end knows of the prompt as well.
#[derive(Debug, Clone)]
struct Known {
    features: Arc<dyn TokenFeatures>,
    ids: Arc<[u32]>,
}

impl Encoder {
    /// An encoder for a prompt of `prompt_tokens` tokens.
    ///
    /// # Errors
    /// [`Error::PlanMissing`] when the codec needs a plan, [`Error::ModelMismatch`] or [`Error::LayoutMismatch`] when it is
    /// for another model, [`Error::ProfileMissing`] when it lacks the codec's tables, [`Error::InvalidArgument`] for a bad layout or a
    /// tier that the codec does not have ([`CodecKind::tiers`]).
    pub fn new(
        layout: KvLayout,
        model_fingerprint: [u8; 16],
        plan: Option<Arc<Plan>>,
        coding: Coding,
        prompt_tokens: usize,
    ) -> Result<Self> {
        layout.validate()?;
        if coding.kind.needs_plan() {
            let plan = plan.as_ref().ok_or_else(|| Error::PlanMissing { codec: coding.kind.name() })?;
            plan.check(&layout, model_fingerprint)?;
            if !plan.supports(coding.kind) {
                return Err(Error::ProfileMissing { codec: coding.kind.name() });
            }
            coding.kind.check_tier(coding.tier)?;
        }
        if u32::try_from(prompt_tokens).is_err() {
            return Err(Error::InvalidArgument(format!("a prompt of {prompt_tokens} tokens")));
        }
        Ok(Self { layout, model: model_fingerprint, plan, coding, prompt_tokens, known: None })
    }

    /// Tells the encoder what the decoder knows too: the prompt's token ids and what the model knows of a token by its id. A plan with a
    /// predictor needs it; others and the other codecs ignore it.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when there are not as many ids as tokens in the prompt.
    pub fn predicting(self, features: Arc<dyn TokenFeatures>, ids: Arc<[u32]>) -> Result<Self> {
        if ids.len() != self.prompt_tokens {
            let (got, expected) = (ids.len(), self.prompt_tokens);
            return Err(Error::InvalidArgument(format!("{got} token ids for a prompt of {expected} tokens")));
        }
        Ok(Self { known: Some(Known { features, ids }), ..self })
    }

    /// Encodes a block as one self-contained chunk. The same block gives the same bytes on every run.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when the block does not fit layout or prompt, or holds a value that is not finite (kvtc, fp8).
    pub fn encode(&self, block: &KvBlock) -> Result<Vec<u8>> {
        self.encode_with_shifts(block, None)
    }

    /// As [`Self::encode`], with another step per token: `shifts[t]`, one of [`SHIFTS`], multiplies the step of the block's token t by
    /// 2^(shift / 3), the window's tokens included. Exact tokens ignore theirs; the other codecs ignore all.
    ///
    /// # Errors
    /// As [`Self::encode`], and [`Error::InvalidArgument`] for a wrong number of shifts or one out of range.
    pub fn encode_with_shifts(&self, block: &KvBlock, shifts: Option<&[i8]>) -> Result<Vec<u8>> {
        self.check(block, shifts)?;
        match (self.coding.kind, &self.plan) {
            (CodecKind::Raw, _) => Ok(self.encode_raw(block)),
            (CodecKind::Lossless, _) => self.encode_lossless(block),
            (CodecKind::Fp8, _) => self.encode_fp8(block),
            (CodecKind::Kvtc, Some(plan)) => self.encode_kvtc(plan, block, shifts),
            (CodecKind::KvtcPaper | CodecKind::KvtcPaperCodedWindow, Some(plan)) => {
                self.encode_paper(plan, block)
            }
            (kind, None) => Err(Error::PlanMissing { codec: kind.name() }),
        }
    }

    fn check(&self, block: &KvBlock, shifts: Option<&[i8]>) -> Result<()> {
        block.validate(&self.layout)?;
        self.check_place(block.first_token, block.tokens, shifts)
    }

    /// Refuses tokens that the prompt does not have, and shifts that are not theirs.
    pub(crate) fn check_place(&self, first_token: usize, tokens: usize, shifts: Option<&[i8]>) -> Result<()> {
        let end = first_token.checked_add(tokens);
        if tokens == 0 || end.is_none_or(|end| end > self.prompt_tokens) {
            return Err(Error::InvalidArgument(format!(
                "a block of {tokens} tokens from {first_token} in a prompt of {}",
                self.prompt_tokens
            )));
        }
        let Some(shifts) = shifts else { return Ok(()) };
        if shifts.len() != tokens {
            let count = shifts.len();
            return Err(Error::InvalidArgument(format!("{count} shifts for {tokens} tokens")));
        }
        match shifts.iter().find(|shift| !SHIFTS.contains(shift)) {
            Some(shift) => Err(Error::InvalidArgument(format!(
                "shift {shift} is outside {} to {}",
                SHIFTS.start(),
                SHIFTS.end()
            ))),
            None => Ok(()),
        }
    }

    fn encode_raw(&self, block: &KvBlock) -> Vec<u8> {
        let mut header = self.header(self.place(block));
        header.payload_bytes = (block.tokens * self.layout.bytes_per_token()) as u64;
        let mut out = Vec::with_capacity(ChunkHeader::SIZE + header.payload_bytes as usize + DIGEST_BYTES);
        header.write_to(&mut out);
        out.put_all(&block.keys, bf16::to_le_bytes);
        out.put_all(&block.values, bf16::to_le_bytes);
        seal(&mut out);
        out
    }

    fn encode_lossless(&self, block: &KvBlock) -> Result<Vec<u8>> {
        let payload = lossless::encode(&self.layout, block.tokens, [&block.keys, &block.values]);
        let header = ChunkHeader {
            codec: CodecId::Lossless,
            key_escapes: payload.wide[0],
            value_escapes: payload.wide[1],
            segment_bytes: SEGMENT_BYTES,
            ..self.header(self.place(block))
        };
        write_chunk(header, &payload.bytes, &payload.breaks)
    }

    fn encode_fp8(&self, block: &KvBlock) -> Result<Vec<u8>> {
        let exact = Roles::of(self.place(block), SINKS, 0).exact.end;
        let coded = fp8::encode(&self.layout, block.tokens, exact, [&block.keys, &block.values])?;
        let header = ChunkHeader {
            codec: CodecId::Fp8,
            sinks: SINKS,
            segment_bytes: SEGMENT_BYTES,
            ..self.header(self.place(block))
        };
        let (mut payload, mut breaks) = exact_planes(block, exact, self.layout.head_dim);
        breaks.extend(coded.breaks.iter().map(|at| payload.len() + at));
        payload.extend_from_slice(&coded.bytes);
        write_chunk(header, &payload, &breaks)
    }

    fn place(&self, block: &KvBlock) -> Place {
        Place { first_token: block.first_token, tokens: block.tokens, prompt_tokens: self.prompt_tokens }
    }

    fn encode_kvtc(&self, plan: &Plan, block: &KvBlock, shifts: Option<&[i8]>) -> Result<Vec<u8>> {
        let (header, payload) = kvtc::encode(&self.job(plan, block, shifts), self.header(self.place(block)))?;
        write_chunk(header, &payload.bytes, &payload.breaks)
    }

    /// A block as a kvtc encoder looks at it, with the header it fills in: for stages to be run alone.
    pub(crate) fn stages_of<'a>(
        &'a self,
        block: &'a KvBlock,
        shifts: Option<&'a [i8]>,
    ) -> Result<(kvtc::Job<'a>, ChunkHeader)> {
        self.check(block, shifts)?;
        let codec = self.coding.kind.name();
        match (self.coding.kind, &self.plan) {
            (CodecKind::Kvtc, Some(plan)) => {
                Ok((self.job(plan, block, shifts), self.header(self.place(block))))
            }
            _ => Err(Error::InvalidArgument(format!("{codec} has no stages to be run alone"))),
        }
    }

    fn encode_paper(&self, plan: &Plan, block: &KvBlock) -> Result<Vec<u8>> {
        let is_window_coded = self.coding.kind == CodecKind::KvtcPaperCodedWindow;
        let job = self.job(plan, block, None);
        let (header, payload) = paper::chunk::encode(&job, is_window_coded, self.header(self.place(block)))?;
        write_chunk(header, &payload.bytes, &payload.breaks)
    }

    fn job<'a>(&'a self, plan: &'a Plan, block: &'a KvBlock, shifts: Option<&'a [i8]>) -> kvtc::Job<'a> {
        let known = self.known.as_ref().map(|known| (known.features.as_ref(), known.ids.as_ref()));
        let (layout, tier, place) = (&self.layout, self.coding.tier, self.place(block));
        kvtc::Job { layout, plan, tier, place, block, shifts, known }
    }

    /// The fields that every codec fills; the others as raw has them.
    pub(crate) fn header(&self, place: Place) -> ChunkHeader {
        ChunkHeader {
            codec: CodecId::Raw,
            has_shifts: false,
            is_window_coded: false,
            has_token_shifts: false,
            starts_with_first: false,
            model: self.model,
            plan: PlanId::NONE,
            first_token: place.first_token as u32,
            tokens: place.tokens as u32,
            prompt_tokens: place.prompt_tokens as u32,
            layers: self.layout.layers as u16,
            kv_heads: self.layout.kv_heads as u16,
            head_dim: self.layout.head_dim as u16,
            sinks: 0,
            window: 0,
            tier: 0,
            window_tier: 0,
            steps: Steps::default(),
            key_escapes: 0,
            value_escapes: 0,
            segment_bytes: 0,
            payload_bytes: 0,
        }
    }
}

/// The first `count` tokens of a block, keys then values; and where their parts end.
fn exact_planes(block: &KvBlock, count: usize, head_dim: usize) -> (Vec<u8>, Vec<usize>) {
    let (mut out, mut breaks) = (Vec::new(), Vec::new());
    for cache in [&block.keys, &block.values] {
        exact::write(cache, block.tokens, head_dim, 0..count, &mut out, &mut breaks);
    }
    (out, breaks)
}

pub(crate) fn write_chunk(mut header: ChunkHeader, payload: &[u8], breaks: &[usize]) -> Result<Vec<u8>> {
    header.payload_bytes = payload.len() as u64;
    let segments = deflate(payload, breaks, header.segment_bytes as usize);
    let mut out = Vec::new();
    header.write_to(&mut out);
    segments::write(&segments, &mut out)?;
    seal(&mut out);
    Ok(out)
}
