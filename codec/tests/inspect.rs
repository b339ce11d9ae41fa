//! Where bytes go: every item adds up to its file, and foreign bytes give errors.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use codec::{
    CodecKind, Error,
    fit::Balance,
    inspect::{Value, inspect},
};
use common::{Predictable, Source, small_layout};
use proptest::prelude::*;

struct Files {
    plan: std::sync::Arc<codec::Plan>,
    predicting: std::sync::Arc<codec::Plan>,
    /// With the plan's first row, without, and with a shift for every token; of the predicting plan.
    predicted: [Vec<u8>; 3],
    /// One of each codec, kvtc without and with shifts, then kvtc-paper with both kinds of window.
    chunks: Vec<Vec<u8>>,
}

fn files() -> &'static Files {
    static FILES: std::sync::OnceLock<Files> = std::sync::OnceLock::new();
    FILES.get_or_init(|| {
        let source = Source::new(small_layout(), 24, 1);
        let plan = source.paper_plan();
        let block = source.block(0, 600, 1);
        let plain = |kind| source.plain_encoder(kind, 600).encode(&block).unwrap();
        let kvtc = source.encoder(&plan, 8, 600);
        let shifts: Vec<i8> = (0..600).map(|i| (i % 7) as i8 - 3).collect();
        let chunks = vec![
            plain(CodecKind::Raw),
            plain(CodecKind::Lossless),
            plain(CodecKind::Fp8),
            kvtc.encode(&block).unwrap(),
            kvtc.encode_with_shifts(&block, Some(&shifts)).unwrap(),
            source.planned_encoder(&plan, CodecKind::KvtcPaper, 8, 600).encode(&block).unwrap(),
            source.planned_encoder(&plan, CodecKind::KvtcPaperCodedWindow, 8, 600).encode(&block).unwrap(),
        ];
        let kit = Predictable::new();
        Files { plan, predicting: kit.plan.clone(), predicted: kit.chunks(), chunks }
    })
}

/// Every chunk with its plan.
fn all() -> impl Iterator<Item = (&'static [u8], &'static codec::Plan)> {
    let Files { plan, chunks, predicting, predicted } = files();
    let others = predicted.iter().map(|chunk| (chunk.as_slice(), &**predicting));
    chunks.iter().map(|chunk| (chunk.as_slice(), &**plan)).chain(others)
}

#[test]
fn the_parts_of_chunks_end_to_end_add_up_to_their_file() {
    let whole: Vec<u8> = all().flat_map(|(chunk, _)| chunk).copied().collect();
    let Files { plan, predicting, .. } = files();
    for plan in [None, Some(&**plan), Some(predicting)] {
        let items = inspect(&whole, plan).unwrap();
        assert_eq!(items.len(), all().count());
        for (item, (chunk, _)) in items.iter().zip(all()) {
            assert_eq!(item.bytes(), chunk.len() as u64, "{item:?}");
            let payload: i64 = item.parts.iter().map(|part| part.inflated as i64).sum();
            let Some(&Value::Number(expected)) = item.field("payload_bytes") else { panic!("no payload") };
            let around = ["header", "shift table", "segment ends", "digest"];
            let around = item.parts.iter().filter(|part| around.contains(&part.name.as_str()));
            assert_eq!(payload - around.map(|part| part.inflated as i64).sum::<i64>(), expected);
        }
    }
}

#[test]
fn classes_are_listed_with_the_right_plan_only() {
    let Files { plan, chunks, .. } = files();
    let kvtc = |plan| inspect(&chunks[4], plan).unwrap().remove(0);
    let symbols = |item: &codec::inspect::Item| {
        item.parts.iter().filter(|part| part.name.contains("symbols of class")).count()
    };
    assert!(symbols(&kvtc(Some(plan))) > 8);
    assert_eq!(symbols(&kvtc(None)), 0);
    let other = Source::new(small_layout(), 24, 2).plan(None, Balance::OneStep);
    assert_eq!(symbols(&kvtc(Some(&other))), 0);
    assert_eq!(kvtc(Some(plan)).field("tier"), Some(&Value::Number(8)));
    assert_eq!(kvtc(Some(plan)).field("codec"), Some(&Value::Text("kvtc".into())));
}

#[test]
fn the_paper_s_chunks_are_listed_by_type_with_the_right_plan_only() {
    let Files { plan, chunks, .. } = files();
    let names = |chunk: &[u8], plan| -> Vec<String> {
        let item = inspect(chunk, plan).unwrap().remove(0);
        item.parts.into_iter().map(|part| part.name).collect()
    };
    let [.., raw_window, coded_window] = chunks.as_slice() else { panic!("no chunks") };
    for name in ["sink key codes", "window keys", "key int2 codes", "key shifts", "value scales"] {
        assert!(names(raw_window, Some(plan)).contains(&name.to_owned()), "{name}");
    }
    assert!(
        names(coded_window, Some(plan)).iter().any(|name| name.starts_with("window key symbols of class"))
    );
    for (chunk, window) in [(raw_window, true), (coded_window, false)] {
        let names = names(chunk, None);
        assert!(!names.iter().any(|name| name.contains("int2")), "{names:?}");
        assert_eq!(names.iter().any(|name| name == "window keys"), window);
    }
    let item = inspect(coded_window, None).unwrap().remove(0);
    assert_eq!(item.field("codec"), Some(&Value::Text("kvtc-paper-coded-window".into())));
    assert_eq!(item.field("window_tier"), Some(&Value::Number(6)));
}

#[test]
fn parts_that_only_predicted_chunks_have_are_listed() {
    let Files { predicting, predicted, .. } = files();
    let parts = |chunk: &[u8]| inspect(chunk, Some(predicting)).unwrap().remove(0).parts;
    let [first, middle, shifted] = predicted.each_ref().map(|chunk| parts(chunk));
    let inflated = |parts: &[codec::inspect::Part], name: &str| -> Option<u64> {
        parts.iter().find(|part| part.name == name).map(|part| part.inflated)
    };
    assert_eq!(inflated(&first, "token ids"), Some(2 * 40));
    assert_eq!(inflated(&middle, "token ids"), Some(2 * 41));
    assert_eq!((inflated(&middle, "shifts"), inflated(&shifted, "shifts")), (None, Some(40)));
    // One sink, whose row the plan holds.
    assert_eq!((inflated(&first, "exact keys"), inflated(&middle, "exact keys")), (Some(0), Some(0)));
}

#[test]
fn the_parts_of_a_plan_add_up_to_it() {
    let source = Source::new(small_layout(), 16, 3);
    let weighted = source.plan(Some((1..=32).map(|i| i as f32).collect()), Balance::EqualBytes);
    let predicting = files().predicting.clone();
    for plan in [source.plan(None, Balance::EqualBytes), weighted, source.paper_plan(), predicting] {
        let bytes = plan.to_bytes();
        let items = inspect(&bytes, None).unwrap();
        assert_eq!((items.len(), items[0].bytes()), (1, bytes.len() as u64));
        assert_eq!(items[0].field("id"), Some(&Value::Text(plan.id().to_string())));
    }
}

#[test]
fn damage_is_named() {
    let Files { chunks, .. } = files();
    for (chunk, plan) in all() {
        for len in (0..chunk.len()).step_by(13).chain([1, 2, 3, 4, 95, 96, 97, chunk.len() - 1]) {
            let outcome = inspect(&chunk[..len], Some(plan));
            assert!(matches!(outcome, Err(Error::Truncated { .. } | Error::Corrupt { .. })), "{len}");
        }
        let mut flipped = chunk.to_vec();
        flipped[chunk.len() / 2] ^= 1;
        assert!(matches!(inspect(&flipped, Some(plan)), Err(Error::Corrupt { .. })));
    }
    assert!(inspect(b"GIF89a", None).unwrap_err().to_string().contains("neither a plan's nor a chunk's"));
    let mut greedy = chunks[0].clone();
    greedy[44..52].fill(0xff);
    greedy[40..44].fill(0);
    assert!(matches!(inspect(&greedy, None), Err(Error::LimitExceeded { .. })));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn resealed_nonsense_never_panics(
        which in 0usize..10, at in 0usize..4_000, patch in prop::collection::vec(any::<u8>(), 1..9)
    ) {
        let (chunk, plan) = all().nth(which).unwrap();
        let mut bytes = chunk.to_vec();
        // Mostly the header, where the counts are.
        let at = if at % 2 == 0 { at % 88 } else { at % (bytes.len() - 24) };
        bytes[at..at + patch.len()].copy_from_slice(&patch);
        let end = bytes.len() - 16;
        let digest = blake3::hash(&bytes[..end]);
        bytes[end..].copy_from_slice(&digest.as_bytes()[..16]);
        if let Ok(items) = inspect(&bytes, Some(plan)) {
            prop_assert_eq!(items.iter().map(codec::inspect::Item::bytes).sum::<u64>(), bytes.len() as u64);
        }
    }
}
