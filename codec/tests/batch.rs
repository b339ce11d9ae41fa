//! Batches: what single calls give, in order, whatever happens to others.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use codec::{
    Error,
    batch::{decode_batch, encode_batch},
};
use common::Predictable;

#[test]
fn a_batch_is_its_single_calls_to_the_byte_and_in_order() {
    let kit = Predictable::new();
    let prompts: Vec<_> = (0..9).map(|i| kit.prompt(40 + 70 * i, i as u64)).collect();
    let encoders: Vec<_> = prompts.iter().map(|(ids, _)| kit.encoder(&kit.plan, 12, ids)).collect();
    let shifts: Vec<i8> = (0..700).map(|i| (i % 31) as i8 - 15).collect();
    let jobs = encoders
        .iter()
        .zip(&prompts)
        .enumerate()
        .map(|(i, (encoder, (ids, block)))| (encoder, block, (i % 2 == 0).then(|| &shifts[..ids.len()])));
    let jobs: Vec<_> = jobs.collect();
    let chunks: Vec<Vec<u8>> = encode_batch(&jobs).into_iter().map(Result::unwrap).collect();
    for ((encoder, block, shifts), chunk) in jobs.iter().zip(&chunks) {
        assert!(encoder.encode_with_shifts(block, *shifts).unwrap() == *chunk);
    }
    let decoder = kit.decoder();
    let slices: Vec<&[u8]> = chunks.iter().map(Vec::as_slice).collect();
    for (block, chunk) in decode_batch(&decoder, &slices).into_iter().zip(&chunks) {
        assert_eq!(block.unwrap(), decoder.decode(chunk).unwrap());
    }
}

#[test]
fn one_that_fails_spoils_no_other() {
    let kit = Predictable::new();
    let (ids, block) = kit.prompt(60, 1);
    let encoder = kit.encoder(&kit.plan, 12, &ids);
    let bare = kit.source.encoder(&kit.plan, 12, 60);
    let outcome = encode_batch(&[
        (&encoder, &block, None),
        (&bare, &block, None),
        (&encoder, &block, Some(&[0; 59])),
        (&encoder, &block, None),
    ]);
    let [Ok(first), Err(Error::FeaturesMissing), Err(Error::InvalidArgument(_)), Ok(last)] = &outcome[..]
    else {
        panic!("{outcome:?}")
    };
    assert_eq!(first, last);
    let outcome = decode_batch(&kit.decoder(), &[first, &first[..50], &[], last]);
    assert!(outcome[0].is_ok() && outcome[1].is_err() && outcome[2].is_err() && outcome[3].is_ok());
    assert!(encode_batch(&[]).is_empty() && decode_batch(&kit.decoder(), &[]).is_empty());
}
