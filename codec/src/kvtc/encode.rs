//! A block to a payload.

use std::ops::Range;

use half::bf16;

use crate::{
    error::{Error, Result},
    exact,
    format::{
        chunk::{ChunkHeader, CodecId},
        segments::SEGMENT_BYTES,
    },
    kvtc::known::{Known, begins_with, id_range, sent_exactly, write_ids},
    layout::{KvBlock, KvLayout},
    plan::Plan,
    predict::{Prediction, TokenFeatures},
    side::{SideBytes, SideContext},
    stages::{order::Order, quantize::Steps, rope::RopeTable},
    tokens::{Group, Place, Roles, Shifts, Side, WINDOW, groups},
};

/// One block to be coded.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Job<'a> {
    pub(crate) layout: &'a KvLayout,
    pub(crate) plan: &'a Plan,
    pub(crate) tier: u8,
    pub(crate) place: Place,
    pub(crate) block: &'a KvBlock,
    /// One per token of the block.
    pub(crate) shifts: Option<&'a [i8]>,
    /// Ids of the whole prompt, and what is known of them.
    pub(crate) known: Option<(&'a dyn TokenFeatures, &'a [u32])>,
}

/// A payload on its way: bytes, and where statistics change in them.
#[derive(Debug, Default)]
pub(crate) struct Payload {
    pub(crate) bytes: Vec<u8>,
    pub(crate) breaks: Vec<usize>,
}

impl Payload {
    /// Appends tokens as they are.
    fn push_exact(&mut self, job: &Job<'_>, tokens: Range<usize>) {
        let (count, head_dim) = (job.block.tokens, job.layout.head_dim);
        for cache in [&job.block.keys, &job.block.values] {
            exact::write(cache, count, head_dim, tokens.clone(), &mut self.bytes, &mut self.breaks);
        }
    }

    pub(crate) fn push_side(&mut self, side: &SideBytes) {
        self.breaks.extend(side.breaks.iter().map(|at| self.bytes.len() + at));
        self.bytes.extend_from_slice(&side.bytes);
        self.breaks.push(self.bytes.len());
    }
}

/// Fills in the fields of `header` that are kvtc's, and makes the payload.
pub(crate) fn encode(job: &Job<'_>, header: ChunkHeader) -> Result<(ChunkHeader, Payload)> {
    let profile = job.plan.kvtc();
    let roles = Roles::of(job.place, profile.sinks, WINDOW);
    let shifts = job.shifts.map(|shifts| &shifts[roles.coded()]);
    let mut payload = Payload::default();
    let known = known_of(job, &mut payload)?;
    if let Some(shifts) = shifts {
        payload.bytes.extend(shifts.iter().map(|&shift| shift as u8));
        payload.breaks.push(payload.bytes.len());
    }
    let starts_with_first = starts_with_first(job);
    payload.push_exact(job, sent_exactly(&roles, starts_with_first));
    let steps = profile.steps_of(job.tier, shifts.is_some());
    let groups = groups(&roles, shifts.map_or(Shifts::None, Shifts::All));
    let (keys, values) = sides(job, known.as_ref(), &steps, &groups)?;
    payload.push_side(&keys);
    payload.push_side(&values);
    let header = ChunkHeader {
        starts_with_first,
        key_escapes: keys.escapes as u32,
        value_escapes: values.escapes as u32,
        ..header_of(job.plan, job.tier, shifts.is_some(), header)
    };
    Ok((header, payload))
}

/// The fields of `header` that plan and tier decide.
pub(crate) fn header_of(plan: &Plan, tier: u8, is_shifted: bool, header: ChunkHeader) -> ChunkHeader {
    let profile = plan.kvtc();
    ChunkHeader {
        codec: CodecId::Kvtc,
        has_token_shifts: is_shifted,
        plan: plan.id(),
        sinks: profile.sinks,
        window: WINDOW,
        tier,
        window_tier: if is_shifted { 0 } else { profile.window_tier(tier) },
        steps: profile.steps_of(tier, is_shifted),
        segment_bytes: SEGMENT_BYTES,
        ..header
    }
}

/// Symbols of keys and of values.
fn sides(
    job: &Job<'_>,
    known: Option<&Known<'_>>,
    steps: &Steps,
    groups: &[Group],
) -> Result<(SideBytes, SideBytes)> {
    let rope = RopeTable::new(job.layout, job.block.first_token, job.block.tokens);
    let encode = |side: Side, cache: &[bf16], rope: Option<&RopeTable>| {
        let space = job.plan.kvtc().space(side);
        let prediction = known.map(|known| Prediction::of(known.predictor, side, &known.tokens));
        let order = &Order::of(space, side, steps, groups);
        let (layout, tokens, prediction) = (job.layout, job.block.tokens, prediction.as_ref());
        SideContext { layout, space, order, groups, rope, tokens, prediction }.encode(cache)
    };
    let (keys, values) = rayon::join(
        || encode(Side::Keys, &job.block.keys, Some(&rope)),
        || encode(Side::Values, &job.block.values, None),
    );
    Ok((keys?, values?))
}

/// Writes the ids that the plan's predictor looks at, if it has one.
pub(crate) fn known_of<'a>(job: &Job<'a>, payload: &mut Payload) -> Result<Option<Known<'a>>> {
    let Some(predictor) = &job.plan.kvtc().predictor else { return Ok(None) };
    let (features, ids) = job.known.ok_or(Error::FeaturesMissing)?;
    let ids = &ids[id_range(predictor, &job.place)];
    let known = Known::of(predictor, &job.place, ids, Some(features))?;
    write_ids(ids, predictor.id_bytes, &mut payload.bytes, &mut payload.breaks);
    Ok(Some(known))
}

fn starts_with_first(job: &Job<'_>) -> bool {
    let (Some(first), Some((_, ids))) = (&job.plan.kvtc().first, job.known) else { return false };
    job.plan.kvtc().sinks > 0 && begins_with(first, ids[0], job.block, job.layout.head_dim)
}
