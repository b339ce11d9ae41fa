//! Time, ratio and error by codec and tier, on synthetic rows shaped like the embedded model's cache (8 layers, 3 KV heads, 64 dimensions;
//! 2,048 tokens). `cargo run --release -p codec --example tiers`; `TIERS=8,32` chooses tiers.

#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "it reports to the terminal")]

#[path = "../tests/common/mod.rs"]
mod common;

use std::{sync::Arc, time::Instant};

use codec::{CodecKind, Plan, fit::Balance};
use common::{Source, layout, relative_error};

const TOKENS: usize = 2_048;
const REPEATS: usize = 5;

/// Best wall time in milliseconds, and the result.
fn best<T>(mut work: impl FnMut() -> T) -> (f64, T) {
    let mut result = (f64::MAX, None);
    for _ in 0..REPEATS {
        let start = Instant::now();
        let value = work();
        result = (result.0.min(start.elapsed().as_secs_f64() * 1e3), Some(value));
    }
    (result.0, result.1.expect("there is at least one repeat; this is a bug"))
}

fn main() {
    let source = Source::new(layout(8, 3, 64), 1_536, 1);
    let start = Instant::now();
    let plan: Arc<Plan> = source.plan_from(2_048, None, Balance::EqualBytes);
    let plan_bytes = plan.to_bytes().len();
    println!(
        "plan of {plan_bytes} bytes fitted in {:.1} s; components {:?}",
        start.elapsed().as_secs_f64(),
        plan.components()
    );
    let block = source.block(0, TOKENS, 2);
    let middle = source.block(4, TOKENS, 3);
    let raw = TOKENS * source.layout.bytes_per_token();
    let mb_per_s = |ms: f64| raw as f64 / ms / 1e3;
    for kind in CodecKind::ALL.into_iter().filter(|kind| !kind.needs_plan()) {
        let encoder = source.plain_encoder(kind, TOKENS);
        let (encode_ms, bytes) = best(|| encoder.encode(&block).unwrap());
        let (decode_ms, back) = best(|| source.decoder(&plan).decode(&bytes).unwrap());
        let error = relative_error(&source.layout, &source, &back, &block);
        println!(
            "{kind}: whole {:.3}, encode {encode_ms:.1} ms ({:.0} MB/s), decode {decode_ms:.1} ms ({:.0} MB/s), relative error {:.1e} {:.1e}",
            raw as f64 / bytes.len() as f64,
            mb_per_s(encode_ms),
            mb_per_s(decode_ms),
            error.0,
            error.1
        );
    }
    let tiers = std::env::var("TIERS").unwrap_or_else(|_| "4,8,16,32,64,128".to_owned());
    for tier in tiers.split(',').map(|tier| tier.parse().unwrap()) {
        let body = source.encoder(&plan, tier, TOKENS + 132);
        let body_bytes = body.encode(&middle).unwrap().len();
        let encoder = source.encoder(&plan, tier, TOKENS);
        let (encode_ms, bytes) = best(|| encoder.encode(&block).unwrap());
        let (decode_ms, back) = best(|| source.decoder(&plan).decode(&bytes).unwrap());
        let error = relative_error(&source.layout, &source, &back, &block);
        println!(
            "tier {tier:3}: body {:.1}, whole {:.1}, kept {:?}, encode {encode_ms:.1} ms ({:.0} MB/s), decode {decode_ms:.1} ms ({:.0} MB/s), relative error {:.4} {:.4}",
            raw as f64 / body_bytes as f64,
            raw as f64 / bytes.len() as f64,
            plan.kept_components(tier),
            mb_per_s(encode_ms),
            mb_per_s(decode_ms),
            error.0,
            error.1
        );
    }
}
