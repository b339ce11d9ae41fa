//! Bytes from a peer that is broken or hostile: always a typed error, never a panic, never memory for what a header merely claims.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::sync::{Arc, OnceLock};

use codec::{CodecKind, Coding, Decoder, Error, KvLayout, Limits, Plan, PlanId, fit::Balance};
use common::{MODEL, Predictable, Source, layout, small_layout};
use proptest::prelude::*;

/// Where a chunk's header says its tier (docs/kv-format.md).
const TIER_AT: usize = 62;

struct Fixture {
    source: Source,
    plan: Arc<Plan>,
    raw: Vec<u8>,
    lossless: Vec<u8>,
    fp8: Vec<u8>,
    kvtc: Vec<u8>,
    paper: Vec<u8>,
    /// The same with a coded window.
    coded_window: Vec<u8>,
    kit: Predictable,
    /// Chunks of the kit: the first with the plan's first row, the last with a shift for every token.
    predicted: [Vec<u8>; 3],
}

impl Fixture {
    /// Chunks of every kind, each with a decoder that reads it.
    fn chunks(&self) -> Vec<(&[u8], Decoder)> {
        let plain = [&self.raw, &self.lossless, &self.fp8, &self.kvtc, &self.paper, &self.coded_window];
        let plain = plain.map(|chunk| (chunk.as_slice(), self.source.decoder(&self.plan)));
        let predicted = self.predicted.iter().map(|chunk| (chunk.as_slice(), self.kit.decoder()));
        plain.into_iter().chain(predicted).collect()
    }
}

fn fixture() -> &'static Fixture {
    static FIXTURE: OnceLock<Fixture> = OnceLock::new();
    FIXTURE.get_or_init(|| {
        let source = Source::new(small_layout(), 16, 11);
        let plan = source.paper_plan();
        let raw = source.raw_encoder(3).encode(&source.block(0, 3, 1)).unwrap();
        let shifts: Vec<i8> = (0..60).map(|i| i % 7 - 3).collect();
        let encoder = source.encoder(&plan, 16, 170);
        let kvtc = encoder.encode_with_shifts(&source.block(0, 60, 2), Some(&shifts)).unwrap();
        let plain =
            |kind, tokens| source.plain_encoder(kind, 170).encode(&source.block(0, tokens, 3)).unwrap();
        let (lossless, fp8) = (plain(CodecKind::Lossless, 12), plain(CodecKind::Fp8, 12));
        // Two sinks, body and window.
        let whole =
            |kind| source.planned_encoder(&plan, kind, 8, 160).encode(&source.block(2, 40, 4)).unwrap();
        let (paper, coded_window) = (whole(CodecKind::KvtcPaper), whole(CodecKind::KvtcPaperCodedWindow));
        let kit = Predictable::new();
        let predicted = kit.chunks();
        Fixture { source, plan, raw, lossless, fp8, kvtc, paper, coded_window, kit, predicted }
    })
}

fn decode(bytes: &[u8]) -> Result<codec::KvBlock, Error> {
    fixture().source.decoder(&fixture().plan).decode(bytes)
}

/// Puts a fresh digest under bytes that were tampered with, as a hostile peer would.
fn reseal(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.truncate(bytes.len() - 16);
    let digest = blake3::hash(&bytes);
    bytes.extend_from_slice(&digest.as_bytes()[..16]);
    bytes
}

fn patched(bytes: &[u8], at: usize, patch: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[at..at + patch.len()].copy_from_slice(patch);
    reseal(bytes)
}

#[test]
fn every_truncation_of_a_chunk_is_refused() {
    for (whole, decoder) in fixture().chunks() {
        assert!(decoder.decode(whole).is_ok());
        for len in 0..whole.len() {
            let error = decoder.decode(&whole[..len]).unwrap_err();
            assert!(matches!(error, Error::Truncated { .. } | Error::Corrupt { .. }), "{len}: {error}");
        }
        assert!(decoder.decode(&[whole, &[0]].concat()).is_err());
    }
}

#[test]
fn every_flipped_byte_of_a_chunk_is_noticed() {
    for (whole, decoder) in fixture().chunks() {
        for at in 0..whole.len() {
            for mask in [0x01, 0x80, 0xff] {
                let mut bytes = whole.to_vec();
                bytes[at] ^= mask;
                assert!(decoder.decode(&bytes).is_err(), "byte {at} xor {mask:#x} went unnoticed");
            }
        }
    }
}

#[test]
fn every_truncation_and_flip_of_a_plan_is_noticed() {
    let source = Source::new(layout(1, 1, 4), 4, 12);
    for plan in [&source.plan(None, Balance::EqualBytes), &fixture().kit.plan] {
        let whole = plan.to_bytes();
        assert!(Plan::from_bytes(&whole).is_ok());
        for at in 0..whole.len() {
            assert!(Plan::from_bytes(&whole[..at]).is_err());
            let mut bytes = whole.clone();
            bytes[at] ^= 0x40;
            assert!(Plan::from_bytes(&bytes).is_err(), "byte {at} went unnoticed");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn resealed_nonsense_in_a_chunk_never_panics(at in 0usize..4_000, patch in prop::collection::vec(any::<u8>(), 1..9)) {
        for (whole, decoder) in fixture().chunks() {
            let at = at % (whole.len() - 24);
            let _ = decoder.decode(&patched(whole, at, &patch));
        }
    }

    #[test]
    fn resealed_nonsense_in_a_plan_never_panics(at in 0usize..8_000, patch in prop::collection::vec(any::<u8>(), 1..9)) {
        for plan in [&fixture().plan, &fixture().kit.plan] {
            let whole = plan.to_bytes();
            let _ = Plan::from_bytes(&patched(&whole, at % (whole.len() - 24), &patch));
        }
    }

    #[test]
    fn noise_is_no_chunk_and_no_plan(noise in prop::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(decode(&noise).is_err());
        prop_assert!(Plan::from_bytes(&noise).is_err());
    }
}

#[test]
fn claims_beyond_the_limits_are_refused_before_memory_is_taken() {
    let Fixture { source, plan, kvtc, .. } = fixture();
    for (whole, decoder) in fixture().chunks() {
        let claim = [u32::MAX.to_le_bytes(), u32::MAX.to_le_bytes()].concat();
        let mut bytes = patched(whole, 44, &claim);
        bytes[40..44].fill(0);
        let error = decoder.decode(&reseal(bytes)).unwrap_err();
        assert!(matches!(error, Error::LimitExceeded { got: 4_294_967_295, limit: 8_192, .. }), "{error}");
        let error = decoder.decode(&patched(whole, 84, &(1u64 << 60).to_le_bytes())).unwrap_err();
        assert!(
            matches!(error, Error::Corrupt { .. }) && error.to_string().contains("1152921504606846976"),
            "{error}"
        );
        let small = Limits { max_chunk_bytes: whole.len() - 1, ..Limits::default() };
        let decoder = Decoder::new(source.layout.clone(), MODEL, Some(plan.clone()), small).unwrap();
        assert!(matches!(decoder.decode(whole), Err(Error::LimitExceeded { .. })));
    }
    let error = decode(&patched(kvtc, 72, &u32::MAX.to_le_bytes())).unwrap_err();
    assert!(error.to_string().contains("4294967295 escapes"), "{error}");
}

#[test]
fn fields_that_a_codec_does_not_have_must_be_zero() {
    let Fixture { raw, lossless, fp8, .. } = fixture();
    for chunk in [raw, lossless, fp8] {
        for (at, what) in
            [(24, "plan"), (58, "sinks"), (60, "window"), (62, "tier"), (63, "tier"), (64, "step")]
        {
            let error = decode(&patched(chunk, at, &[7])).unwrap_err();
            assert!(matches!(error, Error::Corrupt { what: "chunk header", .. }), "{what}: {error}");
        }
        let error = decode(&patched(chunk, 80, &7u32.to_le_bytes())).unwrap_err();
        assert!(error.to_string().contains("segments of 7 bytes"), "{error}");
        let error = decode(&patched(chunk, 72, &9u32.to_le_bytes())).unwrap_err();
        assert!(matches!(error, Error::Corrupt { what: "chunk header", .. }), "{error}");
    }
    let error = decode(&patched(lossless, 72, &2u32.to_le_bytes())).unwrap_err();
    assert!(error.to_string().contains("its counts give"), "{error}");
}

#[test]
fn fields_that_kvtc_paper_does_not_use_must_be_zero() {
    let Fixture { paper, coded_window, .. } = fixture();
    assert!(decode(&patched(coded_window, 63, &[7])).is_ok());
    let both = [
        (7, "flags", 1),
        (7, "flags", 4),
        (58, "sinks", 0),
        (60, "window", 0),
        (TIER_AT, "tier", 24),
        (TIER_AT, "tier", 0),
        (64, "key step", 1),
        (66, "value step", 1),
    ];
    let raw_window = [
        (63, "window tier", 6),
        (68, "window key step", 1),
        (70, "window value step", 1),
        (72, "key escapes", 1),
        (76, "value escapes", 1),
    ];
    for (at, what, byte) in both {
        for chunk in [paper, coded_window] {
            let error = decode(&patched(chunk, at, &[byte])).unwrap_err();
            assert!(matches!(error, Error::Corrupt { what: "chunk header", .. }), "{what}: {error}");
        }
    }
    for (at, what, byte) in raw_window {
        let error = decode(&patched(paper, at, &[byte])).unwrap_err();
        assert!(matches!(error, Error::Corrupt { what: "chunk header", .. }), "{what}: {error}");
    }
    // The payload's length follows from the tier: a claim of another one does not fit.
    let error = decode(&patched(paper, TIER_AT, &[64])).unwrap_err();
    assert!(error.to_string().contains("its counts give"), "{error}");
}

#[test]
fn another_version_or_codec_is_named() {
    let kvtc = &fixture().kvtc;
    assert!(matches!(
        decode(&patched(kvtc, 4, &[2, 0])),
        Err(Error::UnsupportedVersion { got: 2, supported: 1, what: "chunk" })
    ));
    assert!(matches!(decode(&patched(kvtc, 6, &[5])), Err(Error::UnsupportedCodec { id: 5 })));
    let plan = fixture().plan.to_bytes();
    let error = Plan::from_bytes(&patched(&plan, 4, &[9, 0])).unwrap_err();
    assert!(matches!(error, Error::UnsupportedVersion { got: 9, supported: 1, what: "plan" }));
}

#[test]
fn another_model_layout_or_plan_is_named() {
    let Fixture { source, plan, kvtc, .. } = fixture();
    let decoder = |layout: KvLayout, model, plan| Decoder::new(layout, model, plan, Limits::default());
    let other = decoder(source.layout.clone(), [9; 16], None).unwrap();
    assert!(matches!(other.decode(kvtc), Err(Error::ModelMismatch { what: "chunk", got: MODEL, .. })));
    let refused = decoder(source.layout.clone(), [9; 16], Some(plan.clone()));
    assert!(matches!(refused, Err(Error::ModelMismatch { what: "plan", .. })));
    let other = decoder(layout(2, 2, 16), MODEL, None).unwrap();
    let error = other.decode(kvtc).unwrap_err();
    assert_eq!(error.to_string(), "chunk has head_dim 8, the model has 16");
    let mut scaled = source.layout.clone();
    scaled.inv_freq[1] *= 0.5;
    let refused = decoder(scaled, MODEL, Some(plan.clone()));
    assert!(matches!(refused, Err(Error::LayoutMismatch { field: "RoPE frequency", .. })));
    let other = decoder(source.layout.clone(), MODEL, None).unwrap();
    assert!(matches!(other.decode(kvtc), Err(Error::PlanMissing { codec: "kvtc" })));
    let other_plan = source.plan(None, Balance::OneStep);
    assert_ne!(other_plan.id(), plan.id());
    let other = decoder(source.layout.clone(), MODEL, Some(other_plan)).unwrap();
    assert!(
        matches!(other.decode(kvtc), Err(Error::PlanMismatch { got, .. }) if got == plan.id() && got != PlanId::NONE)
    );
}

#[test]
fn a_chunk_coded_otherwise_than_announced_is_refused() {
    let Fixture { source, plan, raw, lossless, fp8, kvtc, paper, coded_window, .. } = fixture();
    let decoder = |coding| {
        let limits = Limits::default();
        Decoder::new(source.layout.clone(), MODEL, Some(plan.clone()), limits).unwrap().announced(coding)
    };
    let tier = |tier| Coding { kind: CodecKind::Kvtc, tier };
    let right = kvtc[TIER_AT];
    assert!(decoder(tier(right)).decode(kvtc).is_ok());
    let plain = |kind| Coding { kind, tier: 77 };
    assert!(decoder(plain(CodecKind::Raw)).decode(raw).is_ok());
    assert!(decoder(plain(CodecKind::Lossless)).decode(lossless).is_ok());
    assert!(decoder(plain(CodecKind::Fp8)).decode(fp8).is_ok());
    for (coding, chunk) in [
        (tier(right + 1), kvtc),
        (Coding::RAW, kvtc),
        (tier(right), raw),
        (plain(CodecKind::Lossless), fp8),
        (plain(CodecKind::Fp8), raw),
        (Coding::RAW, lossless),
        (Coding { kind: CodecKind::KvtcPaper, tier: 8 }, coded_window),
        (Coding { kind: CodecKind::KvtcPaperCodedWindow, tier: 8 }, paper),
        (Coding { kind: CodecKind::KvtcPaper, tier: 16 }, paper),
        (tier(8), paper),
    ] {
        let error = decoder(coding).decode(chunk).unwrap_err();
        assert!(matches!(error, Error::CodingMismatch { expected, .. } if expected == coding), "{error}");
    }
}

#[test]
fn a_plan_survives_its_file() {
    let source = Source::new(small_layout(), 16, 13);
    let weighted = source.plan(Some((1..=32).map(|i| i as f32).collect()), Balance::EqualBytes);
    for plan in [&source.plan(None, Balance::EqualBytes), &weighted, &fixture().kit.plan] {
        let bytes = plan.to_bytes();
        let back = Plan::read(&mut bytes.as_slice()).unwrap();
        assert_eq!(back, **plan);
        assert_eq!(back.to_bytes(), bytes);
        assert_eq!(bytes[bytes.len() - 16..], back.id().0);
    }
}
