//! The prompt pass on the device against the CPU's, with the embedded model. Needs a GPU.
#![allow(unsafe_code, reason = "a vocabulary writes where it is told to")]
#![allow(clippy::print_stdout, reason = "a test on a card says what it measured")]
#![allow(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use candle_core::{DType, Device as CandleDevice, Tensor};
use gpu::{Device, KvPool};
use half::bf16;
use model::{
    CudaCache, CudaLlama, CudaReceived, Error, KvCache, Llama, LogitsOf, ReceivedAttention, Sampling,
    Sequence,
};

/// bf16 keeps 8 bits of what goes from product to product, so each of these is off by up to 1 in 512, and the 8 blocks add up some 50 such
/// roundings: 1 in 100 of the logits' spread of about 5 is what a logit is off by, and of the twelve million that are compared, one may be
/// off by eight times as much.
const TYPICAL: f32 = 0.05;
const TOLERANCE: f32 = 0.4;

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

fn root_mean_square(x: impl ExactSizeIterator<Item = f32>) -> f32 {
    let count = x.len() as f64;
    (x.map(|x| f64::from(x).powi(2)).sum::<f64>() / count).sqrt() as f32
}

fn typical_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    root_mean_square(a.iter().zip(b).map(|(a, b)| a - b))
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
        let typical = typical_difference(&logits, &expected);
        let (mut sure, mut equal) = (0, 0);
        let vocab = model.config().vocab_size;
        for (ours, theirs) in logits.chunks_exact(vocab).zip(expected.chunks_exact(vocab)) {
            if margin(theirs) > 2.0 * difference {
                sure += 1;
                equal += usize::from(Sampling::GREEDY.draw(ours, 0) == Sampling::GREEDY.draw(theirs, 0));
            }
        }
        println!(
            "{n} tokens: differ by {typical}, at most {difference}, {equal} of {sure} sure tokens equal"
        );
        assert!(typical <= TYPICAL && difference <= TOLERANCE, "{n} tokens: {typical}, {difference}");
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
        model.tune(chunk).unwrap();
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
fn a_prompt_goes_on_in_the_pages_of_another() {
    let tokens = &golden("ids_1500")[..700];
    let expected = cpu_logits(tokens, LogitsOf::LastToken, None);
    let mut model = load(1024);
    let pool = KvPool::new(model.device(), model.stream(), model.kv_shape(), 1536).unwrap();
    let stream = Arc::clone(model.stream());
    let mut first = CudaCache::new(&pool, &stream, 450).unwrap();
    model.prefill(&mut first, &tokens[..450], None).unwrap();
    let goes_on = |model: &mut CudaLlama, from: &CudaCache, shared: usize| {
        let mut cache = CudaCache::after(from, &stream, shared, tokens.len()).unwrap();
        assert_eq!(cache.len(), shared);
        model.prefill(&mut cache, &tokens[shared..], None).unwrap();
        let difference = largest_difference(&model.logits().unwrap(), &expected);
        assert!(difference <= TOLERANCE, "{shared} shared: {difference}");
        cache
    };
    let second = goes_on(&mut model, &first, 448);
    // The pages are as they were, and stay when the session that wrote them is gone.
    let third = goes_on(&mut model, &first, 384);
    drop((first, third));
    let fourth = goes_on(&mut model, &second, 640);
    for shared in [63, 704] {
        assert!(matches!(CudaCache::after(&second, &stream, shared, 900), Err(Error::Range { .. })));
    }
    drop((second, fourth));
    assert_eq!(pool.free_tokens(), 1536);
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
        if margin(rows[at - 1]) > 2.0 * TOLERANCE {
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

/// Heads of 128 elements, three of them to a key head, widths that no tile divides, an output projection of its own.
const WIDE_HEADS: &str = r#"{"model_type":"llama","hidden_act":"silu","hidden_size":328,"intermediate_size":520,"vocab_size":1000,
    "num_hidden_layers":3,"num_attention_heads":6,"num_key_value_heads":2,"head_dim":128,"rms_norm_eps":1e-5,"rope_theta":10000.0,
    "max_position_embeddings":512,"tie_word_embeddings":false,"eos_token_id":1}"#;

fn write_wide_heads(dir: &Path, dtype: DType) {
    let mut tensors = HashMap::new();
    let mut add = |name: String, shape: &[usize], mean: f32| {
        let tensor =
            Tensor::randn(mean, 0.08f32, shape, &CandleDevice::Cpu).unwrap().to_dtype(dtype).unwrap();
        tensors.insert(name, tensor);
    };
    add("model.embed_tokens.weight".into(), &[1000, 328], 0.0);
    add("lm_head.weight".into(), &[1000, 328], 0.0);
    add("model.norm.weight".into(), &[328], 1.0);
    for layer in 0..3 {
        for (name, shape) in [
            ("self_attn.q_proj", vec![768, 328]),
            ("self_attn.k_proj", vec![256, 328]),
            ("self_attn.v_proj", vec![256, 328]),
            ("self_attn.o_proj", vec![328, 768]),
            ("mlp.gate_proj", vec![520, 328]),
            ("mlp.up_proj", vec![520, 328]),
            ("mlp.down_proj", vec![328, 520]),
            ("input_layernorm", vec![328]),
            ("post_attention_layernorm", vec![328]),
        ] {
            let mean = if shape.len() == 1 { 1.0 } else { 0.0 };
            add(format!("model.layers.{layer}.{name}.weight"), &shape, mean);
        }
    }
    std::fs::write(dir.join("config.json"), WIDE_HEADS).unwrap();
    candle_core::safetensors::save(&tensors, dir.join("model.safetensors")).unwrap();
}

#[test]
fn other_shapes_and_types_of_weights_equal_the_cpus() {
    let device = Device::open(0).unwrap();
    let tokens: Vec<u32> = (0..301).map(|i| (i * 37 + i * i * 11) % 1000).collect();
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        let dir = tempfile::tempdir().unwrap();
        write_wide_heads(dir.path(), dtype);
        let reference = Llama::load(dir.path()).unwrap();
        let mut kept = KvCache::<bf16>::new(reference.config(), tokens.len());
        let mut counted = ReceivedAttention::of_last(200, 50, tokens.len());
        let sequence = Sequence { cache: &mut kept, tokens: &tokens, received: Some(&mut counted) };
        let expected = reference.forward(&mut [sequence], LogitsOf::LastToken).unwrap();
        let mut model = CudaLlama::load(&device, dir.path(), 160).unwrap();
        assert_eq!(model.fingerprint(), reference.fingerprint());
        let mut cache = cache(&model, tokens.len());
        let mut received = CudaReceived::of_last(&model, 200, 50, tokens.len()).unwrap();
        model.prefill(&mut cache, &tokens, Some(&mut received)).unwrap();
        let off = typical_difference(&model.logits().unwrap(), &expected)
            / root_mean_square(expected.iter().copied());
        let received = received.into_host().unwrap();
        let elsewhere = largest_difference(&received.earlier, &counted.earlier);
        println!("{dtype:?}: logits off by {off}, attention received by {elsewhere}");
        // Weights of f32 and f16 are rounded too, which the CPU's are not.
        assert!(off < 0.06, "{dtype:?}: {off}");
        assert!(elsewhere < 0.3, "{dtype:?}: {elsewhere} of some {}", counted.earlier[0]);
    }
}

#[test]
fn models_that_the_kernels_are_not_made_for_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let device = Device::open(0).unwrap();
    for (from, to, word) in [
        ("\"head_dim\":128", "\"head_dim\":96", "head_dim is 96"),
        ("\"hidden_size\":328", "\"hidden_size\":332", "hidden_size is 332"),
    ] {
        std::fs::write(dir.path().join("config.json"), WIDE_HEADS.replace(from, to)).unwrap();
        let error = CudaLlama::load(&device, dir.path(), 64).unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
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
