//! `config.json` as Hugging Face writes it, and as this crate uses it: no option is left open.

use std::path::Path;

use serde::Deserialize;

use crate::error::{Error, Result};

/// A Llama's dimensions and constants.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the feed-forward layer.
    pub intermediate_size: usize,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Transformer blocks.
    pub layers: usize,
    /// Query heads per layer.
    pub heads: usize,
    /// Key/value heads per layer; divides `heads`.
    pub kv_heads: usize,
    /// Elements per head.
    pub head_dim: usize,
    /// Epsilon of every RMSNorm.
    pub rms_norm_eps: f64,
    /// Rotary embedding.
    pub rope: Rope,
    /// Longest sequence the model was made for, in tokens.
    pub max_position_embeddings: usize,
    /// Whether the output projection is the embedding.
    pub tie_word_embeddings: bool,
    /// Tokens that end a generation.
    pub eos_token_ids: Vec<u32>,
}

/// Rotary embedding: base and, where there is one, the frequency scaling of Llama 3.1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rope {
    /// Base of the geometric frequency series.
    pub theta: f64,
    /// Long-context rescaling.
    pub scaling: Option<Llama3Scaling>,
}

/// Llama 3.1's frequency scaling: long wavelengths are slowed by `factor`, short ones kept, those between blended.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
pub struct Llama3Scaling {
    /// How much the slowest frequencies are slowed.
    pub factor: f64,
    /// Below this many periods in the original context a frequency is slowed.
    pub low_freq_factor: f64,
    /// Above this many it is kept.
    pub high_freq_factor: f64,
    /// Context of the pre-training.
    pub original_max_position_embeddings: usize,
}

#[derive(Deserialize)]
struct OnDisk {
    model_type: String,
    hidden_act: Option<String>,
    hidden_size: usize,
    intermediate_size: usize,
    vocab_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    rms_norm_eps: f64,
    rope_theta: Option<f64>,
    rope_scaling: Option<RopeOnDisk>,
    /// Transformers 5 keeps base and scaling together under this name.
    rope_parameters: Option<RopeOnDisk>,
    max_position_embeddings: usize,
    #[serde(default)]
    tie_word_embeddings: bool,
    eos_token_id: Option<OneOrMany>,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
}

#[derive(Deserialize)]
struct RopeOnDisk {
    rope_type: Option<String>,
    /// The older name; checkpoints that were saved again hold both.
    #[serde(rename = "type")]
    legacy_type: Option<String>,
    rope_theta: Option<f64>,
    factor: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    original_max_position_embeddings: Option<usize>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(u32),
    Many(Vec<u32>),
}

impl Config {
    /// Reads `config.json`, and `generation_config.json` for end tokens that only it names.
    ///
    /// # Errors
    /// When the file is missing, malformed, or describes something other than a Llama this crate can run.
    pub fn load(model_dir: &Path) -> Result<Self> {
        let path = model_dir.join("config.json");
        let text =
            std::fs::read_to_string(&path).map_err(|source| Error::Io { path: path.clone(), source })?;
        let mut config = Self::parse(&text).map_err(|message| Error::Config { path, message })?;
        let path = model_dir.join("generation_config.json");
        if path.exists() {
            let text =
                std::fs::read_to_string(&path).map_err(|source| Error::Io { path: path.clone(), source })?;
            let eos = generation_eos(&text).map_err(|e| Error::Config { path, message: e.to_string() })?;
            config.eos_token_ids.extend(eos);
            config.eos_token_ids.sort_unstable();
            config.eos_token_ids.dedup();
        }
        Ok(config)
    }

    /// The shape of Llama 3.2 1B, for measurements without its checkpoint.
    #[must_use]
    pub fn llama_3_2_1b() -> Self {
        Self {
            hidden_size: 2048,
            intermediate_size: 8192,
            vocab_size: 128_256,
            layers: 16,
            heads: 32,
            kv_heads: 8,
            head_dim: 64,
            rms_norm_eps: 1e-5,
            rope: Rope {
                theta: 500_000.0,
                scaling: Some(Llama3Scaling {
                    factor: 32.0,
                    low_freq_factor: 1.0,
                    high_freq_factor: 4.0,
                    original_max_position_embeddings: 8192,
                }),
            },
            max_position_embeddings: 131_072,
            tie_word_embeddings: true,
            eos_token_ids: vec![128_001, 128_008, 128_009],
        }
    }

    fn parse(text: &str) -> Result<Self, String> {
        let disk: OnDisk = serde_json::from_str(text).map_err(|e| e.to_string())?;
        disk.refuse_unsupported()?;
        let rope = disk.rope()?;
        let head_dim = disk.head_dim.unwrap_or_else(|| disk.hidden_size / disk.num_attention_heads.max(1));
        let config = Self {
            hidden_size: disk.hidden_size,
            intermediate_size: disk.intermediate_size,
            vocab_size: disk.vocab_size,
            layers: disk.num_hidden_layers,
            heads: disk.num_attention_heads,
            kv_heads: disk.num_key_value_heads.unwrap_or(disk.num_attention_heads),
            head_dim,
            rms_norm_eps: disk.rms_norm_eps,
            rope,
            max_position_embeddings: disk.max_position_embeddings,
            tie_word_embeddings: disk.tie_word_embeddings,
            eos_token_ids: disk.eos_token_id.map_or_else(Vec::new, OneOrMany::into_vec),
        };
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), String> {
        for (name, value) in [
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("vocab_size", self.vocab_size),
            ("num_hidden_layers", self.layers),
            ("num_attention_heads", self.heads),
            ("num_key_value_heads", self.kv_heads),
            ("head_dim", self.head_dim),
            ("max_position_embeddings", self.max_position_embeddings),
        ] {
            if value == 0 {
                return Err(format!("{name} is 0"));
            }
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            return Err(format!(
                "num_attention_heads {} is no multiple of num_key_value_heads {}",
                self.heads, self.kv_heads
            ));
        }
        if !self.head_dim.is_multiple_of(2) {
            return Err(format!("head_dim {} is odd, and RoPE turns pairs", self.head_dim));
        }
        Ok(())
    }

    /// Query heads that share one key/value head.
    #[must_use]
    pub fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// Features of the keys (and as many of the values) of one token over all layers.
    #[must_use]
    pub fn kv_features(&self) -> usize {
        self.layers * self.kv_heads * self.head_dim
    }
}

impl OnDisk {
    fn refuse_unsupported(&self) -> Result<(), String> {
        if self.model_type != "llama" {
            return Err(format!("model_type is `{}`, only `llama` is supported", self.model_type));
        }
        if let Some(act) = self.hidden_act.as_deref().filter(|act| *act != "silu") {
            return Err(format!("hidden_act is `{act}`, only `silu` is supported"));
        }
        if self.attention_bias || self.mlp_bias {
            return Err("attention_bias and mlp_bias are not supported".into());
        }
        Ok(())
    }

    fn rope(&self) -> Result<Rope, String> {
        let both = self.rope_parameters.as_ref().or(self.rope_scaling.as_ref());
        let theta = both.and_then(|r| r.rope_theta).or(self.rope_theta).unwrap_or(10_000.0);
        let scaling = both.map_or(Ok(None), RopeOnDisk::scaling)?;
        Ok(Rope { theta, scaling })
    }
}

impl RopeOnDisk {
    fn scaling(&self) -> Result<Option<Llama3Scaling>, String> {
        match self.rope_type.as_deref().or(self.legacy_type.as_deref()) {
            None if self.factor.is_some() => Err("rope_scaling has a factor but no rope_type".into()),
            None | Some("default") => Ok(None),
            Some("llama3") => {
                let missing = |name| format!("rope_scaling of type llama3 lacks `{name}`");
                Ok(Some(Llama3Scaling {
                    factor: self.factor.ok_or_else(|| missing("factor"))?,
                    low_freq_factor: self.low_freq_factor.ok_or_else(|| missing("low_freq_factor"))?,
                    high_freq_factor: self.high_freq_factor.ok_or_else(|| missing("high_freq_factor"))?,
                    original_max_position_embeddings: self
                        .original_max_position_embeddings
                        .ok_or_else(|| missing("original_max_position_embeddings"))?,
                }))
            }
            Some(other) => Err(format!("rope type `{other}` is not supported (`default` and `llama3` are)")),
        }
    }
}

impl OneOrMany {
    fn into_vec(self) -> Vec<u32> {
        match self {
            Self::One(id) => vec![id],
            Self::Many(ids) => ids,
        }
    }
}

fn generation_eos(text: &str) -> serde_json::Result<Vec<u32>> {
    #[derive(Deserialize)]
    struct Generation {
        eos_token_id: Option<OneOrMany>,
    }
    let parsed: Generation = serde_json::from_str(text)?;
    Ok(parsed.eos_token_id.map_or_else(Vec::new, OneOrMany::into_vec))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINIMAL: &str = r#"{"model_type":"llama","hidden_size":64,"intermediate_size":128,"vocab_size":100,
        "num_hidden_layers":2,"num_attention_heads":4,"rms_norm_eps":1e-5,"max_position_embeddings":128"#;

    fn parse(extra: &str) -> Result<Config, String> {
        Config::parse(&format!("{MINIMAL}{extra}}}"))
    }

    #[test]
    fn absent_fields_take_hugging_faces_defaults() {
        let config = parse("").unwrap();
        assert_eq!((config.kv_heads, config.head_dim, config.rope.theta), (4, 16, 10_000.0));
        assert!(config.eos_token_ids.is_empty() && !config.tie_word_embeddings);
    }

    #[test]
    fn end_tokens_may_be_one_or_many() {
        assert_eq!(parse(r#","eos_token_id":7"#).unwrap().eos_token_ids, [7]);
        assert_eq!(parse(r#","eos_token_id":[7,8]"#).unwrap().eos_token_ids, [7, 8]);
    }

    #[test]
    fn rope_parameters_of_transformers_5_are_read() {
        let rope = parse(
            r#","rope_parameters":{"rope_type":"llama3","rope_theta":5e5,"factor":32.0,"low_freq_factor":1.0,
               "high_freq_factor":4.0,"original_max_position_embeddings":8192}"#,
        );
        let rope = rope.unwrap().rope;
        assert_eq!(rope.theta, 5e5);
        assert_eq!(rope.scaling.unwrap().factor, 32.0);
    }

    #[test]
    fn what_cannot_be_run_is_refused_by_name() {
        for (extra, word) in [
            (r#","hidden_act":"gelu""#, "gelu"),
            (r#","attention_bias":true"#, "attention_bias"),
            (r#","rope_scaling":{"rope_type":"yarn"}"#, "yarn"),
            (r#","rope_scaling":{"rope_type":"llama3"}"#, "factor"),
            (r#","rope_scaling":{"factor":2.0}"#, "rope_type"),
            (r#","num_key_value_heads":3"#, "multiple"),
            (r#","head_dim":15"#, "odd"),
        ] {
            let message = parse(extra).unwrap_err();
            assert!(message.contains(word), "{extra}: {message}");
        }
        let qwen = MINIMAL.replace("llama", "qwen2") + "}";
        assert!(Config::parse(&qwen).unwrap_err().contains("qwen2"));
    }
}
