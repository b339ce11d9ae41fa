//! DEFLATE against the entropy of the symbols.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use codec::{CodecKind, Error, fit::Balance, probe::ideal};
use common::{Predictable, Source, layout};

#[test]
fn deflate_is_within_a_tenth_of_the_entropy_and_not_below() {
    let source = Source::new(layout(4, 2, 16), 128, 5);
    let plan = source.plan(None, Balance::EqualBytes);
    let block = source.block(0, 4_096, 6);
    let shifts: Vec<i8> = (0..4_096).map(|i| (i % 5) as i8 * 3 - 6).collect();
    for tier in [4, 8, 16] {
        let encoder = source.encoder(&plan, tier, 4_096);
        for shifts in [None, Some(&shifts[..])] {
            let chunk = encoder.encode_with_shifts(&block, shifts).unwrap();
            let found = ideal(&plan, [chunk.as_slice()]).unwrap();
            assert!((0.0..0.1).contains(&found.overhead()), "tier {tier}: {found:?} {}", found.overhead());
            assert!(found.coded_bytes <= chunk.len() as f64 && found.symbols > 4_096, "{found:?}");
        }
    }
}

#[test]
fn chunks_add_up_and_need_no_token_features() {
    let kit = Predictable::new();
    let chunks = kit.chunks();
    let each = chunks.each_ref().map(|chunk| ideal(&kit.plan, [chunk.as_slice()]).unwrap());
    let all = ideal(&kit.plan, chunks.iter().map(Vec::as_slice)).unwrap();
    assert_eq!(all.symbols, each.iter().map(|found| found.symbols).sum::<u64>());
    assert!((all.symbol_bytes - each.iter().map(|found| found.symbol_bytes).sum::<f64>()).abs() < 1e-6);
    // Short chunks pay for their tables, and ids and shifts are no symbols.
    for (found, chunk) in each.iter().zip(&chunks) {
        assert!(found.coded_bytes > found.symbol_bytes && found.coded_bytes < chunk.len() as f64 - 96.0);
    }
    assert!(all.escapes > 0, "{all:?}");
    assert_eq!(ideal(&kit.plan, []).unwrap().overhead(), 0.0);
}

#[test]
fn other_codecs_plans_and_damage_are_refused() {
    let kit = Predictable::new();
    let (_, block) = kit.prompt(40, 1);
    let raw = kit.source.plain_encoder(CodecKind::Raw, 40).encode(&block).unwrap();
    assert!(matches!(ideal(&kit.plan, [raw.as_slice()]), Err(Error::InvalidArgument(_))));
    let [chunk, ..] = kit.chunks();
    let other = kit.unpredicted();
    assert!(matches!(ideal(&other, [chunk.as_slice()]), Err(Error::PlanMismatch { .. })));
    assert!(matches!(ideal(&kit.plan, [&chunk[..200]]), Err(Error::Corrupt { .. })));
}
