//! Any bytes are a block or a typed error, of every codec. The header's identity fields and the digest are put right first, so that the
//! fuzzer gets past them to the parts that matter; the golden chunks are whole inputs to start from.

#![no_main]

use std::sync::{Arc, LazyLock};

use codec::{Decoder, Limits, Plan};
use libfuzzer_sys::fuzz_target;

static PLAN: LazyLock<Arc<Plan>> = LazyLock::new(|| {
    let bytes = include_bytes!("../../tests/golden/v1.plan");
    Arc::new(Plan::from_bytes(bytes).expect("the golden plan is valid"))
});

static DECODER: LazyLock<Decoder> = LazyLock::new(|| {
    let limits = Limits { max_tokens: 512, max_chunk_bytes: 1 << 20 };
    Decoder::new(PLAN.layout().clone(), PLAN.model_fingerprint(), Some(PLAN.clone()), limits)
        .expect("the golden plan fits its own layout")
});

fuzz_target!(|content: &[u8]| {
    let mut bytes = content[..content.len().saturating_sub(16)].to_vec();
    if bytes.len() >= 58 {
        bytes[..6].copy_from_slice(b"KVFC\x01\x00");
        bytes[8..24].copy_from_slice(&PLAN.model_fingerprint());
        let plan = if bytes[6] == 4 { PLAN.id().0 } else { [0; 16] };
        bytes[24..40].copy_from_slice(&plan);
        let layout = PLAN.layout();
        for (at, n) in [(52, layout.layers), (54, layout.kv_heads), (56, layout.head_dim)] {
            bytes[at..at + 2].copy_from_slice(&(n as u16).to_le_bytes());
        }
    }
    let digest = blake3::hash(&bytes);
    bytes.extend_from_slice(&digest.as_bytes()[..16]);
    if let Ok(block) = DECODER.decode(&bytes) {
        block.validate(PLAN.layout()).expect("a decoded block fits its layout");
    }
});
