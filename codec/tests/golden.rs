//! Chunks and a plan written once by the first build with their codec must decode for ever. They are never written again and compared:
//! another DEFLATE may find other bytes. `examples/write_golden.rs` made the files.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::{path::PathBuf, sync::Arc};

use codec::{KvBlock, Plan};
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
    let (source, plan) = (Source::golden(), Arc::new(Plan::from_bytes(&read("v1.plan")).unwrap()));
    assert_eq!(plan.id().to_string(), String::from_utf8(read("v1.plan.id")).unwrap());
    let decoder = source.decoder(&plan);
    for name in ["v1.raw", "v1.lossless", "v1.fp8", "v1.kvtc", "v1.shifted"] {
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
        for (i, (got, expected)) in got.iter().zip(&expected).enumerate() {
            let is_kvtc = matches!(name, "v1.kvtc" | "v1.shifted");
            let tolerance = if is_kvtc { largest / 128.0 } else { 0.0 };
            assert!(
                (got.to_f32() - expected.to_f32()).abs() <= tolerance,
                "{name} element {i}: {got} is not {expected}"
            );
        }
    }
}
