//! A small random Llama on disk, for tests: grouped queries, its own head_dim, Llama 3's frequencies, an untied head and
//! two shards.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

use std::collections::HashMap;
use std::path::Path;

use candle_core::{Device, Tensor};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

pub(in super::super) const LAYERS: usize = 3;
pub(in super::super) const HEADS: usize = 6;
pub(in super::super) const KV_HEADS: usize = 2;
pub(in super::super) const HEAD_DIM: usize = 8;
pub(in super::super) const HIDDEN: usize = 40;
pub(in super::super) const VOCAB: usize = 64;
const WIDE: usize = 56;

const CONFIG: &str = r#"{"model_type":"llama","hidden_act":"silu","hidden_size":40,"intermediate_size":56,
    "vocab_size":64,"num_hidden_layers":3,"num_attention_heads":6,"num_key_value_heads":2,"head_dim":8,
    "rms_norm_eps":1e-5,"rope_theta":10000.0,"max_position_embeddings":512,"tie_word_embeddings":false,
    "eos_token_id":1,"rope_scaling":{"rope_type":"llama3","factor":4.0,"low_freq_factor":1.0,
    "high_freq_factor":4.0,"original_max_position_embeddings":64}}"#;

/// Writes the model to `dir`, the same every time but for what `edit` does to a tensor `(name, row-major values)`.
pub(in super::super) fn write(dir: &Path, edit: impl Fn(&str, &mut [f32])) {
    write_with_vocabulary(dir, VOCAB, edit);
}

/// The same for a vocabulary of another size.
pub(in super::super) fn write_with_vocabulary(dir: &Path, vocab: usize, edit: impl Fn(&str, &mut [f32])) {
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    let mut shards = [HashMap::new(), HashMap::new()];
    let mut index = serde_json::Map::new();
    for (i, (name, shape)) in tensors(vocab).into_iter().enumerate() {
        let mean = if shape.len() == 1 { 1.0 } else { 0.0 };
        let count = shape.iter().product::<usize>();
        let mut values: Vec<f32> = (0..count).map(|_| mean + rng.random_range(-0.4..0.4)).collect();
        edit(&name, &mut values);
        index.insert(name.clone(), format!("shard{}.safetensors", i % 2).into());
        shards[i % 2].insert(name, Tensor::from_vec(values, shape, &Device::Cpu).unwrap());
    }
    for (i, shard) in shards.iter().enumerate() {
        candle_core::safetensors::save(shard, dir.join(format!("shard{i}.safetensors"))).unwrap();
    }
    let index = serde_json::json!({ "weight_map": index });
    std::fs::write(dir.join("model.safetensors.index.json"), index.to_string()).unwrap();
    let config = CONFIG.replace("\"vocab_size\":64", &format!("\"vocab_size\":{vocab}"));
    std::fs::write(dir.join("config.json"), config).unwrap();
}

/// Some document of the vocabulary.
pub(in super::super) fn document(tokens: usize, seed: u64) -> Vec<u32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..tokens).map(|_| rng.random_range(0..VOCAB as u32)).collect()
}

fn tensors(vocab: usize) -> Vec<(String, Vec<usize>)> {
    let mut all = vec![
        ("model.embed_tokens.weight".to_owned(), vec![vocab, HIDDEN]),
        ("lm_head.weight".to_owned(), vec![vocab, HIDDEN]),
        ("model.norm.weight".to_owned(), vec![HIDDEN]),
    ];
    for layer in 0..LAYERS {
        let parts = [
            ("self_attn.q_proj", vec![HEADS * HEAD_DIM, HIDDEN]),
            ("self_attn.k_proj", vec![KV_HEADS * HEAD_DIM, HIDDEN]),
            ("self_attn.v_proj", vec![KV_HEADS * HEAD_DIM, HIDDEN]),
            ("self_attn.o_proj", vec![HIDDEN, HEADS * HEAD_DIM]),
            ("mlp.gate_proj", vec![WIDE, HIDDEN]),
            ("mlp.up_proj", vec![WIDE, HIDDEN]),
            ("mlp.down_proj", vec![HIDDEN, WIDE]),
            ("input_layernorm", vec![HIDDEN]),
            ("post_attention_layernorm", vec![HIDDEN]),
        ];
        all.extend(parts.map(|(part, shape)| (format!("model.layers.{layer}.{part}.weight"), shape)));
    }
    all
}
