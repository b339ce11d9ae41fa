//! Steps of batches on the device against the CPU and against the prompt pass, whose kernels are others. Needs a GPU.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]
#![allow(clippy::print_stdout, reason = "how far apart the results are")]

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use candle_core::{DType, Device as CandleDevice};
use gpu::{Device, KvPool};
use half::bf16;
use model::{Config, CudaCache, CudaLlama, Draws, Error, KvCache, Llama, LogitsOf, Sampling, Sequence, Step};

/// What logits of the embedded model may differ by: see `cuda_prefill.rs`.
const TOLERANCE: f32 = 0.25;

fn model_dir() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../models/tiny-llama")
}

fn golden(name: &str) -> Vec<u32> {
    let path = model_dir().join("golden.safetensors");
    let tensor = candle_core::safetensors::load(path, &CandleDevice::Cpu).unwrap().remove(name).unwrap();
    tensor.to_dtype(DType::U32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

fn cpu() -> &'static Llama {
    static MODEL: OnceLock<Llama> = OnceLock::new();
    MODEL.get_or_init(|| Llama::load(&model_dir()).unwrap())
}

/// The embedded model, ready for steps over caches of its pool.
fn load(tokens: usize, max_batch: usize) -> (CudaLlama, Arc<KvPool>) {
    ready(CudaLlama::load(&Device::open(0).unwrap(), &model_dir(), 1024).unwrap(), tokens, max_batch)
}

fn ready(mut model: CudaLlama, tokens: usize, max_batch: usize) -> (CudaLlama, Arc<KvPool>) {
    let pool = KvPool::new(model.device(), model.stream(), model.kv_shape(), tokens).unwrap();
    model.prepare_steps(&pool, max_batch).unwrap();
    (model, pool)
}

/// A cache that holds `tokens`, with room for `more`.
fn filled(model: &mut CudaLlama, pool: &Arc<KvPool>, tokens: &[u32], more: usize) -> CudaCache {
    let mut cache = CudaCache::new(pool, model.stream(), tokens.len() + more).unwrap();
    model.prefill(&mut cache, tokens, None).unwrap();
    cache
}

fn greedy(cache: &mut CudaCache, token: u32) -> Step<'_> {
    Step { cache, token, draws: &Draws::GREEDY }
}

fn cpu_logits(tokens: &[u32]) -> Vec<f32> {
    let mut cache = KvCache::<bf16>::new(cpu().config(), tokens.len());
    cpu()
        .forward(&mut [Sequence { cache: &mut cache, tokens, received: None }], LogitsOf::EveryToken)
        .unwrap()
}

fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    assert!(a.iter().all(|x| x.is_finite()), "not a number among the values");
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// `|a - b| / |b|`
fn relative_difference(a: &[f32], b: &[f32]) -> f64 {
    let norm =
        |values: &mut dyn Iterator<Item = f32>| values.map(|x| f64::from(x).powi(2)).sum::<f64>().sqrt();
    norm(&mut a.iter().zip(b).map(|(a, b)| a - b)) / norm(&mut b.iter().copied())
}

/// By how much the most likely token's logit exceeds the next one's.
fn margin(logits: &[f32]) -> f32 {
    let mut sorted = logits.to_vec();
    sorted.sort_by(f32::total_cmp);
    sorted[sorted.len() - 1] - sorted[sorted.len() - 2]
}

#[test]
fn greedy_tokens_equal_the_cpus_where_it_is_sure() {
    let golden = golden("greedy_ids");
    let prompt = golden.len() - 48;
    let expected = cpu_logits(&golden);
    let rows: Vec<_> = expected.chunks_exact(cpu().config().vocab_size).collect();
    let (mut model, pool) = load(golden.len() + 64, 1);
    let mut cache = filled(&mut model, &pool, &golden[..prompt], 48);
    let (mut sure, mut worst) = (0, 0f32);
    for at in prompt..golden.len() {
        let next = model.step(&mut [greedy(&mut cache, golden[at])]).unwrap();
        let logits = model.step_logits(0).unwrap();
        assert_eq!(next[0].token, Sampling::GREEDY.draw(&logits, 0));
        worst = worst.max(largest_difference(&logits, rows[at]));
        if at + 1 < golden.len() && margin(rows[at]) > TOLERANCE {
            sure += 1;
            assert_eq!(next[0].token, golden[at + 1], "token {}", at + 1);
        }
    }
    assert_eq!(cache.len(), golden.len());
    println!("largest difference {worst}, {sure} of 47 tokens are sure");
    assert!(worst <= TOLERANCE && sure > 24, "{worst} {sure}");
}

#[test]
fn a_step_equals_the_cpus_at_odd_lengths_and_page_borders() {
    let tokens = golden("ids_1500");
    let expected = cpu_logits(&tokens);
    let vocab = cpu().config().vocab_size;
    let lengths = [0usize, 1, 2, 15, 16, 31, 62, 63, 64, 65, 127, 128, 129, 511, 640, 1000, 1471];
    let (mut model, pool) = load(17 * 1600, 17);
    let mut caches: Vec<_> = lengths
        .iter()
        .map(|len| match len {
            0 => CudaCache::new(&pool, model.stream(), 8).unwrap(),
            _ => filled(&mut model, &pool, &tokens[..*len], 8),
        })
        .collect();
    for ahead in 0..3 {
        for count in [1, 3, 8, 13, 17] {
            let mut batch: Vec<_> =
                caches.iter_mut().zip(lengths).map(|(c, n)| greedy(c, tokens[n + ahead])).collect();
            let batch = &mut batch[17 - count..];
            let next = model.step(batch).unwrap();
            for (row, len) in lengths[17 - count..].iter().enumerate() {
                let at = len + ahead;
                let logits = model.step_logits(row).unwrap();
                let difference = largest_difference(&logits, &expected[at * vocab..(at + 1) * vocab]);
                assert!(difference <= TOLERANCE, "token {at} of a batch of {count}: {difference}");
                assert_eq!(next[row].token, Sampling::GREEDY.draw(&logits, 0));
            }
            // The same tokens once more in a batch of another size.
            let next_len = if count == 17 { ahead + 1 } else { ahead };
            for (cache, len) in caches.iter_mut().zip(lengths) {
                cache.set_len(len + next_len).unwrap();
            }
        }
    }
}

/// Shapes that the embedded model does not have: larger heads, groups of 1 to 8, an odd number of heads; with noise for weights.
#[test]
fn steps_equal_the_prompt_pass_for_other_shapes() {
    for (hidden, intermediate, heads, kv_heads, head_dim) in
        [(512, 1408, 8, 1, 64), (1024, 4096, 8, 2, 128), (384, 640, 3, 3, 128), (2048, 8192, 32, 8, 64)]
    {
        let config = Config {
            hidden_size: hidden,
            intermediate_size: intermediate,
            heads,
            kv_heads,
            head_dim,
            layers: 3,
            vocab_size: 4104,
            ..Config::llama_3_2_1b()
        };
        let model = CudaLlama::random(&Device::open(0).unwrap(), config, 7, 1024).unwrap();
        let (mut model, pool) = ready(model, 40 * 1100, 40);
        let tokens: Vec<u32> = (0..1100u32).map(|i| i * 7919 % 4104).collect();
        for count in [1usize, 2, 5, 8, 11, 16, 40] {
            let lengths: Vec<_> = (0..count).map(|i| 1 + (i * 389 + 977) % 1050).collect();
            let mut caches: Vec<_> =
                lengths.iter().map(|len| filled(&mut model, &pool, &tokens[..*len], 1)).collect();
            let mut batch: Vec<_> =
                caches.iter_mut().zip(&lengths).map(|(c, n)| greedy(c, tokens[*n])).collect();
            model.step(&mut batch).unwrap();
            let mut worst = 0f64;
            for (row, len) in lengths.iter().enumerate() {
                let logits = model.step_logits(row).unwrap();
                caches[row].set_len(0).unwrap();
                model.prefill(&mut caches[row], &tokens[..=*len], None).unwrap();
                worst = worst.max(relative_difference(&logits, &model.logits().unwrap()));
            }
            println!(
                "{hidden} {heads}/{kv_heads}x{head_dim}, {count} sessions: relative difference {worst:.5}"
            );
            assert!(worst < 0.02, "{hidden} {heads}/{kv_heads}x{head_dim}, {count} sessions: {worst}");
        }
    }
}

#[test]
fn sessions_join_and_leave_without_changing_the_others() {
    let tokens = golden("ids_1500");
    let (mut model, pool) = load(20_000, 24);
    let starts: Vec<usize> = (0..20).map(|i| 5 + i * 61).collect();
    // Each alone, fed with the text, so that a near tie changes nothing after it.
    let mut alone = Vec::new();
    for start in &starts {
        let mut cache = filled(&mut model, &pool, &tokens[..*start], 12);
        for token in &tokens[*start..start + 12] {
            model.step(&mut [greedy(&mut cache, *token)]).unwrap();
            alone.push(model.step_logits(0).unwrap());
        }
    }
    let mut caches: Vec<_> =
        starts.iter().map(|start| filled(&mut model, &pool, &tokens[..*start], 12)).collect();
    let mut worst = 0f32;
    for round in 0..40usize {
        // Session i takes part in rounds i .. i + 12.
        let present: Vec<_> = (0..20).filter(|i| (*i..i + 12).contains(&round)).collect();
        let mut batch: Vec<_> = caches
            .iter_mut()
            .enumerate()
            .filter(|(i, _)| present.contains(i))
            .map(|(i, cache)| greedy(cache, tokens[starts[i] + round - i]))
            .collect();
        model.step(&mut batch).unwrap();
        for (row, i) in present.iter().enumerate() {
            let logits = model.step_logits(row).unwrap();
            worst = worst.max(largest_difference(&logits, &alone[i * 12 + round - i]));
        }
    }
    println!("largest difference between a batch and one by one: {worst}");
    assert!(worst <= TOLERANCE, "{worst}");
    assert!(caches.iter().zip(&starts).all(|(cache, start)| cache.len() == start + 12));
}

#[test]
fn the_same_step_gives_the_same_bits() {
    let tokens = golden("ids_1500");
    let (mut model, pool) = load(24_000, 24);
    for count in [1usize, 7, 16, 24] {
        let mut runs = Vec::new();
        for _ in 0..2 {
            let mut caches: Vec<_> =
                (0..count).map(|i| filled(&mut model, &pool, &tokens[..900 - i * 31], 1)).collect();
            let mut batch: Vec<_> = caches.iter_mut().map(|cache| greedy(cache, 17)).collect();
            model.step(&mut batch).unwrap();
            runs.push((0..count).map(|row| model.step_logits(row).unwrap()).collect::<Vec<_>>());
        }
        assert!(runs[0] == runs[1], "{count} sessions");
    }
}

#[test]
fn a_step_that_cannot_succeed_changes_nothing() {
    let tokens = golden("ids_160");
    let (mut model, pool) = load(1024, 4);
    let mut caches: Vec<_> = (0..3).map(|i| filled(&mut model, &pool, &tokens[..64 - i], i)).collect();
    let lens: Vec<_> = caches.iter().map(CudaCache::len).collect();
    let mut batch: Vec<_> = caches.iter_mut().map(|cache| greedy(cache, 5)).collect();
    assert!(matches!(model.step(&mut batch), Err(Error::CacheFull { wanted: 65, capacity: 64 })));
    batch[0].token = 9000;
    assert!(model.step(&mut batch).is_err());
    assert!(matches!(
        model.step(
            &mut batch[1..]
                .iter_mut()
                .map(|s| Step { cache: s.cache, token: 8192, draws: s.draws })
                .collect::<Vec<_>>()
        ),
        Err(Error::Token { id: 8192, .. })
    ));
    drop(batch);
    assert_eq!(caches.iter().map(CudaCache::len).collect::<Vec<_>>(), lens);
    let mut others: Vec<_> = caches[1..].iter_mut().map(|cache| greedy(cache, tokens[63])).collect();
    model.step(&mut others).unwrap();
    let logits = model.step_logits(0).unwrap();
    let expected = cpu_logits(&tokens[..64]);
    let last = &expected[63 * model.config().vocab_size..];
    assert!(largest_difference(&logits, last) <= TOLERANCE);
    let other_pool = KvPool::new(model.device(), model.stream(), model.kv_shape(), 64).unwrap();
    let mut foreign = CudaCache::new(&other_pool, model.stream(), 64).unwrap();
    assert!(matches!(model.step(&mut [greedy(&mut foreign, 1)]), Err(Error::InvalidArgument(_))));
    assert!(model.step(&mut []).unwrap().is_empty());
}

#[test]
fn drawn_tokens_equal_the_cpus_draw_from_the_same_logits() {
    let tokens = golden("ids_160");
    for big in [false, true] {
        let config = Config { layers: 1, ..Config::llama_3_2_1b() };
        let (mut model, pool) = match big {
            false => load(4096, 13),
            true => ready(CudaLlama::random(&Device::open(0).unwrap(), config, 3, 256).unwrap(), 4096, 13),
        };
        let mut samplings = Vec::new();
        for (temperature, top_p, top_k, min_p) in [
            (1.0, 1.0, 0, 0.0),
            (1.0, 0.9, 0, 0.0),
            (0.7, 0.95, 40, 0.0),
            (1.5, 1.0, 2000, 0.0),
            (0.01, 0.5, 0, 0.0),
            (0.0, 1.0, 0, 0.0),
            (3.0, 0.5, 1, 0.0),
            (40.0, 1.0, 0, 0.0),
            (0.3, 1e-6, 0, 0.0),
            (1.0, 0.99, 5, 0.0),
            (2.0, 0.999, 0, 0.0),
            (1.0, 1.0, 0, 0.05),
            (3.0, 0.9, 0, 1e-3),
        ] {
            samplings.push(Sampling { temperature, top_p, top_k, min_p, seed: 1 + samplings.len() as u64 });
        }
        let draws: Vec<Draws> = samplings.iter().map(|sampling| (*sampling).into()).collect();
        let mut caches: Vec<_> =
            (0..samplings.len()).map(|i| filled(&mut model, &pool, &tokens[..30 + 7 * i], 64)).collect();
        let mut distinct = std::collections::BTreeSet::new();
        for (round, token) in tokens.iter().take(40).enumerate() {
            let mut batch: Vec<_> = caches
                .iter_mut()
                .zip(&draws)
                .map(|(cache, draws)| Step { cache, token: *token, draws })
                .collect();
            let next = model.step(&mut batch).unwrap();
            for (row, sampling) in samplings.iter().enumerate() {
                let logits = model.step_logits(row).unwrap();
                assert_eq!(
                    next[row].token,
                    sampling.draw(&logits, caches[row].len()),
                    "{sampling:?} in round {round}"
                );
                distinct.insert(next[row].token);
            }
        }
        assert!(distinct.len() > 100, "{} distinct tokens", distinct.len());
    }
}
