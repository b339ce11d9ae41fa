//! Segments, by way of a chunk whose only variable part they are: what our bounded inflater accepts, another DEFLATE decoder must accept too.

#![no_main]

use std::{
    io::Read as _,
    sync::{Arc, LazyLock},
};

use codec::{Decoder, Limits, Plan};
use flate2::read::DeflateDecoder;
use libfuzzer_sys::fuzz_target;

static PLAN: LazyLock<Arc<Plan>> = LazyLock::new(|| {
    let bytes = include_bytes!("../../tests/golden/v1.plan");
    Arc::new(Plan::from_bytes(bytes).expect("the golden plan is valid"))
});

/// Header of a chunk of one segment, and the segment's inflated length.
static HEADER: LazyLock<(Vec<u8>, usize)> = LazyLock::new(|| {
    let chunk = include_bytes!("../../tests/golden/v1.kvtc.chunk");
    let payload = u64::from_le_bytes(chunk[84..92].try_into().expect("eight bytes"));
    (chunk[..96].to_vec(), payload as usize)
});

fuzz_target!(|segment: &[u8]| {
    let (header, inflated_len) = &*HEADER;
    let mut bytes = header.clone();
    bytes.extend_from_slice(&(segment.len() as u32).to_le_bytes());
    bytes.extend_from_slice(segment);
    let digest = blake3::hash(&bytes);
    bytes.extend_from_slice(&digest.as_bytes()[..16]);
    let decoder =
        Decoder::new(PLAN.layout().clone(), PLAN.model_fingerprint(), Some(PLAN.clone()), Limits::default());
    let accepted = decoder.expect("the golden plan fits its own layout").decode(&bytes).is_ok();
    if accepted && segment.len() != *inflated_len {
        let mut inflated = Vec::new();
        let read = DeflateDecoder::new(segment).read_to_end(&mut inflated);
        assert!(
            read.is_ok() && inflated.len() == *inflated_len,
            "accepted a segment that does not inflate to its length"
        );
    }
});
