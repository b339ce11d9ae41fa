//! `GET /v1/models`.

use serde::{Deserialize, Serialize};

use crate::response::Object;

/// Everything that is served.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelList {
    /// [`Object::List`].
    pub object: Object,
    /// One card per model.
    pub data: Vec<ModelCard>,
}

/// One served model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelCard {
    /// The id that requests name.
    pub id: String,
    /// [`Object::Model`].
    pub object: Object,
    /// Since when it is served, in seconds since 1970.
    pub created: u64,
    /// Who serves it.
    pub owned_by: String,
    /// Longest prompt plus generation, in tokens (a vLLM extension that bench clients read).
    pub max_model_len: u32,
}

impl From<Vec<ModelCard>> for ModelList {
    fn from(data: Vec<ModelCard>) -> Self {
        Self { object: Object::List, data }
    }
}
