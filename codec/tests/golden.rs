//! Chunks and a plan written once by the first build with their codec must decode for ever. They are never written again and compared:
//! another DEFLATE may find other bytes. `examples/write_golden.rs` made the files.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::{path::PathBuf, sync::Arc};

use codec::{CodecKind, GroupType, KvBlock, Plan};
use common::Source;
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
    let names = ["v1.raw", "v1.lossless", "v1.fp8", "v1.kvtc", "v1.shifted"];
    let plan = check(&Source::golden(), "v1.plan", &names);
    assert!(!plan.supports(CodecKind::KvtcPaper) && plan.paper_allocation(8).is_none());
}

#[test]
fn version_1_chunks_of_kvtc_paper_decode_to_what_they_were() {
    let plan = check(&Source::golden_paper(), "v1.paper.plan", &["v1.paper", "v1.paper-window"]);
    let (keys, values) = plan.paper_allocation(8).unwrap();
    for kind in [GroupType::Int2, GroupType::Int4, GroupType::Fp8] {
        assert!(keys.iter().chain(values).any(|group| group.kind == kind), "{kind:?}");
    }
}

/// Decodes chunks with a plan, and compares with what they were.
fn check(source: &Source, plan: &str, names: &[&str]) -> Arc<Plan> {
    let id = String::from_utf8(read(&format!("{plan}.id"))).unwrap();
    let plan = Arc::new(Plan::from_bytes(&read(plan)).unwrap());
    assert_eq!(plan.id().to_string(), id);
    let decoder = source.decoder(&plan);
    for name in names {
        let block = decoder.decode(&read(&format!("{name}.chunk"))).unwrap();
        let expected: Vec<bf16> = read(&format!("{name}.cache"))
            .as_chunks::<2>()
            .0
            .iter()
            .map(|x| bf16::from_le_bytes(*x))
            .collect();
        let got = flat(&block);
        assert_eq!((block.first_token, block.tokens, got.len()), (2, 40, expected.len()), "{name}");
        let largest = expected.iter().map(|x| x.to_f32().abs()).fold(0.0, f32::max);
        let is_exact = matches!(*name, "v1.raw" | "v1.lossless" | "v1.fp8");
        let tolerance = if is_exact { 0.0 } else { largest / 128.0 };
        for (i, (got, expected)) in got.iter().zip(&expected).enumerate() {
            assert!(
                (got.to_f32() - expected.to_f32()).abs() <= tolerance,
                "{name} element {i}: {got} is not {expected}"
            );
        }
    }
    plan
}
