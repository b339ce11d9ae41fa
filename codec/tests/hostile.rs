//! Bytes of a peer that knows the format: digests are right, segments inflate, and what is inside is nonsense. Of chunks with predicted
//! rows and of their plan, whose parts are the most; `corruption` has the rest.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::sync::OnceLock;

use codec::{Error, KvBlock, Plan};
use common::Predictable;
use flate2::{Decompress, FlushDecompress};
use proptest::prelude::*;

const HEADER: usize = 96;
const SEGMENT: usize = 16_384;
/// Two bytes for each of tokens 1 to 41, and for each of 0 to 39.
const IDS: usize = 82;
const FIRST_IDS: usize = 80;
const SHIFTS: usize = 40;

/// A chunk without its segments.
#[derive(Debug, Clone)]
struct Opened {
    header: Vec<u8>,
    payload: Vec<u8>,
}

impl Opened {
    fn of(chunk: &[u8]) -> Self {
        let number = |at: usize| u32::from_le_bytes(chunk[at..at + 4].try_into().unwrap()) as usize;
        let mut payload = vec![0; number(84)];
        assert!(payload.len() <= SEGMENT, "one segment");
        let coded = &chunk[HEADER + 4..HEADER + 4 + number(HEADER)];
        let status = Decompress::new(false).decompress(coded, &mut payload, FlushDecompress::Finish);
        assert_eq!(status.unwrap(), flate2::Status::StreamEnd);
        Self { header: chunk[..HEADER].to_vec(), payload }
    }

    /// The chunk again, its segments stored and its digest right.
    fn seal(&self) -> Vec<u8> {
        let mut bytes = self.header.clone();
        bytes[84..92].copy_from_slice(&(self.payload.len() as u64).to_le_bytes());
        for i in 1..=self.payload.len().div_ceil(SEGMENT) {
            bytes.extend_from_slice(&((i * SEGMENT).min(self.payload.len()) as u32).to_le_bytes());
        }
        bytes.extend_from_slice(&self.payload);
        digested(bytes)
    }
}

fn digested(mut bytes: Vec<u8>) -> Vec<u8> {
    let digest = blake3::hash(&bytes);
    bytes.extend_from_slice(&digest.as_bytes()[..16]);
    bytes
}

struct Fixture {
    kit: Predictable,
    first: Opened,
    middle: Opened,
    shifted: Opened,
}

fn fixture() -> &'static Fixture {
    static FIXTURE: OnceLock<Fixture> = OnceLock::new();
    FIXTURE.get_or_init(|| {
        let kit = Predictable::new();
        let [first, middle, shifted] = kit.chunks().map(|chunk| Opened::of(&chunk));
        Fixture { kit, first, middle, shifted }
    })
}

fn decode(opened: &Opened) -> Result<KvBlock, Error> {
    let Fixture { kit, .. } = fixture();
    kit.decoder().decode(&opened.seal()).inspect(|block| block.validate(&kit.source.layout).unwrap())
}

/// What a decoder says to a chunk with some bytes of its header, or of its payload, replaced.
fn refusal(opened: &Opened, header: &[(usize, u8)], payload: &[(usize, u8)]) -> String {
    let mut opened = opened.clone();
    header.iter().for_each(|&(at, byte)| opened.header[at] = byte);
    payload.iter().for_each(|&(at, byte)| opened.payload[at] = byte);
    let error = decode(&opened).unwrap_err();
    assert!(matches!(error, Error::Corrupt { .. }), "{error}");
    error.to_string()
}

#[test]
fn stored_segments_decode_as_deflated_ones() {
    let Fixture { kit, first, middle, shifted } = fixture();
    for (opened, chunk) in [first, middle, shifted].into_iter().zip(kit.chunks()) {
        assert_eq!(decode(opened).unwrap(), kit.decoder().decode(&chunk).unwrap());
    }
}

#[test]
fn token_ids_outside_of_the_vocabulary_are_refused() {
    let Fixture { first, middle, shifted, .. } = fixture();
    for (opened, ids) in [(first, FIRST_IDS), (middle, IDS), (shifted, IDS)] {
        for (at, byte) in [(0, 50), (ids / 2 - 1, 0xff), (ids / 2, 1), (ids - 1, 0xff)] {
            let error = refusal(opened, &[], &[(at, byte)]);
            assert!(error.contains("outside of the vocabulary of 50"), "{error}");
        }
    }
}

#[test]
fn shifts_out_of_range_are_refused_and_others_must_fit_the_payload() {
    let Fixture { shifted, .. } = fixture();
    for shift in [25, -25, i8::MIN, i8::MAX] {
        for at in [0, SHIFTS - 1] {
            let error = refusal(shifted, &[], &[(IDS + at, shift as u8)]);
            assert_eq!(error, format!("corrupt shifts: {shift} is outside -24 to 24"));
        }
    }
    // 24 for -24: a step 65,536 times as large leaves nothing to code.
    let finest = (0..SHIFTS).find(|&i| shifted.payload[IDS + i] as i8 == -24).unwrap();
    let error = refusal(shifted, &[], &[(IDS + finest, 24)]);
    assert!(error.contains("bytes of symbols, its counts give"), "{error}");
}

#[test]
fn flags_that_contradict_the_chunk_are_refused() {
    let Fixture { first, middle, shifted, .. } = fixture();
    for (opened, flags, what) in [
        (middle, 8, "the plan's first row, but cannot"),
        (shifted, 12, "the plan's first row, but cannot"),
        (shifted, 5, "flags are 0x05"),
        (middle, 2, "flags are 0x02"),
        (middle, 16, "flags are 0x10"),
        // A row fewer or more, or shifts where there are none, make other lengths.
        (first, 0, "bytes of symbols, its counts give"),
        (shifted, 0, "bytes of symbols, its counts give"),
    ] {
        let error = refusal(opened, &[(7, flags)], &[]);
        assert!(error.contains(what), "flags {flags}: {error}");
    }
    for at in [63, 68, 70] {
        let error = refusal(shifted, &[(at, 1)], &[]);
        assert!(error.contains("a window step in a chunk with a shift for every token"), "{error}");
    }
}

#[test]
fn a_chunk_cannot_start_with_a_row_that_the_plan_lacks() {
    let Fixture { kit, first, .. } = fixture();
    let plan = kit.unpredicted();
    let mut opened = first.clone();
    opened.header[24..40].copy_from_slice(&plan.id().0);
    opened.header[58] = 4;
    let error = kit.source.decoder(&plan).decode(&opened.seal()).unwrap_err();
    assert!(error.to_string().contains("the plan's first row, but cannot"), "{error}");
}

#[test]
fn a_payload_shorter_or_longer_than_its_tokens_allow_is_refused_before_it_is_inflated() {
    let Fixture { shifted, .. } = fixture();
    let exact = 2 * 2 * 32;
    // Tokens 2 and 3 of a plan with one sink are coded: no exact ones in this chunk.
    assert_eq!(decode(shifted).unwrap().first_token, 2);
    let (least, symbols) = (IDS + SHIFTS, SHIFTS * 32);
    let escapes = |at: usize| u32::from_le_bytes(shifted.header[at..at + 4].try_into().unwrap()) as usize;
    let most = least + 4 * (escapes(72) + escapes(76)) + 4 * symbols;
    for (len, is_bounded) in [(least - 1, false), (least, true), (most, true), (most + exact, false)] {
        let mut opened = shifted.clone();
        opened.payload.resize(len, 0);
        let error = decode(&opened).unwrap_err().to_string();
        assert_eq!(error.contains("for 1280 symbols a side"), !is_bounded, "{len}: {error}");
    }
    let error = refusal(shifted, &[(73, 5), (72, 1)], &[]);
    assert!(error.contains("with 1281 escapes of keys"), "{error}");
}

#[test]
fn nonsense_in_the_tables_of_a_predicting_plan_is_named() {
    let bytes = fixture().kit.plan.to_bytes();
    let layers = bytes.len() - 16 - 2 * 4;
    let first_row = layers - 4 - 2 * 2 * 32;
    let predictor = first_row - 8 - 2 * (32 * 4 + 32 * 12);
    let scales = predictor + 8;
    let elements = scales + 32 * 4;
    for (at, patch, what) in [
        (predictor, &[0, 0][..], "0 tokens of context with 6 features each"),
        (predictor, &[5, 0], "5 tokens of context"),
        (predictor + 2, &[0, 0], "with 0 features each"),
        (predictor + 2, &[0xff, 0xff], "with 65535 features each"),
        (predictor + 4, &[1, 0], "ids of 1 bytes"),
        (predictor + 4, &[4, 0], "ids of 4 bytes"),
        (predictor + 6, &[1], "reserved byte is 1"),
        (scales, &[0; 4], "a scale is 0"),
        (scales + 2, &[0x80, 0xbf], "a scale is -1"),
        (scales + 2, &[0xc0, 0x7f], "a number is NaN"),
        (scales + 2, &[0x7f, 0x7f], "a scale is"),
        (elements, &[0x80], "a byte element is -128"),
        (first_row + 4, &[0x80, 0x7f], "an element is not finite"),
        (layers + 3, &[0xbf], "a layer's weight is -"),
        (layers + 2, &[0x80, 0x7f], "a number is inf"),
        (predictor - 2, &[0xff, 0x7f], "entries out of order or range"),
    ] {
        let mut broken = bytes[..bytes.len() - 16].to_vec();
        broken[at..at + patch.len()].copy_from_slice(patch);
        let error = Plan::from_bytes(&digested(broken)).unwrap_err().to_string();
        assert!(error.contains(what), "{what}: {error}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3_000))]

    #[test]
    fn nonsense_in_a_payload_never_panics(
        at in 0usize..4_000, patch in prop::collection::vec(any::<u8>(), 1..9)
    ) {
        let Fixture { first, middle, shifted, .. } = fixture();
        for opened in [first, middle, shifted] {
            let mut opened = opened.clone();
            let at = at % opened.payload.len();
            let end = (at + patch.len()).min(opened.payload.len());
            opened.payload[at..end].copy_from_slice(&patch[..end - at]);
            let _ = decode(&opened);
        }
    }

    #[test]
    fn any_shifts_and_steps_are_a_block_or_an_error(
        shifts in prop::collection::vec(-24i8..=24, SHIFTS), steps in any::<[i16; 2]>(), len in 0usize..6_000
    ) {
        let mut opened = fixture().shifted.clone();
        for (byte, shift) in opened.payload[IDS..].iter_mut().zip(shifts) {
            *byte = shift as u8;
        }
        for (at, step) in [64, 66].into_iter().zip(steps) {
            opened.header[at..at + 2].copy_from_slice(&(step % 1_921).to_le_bytes());
        }
        opened.payload.resize(len.max(IDS + SHIFTS), 0);
        let _ = decode(&opened);
    }
}
