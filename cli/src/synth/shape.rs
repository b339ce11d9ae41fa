//! Which shapes there are: dimensions, tensors as Hugging Face names them, configuration files.

use std::sync::Arc;

use half::bf16;
use serde_json::{Value, json};

/// A model whose shape can be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Shape {
    /// Llama 3.2 1B: 16 layers, 8 key/value heads of 64 dimensions, 1.24 billion parameters, 2.3 GiB.
    #[value(name = "llama-3.2-1b")]
    Llama32_1b,
    /// 2 layers, 2 key/value heads of 16 dimensions, for tests: 1.2 MiB.
    Tiny,
}

/// One tensor of a checkpoint.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Tensor {
    /// As in Hugging Face's Llama.
    pub(super) name: String,
    /// Row-major.
    pub(super) shape: Vec<usize>,
    /// Its elements.
    pub(super) content: Content,
}

/// What a tensor holds.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Content {
    /// Ones: a norm.
    Ones,
    /// Normal numbers with so many times the usual deviation.
    Normal(f32),
    /// These.
    Given(Arc<[bf16]>),
}

impl Tensor {
    pub(super) fn elements(&self) -> usize {
        self.shape.iter().product()
    }
}

/// A Llama's dimensions; head_dim is hidden / heads.
pub(super) struct Dimensions {
    pub(super) layers: usize,
    pub(super) hidden: usize,
    intermediate: usize,
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) vocabulary: usize,
    positions: usize,
    /// Tokens of context that the positions were stretched from, and how far.
    original_positions: usize,
    factor: f64,
}

impl Shape {
    pub(super) fn dimensions(self) -> Dimensions {
        match self {
            Self::Llama32_1b => Dimensions {
                layers: 16,
                hidden: 2_048,
                intermediate: 8_192,
                heads: 32,
                kv_heads: 8,
                vocabulary: 128_256,
                positions: 131_072,
                original_positions: 8_192,
                factor: 32.0,
            },
            Self::Tiny => Dimensions {
                layers: 2,
                hidden: 64,
                intermediate: 160,
                heads: 4,
                kv_heads: 2,
                vocabulary: 8_192,
                positions: 4_096,
                original_positions: 1_024,
                factor: 4.0,
            },
        }
    }

    /// Every tensor, in the order of the forward pass; the output projection is the embedding.
    pub(super) fn tensors(self) -> Vec<Tensor> {
        let of = self.dimensions();
        let kv = of.hidden / of.heads * of.kv_heads;
        let matrix = |name: String, rows, columns| Tensor {
            name,
            shape: vec![rows, columns],
            content: Content::Normal(1.0),
        };
        let norm = |name: String| Tensor { name, shape: vec![of.hidden], content: Content::Ones };
        let mut tensors = vec![matrix("model.embed_tokens.weight".into(), of.vocabulary, of.hidden)];
        for layer in 0..of.layers {
            let named = |part: &str| format!("model.layers.{layer}.{part}.weight");
            tensors.extend([
                norm(named("input_layernorm")),
                matrix(named("self_attn.q_proj"), of.hidden, of.hidden),
                matrix(named("self_attn.k_proj"), kv, of.hidden),
                matrix(named("self_attn.v_proj"), kv, of.hidden),
                matrix(named("self_attn.o_proj"), of.hidden, of.hidden),
                norm(named("post_attention_layernorm")),
                matrix(named("mlp.gate_proj"), of.intermediate, of.hidden),
                matrix(named("mlp.up_proj"), of.intermediate, of.hidden),
                matrix(named("mlp.down_proj"), of.hidden, of.intermediate),
            ]);
        }
        tensors.push(norm("model.norm.weight".into()));
        tensors
    }

    /// `config.json`; `special` has the ids of begin and end of text.
    pub(super) fn config(self, special: &Value) -> Value {
        let of = self.dimensions();
        json!({
            "architectures": ["LlamaForCausalLM"],
            "attention_bias": false,
            "attention_dropout": 0.0,
            "bos_token_id": special["bos_token_id"],
            "eos_token_id": special["eos_token_id"],
            "head_dim": of.hidden / of.heads,
            "hidden_act": "silu",
            "hidden_size": of.hidden,
            "initializer_range": super::shards::DEVIATION,
            "intermediate_size": of.intermediate,
            "max_position_embeddings": of.positions,
            "mlp_bias": false,
            "model_type": "llama",
            "num_attention_heads": of.heads,
            "num_hidden_layers": of.layers,
            "num_key_value_heads": of.kv_heads,
            "pretraining_tp": 1,
            "rms_norm_eps": 1e-5,
            "rope_scaling": {
                "factor": of.factor,
                "high_freq_factor": 4.0,
                "low_freq_factor": 1.0,
                "original_max_position_embeddings": of.original_positions,
                "rope_type": "llama3",
            },
            "rope_theta": 500_000.0,
            "tie_word_embeddings": true,
            "torch_dtype": "bfloat16",
            "use_cache": true,
            "vocab_size": of.vocabulary,
        })
    }

    /// `generation_config.json`.
    pub(super) fn generation_config(self, special: &Value) -> Value {
        json!({
            "bos_token_id": special["bos_token_id"],
            "do_sample": true,
            "eos_token_id": special["eos_token_id"],
            "temperature": 0.6,
            "top_p": 0.9,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llama_3_2_1b_has_its_parameters_and_tensors() {
        let tensors = Shape::Llama32_1b.tensors();
        assert_eq!(tensors.len(), 146);
        assert_eq!(tensors.iter().map(Tensor::elements).sum::<usize>(), 1_235_814_400);
    }
}
