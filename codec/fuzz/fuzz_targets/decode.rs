//! Any bytes are a block or a typed error, of every codec. The header's identity fields and the digest are put right first, so that the
//! fuzzer gets past them to the parts that matter; the golden chunks are whole inputs to start from. Inputs shorter than a header are
//! patches to an inflated golden chunk with predicted rows: what is hostile inside of a payload need not survive DEFLATE.

#![no_main]

#[path = "../../tests/common/features.rs"]
mod features;

use std::sync::{Arc, LazyLock};

use codec::{Decoder, Limits, Plan};
use features::GOLDEN;
use flate2::{Decompress, FlushDecompress};
use libfuzzer_sys::fuzz_target;

const HEADER: usize = 96;
const SEGMENT: usize = 16_384;

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
        let decoder = decoder.expect("the golden plan fits its own layout").predicting(Arc::new(GOLDEN));
        Self { decoder, plan }
    }
}

static NODE: LazyLock<Node> = LazyLock::new(|| Node::new(include_bytes!("../../tests/golden/v1.plan")));
/// The golden chunks of kvtc-paper are of another layout.
static PAPER: LazyLock<Node> =
    LazyLock::new(|| Node::new(include_bytes!("../../tests/golden/v1.paper.plan")));
/// Predictor, first row, steps for shifted tokens, mixed basis elements.
static PREDICTED: LazyLock<Node> =
    LazyLock::new(|| Node::new(include_bytes!("../../tests/golden/v1.predicted.plan")));

/// Who reads a chunk: the plan's first byte tells the golden chunks of kvtc apart.
fn node(bytes: &[u8]) -> &'static Node {
    let (codec, plan) = (bytes.get(6), bytes.get(24));
    if codec == Some(&3) {
        &PAPER
    } else if plan == Some(&PREDICTED.plan.id().0[0]) {
        &PREDICTED
    } else {
        &NODE
    }
}

fn put_identity_right(bytes: &mut [u8], plan: &Plan) {
    bytes[..6].copy_from_slice(b"KVFC\x01\x00");
    bytes[8..24].copy_from_slice(&plan.model_fingerprint());
    let id = if matches!(bytes[6], 3 | 4) { plan.id().0 } else { [0; 16] };
    bytes[24..40].copy_from_slice(&id);
    let layout = plan.layout();
    for (at, n) in [(52, layout.layers), (54, layout.kv_heads), (56, layout.head_dim)] {
        bytes[at..at + 2].copy_from_slice(&(n as u16).to_le_bytes());
    }
}

/// Golden chunks with predicted rows: header, then inflated payload. Each is a single segment.
static OPENED: LazyLock<[Vec<u8>; 3]> = LazyLock::new(|| {
    [
        include_bytes!("../../tests/golden/v1.predicted-first.chunk").as_slice(),
        include_bytes!("../../tests/golden/v1.predicted.chunk"),
        include_bytes!("../../tests/golden/v1.predicted-shifted.chunk"),
    ]
    .map(|chunk| {
        let number =
            |at: usize| u32::from_le_bytes(chunk[at..at + 4].try_into().expect("four bytes")) as usize;
        let mut payload = vec![0; number(84)];
        let coded = &chunk[HEADER + 4..HEADER + 4 + number(HEADER)];
        let status = Decompress::new(false).decompress(coded, &mut payload, FlushDecompress::Finish);
        status.expect("a golden segment inflates");
        [&chunk[..HEADER], &payload].concat()
    })
});

/// One of [`OPENED`] with bytes replaced (two of position and one of value each), in stored segments, without a digest.
fn patched(patches: &[u8]) -> Vec<u8> {
    let (&which, patches) = patches.split_first().unwrap_or((&0, &[]));
    let mut opened = OPENED[usize::from(which) % OPENED.len()].clone();
    for patch in patches.chunks_exact(3) {
        let at = usize::from(u16::from_le_bytes([patch[0], patch[1]])) % opened.len();
        opened[at] = patch[2];
    }
    let payload = opened.split_off(HEADER);
    opened[80..84].copy_from_slice(&(SEGMENT as u32).to_le_bytes());
    opened.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    [opened, payload].concat()
}

fuzz_target!(|content: &[u8]| {
    let is_patch = content.len() < HEADER;
    let mut bytes = if is_patch { patched(content) } else { content[..content.len() - 16].to_vec() };
    let Node { plan, decoder } = if is_patch { &PREDICTED } else { node(&bytes) };
    put_identity_right(&mut bytes, plan);
    let digest = blake3::hash(&bytes);
    bytes.extend_from_slice(&digest.as_bytes()[..16]);
    if let Ok(block) = decoder.decode(&bytes) {
        block.validate(plan.layout()).expect("a decoded block fits its layout");
    }
});
