//! The model as the router needs it: its tokenizer's directory, its name, the shape of its cache. The weights are the
//! nodes' business; the router never opens them.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use transport::message::ModelIdentity;

/// Version of the KV container format that this release speaks. The router reads no containers, but turns away nodes of
/// another release at the door.
const KV_FORMAT_VERSION: u16 = 1;

/// The served model.
#[derive(Debug, Clone)]
pub struct RouterModel {
    /// What nodes are compared with when they dial in. A fingerprint of zeros says that no weights are held.
    pub identity: ModelIdentity,
    /// Hugging Face model directory; of it, `tokenizer.json`, `tokenizer_config.json` and `config.json` are read.
    pub model_dir: PathBuf,
    /// The id that requests name.
    pub served_name: String,
    /// Longest prompt plus generation, in tokens.
    pub max_model_len: u32,
}

/// A model directory that cannot be served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// No configuration.
    #[error("cannot read {path}: {source}; give a Hugging Face model directory")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Not a configuration.
    #[error("cannot use {path}: {reason}")]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

/// The part of a Llama's `config.json` that matters here.
#[derive(Deserialize)]
struct ModelConfig {
    hidden_size: u32,
    num_hidden_layers: u32,
    num_attention_heads: u32,
    num_key_value_heads: Option<u32>,
    head_dim: Option<u32>,
    max_position_embeddings: u32,
}

impl RouterModel {
    /// Reads `config.json`. Without a name, the directory's name is served.
    ///
    /// # Errors
    /// See [`ModelError`].
    pub fn load(model_dir: &Path, served_name: Option<&str>) -> Result<Self, ModelError> {
        let path = model_dir.join("config.json");
        let bytes = fs::read(&path).map_err(|source| ModelError::Read { path: path.clone(), source })?;
        let unusable = |reason: String| ModelError::Content { path: path.clone(), reason };
        let config: ModelConfig = serde_json::from_slice(&bytes).map_err(|e| unusable(e.to_string()))?;
        let heads = config.num_attention_heads;
        let head_dim = config.head_dim.or_else(|| config.hidden_size.checked_div(heads));
        let served_name = served_name.filter(|name| !name.is_empty());
        let served_name = served_name.map_or_else(|| name_of(model_dir), str::to_owned);
        let identity = ModelIdentity {
            model_id: served_name.clone(),
            fingerprint: [0; 16],
            kv_dtype: "bf16".into(),
            layers: config.num_hidden_layers,
            kv_heads: config.num_key_value_heads.unwrap_or(heads),
            head_dim: head_dim.ok_or_else(|| unusable("num_attention_heads is 0".into()))?,
            plan_id: None,
            kv_format_versions: vec![KV_FORMAT_VERSION],
        };
        let max_model_len = config.max_position_embeddings;
        Ok(Self { identity, model_dir: model_dir.to_owned(), served_name, max_model_len })
    }

    /// Bytes of bf16 keys and values that a token has.
    pub(crate) fn bytes_per_token(&self) -> u32 {
        let ModelIdentity { layers, kv_heads, head_dim, .. } = self.identity;
        layers.saturating_mul(kv_heads).saturating_mul(head_dim).saturating_mul(4)
    }
}

/// Name of the directory, links and dots resolved where possible.
fn name_of(dir: &Path) -> String {
    let resolved = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
    resolved.file_name().map_or_else(|| "model".to_owned(), |name| name.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_embedded_models_shape_is_read_without_its_weights() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tiny-llama");
        let model = RouterModel::load(&dir, None).unwrap();
        let identity = &model.identity;
        assert_eq!(model.bytes_per_token(), 6144);
        assert_eq!((identity.layers, identity.kv_heads, identity.head_dim), (8, 3, 64));
        assert_eq!((model.served_name.as_str(), model.max_model_len), ("tiny-llama", 8192));
        assert_eq!(RouterModel::load(&dir, Some("other")).unwrap().identity.model_id, "other");
    }

    #[test]
    fn a_directory_without_a_model_is_named() {
        let error = RouterModel::load(Path::new("no-such-dir"), None).unwrap_err().to_string();
        assert!(error.contains("config.json"), "{error}");
    }
}
