//! Memory a chunk can cost: what it really holds, times a constant, and next to nothing when it is refused.
#![allow(unsafe_code, reason = "counting allocations takes a global allocator")]
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::atomic::{AtomicUsize, Ordering},
};

use codec::{CodecKind, Decoder};
use common::{Predictable, Source, features::Features, small_layout};

const TOKENS: usize = 4_096;

/// The system's allocator, with a note of the most bytes held at once.
struct Counting;

static HELD: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

// SAFETY: forwards to the system's allocator and keeps counts on the side.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let held = HELD.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        MOST.fetch_max(held, Ordering::Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Most bytes held during `work` above what was held before. This binary has one test, so nothing else allocates.
fn peak(work: impl FnOnce()) -> usize {
    let before = HELD.load(Ordering::Relaxed);
    MOST.store(before, Ordering::Relaxed);
    work();
    MOST.load(Ordering::Relaxed) - before
}

#[test]
fn memory_follows_what_a_chunk_holds_and_not_what_it_claims() {
    let source = Source::new(small_layout(), 24, 31);
    let plan = source.paper_plan();
    let decoder = source.decoder(&plan);
    let block = source.block(0, TOKENS, 1);
    for kind in [CodecKind::Kvtc, CodecKind::KvtcPaper, CodecKind::KvtcPaperCodedWindow] {
        let chunk = source.planned_encoder(&plan, kind, 8, TOKENS).encode(&block).unwrap();
        check(&decoder, &chunk, kind.name());
    }
    // As many different tokens as there are: a row of prediction each.
    let kit = Predictable::of(Features { width: 6, vocabulary: 1 << 16 });
    let (ids, block) = kit.prompt(TOKENS, 2);
    let encoder = kit.encoder(&kit.plan, 8, &ids);
    let shifts: Vec<i8> = (0..TOKENS).map(|i| (i % 9) as i8 - 6).collect();
    check(&kit.decoder(), &encoder.encode(&block).unwrap(), "predicted rows");
    let shifted = encoder.encode_with_shifts(&block, Some(&shifts)).unwrap();
    check(&kit.decoder(), &shifted, "predicted rows with shifts");
}

fn check(decoder: &Decoder, chunk: &[u8], what: &str) {
    drop(decoder.decode(chunk).unwrap());
    let honest = peak(|| drop(decoder.decode(chunk).unwrap()));
    let raw = TOKENS * small_layout().bytes_per_token();
    assert!(honest < 10 * raw, "{honest} bytes held to decode {raw} of {what}");

    let mut lying = chunk[..200].to_vec();
    for payload in [1u64 << 60, u64::from(u32::MAX)] {
        lying[84..92].copy_from_slice(&payload.to_le_bytes());
        for claim in [8_000u32, u32::MAX] {
            lying[44..48].copy_from_slice(&claim.to_le_bytes());
            lying[48..52].copy_from_slice(&claim.to_le_bytes());
            let digest = blake3::hash(&lying[..184]);
            lying[184..].copy_from_slice(&digest.as_bytes()[..16]);
            let refused = peak(|| drop(decoder.decode(&lying).unwrap_err()));
            assert!(refused < 1 << 20, "{refused} bytes held for a claim of {claim} tokens in {what}");
        }
    }
    // A payload as long as its tokens may have, all of it in a table of segments that is not there.
    lying[44..52].copy_from_slice(&chunk[44..52]);
    let most = 2 * raw as u64;
    lying[84..92].copy_from_slice(&most.to_le_bytes());
    let digest = blake3::hash(&lying[..184]);
    lying[184..].copy_from_slice(&digest.as_bytes()[..16]);
    let refused = peak(|| drop(decoder.decode(&lying).unwrap_err()));
    assert!(refused < 1 << 20, "{refused} bytes held for a payload of {most} bytes in {what}");
}
