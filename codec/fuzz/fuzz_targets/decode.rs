//! Any bytes are a block or a typed error, of every codec. The header's identity fields and the digest are put right first, so that the
//! fuzzer gets past them to the parts that matter; the golden chunks are whole inputs to start from.

#![no_main]

use std::sync::{Arc, LazyLock};

use codec::{Decoder, Limits, Plan};
use libfuzzer_sys::fuzz_target;

/// A plan, and a decoder with it.
struct Node {
    plan: Arc<Plan>,
    decoder: Decoder,
}

impl Node {
    fn new(plan: &[u8]) -> Self {
        let plan = Arc::new(Plan::from_bytes(plan).expect("the golden plan is valid"));
        let limits = Limits { max_tokens: 512, max_chunk_bytes: 1 << 20 };
        let (layout, model) = (plan.layout().clone(), plan.model_fingerprint());
        let decoder = Decoder::new(layout, model, Some(plan.clone()), limits);
        Self { decoder: decoder.expect("the golden plan fits its own layout"), plan }
    }
}

static NODE: LazyLock<Node> = LazyLock::new(|| Node::new(include_bytes!("../../tests/golden/v1.plan")));
/// The golden chunks of kvtc-paper are of another layout.
static PAPER: LazyLock<Node> =
    LazyLock::new(|| Node::new(include_bytes!("../../tests/golden/v1.paper.plan")));

fuzz_target!(|content: &[u8]| {
    let mut bytes = content[..content.len().saturating_sub(16)].to_vec();
    let codec = bytes.get(6).copied();
    let Node { plan, decoder } = if codec == Some(3) { &*PAPER } else { &*NODE };
    if bytes.len() >= 58 {
        bytes[..6].copy_from_slice(b"KVFC\x01\x00");
        bytes[8..24].copy_from_slice(&plan.model_fingerprint());
        let id = if matches!(codec, Some(3 | 4)) { plan.id().0 } else { [0; 16] };
        bytes[24..40].copy_from_slice(&id);
        let layout = plan.layout();
        for (at, n) in [(52, layout.layers), (54, layout.kv_heads), (56, layout.head_dim)] {
            bytes[at..at + 2].copy_from_slice(&(n as u16).to_le_bytes());
        }
    }
    let digest = blake3::hash(&bytes);
    bytes.extend_from_slice(&digest.as_bytes()[..16]);
    if let Ok(block) = decoder.decode(&bytes) {
        block.validate(plan.layout()).expect("a decoded block fits its layout");
    }
});
