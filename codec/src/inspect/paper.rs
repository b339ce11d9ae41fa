//! What is special to kvtc-paper in a chunk and in a plan.

use half::bf16;

use crate::{
    coding::PAPER_TIERS,
    error::Result,
    format::{bytes::Reader, chunk::ChunkHeader},
    inspect::{
        Part, Value,
        chunk::{Head, kvtc_parts},
        plan::space_parts,
    },
    paper::{
        BitGroup, GroupType, SIDE_BITS,
        body::{coded, codes_len},
        chunk::Parts,
        profile::PaperProfile,
    },
    plan::Plan,
};

/// Roles and tiers of a profile; the count before a bit plan; a group.
const HEADER_BYTES: u64 = 8;
const COUNT_BYTES: u64 = 4;
const GROUP_BYTES: u64 = 2;

/// What its header says beyond what every header does.
pub(super) fn fields(header: &ChunkHeader) -> Vec<(&'static str, Value)> {
    let ChunkHeader { plan, tier, window_tier, steps, .. } = header;
    let mut fields = vec![("plan", Value::Text(plan.to_string())), ("tier", (*tier).into())];
    if header.is_window_coded {
        fields.extend([
            ("window_tier", (*window_tier).into()),
            ("window_key_step", steps.window_keys.into()),
            ("window_value_step", steps.window_values.into()),
        ]);
    }
    fields
}

/// The payload's parts in order.
pub(super) fn parts(head: &Head, plan: Option<&Plan>, rest: &Reader<'_>) -> Result<Vec<Part>> {
    let mut parts = sink_parts(head);
    if !head.header.is_window_coded {
        let tokens = head.roles.window.len() as u64;
        let bytes = tokens * head.features() * size_of::<bf16>() as u64;
        parts.extend(["window keys", "window values"].map(|name| Part::plain(name, bytes).counted(tokens)));
    }
    let known: u64 = parts.iter().map(|part| part.inflated).sum();
    let own = head.own_plan(plan);
    let plans = own.and_then(|own| own.paper_allocation(head.header.tier));
    let (Some(own), Some((keys, values))) = (own, plans) else {
        let bytes = head.header.payload_bytes.saturating_sub(known);
        let name = "codes, shifts and scales (name the plan to see them by type)";
        parts.push(Part::plain(name, bytes));
        return Ok(parts);
    };
    if let Some(window) = Parts::of(&head.header, own, own.layout())?.window_header()? {
        let window = kvtc_parts(&Head::of(window), &[], Some(own), rest)?;
        let window = window.into_iter().filter(|part| part.inflated > 0);
        parts.extend(window.map(|part| Part { name: format!("window {}", part.name), ..part }));
    }
    parts.extend(body_parts("key", keys, head.roles.body.len()));
    parts.extend(body_parts("value", values, head.roles.body.len()));
    Ok(parts)
}

fn sink_parts(head: &Head) -> Vec<Part> {
    let heads = head.planes() * head.roles.exact.len() as u64;
    let codes = heads * u64::from(head.header.head_dim);
    ["sink key codes", "sink value codes"]
        .map(|name| Part::plain(name, codes).counted(codes))
        .into_iter()
        .chain(["sink key scales", "sink value scales"].map(|name| Part::plain(name, heads).counted(heads)))
        .collect()
}

/// Codes by type (a part for each stretch of groups of one type), then shifts and scales.
fn body_parts(side: &str, groups: &[BitGroup], tokens: usize) -> Vec<Part> {
    let groups: Vec<&BitGroup> = coded(groups).collect();
    let stretches = groups.chunk_by(|a, b| a.kind == b.kind).map(|stretch| {
        let kind = match stretch[0].kind {
            GroupType::Drop => "dropped",
            GroupType::Int2 => "int2",
            GroupType::Int4 => "int4",
            GroupType::Fp8 => "fp8",
        };
        let bytes: usize = stretch.iter().map(|group| codes_len(group, tokens)).sum();
        let codes: usize = stretch.iter().map(|group| group.size * tokens).sum();
        Part::plain(format!("{side} {kind} codes"), bytes as u64).counted(codes as u64)
    });
    let count = groups.len() * tokens;
    let sides = ["shifts", "scales"].map(|name| {
        let bytes = count * SIDE_BITS / 8 / 2;
        Part::plain(format!("{side} {name}"), bytes as u64).counted(count as u64)
    });
    stretches.chain(sides).collect()
}

/// A profile's parts in order.
pub(super) fn profile_parts(profile: &PaperProfile) -> Vec<Part> {
    let mut parts = vec![Part::plain("kvtc-paper header", HEADER_BYTES)];
    for (side, tables) in [("key", &profile.keys), ("value", &profile.values)] {
        parts.extend(space_parts("kvtc-paper", side, &tables.space));
        for (tier, groups) in PAPER_TIERS.iter().zip(&tables.groups) {
            let count = groups.len() as u64;
            let name = format!("kvtc-paper {side} groups of tier {tier}");
            parts.push(Part::plain(name, COUNT_BYTES + GROUP_BYTES * count).counted(count));
        }
    }
    parts
}
