//! The stages that a benchmark times are those of the codec: same bytes, and coefficients come back.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use codec::probe::Projected;
use codec::{Error, fit};
use common::{Predictable, Source, features::GOLDEN, layout};

#[test]
fn stages_after_projection_give_the_chunk_less_its_framing() {
    let known = Predictable::new();
    let (ids, whole) = known.prompt(700, 5);
    let block = known.cut(&whole, 4..572);
    let framing = |bytes: usize| {
        let raw = known.source.raw_encoder(700).encode(&block).unwrap().len();
        let framing = raw - block.tokens * known.source.layout.bytes_per_token();
        bytes + framing
    };
    for tier in [4, 16] {
        let projected = Projected::new(&known.plan, tier, &block, (known.features.as_ref(), &ids)).unwrap();
        let coded = projected.code();
        let chunk = known.encoder(&known.plan, tier, &ids).encode(&block).unwrap();
        // A chunk has its ids and its table of segments as well.
        let rest = chunk.len().checked_sub(framing(coded.bytes())).unwrap();
        assert!(rest < 2 * block.tokens, "tier {tier}: {rest} bytes beside {}", coded.bytes());
        let error = projected.error(&projected.decode(&coded).unwrap());
        assert!(error > 0.0 && error < 0.3, "tier {tier}: {error}");
    }
}

#[test]
fn bytes_of_other_coefficients_are_refused() {
    let source = Source::new(layout(2, 2, 8), 12, 3);
    let plan = source.plan(None, fit::Balance::EqualBytes);
    let (few, many) = (source.block(4, 200, 1), source.block(4, 300, 1));
    let none = (&GOLDEN as &dyn codec::TokenFeatures, &[][..]);
    let few = Projected::new(&plan, 8, &few, none).unwrap();
    let many = Projected::new(&plan, 8, &many, none).unwrap();
    assert!(few.decode(&few.code()).is_ok());
    assert!(matches!(few.decode(&many.code()), Err(Error::Corrupt { .. })));
    let known = Predictable::new();
    let (ids, block) = known.prompt(200, 5);
    let missing = Projected::new(&known.plan, 8, &block, (known.features.as_ref(), &ids[..199]));
    assert!(matches!(missing, Err(Error::InvalidArgument(_))));
}

#[test]
fn rows_go_back_to_the_block_they_came_from() {
    let source = Source::new(layout(2, 3, 8), 20, 9);
    let block = source.block(77, 40, 2);
    let rows = fit::rows(&block, &source.layout).unwrap();
    let back = fit::block(77, rows.clone(), &source.layout).unwrap();
    assert_eq!((back.first_token, back.tokens, &back.values), (77, 40, &block.values));
    for (a, b) in back.keys.iter().zip(&block.keys) {
        assert!((a.to_f32() - b.to_f32()).abs() <= b.to_f32().abs() * 0.01, "{a} is not {b}");
    }
    assert!(fit::block(77, (rows.0.clone(), vec![]), &source.layout).is_err());
    let not_numbers = vec![f32::NAN; rows.0.len()];
    assert!(fit::block(77, (rows.0, not_numbers), &source.layout).is_err());
}
