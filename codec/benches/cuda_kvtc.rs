//! kvtc on a GPU: milliseconds a chunk of the shape of Llama 3.2 1B, whole and by stage. `cargo bench -p codec --features cuda --bench cuda_kvtc`.
#![allow(clippy::unwrap_used, clippy::print_stdout, missing_docs, reason = "a benchmark")]

use std::{collections::BTreeMap, sync::Arc, time::Instant};

use codec::{
    CodecKind, Coding, Encoder, KvLayout, Limits, Plan, TokenFeatures,
    cuda::{CudaCodec, DeviceFeatureTable, DeviceTokenFeatures},
    probe::synthetic::{HashedFeatures, Synthetic, shifts},
};
use gpu::{Device, KvPool, KvShape};

const MODEL: [u8; 16] = *b"a synthetic llm!";
const RUNS: usize = 30;

fn main() {
    let measured = include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/../models/tiny-llama/plan.kvtc"));
    let measured = Plan::from_bytes(measured).unwrap();
    let inv_freq = (0..32).map(|i| 500_000f32.powf(-2.0 * i as f32 / 64.0)).collect();
    let layout = KvLayout { layers: 16, kv_heads: 8, head_dim: 64, inv_freq };
    let device = Device::open(0).unwrap();
    println!("{}", device.name().unwrap());
    for has_predictor in [false, true] {
        let features: Arc<dyn TokenFeatures> = Arc::new(HashedFeatures { width: 2_048, vocabulary: 32_768 });
        let started = Instant::now();
        let predictor = has_predictor.then(|| (2, Arc::clone(&features)));
        let model = Synthetic::new(&layout, MODEL, &measured, predictor, 1).unwrap();
        println!("plan {:?}, {:?} components", started.elapsed(), model.plan().components());
        for tokens in [1_024, 4_096] {
            measure(&device, &layout, &model, has_predictor.then_some(&*features), tokens);
        }
    }
}

fn measure(
    device: &Device,
    layout: &KvLayout,
    model: &Synthetic,
    features: Option<&dyn TokenFeatures>,
    tokens: usize,
) {
    let table = features.map(|features| {
        Arc::new(DeviceFeatureTable::new(device, features).unwrap()) as Arc<dyn DeviceTokenFeatures>
    });
    let codec = CudaCodec::new(device, layout.clone(), MODEL, Some(Arc::clone(model.plan())), table).unwrap();
    let started = Instant::now();
    let (mut encoder, mut decoder) = (codec.encoder().unwrap(), codec.decoder(Limits::default()).unwrap());
    println!("tables {:?}", started.elapsed());
    let stream = device.stream().unwrap();
    let shape = KvShape { layers: layout.layers, kv_heads: layout.kv_heads, head_dim: layout.head_dim };
    let pool = KvPool::new(device, &stream, shape, 2 * tokens).unwrap();
    let (pages, back) = (pool.take(&stream, tokens).unwrap(), pool.take(&stream, tokens).unwrap());
    let ids = model.ids(tokens, 2);
    let block = model.block(0, tokens, &ids, 2).unwrap();
    let raw = Encoder::new(layout.clone(), MODEL, None, Coding::RAW, tokens).unwrap().encode(&block).unwrap();
    decoder.decode(&raw, None, pages.view()).unwrap();
    let shifts = shifts(tokens, 3);
    let coding = Coding { kind: CodecKind::Kvtc, tier: 32 };
    let (mut encode_ms, mut decode_ms, mut stages) =
        (Vec::new(), Vec::new(), [(); 2].map(|()| BTreeMap::new()));
    let mut bytes = 0;
    for run in 0..RUNS + 5 {
        let is_staged = run % 2 == 1;
        encoder.measure(is_staged);
        decoder.measure(is_staged);
        let started = Instant::now();
        let chunk = encoder.encode(coding, &ids, pages.view(), 0..tokens, Some(&shifts)).unwrap();
        let encoded = started.elapsed().as_secs_f64() * 1e3;
        let started = Instant::now();
        decoder.decode(&chunk, Some(coding), back.view()).unwrap();
        let decoded = started.elapsed().as_secs_f64() * 1e3;
        bytes = chunk.len();
        if run >= 5 && is_staged {
            for (times, of) in stages.iter_mut().zip([encoder.stages().unwrap(), decoder.stages().unwrap()]) {
                for (name, ms) in of {
                    *times.entry(name).or_insert(0.0) += ms / (RUNS / 2) as f32;
                }
            }
        } else if run >= 5 {
            encode_ms.push(encoded);
            decode_ms.push(decoded);
        }
    }
    let median = |times: &mut Vec<f64>| {
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    };
    println!(
        "{tokens} tokens, predictor {}: {bytes} bytes ({:.1}x), encode {:.3} ms, decode {:.3} ms, scratch {} and {} MiB",
        features.is_some(),
        raw.len() as f64 / bytes as f64,
        median(&mut encode_ms),
        median(&mut decode_ms),
        encoder.scratch_bytes() >> 20,
        decoder.scratch_bytes() >> 20
    );
    for (what, times) in ["encode", "decode"].into_iter().zip(&stages) {
        let list: Vec<String> = times.iter().map(|(name, ms)| format!("{name} {ms:.3}")).collect();
        println!("  {what}: {}", list.join(", "));
    }
}
