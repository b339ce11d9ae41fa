//! Chunks and a plan written once by the first build with their codec must decode for ever. They are never written again and compared:
//! another DEFLATE may find other bytes. `examples/write_golden.rs` made the files.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::{path::PathBuf, sync::Arc};

use codec::{CodecKind, Decoder, GroupType, KvBlock, Plan};
use common::{Source, features::GOLDEN, small_layout};
use half::bf16;

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

fn read(name: &str) -> Vec<u8> {
    std::fs::read(folder().join(name)).unwrap()
}

fn flat(block: &KvBlock) -> Vec<bf16> {
    block.keys.iter().chain(&block.values).copied().collect()
}

#[test]
fn version_1_chunks_decode_to_what_they_were() {
    let source = Source::golden();
    let plan = plan("v1.plan");
    assert!(!plan.supports(CodecKind::KvtcPaper) && plan.paper_allocation(8).is_none());
    for name in ["v1.raw", "v1.lossless", "v1.fp8", "v1.kvtc", "v1.shifted"] {
        check(&source.decoder(&plan), name, 2);
    }
}

#[test]
fn version_1_chunks_of_kvtc_paper_decode_to_what_they_were() {
    let source = Source::golden_paper();
    let plan = plan("v1.paper.plan");
    for name in ["v1.paper", "v1.paper-window"] {
        check(&source.decoder(&plan), name, 2);
    }
    let (keys, values) = plan.paper_allocation(8).unwrap();
    for kind in [GroupType::Int2, GroupType::Int4, GroupType::Fp8] {
        assert!(keys.iter().chain(values).any(|group| group.kind == kind), "{kind:?}");
    }
}

/// Of a plan with everything that one may hold: predictor, first row, steps for shifted tokens, layer weights, a basis of mixed elements.
#[test]
fn version_1_chunks_with_predicted_rows_decode_to_what_they_were() {
    let plan = plan("v1.predicted.plan");
    assert!(plan.shifted_tiers().is_some() && plan.layer_weights().is_some());
    let source = Source::new(small_layout(), 1, 0);
    let decoder = source.decoder(&plan).predicting(Arc::new(GOLDEN));
    for (name, first_token, flags) in
        [("v1.predicted-first", 0, 8), ("v1.predicted", 2, 0), ("v1.predicted-shifted", 2, 4)]
    {
        assert_eq!(read(&format!("{name}.chunk"))[7], flags, "{name}");
        check(&decoder, name, first_token);
    }
}

/// A plan that reads, has the id it had and writes the bytes it was.
fn plan(name: &str) -> Arc<Plan> {
    let (bytes, id) = (read(name), String::from_utf8(read(&format!("{name}.id"))).unwrap());
    let plan = Plan::from_bytes(&bytes).unwrap();
    assert_eq!((plan.id().to_string(), plan.to_bytes()), (id, bytes));
    Arc::new(plan)
}

/// Decodes a chunk and compares with what it was.
fn check(decoder: &Decoder, name: &str, first_token: usize) {
    let block = decoder.decode(&read(&format!("{name}.chunk"))).unwrap();
    let cache = read(&format!("{name}.cache"));
    let expected: Vec<bf16> = cache.as_chunks::<2>().0.iter().map(|x| bf16::from_le_bytes(*x)).collect();
    let got = flat(&block);
    assert_eq!((block.first_token, block.tokens, got.len()), (first_token, 40, expected.len()), "{name}");
    let largest = expected.iter().map(|x| x.to_f32().abs()).fold(0.0, f32::max);
    let is_exact = matches!(name, "v1.raw" | "v1.lossless" | "v1.fp8");
    let tolerance = if is_exact { 0.0 } else { largest / 128.0 };
    for (i, (got, expected)) in got.iter().zip(&expected).enumerate() {
        assert!(
            (got.to_f32() - expected.to_f32()).abs() <= tolerance,
            "{name} element {i}: {got} is not {expected}"
        );
    }
}
