//! Memory a chunk can cost: what it really holds, times a constant, and next to nothing when it is refused.
#![allow(unsafe_code, reason = "counting allocations takes a global allocator")]

mod common;

use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::atomic::{AtomicUsize, Ordering},
};

use codec::CodecKind;
use common::{Source, small_layout};

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
    let tokens = 4_096;
    for kind in [CodecKind::Kvtc, CodecKind::KvtcPaper, CodecKind::KvtcPaperCodedWindow] {
        let encoder = source.planned_encoder(&plan, kind, 8, tokens);
        let chunk = encoder.encode(&source.block(0, tokens, 1)).unwrap();
        decoder.decode(&chunk).unwrap();
        let honest = peak(|| drop(decoder.decode(&chunk).unwrap()));
        let raw = tokens * source.layout.bytes_per_token();
        assert!(honest < 10 * raw, "{honest} bytes held to decode {raw} of {kind}");

        let mut lying = chunk[..200].to_vec();
        lying[84..92].copy_from_slice(&(1u64 << 60).to_le_bytes());
        for claim in [8_000u32, u32::MAX] {
            lying[44..48].copy_from_slice(&claim.to_le_bytes());
            lying[48..52].copy_from_slice(&claim.to_le_bytes());
            let digest = blake3::hash(&lying[..184]);
            lying[184..].copy_from_slice(&digest.as_bytes()[..16]);
            let refused = peak(|| drop(decoder.decode(&lying).unwrap_err()));
            assert!(refused < 1 << 20, "{refused} bytes held for a claim of {claim} tokens in {kind}");
        }
    }
}
