//! Any bytes are a plan or a typed error; a plan that is read writes the bytes it was read from, unless it held unknown profiles.

#![no_main]

use codec::Plan;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|content: &[u8]| {
    let mut bytes = content.to_vec();
    bytes.extend_from_slice(&blake3::hash(content).as_bytes()[..16]);
    if let Ok(plan) = Plan::from_bytes(&bytes) {
        let again = Plan::from_bytes(&plan.to_bytes()).expect("a plan reads what it writes");
        assert!(again.to_bytes() == plan.to_bytes());
    }
});
