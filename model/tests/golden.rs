//! The embedded model against `golden.safetensors`, which Hugging Face Transformers made in f32 (see the model card for
//! what two independent implementations may differ by).
#![allow(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

use std::path::PathBuf;

use candle_core::{DType, Device, Tensor};
use model::{KvCache, KvElement, Llama, LogitsOf, Sampling, Sequence};

fn model_dir() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../models/tiny-llama")
}

fn golden(name: &str) -> Tensor {
    let path = model_dir().join("golden.safetensors");
    candle_core::safetensors::load(path, &Device::Cpu).unwrap().remove(name).unwrap()
}

fn ids(name: &str) -> Vec<u32> {
    golden(name).to_dtype(DType::U32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

fn floats(name: &str) -> Vec<f32> {
    golden(name).to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

fn argmaxes(logits: &[f32], vocab: usize) -> Vec<u32> {
    logits.chunks_exact(vocab).map(|row| Sampling::GREEDY.draw(row, 0)).collect()
}

/// Logits of every position, the prompt fed in chunks.
fn logits<E: KvElement>(model: &Llama, tokens: &[u32], chunk: usize, cache: &mut KvCache<E>) -> Vec<f32> {
    let forward = |tokens| {
        let sequence = Sequence { cache: &mut *cache, tokens, received: None };
        model.forward(&mut [sequence], LogitsOf::EveryToken).unwrap()
    };
    tokens.chunks(chunk).flat_map(forward).collect()
}

fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn logits_equal_hugging_faces_with_an_f32_cache() {
    let model = Llama::load(&model_dir()).unwrap();
    let vocab = model.config().vocab_size;
    for (n, tolerance) in [(7, 0.006), (160, 0.08), (1500, 0.08), (5000, 0.08)] {
        let tokens = ids(&format!("ids_{n}"));
        let mut cache = KvCache::<f32>::new(model.config(), n);
        let logits = logits(&model, &tokens, 512, &mut cache);
        let expected = ids(&format!("argmax_{n}"));
        let equal = argmaxes(&logits, vocab).iter().zip(&expected).filter(|(a, b)| a == b).count();
        assert!(equal as f64 >= 0.998 * n as f64, "{equal} of {n} equal");
        let last = floats(&format!("logits_last8_{n}"));
        let difference = largest_difference(&logits[logits.len() - last.len()..], &last);
        assert!(difference <= tolerance, "{n} tokens: {difference}");
    }
}

#[test]
fn keys_and_values_equal_hugging_faces() {
    let model = Llama::load(&model_dir()).unwrap();
    let mut cache = KvCache::<f32>::new(model.config(), 160);
    logits(&model, &ids("ids_160"), 64, &mut cache);
    let (keys, values) = cache.read_range(0..160).unwrap();
    for (name, ours) in [("keys_160", keys), ("values_160", values)] {
        let difference = largest_difference(&ours, &floats(name));
        assert!(difference < 0.01, "{name}: {difference}");
    }
}

#[test]
fn greedy_tokens_equal_hugging_faces_with_the_bf16_cache() {
    let model = Llama::load(&model_dir()).unwrap();
    let golden = ids("greedy_ids");
    let (prompt, expected) = golden.split_at(golden.len() - 48);
    let mut cache = KvCache::<half::bf16>::new(model.config(), golden.len());
    let vocab = model.config().vocab_size;
    let mut row = logits(&model, prompt, 256, &mut cache);
    for (step, want) in expected.iter().enumerate() {
        let next = *argmaxes(&row, vocab).last().unwrap();
        assert_eq!(next, *want, "token {step}");
        row = logits(&model, &[next], 1, &mut cache);
    }
}

#[test]
fn chunking_a_prompt_changes_nothing_but_rounding() {
    let model = Llama::load(&model_dir()).unwrap();
    let tokens = &ids("ids_1500")[..700];
    let whole = logits(&model, tokens, 700, &mut KvCache::<f32>::new(model.config(), 700));
    for chunk in [96, 256] {
        let chunked = logits(&model, tokens, chunk, &mut KvCache::<f32>::new(model.config(), 700));
        assert!(largest_difference(&whole, &chunked) < 1e-3);
    }
}
