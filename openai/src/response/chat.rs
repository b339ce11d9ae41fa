//! What `/v1/chat/completions` answers: a whole answer, or chunks of one.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::logprobs::ChatLogprobs;
use super::{FinishReason, KvTransfer, Object, Usage, unix_seconds};

/// A chat completion, or a chunk of one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ChatCompletion {
    /// `chatcmpl-…`; the same in all chunks.
    pub id: String,
    /// [`Object::ChatCompletion`] or [`Object::ChatCompletionChunk`].
    pub object: Object,
    /// Arrival of the request, in seconds since 1970; the same in all chunks.
    pub created: u64,
    /// The model's id.
    pub model: String,
    /// None in the usage chunk that ends a stream.
    pub choices: Vec<ChatChoice>,
    /// In a whole answer, in the usage chunk of a stream, and in every chunk where that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
    /// Beside the usage at the end, when asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kv_transfer: Option<KvTransfer>,
}

/// One answer, or the next piece of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ChatChoice {
    /// Which choice it is.
    pub index: u32,
    /// In a whole answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<AssistantMessage>,
    /// In a chunk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delta: Option<Delta>,
    /// When asked for.
    #[serde(default)]
    pub logprobs: Option<ChatLogprobs>,
    /// Why the generation ended; null while it goes on.
    #[serde(default)]
    pub finish_reason: Option<FinishReason>,
}

/// The assistant's turn.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AssistantMessage {
    /// `assistant`.
    pub role: String,
    /// What it says.
    pub content: String,
    /// Always null: nothing is refused here, but clients look for it.
    #[serde(default)]
    pub refusal: Option<String>,
}

/// What a chunk adds. The role comes with the first text, since clients take the first chunk for the first token.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delta {
    /// `assistant`, in a choice's first chunk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
    /// More text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
}

/// The only role that answers.
pub const ASSISTANT: &str = "assistant";

impl ChatCompletion {
    /// An object without content, from which the answer or all chunks of a stream are made.
    pub fn new(id: Uuid, model: &str, stream: bool) -> Self {
        Self {
            id: format!("chatcmpl-{}", id.simple()),
            object: if stream { Object::ChatCompletionChunk } else { Object::ChatCompletion },
            created: unix_seconds(),
            model: model.to_owned(),
            choices: Vec::new(),
            usage: None,
            kv_transfer: None,
        }
    }
}
