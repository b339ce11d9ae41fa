//! Any bytes are items that add up to them, or a typed error. The first chunk's digest is put right, so that the fuzzer gets past it.

#![no_main]

use std::sync::LazyLock;

use codec::{
    Plan,
    inspect::{Item, inspect},
};
use libfuzzer_sys::fuzz_target;

fn plan(bytes: &[u8]) -> Plan {
    Plan::from_bytes(bytes).expect("the golden plan is valid")
}

static PLAN: LazyLock<Plan> = LazyLock::new(|| plan(include_bytes!("../../tests/golden/v1.plan")));
/// The golden chunks of kvtc-paper have another.
static PAPER: LazyLock<Plan> = LazyLock::new(|| plan(include_bytes!("../../tests/golden/v1.paper.plan")));
/// And so have those with predicted rows.
static PREDICTED: LazyLock<Plan> =
    LazyLock::new(|| plan(include_bytes!("../../tests/golden/v1.predicted.plan")));

fuzz_target!(|content: &[u8]| {
    let mut bytes = content[..content.len().saturating_sub(16)].to_vec();
    let plan = if bytes.get(6) == Some(&3) {
        &*PAPER
    } else if bytes.get(24..40) == Some(&PREDICTED.id().0) {
        &*PREDICTED
    } else {
        &*PLAN
    };
    let digest = blake3::hash(&bytes);
    bytes.extend_from_slice(&digest.as_bytes()[..16]);
    if let Ok(items) = inspect(&bytes, Some(plan)) {
        assert_eq!(items.iter().map(Item::bytes).sum::<u64>(), bytes.len() as u64);
    }
});
