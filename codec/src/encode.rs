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
    layout::{KvBlock, KvLayout},
    paper::chunk::{PaperChunk, Window, window_steps},
    plan::{KvtcProfile, Plan, PlanId},
    planes::{fp8, lossless},
    side::{SideBytes, SideContext},
    stages::{deflate::deflate, order::Order, quantize::Steps, rope::RopeTable},
    tokens::{Place, Roles, SHIFTS, SINKS, Side, WINDOW, groups, pack_shifts},
};

/// Turns stretches of one prompt's cache into chunks.
#[derive(Debug, Clone)]
pub struct Encoder {
    layout: KvLayout,
    model: [u8; 16],
    plan: Option<Arc<Plan>>,
    coding: Coding,
    prompt_tokens: usize,
}

impl Encoder {
    /// An encoder for a prompt of `prompt_tokens` tokens.
    ///
    /// # Errors
    /// [`Error::PlanMissing`] when the codec needs a plan, [`Error::ModelMismatch`] or [`Error::LayoutMismatch`] when it is
    /// for another model, [`Error::ProfileMissing`] when it lacks the codec's tables, [`Error::InvalidArgument`] for a bad layout or a tier
    /// that the codec does not have ([`CodecKind::tiers`]).
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
        Ok(Self { layout, model: model_fingerprint, plan, coding, prompt_tokens })
    }

    /// Encodes a block as one self-contained chunk. The same block gives the same bytes on every run.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when the block does not fit layout or prompt, or holds a value that is not finite (kvtc, fp8).
    pub fn encode(&self, block: &KvBlock) -> Result<Vec<u8>> {
        self.encode_with_shifts(block, None)
    }

    /// As [`Self::encode`], with another step per token: `shifts[t]`, from -8 to 7, multiplies the step of the block's token t by
    /// 2^(shift / 3). Sinks and window tokens ignore theirs; the other codecs ignore all.
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
        let end = block.first_token.checked_add(block.tokens);
        if block.tokens == 0 || end.is_none_or(|end| end > self.prompt_tokens) {
            return Err(Error::InvalidArgument(format!(
                "a block of {} tokens from {} in a prompt of {}",
                block.tokens, block.first_token, self.prompt_tokens
            )));
        }
        let Some(shifts) = shifts else { return Ok(()) };
        if shifts.len() != block.tokens {
            let count = shifts.len();
            return Err(Error::InvalidArgument(format!("{count} shifts for {} tokens", block.tokens)));
        }
        match shifts.iter().find(|shift| !SHIFTS.contains(shift)) {
            Some(shift) => Err(Error::InvalidArgument(format!("shift {shift} is outside -8 to 7"))),
            None => Ok(()),
        }
    }

    fn encode_raw(&self, block: &KvBlock) -> Vec<u8> {
        let mut header = self.header(block);
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
            ..self.header(block)
        };
        write_chunk(header, &[], &payload.bytes, &payload.breaks)
    }

    fn encode_fp8(&self, block: &KvBlock) -> Result<Vec<u8>> {
        let exact = Roles::of(self.place(block), SINKS, 0).exact.end;
        let coded = fp8::encode(&self.layout, block.tokens, exact, [&block.keys, &block.values])?;
        let header = ChunkHeader {
            codec: CodecId::Fp8,
            sinks: SINKS,
            segment_bytes: SEGMENT_BYTES,
            ..self.header(block)
        };
        let (mut payload, mut breaks) = exact_planes(block, exact, self.layout.head_dim);
        breaks.extend(coded.breaks.iter().map(|at| payload.len() + at));
        payload.extend_from_slice(&coded.bytes);
        write_chunk(header, &[], &payload, &breaks)
    }

    fn place(&self, block: &KvBlock) -> Place {
        Place { first_token: block.first_token, tokens: block.tokens, prompt_tokens: self.prompt_tokens }
    }

    fn encode_kvtc(&self, plan: &Plan, block: &KvBlock, shifts: Option<&[i8]>) -> Result<Vec<u8>> {
        let profile = plan.kvtc();
        let roles = Roles::of(self.place(block), SINKS, WINDOW);
        let shifts = shifts.map(|shifts| &shifts[roles.body.clone()]);
        let steps = profile.steps(self.coding.tier);
        let (keys, values) = self.encode_sides(profile, &steps, block, &groups(&roles, shifts))?;
        let header = ChunkHeader {
            codec: CodecId::Kvtc,
            has_shifts: shifts.is_some(),
            plan: plan.id(),
            sinks: SINKS,
            window: WINDOW,
            tier: self.coding.tier,
            window_tier: profile.window_tier(self.coding.tier),
            steps,
            key_escapes: keys.escapes as u32,
            value_escapes: values.escapes as u32,
            segment_bytes: SEGMENT_BYTES,
            ..self.header(block)
        };
        let (mut payload, mut breaks) = exact_planes(block, roles.exact.end, self.layout.head_dim);
        for side in [keys, values] {
            breaks.extend(side.breaks.iter().map(|at| payload.len() + at));
            payload.extend_from_slice(&side.bytes);
            breaks.push(payload.len());
        }
        write_chunk(header, shifts.unwrap_or_default(), &payload, &breaks)
    }

    fn encode_sides(
        &self,
        profile: &KvtcProfile,
        steps: &Steps,
        block: &KvBlock,
        groups: &[crate::tokens::Group],
    ) -> Result<(SideBytes, SideBytes)> {
        let rope = RopeTable::new(&self.layout, block.first_token, block.tokens);
        let encode = |side: Side, cache: &[bf16], rope: Option<&RopeTable>| {
            let space = profile.space(side);
            let order = &Order::of(space, side, steps, groups);
            let layout = &self.layout;
            SideContext { layout, space, order, groups, rope, tokens: block.tokens }.encode(cache)
        };
        let (keys, values) = rayon::join(
            || encode(Side::Keys, &block.keys, Some(&rope)),
            || encode(Side::Values, &block.values, None),
        );
        Ok((keys?, values?))
    }

    fn encode_paper(&self, plan: &Plan, block: &KvBlock) -> Result<Vec<u8>> {
        let tier = self.coding.tier;
        let (window, window_tier, steps) = if self.coding.kind == CodecKind::KvtcPaperCodedWindow {
            let steps = window_steps(plan.kvtc(), tier);
            (Window::Coded(plan.kvtc(), steps), plan.kvtc().window_tier(tier), steps)
        } else {
            (Window::Raw, 0, Steps::default())
        };
        let chunk = PaperChunk::new(&self.layout, plan, self.place(block), tier, window)?;
        let payload = chunk.encode([&block.keys, &block.values])?;
        let header = ChunkHeader {
            codec: CodecId::KvtcPaper,
            is_window_coded: matches!(window, Window::Coded(..)),
            plan: plan.id(),
            sinks: SINKS,
            window: WINDOW,
            tier,
            window_tier,
            steps,
            key_escapes: payload.escapes[0],
            value_escapes: payload.escapes[1],
            segment_bytes: SEGMENT_BYTES,
            ..self.header(block)
        };
        write_chunk(header, &[], &payload.bytes, &payload.breaks)
    }

    /// The fields that every codec fills; the others as raw has them.
    fn header(&self, block: &KvBlock) -> ChunkHeader {
        ChunkHeader {
            codec: CodecId::Raw,
            has_shifts: false,
            is_window_coded: false,
            model: self.model,
            plan: PlanId::NONE,
            first_token: block.first_token as u32,
            tokens: block.tokens as u32,
            prompt_tokens: self.prompt_tokens as u32,
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

fn write_chunk(mut header: ChunkHeader, shifts: &[i8], payload: &[u8], breaks: &[usize]) -> Result<Vec<u8>> {
    header.payload_bytes = payload.len() as u64;
    let segments = deflate(payload, breaks, header.segment_bytes as usize);
    let mut out = Vec::new();
    header.write_to(&mut out);
    if header.has_shifts {
        out.extend(pack_shifts(shifts));
    }
    segments::write(&segments, &mut out)?;
    seal(&mut out);
    Ok(out)
}
