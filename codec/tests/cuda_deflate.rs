//! Stage 6 on the GPU against flate2: the same bytes, and the same verdict on bytes from anywhere.
#![allow(
    clippy::unwrap_used,
    missing_docs,
    missing_debug_implementations,
    unreachable_pub,
    reason = "a test kit of several files"
)]

#[path = "common/device_segments.rs"]
mod device_segments;
#[path = "common/payloads.rs"]
mod payloads;
#[path = "common/streams.rs"]
mod streams;

use codec::probe::deflate::{deflate_on_cpu, inflate_on_cpu};
use device_segments::{DeviceSegments, cut};
use rand::SeedableRng as _;
use rand_chacha::ChaCha8Rng;

/// Streams of the fuzz test; `CUDA_FUZZ_STREAMS` sets another number, for runs under a memory checker.
fn stream_count() -> usize {
    std::env::var("CUDA_FUZZ_STREAMS").map_or(30_000, |count| count.parse().unwrap())
}

fn inflate_all(coded: &[u8], ends: &[u32], len: usize, segment_bytes: usize) -> Vec<u8> {
    let mut payload = vec![0; len];
    for (segment, content) in cut(coded, ends).zip(payload.chunks_mut(segment_bytes)) {
        inflate_on_cpu(segment, content).unwrap();
    }
    payload
}

fn payloads_of_all_kinds(rng: &mut ChaCha8Rng, len: usize) -> Vec<(&'static str, Vec<u8>, Vec<usize>)> {
    let (quantized, breaks) = payloads::quantized(rng, len, 700 + len / 20);
    let halves = [payloads::noise(rng, len / 2), payloads::runs(rng, len - len / 2)].concat();
    let fibonacci = (0..len).map(|i| (i as u32 + 1).trailing_zeros() as u8).collect();
    vec![
        ("quantized", quantized, breaks),
        ("text", payloads::text(rng, len), vec![]),
        ("runs", payloads::runs(rng, len), vec![len / 3, len / 2]),
        ("noise", payloads::noise(rng, len), vec![1]),
        ("noise and runs", halves, vec![len / 2]),
        ("a byte", vec![7; len], vec![]),
        ("halving counts", fibonacci, vec![]),
    ]
}

#[test]
fn the_cpu_reads_what_the_gpu_writes_and_so_does_the_gpu() {
    let mut device = DeviceSegments::new();
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    for (len, segment_bytes) in [
        (1, 1_024),
        (2, 1_024),
        (5_000, 1_024),
        (5_001, 1_025),
        (200_000, 16_384),
        (150_000, 32_768),
        (0, 1_024),
    ] {
        for (name, payload, breaks) in payloads_of_all_kinds(&mut rng, len) {
            let (ends, coded) = device.deflate(&payload, &breaks, segment_bytes);
            let case = format!("{name}, {len} bytes in segments of {segment_bytes}");
            let contents = payload.chunks(segment_bytes);
            assert!(
                cut(&coded, &ends).zip(contents).all(|(coded, content)| coded.len() <= content.len()),
                "{case}"
            );
            assert!(inflate_all(&coded, &ends, len, segment_bytes) == payload, "{case}: on the CPU");
            for skew in [0, 1, 15] {
                let back = device.inflate(&coded, &ends, len, segment_bytes, skew);
                assert!(
                    back.unwrap_or_else(|error| panic!("{case}: {error}")) == payload,
                    "{case}: on the GPU"
                );
            }
        }
    }
}

#[test]
fn the_gpu_reads_what_flate2_writes_at_every_level() {
    let mut device = DeviceSegments::new();
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    for segment_bytes in [1_024, 1_500, 16_384, 32_752, 32_753, 65_536, 1 << 20] {
        let len = (segment_bytes * 3 + segment_bytes / 7).min(1_400_000);
        for (name, payload, breaks) in payloads_of_all_kinds(&mut rng, len) {
            let mut kinds: Vec<Vec<Vec<u8>>> =
                (0..=9).map(|level| streams::deflate(&payload, segment_bytes, level)).collect();
            kinds.push(deflate_on_cpu(&payload, &breaks, segment_bytes));
            for (kind, segments) in kinds.iter().enumerate() {
                let (ends, coded) = device_segments::join(segments);
                let case =
                    format!("{name}, {len} bytes in segments of {segment_bytes}, level or kind {kind}");
                let back = device.inflate(&coded, &ends, len, segment_bytes, kind);
                assert!(back.unwrap_or_else(|error| panic!("{case}: {error}")) == payload, "{case}");
            }
        }
    }
}

#[test]
fn cpu_and_gpu_agree_on_any_bytes() {
    let mut device = DeviceSegments::new();
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let (count, mut accepted) = (stream_count(), 0);
    for i in 0..count {
        let (what, coded, len) = streams::any(&mut rng);
        if coded.is_empty() || coded.len() >= len {
            continue;
        }
        let mut expected = vec![0; len];
        let verdict = inflate_on_cpu(&coded, &mut expected);
        let got = device.inflate(&coded, &[coded.len() as u32], len, len.max(1_024), i);
        assert_eq!(
            verdict.is_ok(),
            got.is_ok(),
            "stream {i}, {what}, {} bytes to {len}: {verdict:?}: {coded:02x?}",
            coded.len()
        );
        if let Ok(got) = got {
            assert!(got == expected, "stream {i}, {what}, {} bytes to {len}: {coded:02x?}", coded.len());
            accepted += 1;
        }
    }
    // Neither answer may be rare, or the test says little.
    assert!(accepted > count / 10 && accepted < count * 9 / 10, "{accepted} of {count} accepted");
}

#[test]
fn the_first_bad_segment_is_named_and_the_next_call_starts_afresh() {
    let mut device = DeviceSegments::new();
    let payload = payloads::text(&mut ChaCha8Rng::seed_from_u64(4), 40 * 4_096);
    let mut segments = streams::deflate(&payload, 4_096, 6);
    let (ends, coded) = device_segments::join(&segments);
    segments[11][0] = 0b111;
    segments[30][0] = 0b111;
    let (bad_ends, bad) = device_segments::join(&segments);
    let error = device.inflate(&bad, &bad_ends, payload.len(), 4_096, 0).unwrap_err().to_string();
    assert!(error.contains("segment 11 "), "{error}");
    assert!(device.inflate(&coded, &ends, payload.len(), 4_096, 0).unwrap() == payload);
}

#[test]
fn tables_that_do_not_fit_the_payload_are_refused() {
    let mut device = DeviceSegments::new();
    let coded = [0; 4_096];
    for ends in [&[0][..], &[1_025], &[1_024, 1_023], &[1_024, 1_024], &[], &[5, 9, 12]] {
        let len = if ends.len() == 1 { 1_024 } else { 2_000 };
        assert!(device.inflate(&coded, ends, len, 1_024, 0).is_err(), "{ends:?}");
    }
    assert!(device.inflate(&coded, &[5], 1_000, 1_000, 0).is_err(), "segments under 1 KiB");
}
