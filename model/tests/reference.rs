//! Against candle-transformers' Llama on random tiny weights, and what only our open cache can do.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

use std::collections::HashMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::llama as oracle;
use model::{Error, KvCache, Llama, LogitsOf, ReceivedAttention, Sequence};

const CONFIG: &str = r#"{"model_type":"llama","hidden_act":"silu","hidden_size":48,"intermediate_size":80,"vocab_size":64,
    "num_hidden_layers":3,"num_attention_heads":6,"num_key_value_heads":2,"rms_norm_eps":1e-5,"rope_theta":10000.0,
    "max_position_embeddings":512,"tie_word_embeddings":false,"eos_token_id":1,
    "rope_scaling":{"rope_type":"llama3","factor":4.0,"low_freq_factor":1.0,"high_freq_factor":4.0,
    "original_max_position_embeddings":64}}"#;

/// Writes a random checkpoint of [`CONFIG`]'s shape, leaving out the tensors that `keep` refuses.
fn write_model(dir: &Path, dtype: DType, keep: impl Fn(&str) -> bool) -> HashMap<String, Tensor> {
    let mut tensors = HashMap::new();
    let mut add = |name: String, shape: &[usize], mean: f32| {
        if keep(&name) {
            let tensor = Tensor::randn(mean, 0.2f32, shape, &Device::Cpu).unwrap().to_dtype(dtype).unwrap();
            tensors.insert(name, tensor);
        }
    };
    add("model.embed_tokens.weight".into(), &[64, 48], 0.0);
    add("lm_head.weight".into(), &[64, 48], 0.0);
    add("model.norm.weight".into(), &[48], 1.0);
    for layer in 0..3 {
        for (name, shape) in [
            ("self_attn.q_proj", vec![48, 48]),
            ("self_attn.k_proj", vec![16, 48]),
            ("self_attn.v_proj", vec![16, 48]),
            ("self_attn.o_proj", vec![48, 48]),
            ("mlp.gate_proj", vec![80, 48]),
            ("mlp.up_proj", vec![80, 48]),
            ("mlp.down_proj", vec![48, 80]),
            ("input_layernorm", vec![48]),
            ("post_attention_layernorm", vec![48]),
        ] {
            let mean = if shape.len() == 1 { 1.0 } else { 0.0 };
            add(format!("model.layers.{layer}.{name}.weight"), &shape, mean);
        }
    }
    std::fs::write(dir.join("config.json"), CONFIG).unwrap();
    candle_core::safetensors::save(&tensors, dir.join("model.safetensors")).unwrap();
    tensors
}

fn tokens(n: usize) -> Vec<u32> {
    (0..n).map(|i| ((i * 37 + i * i * 11) % 64) as u32).collect()
}

fn last_logits(model: &Llama, tokens: &[u32]) -> Vec<f32> {
    let mut cache = KvCache::<f32>::new(model.config(), tokens.len());
    let sequence = Sequence { cache: &mut cache, tokens, received: None };
    model.forward(&mut [sequence], LogitsOf::LastToken).unwrap()
}

fn assert_close(a: &[f32], b: &[f32], tolerance: f32) {
    assert_eq!(a.len(), b.len());
    let worst = a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst < tolerance, "differ by {worst}");
}

#[test]
fn equals_candle_transformers_on_random_weights() {
    for dtype in [DType::F32, DType::BF16, DType::F16] {
        let dir = tempfile::tempdir().unwrap();
        let tensors = write_model(dir.path(), dtype, |_| true);
        let model = Llama::load(dir.path()).unwrap();
        let config: oracle::LlamaConfig = serde_json::from_str(CONFIG).unwrap();
        let config = config.into_config(false);
        let widened = tensors.into_iter().map(|(n, t)| (n, t.to_dtype(DType::F32).unwrap())).collect();
        let vb = VarBuilder::from_tensors(widened, DType::F32, &Device::Cpu);
        let theirs = oracle::Llama::load(vb, &config).unwrap();
        for n in [1, 63, 65, 300] {
            let ids = tokens(n);
            let mut cache = oracle::Cache::new(true, DType::F32, &config, &Device::Cpu).unwrap();
            let input = Tensor::new(ids.as_slice(), &Device::Cpu).unwrap().unsqueeze(0).unwrap();
            let expected = theirs.forward(&input, 0, &mut cache).unwrap().flatten_all().unwrap();
            assert_close(&last_logits(&model, &ids), &expected.to_vec1::<f32>().unwrap(), 2e-3);
        }
    }
}

#[test]
fn a_batch_of_sessions_equals_each_session_alone() {
    let dir = tempfile::tempdir().unwrap();
    write_model(dir.path(), DType::F32, |_| true);
    let model = Llama::load(dir.path()).unwrap();
    let prompts: Vec<Vec<u32>> = [5, 200, 77].into_iter().map(tokens).collect();
    let mut caches: Vec<_> =
        prompts.iter().map(|p| KvCache::<f32>::new(model.config(), p.len() + 1)).collect();
    let mut batch: Vec<_> = caches
        .iter_mut()
        .zip(&prompts)
        .map(|(cache, tokens)| Sequence { cache, tokens, received: None })
        .collect();
    model.forward(&mut batch, LogitsOf::LastToken).unwrap();
    let step = [9u32];
    let mut batch: Vec<_> =
        caches.iter_mut().map(|cache| Sequence { cache, tokens: &step, received: None }).collect();
    let rows = model.forward(&mut batch, LogitsOf::LastToken).unwrap();
    for (row, prompt) in rows.chunks_exact(64).zip(&prompts) {
        let whole: Vec<u32> = prompt.iter().copied().chain(step).collect();
        assert_close(row, &last_logits(&model, &whole), 1e-3);
    }
}

#[test]
fn a_cache_moved_by_ranges_continues_the_same() {
    let dir = tempfile::tempdir().unwrap();
    write_model(dir.path(), DType::F32, |_| true);
    let model = Llama::load(dir.path()).unwrap();
    let ids = tokens(130);
    let mut source = KvCache::<half::bf16>::new(model.config(), 131);
    model
        .forward(&mut [Sequence { cache: &mut source, tokens: &ids, received: None }], LogitsOf::LastToken)
        .unwrap();
    let mut target = KvCache::<half::bf16>::new(model.config(), 150);
    for range in [64..130, 0..64] {
        let (keys, values) = source.read_range(range.clone()).unwrap();
        target.write_range(range, &keys, &values).unwrap();
    }
    target.set_len(130).unwrap();
    let step =
        |cache| model.forward(&mut [Sequence { cache, tokens: &[3], received: None }], LogitsOf::LastToken);
    assert_eq!(step(&mut source).unwrap(), step(&mut target).unwrap());
}

#[test]
fn received_attention_sums_to_its_queries_whatever_the_chunks() {
    let dir = tempfile::tempdir().unwrap();
    write_model(dir.path(), DType::F32, |_| true);
    let model = Llama::load(dir.path()).unwrap();
    let ids = tokens(150);
    let run = |chunk: usize| {
        let mut cache = KvCache::<f32>::new(model.config(), 150);
        let mut received = ReceivedAttention::of_last(40, 10, 150);
        for tokens in ids.chunks(chunk) {
            let sequence = Sequence { cache: &mut cache, tokens, received: Some(&mut received) };
            model.forward(&mut [sequence], LogitsOf::LastToken).unwrap();
        }
        (received.earlier, received.nearest)
    };
    let (earlier, nearest) = run(150);
    // Each query hands out 1 per head and layer.
    assert!((earlier.iter().sum::<f32>() - 30.0 * 6.0 * 3.0).abs() < 0.05);
    assert!((nearest.iter().sum::<f32>() - 10.0 * 6.0 * 3.0).abs() < 0.05);
    assert!(nearest.iter().all(|s| *s > 0.0) && earlier[141..].iter().all(|s| *s == 0.0));
    let (earlier_in_chunks, nearest_in_chunks) = run(32);
    assert_close(&earlier, &earlier_in_chunks, 1e-3);
    assert_close(&nearest, &nearest_in_chunks, 1e-3);
}

#[test]
fn bad_directories_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(Llama::load(dir.path()), Err(Error::Io { path, .. }) if path.ends_with("config.json")));
    let missing = "model.layers.1.mlp.up_proj.weight";
    write_model(dir.path(), DType::F32, |name| name != missing);
    assert!(matches!(Llama::load(dir.path()), Err(Error::MissingTensor { name, .. }) if name == missing));
    write_model(dir.path(), DType::F32, |_| true);
    std::fs::write(dir.path().join("config.json"), CONFIG.replace("\"vocab_size\":64", "\"vocab_size\":65"))
        .unwrap();
    let error = Llama::load(dir.path()).unwrap_err();
    assert!(
        matches!(&error, Error::Shape { expected, got, .. } if expected == &[65, 48] && got == &[64, 48])
    );
    std::fs::write(dir.path().join("model.safetensors"), b"not a checkpoint").unwrap();
    assert!(Llama::load(dir.path()).is_err());
}

#[test]
fn a_call_that_cannot_succeed_changes_no_cache() {
    let dir = tempfile::tempdir().unwrap();
    write_model(dir.path(), DType::F32, |_| true);
    let model = Llama::load(dir.path()).unwrap();
    let mut cache = KvCache::<f32>::new(model.config(), 4);
    let mut try_tokens = |tokens: &[u32]| {
        let sequence = Sequence { cache: &mut cache, tokens, received: None };
        model.forward(&mut [sequence], LogitsOf::LastToken).unwrap_err()
    };
    assert!(matches!(try_tokens(&[]), Error::InvalidArgument(_)));
    assert!(matches!(try_tokens(&[64]), Error::Token { id: 64, vocab: 64 }));
    assert!(matches!(try_tokens(&[1; 5]), Error::CacheFull { wanted: 5, capacity: 4 }));
    assert!(cache.is_empty());
}

#[test]
fn the_fingerprint_tells_models_apart() {
    let dir = tempfile::tempdir().unwrap();
    write_model(dir.path(), DType::F32, |_| true);
    let first = Llama::load(dir.path()).unwrap().fingerprint();
    assert_eq!(first, Llama::load(dir.path()).unwrap().fingerprint());
    write_model(dir.path(), DType::F32, |_| true);
    assert_ne!(first, Llama::load(dir.path()).unwrap().fingerprint());
}
