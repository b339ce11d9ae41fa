//! What `/tokenize` and `/detokenize` answer, as vLLM has it.

use serde::{Deserialize, Serialize};

/// A text as tokens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tokenized {
    /// How many.
    pub count: usize,
    /// Longest prompt plus generation that the model takes, in tokens.
    pub max_model_len: u32,
    /// Their ids.
    pub tokens: Vec<u32>,
    /// Their texts, when asked for.
    #[serde(default)]
    pub token_strs: Option<Vec<String>>,
}

/// Tokens as a text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Detokenized {
    /// The text, special tokens by their names.
    pub prompt: String,
}
