//! The choices that `/v1/chat/completions` answers: messages, or pieces of them.

use serde::{Deserialize, Serialize};

use super::FinishReason;
use super::logprobs::ChatLogprobs;

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
