//! A chunk of kvtc-paper: sinks, window, body of keys, body of values.
//!
//! A coded window is what kvtc makes of a chunk that holds the window alone: its payload, token ids and all.

use std::ops::Range;

use half::bf16;

use crate::{
    error::{Error, Result},
    exact,
    format::{
        chunk::{ChunkHeader, CodecId},
        segments::SEGMENT_BYTES,
    },
    kvtc::{self, Job, Payload},
    layout::{KvBlock, KvLayout},
    paper::{
        BitGroup,
        body::{self, BodyContext},
        profile::PaperProfile,
        sinks,
    },
    plan::Plan,
    predict::TokenFeatures,
    stages::{quantize::Steps, rope::RopeTable},
    tokens::{Place, Roles, SINKS, Side, WINDOW},
};

/// What both directions need to know about a chunk's sinks and body.
#[derive(Debug)]
struct Frame<'a> {
    layout: &'a KvLayout,
    profile: &'a PaperProfile,
    /// Bit plans of keys and values.
    groups: [&'a [BitGroup]; 2],
    roles: Roles,
    place: Place,
}

impl<'a> Frame<'a> {
    fn new(layout: &'a KvLayout, plan: &'a Plan, place: Place, tier: u8) -> Result<Self> {
        let profile = plan.paper().ok_or(Error::ProfileMissing { codec: "kvtc-paper" })?;
        let plans = profile.keys.plan(tier).zip(profile.values.plan(tier));
        let (keys, values) =
            plans.ok_or_else(|| Error::InvalidArgument(format!("no bit plan for tier {tier}")))?;
        let roles = Roles::of(place, SINKS, WINDOW);
        Ok(Self { layout, profile, groups: [keys, values], roles, place })
    }

    fn sinks_len(&self) -> usize {
        let planes = self.layout.layers * self.layout.kv_heads;
        sinks::len(planes, self.layout.head_dim, self.roles.exact.len())
    }

    /// Bytes of one side's window if it is raw.
    fn raw_window_len(&self) -> usize {
        self.roles.window.len() * self.layout.features() * size_of::<bf16>()
    }

    fn body_len(&self, side: Side) -> usize {
        body::len(self.groups[side as usize], self.roles.body.len())
    }

    fn rope(&self) -> RopeTable {
        RopeTable::new(self.layout, self.place.first_token, self.place.tokens)
    }

    fn body<'b>(&'b self, side: Side, rope: Option<&'b RopeTable>) -> BodyContext<'b> {
        BodyContext {
            layout: self.layout,
            space: &self.profile.side(side).space,
            groups: self.groups[side as usize],
            rope,
            tokens: self.place.tokens,
        }
    }

    fn encode_body(&self, side: Side, rope: Option<&RopeTable>, cache: &[bf16]) -> Result<Payload> {
        let mut out = Payload::default();
        self.body(side, rope).encode(cache, self.roles.body.clone(), &mut out.bytes, &mut out.breaks)?;
        Ok(out)
    }
}

/// Fills in the fields of `header` that are kvtc-paper's, and makes the payload.
///
/// # Errors
/// [`Error::InvalidArgument`] for a value that is not finite, unless it lies in a raw window; [`Error::FeaturesMissing`] for a coded one
/// when the plan predicts caches and the encoder was not told how.
pub(crate) fn encode(
    job: &Job<'_>,
    is_window_coded: bool,
    header: ChunkHeader,
) -> Result<(ChunkHeader, Payload)> {
    let frame = Frame::new(job.layout, job.plan, job.place, job.tier)?;
    let (block, head_dim) = (job.block, job.layout.head_dim);
    let sides = [block.keys.as_slice(), &block.values];
    let mut payload = Payload::default();
    sinks::write(sides, block.tokens, head_dim, frame.roles.exact.clone(), &mut payload.bytes)?;
    payload.breaks.push(payload.bytes.len());
    let header = ChunkHeader {
        codec: CodecId::KvtcPaper,
        is_window_coded,
        plan: job.plan.id(),
        sinks: SINKS,
        window: WINDOW,
        tier: job.tier,
        segment_bytes: SEGMENT_BYTES,
        ..header
    };
    let header = if is_window_coded {
        encode_window(job, &frame.roles, header, &mut payload)?
    } else {
        for cache in sides {
            let range = frame.roles.window.clone();
            exact::write(cache, block.tokens, head_dim, range, &mut payload.bytes, &mut payload.breaks);
        }
        header
    };
    let rope = frame.rope();
    let (keys, values) = rayon::join(
        || frame.encode_body(Side::Keys, Some(&rope), &block.keys),
        || frame.encode_body(Side::Values, None, &block.values),
    );
    append(&mut payload, keys?);
    append(&mut payload, values?);
    Ok((header, payload))
}

/// Appends the window as kvtc codes it; the header takes its steps and escapes. The body has no steps.
fn encode_window(
    job: &Job<'_>,
    roles: &Roles,
    header: ChunkHeader,
    payload: &mut Payload,
) -> Result<ChunkHeader> {
    let (profile, range) = (job.plan.kvtc(), roles.window.clone());
    let steps = Steps { keys: 0, values: 0, ..profile.steps(job.tier) };
    let header = ChunkHeader { window_tier: profile.window_tier(job.tier), steps, ..header };
    if range.is_empty() {
        return Ok(header);
    }
    let first_token = job.place.first_token + range.start;
    let cut = |cache: &[bf16]| cut(cache, job.block.tokens, job.layout.head_dim, range.clone());
    let tokens = range.len();
    let block = &KvBlock { first_token, tokens, keys: cut(&job.block.keys), values: cut(&job.block.values) };
    let mut elements = block.keys.iter().zip(&block.values);
    if let Some(at) = elements.position(|(key, value)| !(key.is_finite() && value.is_finite())) {
        return Err(Error::not_finite(range.start + at / job.layout.head_dim % tokens));
    }
    let place = Place { first_token, tokens, ..job.place };
    let (coded, window) = kvtc::encode(&Job { place, block, shifts: None, ..*job }, header.clone())?;
    append(payload, window);
    Ok(ChunkHeader { key_escapes: coded.key_escapes, value_escapes: coded.value_escapes, ..header })
}

/// Tokens `range` of one side's cache.
fn cut(cache: &[bf16], tokens: usize, head_dim: usize, range: Range<usize>) -> Vec<bf16> {
    let planes = cache.chunks_exact(tokens * head_dim);
    planes.flat_map(|plane| &plane[range.start * head_dim..range.end * head_dim]).copied().collect()
}

/// The mirror of [`cut`].
fn paste(part: &[bf16], tokens: usize, head_dim: usize, range: Range<usize>, cache: &mut [bf16]) {
    let planes = cache.chunks_exact_mut(tokens * head_dim);
    for (plane, part) in planes.zip(part.chunks_exact(range.len() * head_dim)) {
        plane[range.start * head_dim..range.end * head_dim].copy_from_slice(part);
    }
}

fn append(payload: &mut Payload, part: Payload) {
    let start = payload.bytes.len();
    payload.bytes.extend(part.bytes);
    payload.breaks.extend(part.breaks.iter().map(|at| start + at));
    payload.breaks.push(payload.bytes.len());
}

/// A chunk whose header is read and whose payload is not.
#[derive(Debug)]
pub(crate) struct Parts<'a> {
    frame: Frame<'a>,
    plan: &'a Plan,
    header: &'a ChunkHeader,
}

impl<'a> Parts<'a> {
    /// # Errors
    /// [`Error::ProfileMissing`], or [`Error::InvalidArgument`] for a tier without a bit plan.
    pub(crate) fn of(header: &'a ChunkHeader, plan: &'a Plan, layout: &'a KvLayout) -> Result<Self> {
        Ok(Self { frame: Frame::new(layout, plan, header.place(), header.tier)?, plan, header })
    }

    /// The header of a kvtc chunk that holds the coded window alone, if there is such a window.
    ///
    /// # Errors
    /// [`Error::Corrupt`] for a payload without room for sinks and body, or escapes without a window.
    pub(crate) fn window_header(&self) -> Result<Option<ChunkHeader>> {
        let (header, window) = (self.header, &self.frame.roles.window);
        if !header.is_window_coded {
            return Ok(None);
        }
        let least = (self.frame.sinks_len() + self.bodies_len()) as u64;
        let rest = header.payload_bytes.checked_sub(least);
        let payload_bytes = rest.ok_or_else(|| {
            let got = header.payload_bytes;
            Error::corrupt("chunk header", format!("payload of {got} bytes, its counts give {least} or more"))
        })?;
        if window.is_empty() {
            let is_clean = (header.key_escapes, header.value_escapes) == (0, 0);
            return match is_clean {
                true => Ok(None),
                false => Err(Error::corrupt("chunk header", "escapes in a chunk without window tokens")),
            };
        }
        Ok(Some(ChunkHeader {
            codec: CodecId::Kvtc,
            is_window_coded: false,
            first_token: header.first_token + window.start as u32,
            tokens: window.len() as u32,
            sinks: self.plan.kvtc().sinks,
            window: WINDOW,
            payload_bytes,
            ..header.clone()
        }))
    }

    fn bodies_len(&self) -> usize {
        self.frame.body_len(Side::Keys) + self.frame.body_len(Side::Values)
    }

    /// Bytes of the payload, as far as they follow from the header. What a coded window takes is checked when it is decoded.
    pub(crate) fn payload_len(&self) -> Result<usize> {
        let window = match self.window_header()? {
            Some(header) => {
                let features = self.frame.layout.features();
                let parts = kvtc::Parts::of(&header, self.plan.kvtc(), features)?;
                let refused = |_| {
                    let ChunkHeader { payload_bytes, key_escapes, value_escapes, .. } = self.header;
                    let tokens = header.tokens;
                    let detail = format!(
                        "payload of {payload_bytes} bytes with {key_escapes} and {value_escapes} escapes in {tokens} window tokens"
                    );
                    Error::corrupt("chunk header", detail)
                };
                parts.check_payload(&header, features).map_err(refused)?
            }
            None if self.header.is_window_coded => 0,
            None => 2 * self.frame.raw_window_len(),
        };
        Ok(self.frame.sinks_len() + window + self.bodies_len())
    }

    /// A payload, of the length that [`Self::payload_len`] gives, to a block; the mirror of [`encode`].
    pub(crate) fn decode(&self, features: Option<&dyn TokenFeatures>, payload: &[u8]) -> Result<KvBlock> {
        let Frame { layout, roles, place, .. } = &self.frame;
        let (sinks, rest) = payload.split_at(self.frame.sinks_len());
        let (window, bodies) = rest.split_at(rest.len() - self.bodies_len());
        let (key_body, value_body) = bodies.split_at(self.frame.body_len(Side::Keys));
        let rope = self.frame.rope();
        let decode = |side: Side, rope: Option<&RopeTable>, bytes: &[u8]| {
            let mut cache = vec![bf16::ZERO; place.tokens * layout.features()];
            self.frame.body(side, rope).decode(bytes, roles.body.clone(), &mut cache).map(|()| cache)
        };
        let (keys, values) = rayon::join(
            || decode(Side::Keys, Some(&rope), key_body),
            || decode(Side::Values, None, value_body),
        );
        let mut block =
            KvBlock { first_token: place.first_token, tokens: place.tokens, keys: keys?, values: values? };
        let sides = [block.keys.as_mut_slice(), &mut block.values];
        sinks::restore(sinks, place.tokens, layout.head_dim, roles.exact.clone(), sides)?;
        self.decode_window(features, window, &mut block)?;
        Ok(block)
    }

    fn decode_window(
        &self,
        features: Option<&dyn TokenFeatures>,
        bytes: &[u8],
        block: &mut KvBlock,
    ) -> Result<()> {
        let (layout, range) = (self.frame.layout, &self.frame.roles.window);
        let (tokens, head_dim) = (block.tokens, layout.head_dim);
        if let Some(header) = self.window_header()? {
            let profile = self.plan.kvtc();
            let parts = kvtc::Parts::of(&header, profile, layout.features())?;
            let window = kvtc::decode(&header, (profile, &parts), layout, features, None, bytes)?;
            paste(&window.keys, tokens, head_dim, range.clone(), &mut block.keys);
            paste(&window.values, tokens, head_dim, range.clone(), &mut block.values);
            return Ok(());
        }
        let (keys, values) = bytes.split_at(bytes.len() / 2);
        exact::restore(keys, tokens, head_dim, range.clone(), &mut block.keys);
        exact::restore(values, tokens, head_dim, range.clone(), &mut block.values);
        Ok(())
    }
}
