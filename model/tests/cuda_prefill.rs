//! The prompt pass on the device against the CPU's, with the embedded model. Needs a GPU.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use candle_core::{DType, Device as CandleDevice};
use gpu::{Device, KvPool};
use half::bf16;
use model::{
    CudaCache, CudaLlama, CudaReceived, Error, KvCache, Llama, LogitsOf, ReceivedAttention, Sampling,
    Sequence,
};

/// Logits of the embedded model reach 20. bf16 keeps 8 bits of the activations between the products, 1 in 512 each, and its 8 blocks add
/// up about 50 such roundings: so much may a logit differ.
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

fn load(max_chunk: usize) -> CudaLlama {
    CudaLlama::load(&Device::open(0).unwrap(), &model_dir(), max_chunk).unwrap()
}

fn cache(model: &CudaLlama, tokens: usize) -> CudaCache {
    let pool: Arc<KvPool> =
        KvPool::new(model.device(), model.stream(), model.kv_shape(), tokens + 200).unwrap();
    // Pages out of order, and the first ones somebody else's.
    let other = CudaCache::new(&pool, model.stream(), 100).unwrap();
    let cache = CudaCache::new(&pool, model.stream(), tokens).unwrap();
    drop(other);
    cache
}

fn cpu_logits(tokens: &[u32], which: LogitsOf, received: Option<&mut ReceivedAttention>) -> Vec<f32> {
    let mut cache = KvCache::<bf16>::new(cpu().config(), tokens.len());
    cpu().forward(&mut [Sequence { cache: &mut cache, tokens, received }], which).unwrap()
}

fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    assert!(a.iter().all(|x| x.is_finite()), "not a number among the values");
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// By how much the most likely token's logit exceeds the next one's.
fn margin(logits: &[f32]) -> f32 {
    let mut sorted = logits.to_vec();
    sorted.sort_by(f32::total_cmp);
    sorted[sorted.len() - 1] - sorted[sorted.len() - 2]
}

#[test]
fn logits_equal_the_cpus_at_every_position() {
    let mut model = load(512);
    assert_eq!(model.fingerprint(), cpu().fingerprint());
    assert_eq!(model.inv_freq(), cpu().inv_freq());
    for n in [7, 160, 1500] {
        let tokens = golden(&format!("ids_{n}"));
        let expected = cpu_logits(&tokens, LogitsOf::EveryToken, None);
        let mut cache = cache(&model, n);
        let logits = model.every_logits(&mut cache, &tokens).unwrap();
        let difference = largest_difference(&logits, &expected);
        let (mut sure, mut equal) = (0, 0);
        let vocab = model.config().vocab_size;
        for (ours, theirs) in logits.chunks_exact(vocab).zip(expected.chunks_exact(vocab)) {
            if margin(theirs) > 2.0 * difference {
                sure += 1;
                equal += usize::from(Sampling::GREEDY.draw(ours, 0) == Sampling::GREEDY.draw(theirs, 0));
            }
        }
        println!("{n} tokens: largest difference {difference}, {equal} of {sure} sure tokens equal");
        assert!(difference <= TOLERANCE, "{n} tokens: {difference}");
        assert!(equal == sure && sure > n / 2, "{equal} of {sure}");
    }
}

#[test]
fn the_last_logits_are_those_of_every_chunking() {
    let tokens = &golden("ids_5000")[..4300];
    let expected = cpu_logits(tokens, LogitsOf::LastToken, None);
    for chunk in [8192, 1024, 999, 65] {
        let mut model = load(chunk);
        let mut cache = cache(&model, tokens.len());
        model.prefill(&mut cache, tokens, None).unwrap();
        assert_eq!(cache.len(), tokens.len());
        let logits = model.logits().unwrap();
        let difference = largest_difference(&logits, &expected);
        println!("chunks of {chunk}: largest difference {difference}");
        assert!(difference <= TOLERANCE, "chunks of {chunk}: {difference}");
        assert_eq!(model.greedy().unwrap(), Sampling::GREEDY.draw(&logits, 0));
    }
}

#[test]
fn greedy_tokens_equal_the_cpus_where_it_is_sure() {
    let mut model = load(256);
    let golden = golden("greedy_ids");
    let prompt_len = golden.len() - 48;
    let expected = cpu_logits(&golden, LogitsOf::EveryToken, None);
    let rows: Vec<_> = expected.chunks_exact(model.config().vocab_size).collect();
    let mut cache = cache(&model, golden.len());
    model.prefill(&mut cache, &golden[..prompt_len], None).unwrap();
    let mut sure = 0;
    for at in prompt_len..golden.len() {
        if margin(rows[at - 1]) > TOLERANCE {
            sure += 1;
            assert_eq!(model.greedy().unwrap(), golden[at], "token {at}");
        }
        model.prefill(&mut cache, &golden[at..=at], None).unwrap();
    }
    println!("{sure} of 48 tokens are sure");
    assert!(sure > 24, "{sure}");
}

#[test]
fn received_attention_equals_the_cpus_whatever_the_chunks() {
    let tokens = &golden("ids_1500")[..1111];
    let weights = [1.0, 0.5, 2.0];
    let mut expected = ReceivedAttention::of_last(128, 16, tokens.len()).weighted(&weights);
    cpu_logits(tokens, LogitsOf::LastToken, Some(&mut expected));
    for chunk in [2048, 1024, 100] {
        let mut model = load(chunk);
        let mut cache = cache(&model, tokens.len());
        let counted = CudaReceived::of_last(&model, 128, 16, tokens.len()).unwrap();
        let mut received = counted.weighted(&weights);
        model.prefill(&mut cache, tokens, Some(&mut received)).unwrap();
        let received = received.into_host().unwrap();
        assert_eq!(received.first_query, expected.first_query);
        assert_eq!(received.first_nearest, expected.first_nearest);
        for (ours, theirs) in [(&received.earlier, &expected.earlier), (&received.nearest, &expected.nearest)]
        {
            let total: f32 = theirs.iter().sum();
            let apart: f32 = ours.iter().zip(theirs).map(|(a, b)| (a - b).abs()).sum();
            println!("chunks of {chunk}: {apart} of {total} elsewhere");
            assert!(apart < 0.01 * total, "chunks of {chunk}: {apart} of {total} elsewhere");
        }
    }
}

#[test]
fn the_same_prompt_gives_the_same_bits() {
    let tokens = &golden("ids_1500")[..700];
    let mut model = load(512);
    let mut run = || {
        let mut cache = cache(&model, tokens.len());
        let mut received = CudaReceived::of_last(&model, 128, 16, tokens.len()).unwrap();
        model.prefill(&mut cache, tokens, Some(&mut received)).unwrap();
        (model.logits().unwrap(), received.into_host().unwrap().earlier)
    };
    assert_eq!(run(), run());
}

#[test]
fn a_call_that_cannot_succeed_changes_nothing() {
    let mut model = load(64);
    let mut cache = cache(&model, 64);
    let vocab = model.config().vocab_size;
    let refused = |model: &mut CudaLlama, cache: &mut CudaCache, tokens: &[u32]| {
        model.prefill(cache, tokens, None).unwrap_err()
    };
    assert!(matches!(refused(&mut model, &mut cache, &[]), Error::InvalidArgument(_)));
    let error = refused(&mut model, &mut cache, &[1, vocab as u32]);
    assert!(matches!(error, Error::Token { id, vocab: v } if id as usize == vocab && v == vocab));
    let error = refused(&mut model, &mut cache, &[1; 65]);
    assert!(matches!(error, Error::CacheFull { wanted: 65, capacity: 64 }), "{error}");
    let mut received = CudaReceived::of_last(&model, 8, 4, 10).unwrap();
    let error = model.prefill(&mut cache, &[1; 11], Some(&mut received)).unwrap_err();
    assert!(error.to_string().contains("10"), "{error}");
    assert!(cache.is_empty());
    let positions = model.config().max_position_embeddings;
    let mut long = self::cache(&model, positions + 64);
    let error = refused(&mut model, &mut long, &vec![1; positions + 1]);
    assert!(matches!(error, Error::CacheFull { capacity, .. } if capacity == positions), "{error}");
    assert!(matches!(long.set_len(positions + 65), Err(Error::CacheFull { .. })));
}

#[test]
fn the_vocabulary_writes_normalised_embeddings_and_zeros_for_strangers() {
    let model = load(64);
    let (hidden, vocab) = (model.config().hidden_size, model.config().vocab_size);
    let ids = [5u32, 0, vocab as u32, vocab as u32 - 1, u32::MAX];
    let stream = model.device().stream().unwrap();
    let on_device = model.device().upload(&stream, "ids", &ids).unwrap();
    let out = model.device().zeros::<half::f16>(&stream, "features", ids.len() * hidden).unwrap();
    {
        use gpu::DevicePtr;
        let (ids_at, _ids) = on_device.device_ptr(&stream);
        let (out_at, _out) = out.device_ptr(&stream);
        // SAFETY: both buffers have `ids.len()` rows.
        unsafe { model.vocabulary().write(&stream, ids_at, ids.len(), out_at) }.unwrap();
    }
    let rows = stream.clone_dtoh(&out).unwrap();
    for (id, row) in ids.iter().zip(rows.chunks_exact(hidden)) {
        let mut expected = vec![0f32; hidden];
        if (*id as usize) < vocab {
            cpu().token_features(*id, &mut expected);
        }
        let row: Vec<f32> = row.iter().map(|x| x.to_f32()).collect();
        let largest = expected.iter().fold(0f32, |m, x| m.max(x.abs()));
        assert!(largest_difference(&row, &expected) <= largest / 1024.0, "token {id}");
    }
}
