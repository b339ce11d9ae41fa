//! Bytes of bf16 cache a second: every stage of kvtc alone, every codec as a whole, batches of short prompts. Synthetic rows shaped like the
//! embedded model's cache (8 layers, 3 KV heads, 64 dimensions; 2,048 tokens), predicted from 384 token features, at tier 32.
//!
//! `cargo bench -p codec`; with `-- --quick` in a minute, with `-- deflate` that stage alone.

#![allow(clippy::unwrap_used, missing_docs, reason = "a benchmark")]

#[path = "../tests/common/mod.rs"]
mod common;

use std::{hint::black_box, sync::Arc, time::Duration};

use codec::{
    CodecKind, Decoder, Encoder, KvBlock, Plan,
    batch::{EncodeJob, decode_batch, encode_batch},
    fit::{PlanBuilder, Predictor},
    probe::stages::{Stage, Stages},
};
use common::{MODEL, Source, features::Features, layout};
use criterion::{
    BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main, measurement::WallTime,
};
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

const TOKENS: usize = 2_048;
const TIER: u8 = 32;
/// Directions that rows span: more than tier 32 codes.
const RANK: usize = 512;
const HELD_OUT: usize = 512;
const FEATURES: Features = Features { width: 384, vocabulary: 8_192 };
/// Prompts of a batch and their tokens.
const BATCH: (usize, usize) = (32, 200);

struct Kit {
    source: Source,
    plan: Arc<Plan>,
    block: KvBlock,
    ids: Vec<u32>,
    shifts: Vec<i8>,
}

impl Kit {
    fn new() -> Self {
        let source = Source::new(layout(8, 3, 64), RANK, 1);
        let mut rng = ChaCha8Rng::seed_from_u64(2);
        // So small that rows need not follow them: the work is the same.
        let inputs = source.layout.features() * 2 * FEATURES.width;
        let mut map = || (0..inputs).map(|_| rng.random_range(-1e-3..1e-3)).collect::<Vec<f32>>();
        let predictor = Predictor::new(2, &FEATURES, map(), map()).unwrap();
        // Some 850 of 2,048 are different, as in a text.
        let vocabulary = FEATURES.vocabulary as f64;
        let ids = |count: usize, rng: &mut ChaCha8Rng| -> Vec<u32> {
            (0..count).map(|_| (rng.random::<f64>().powi(6) * vocabulary) as u32).collect()
        };
        let [keys, values] = [&source.keys, &source.values]
            .map(|basis| (basis.clone(), source.rows(basis, HELD_OUT, &mut rng)));
        let shifts: Vec<i8> = (0..TOKENS).map(|i| (i * 37 % 13) as i8 - 8).collect();
        let plan = PlanBuilder::new(source.layout.clone(), MODEL, keys, values)
            .predicting(predictor, ids(HELD_OUT, &mut rng))
            .shifts(shifts[..HELD_OUT].to_vec())
            .build(&mut |_| {})
            .unwrap();
        let (plan, block) = (source.with_paper(&plan), source.block(0, TOKENS, 3));
        Self { source, plan, block, ids: ids(TOKENS, &mut rng), shifts }
    }

    fn encoder(&self, kind: CodecKind, tokens: usize) -> Encoder {
        let encoder = self.source.planned_encoder(&self.plan, kind, TIER, tokens);
        encoder.predicting(Arc::new(FEATURES), Arc::from(&self.ids[..tokens])).unwrap()
    }

    fn decoder(&self) -> Decoder {
        self.source.decoder(&self.plan).predicting(Arc::new(FEATURES))
    }
}

/// A group whose work is `tokens` tokens.
fn group<'a>(c: &'a mut Criterion, kit: &Kit, name: &str, tokens: usize) -> BenchmarkGroup<'a, WallTime> {
    let mut group = c.benchmark_group(name);
    group.throughput(Throughput::Bytes((tokens * kit.source.layout.bytes_per_token()) as u64));
    group.sample_size(10).warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(2));
    group
}

fn whole(
    group: &mut BenchmarkGroup<'_, WallTime>,
    names: [&str; 2],
    encoder: &Encoder,
    kit: &Kit,
    shifts: Option<&[i8]>,
) {
    let encode = || encoder.encode_with_shifts(&kit.block, shifts).unwrap();
    let (chunk, decoder) = (encode(), kit.decoder());
    group.bench_function(names[0], |b| b.iter(encode));
    group.bench_function(names[1], |b| b.iter(|| decoder.decode(black_box(&chunk)).unwrap()));
}

fn stages(c: &mut Criterion, kit: &Kit) {
    let encoder = kit.encoder(CodecKind::Kvtc, TOKENS);
    for (name, shifts) in [("kvtc 32", None), ("kvtc 32, token shifts", Some(kit.shifts.as_slice()))] {
        let mut group = group(c, kit, name, TOKENS);
        let stages = Stages::new(&encoder, &kit.block, shifts).unwrap();
        for stage in Stage::ALL {
            let name = format!("{stage:?}").to_lowercase();
            group.bench_function(name, |b| b.iter(|| stages.run(stage).unwrap()));
        }
        whole(&mut group, ["encode", "decode"], &encoder, kit, shifts);
    }
}

fn codecs(c: &mut Criterion, kit: &Kit) {
    let mut group = group(c, kit, "whole", TOKENS);
    for kind in [CodecKind::Raw, CodecKind::Lossless, CodecKind::Fp8, CodecKind::KvtcPaper] {
        let names = [format!("{kind} encode"), format!("{kind} decode")];
        whole(&mut group, names.each_ref().map(String::as_str), &kit.encoder(kind, TOKENS), kit, None);
    }
}

fn batches(c: &mut Criterion, kit: &Kit) {
    let (count, tokens) = BATCH;
    let encoder = kit.encoder(CodecKind::Kvtc, tokens);
    let (block, decoder) = (kit.source.block(0, tokens, 4), kit.decoder());
    let jobs: Vec<EncodeJob<'_>> = vec![(&encoder, &block, Some(&kit.shifts[..tokens])); count];
    let encode = |job: &EncodeJob<'_>| job.0.encode_with_shifts(job.1, job.2).unwrap();
    let chunk = encode(&jobs[0]);
    let chunks = vec![chunk.as_slice(); count];
    let mut group = group(c, kit, &format!("{count} prompts of {tokens} tokens"), count * tokens);
    group.bench_function("encode in a loop", |b| b.iter(|| jobs.iter().map(encode).collect::<Vec<_>>()));
    group.bench_function("encode_batch", |b| b.iter(|| encode_batch(&jobs)));
    let decode = |chunk: &&[u8]| decoder.decode(chunk).unwrap();
    group.bench_function("decode in a loop", |b| b.iter(|| chunks.iter().map(decode).collect::<Vec<_>>()));
    group.bench_function("decode_batch", |b| b.iter(|| decode_batch(&decoder, &chunks)));
}

fn all(c: &mut Criterion) {
    let kit = Kit::new();
    stages(c, &kit);
    codecs(c, &kit);
    batches(c, &kit);
}

criterion_group!(benches, all);
criterion_main!(benches);
