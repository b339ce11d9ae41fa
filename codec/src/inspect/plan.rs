//! A plan's fields and parts.

use crate::{
    error::{Result, hex},
    format::{bytes::Reader, chunk::CodecId, digest::DIGEST_BYTES},
    inspect::{Item, Part, Value, paper},
    plan::{Plan, space::Space},
};

/// Magic, version, model, layout and number of profiles.
const HEADER_BYTES: u64 = 32;
/// Codec and length before each profile.
const PROFILE_HEADER_BYTES: u64 = 8;
/// Roles and counts of a kvtc profile; an entry of its tier table.
const KVTC_HEADER_BYTES: u64 = 8;
const TIER_BYTES: u64 = 6;
/// Counts and flags of a space; a class table.
const SPACE_HEADER_BYTES: u64 = 8;
const CLASS_BYTES: u64 = 36;

/// A plan that fills `bytes`.
pub(super) fn item(bytes: &[u8]) -> Result<Item> {
    let plan = Plan::from_bytes(bytes)?;
    let frequencies = plan.layout().inv_freq.len() as u64;
    let mut parts = vec![
        Part::plain("header", HEADER_BYTES),
        Part::plain("RoPE frequencies", 4 * frequencies).counted(frequencies),
    ];
    let content = &bytes[..bytes.len() - DIGEST_BYTES];
    let mut reader = Reader::new("plan", content);
    reader.take((HEADER_BYTES + 4 * frequencies) as usize)?;
    while reader.remaining() > 0 {
        let codec = reader.u8()?;
        reader.zeros(3)?;
        let len = reader.u32()?;
        reader.take(len as usize)?;
        parts.push(Part::plain("profile header", PROFILE_HEADER_BYTES));
        let paper = plan.paper().filter(|_| codec == CodecId::KvtcPaper as u8);
        if codec == CodecId::Kvtc as u8 {
            parts.extend(kvtc_parts(&plan));
        } else if let Some(paper) = paper {
            parts.extend(paper::profile_parts(paper));
        } else {
            parts.push(Part::plain(format!("profile of codec {codec}"), len.into()));
        }
    }
    parts.push(Part::plain("digest", DIGEST_BYTES as u64));
    Ok(Item { what: "plan", fields: fields(&plan), parts })
}

fn fields(plan: &Plan) -> Vec<(&'static str, Value)> {
    let (layout, kvtc) = (plan.layout(), plan.kvtc());
    let number = |n: usize| Value::Number(n as i64);
    let (first, last) = (plan.tiers().first(), plan.tiers().last());
    let tier = |steps: Option<&crate::TierSteps>| steps.map_or(0, |steps| steps.tier).into();
    vec![
        ("id", Value::Text(plan.id().to_string())),
        ("model", Value::Text(hex(&plan.model_fingerprint()))),
        ("layers", number(layout.layers)),
        ("kv_heads", number(layout.kv_heads)),
        ("head_dim", number(layout.head_dim)),
        ("key_components", number(kvtc.keys.log_sigma.len())),
        ("value_components", number(kvtc.values.log_sigma.len())),
        ("window_tier", kvtc.window_tier.into()),
        ("first_tier", tier(first)),
        ("last_tier", tier(last)),
        ("has_kvtc_paper", i64::from(plan.paper().is_some()).into()),
        ("is_weighted", i64::from(kvtc.keys.weights.is_some()).into()),
    ]
}

fn kvtc_parts(plan: &Plan) -> Vec<Part> {
    let (kvtc, tiers) = (plan.kvtc(), plan.tiers().len() as u64);
    let mut parts = vec![
        Part::plain("kvtc header", KVTC_HEADER_BYTES),
        Part::plain("kvtc tier table", TIER_BYTES * tiers).counted(tiers),
    ];
    parts.extend(space_parts("kvtc", "key", &kvtc.keys));
    parts.extend(space_parts("kvtc", "value", &kvtc.values));
    let features = plan.layout().features();
    if let Some(table) = &kvtc.shifted_tiers {
        let entries = table.0.len() as u64;
        parts.push(Part::plain("kvtc shifted tier table", 4 + TIER_BYTES * entries).counted(entries));
    }
    if let Some(predictor) = &kvtc.predictor {
        let part = Part::plain("kvtc predictor", predictor.encoded_len(features) as u64);
        parts.push(part.counted(predictor.inputs() as u64));
    }
    if kvtc.first.is_some() {
        parts.push(Part::plain("kvtc first row", 4 + 4 * features as u64).counted(1));
    }
    if let Some(weights) = &kvtc.layer_weights {
        parts.push(Part::plain("kvtc layer weights", 4 * weights.len() as u64).counted(weights.len() as u64));
    }
    parts
}

pub(super) fn space_parts(codec: &str, side: &str, space: &Space) -> Vec<Part> {
    let part = |name: &str, count: usize, each: u64| {
        Part::plain(format!("{codec} {side} {name}"), count as u64 * each).counted(count as u64)
    };
    let mut parts = vec![
        Part::plain(format!("{codec} {side} header"), SPACE_HEADER_BYTES),
        part("class tables", space.classes.tables.len(), CLASS_BYTES),
        part("mean", space.mean.len(), 4),
    ];
    parts.extend(space.weights.as_ref().map(|weights| part("weights", weights.len(), 4)));
    parts.push(part("standard deviations", space.log_sigma.len(), 2));
    let basis =
        Part::plain(format!("{codec} {side} basis"), space.basis.encoded_len(space.mean.len()) as u64);
    parts.push(basis.counted(space.log_sigma.len() as u64));
    parts
}
