//! What the API answers. This file has the object that completions and chat answer with, whole and in chunks, the choices
//! of completions, and what is told beside them.

mod chat;
mod handover;
mod logprobs;
mod tokens;

pub use chat::{ASSISTANT, AssistantMessage, ChatChoice, Delta};
pub use handover::KvTransferParams;
pub use logprobs::{ChatLogprobs, ChatTokenLogprobs, Logprobs, TokenLogprob, TokenLogprobs};
pub use tokens::{Detokenized, Tokenized};

use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Value of `object` in the API's answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Object {
    /// A completion, or a chunk of one.
    #[serde(rename = "text_completion")]
    TextCompletion,
    /// A chat completion.
    #[serde(rename = "chat.completion")]
    ChatCompletion,
    /// A chunk of one.
    #[serde(rename = "chat.completion.chunk")]
    ChatCompletionChunk,
    /// A list.
    #[serde(rename = "list")]
    List,
    /// A model's card.
    #[serde(rename = "model")]
    Model,
}

/// What completions and chat answer, whole or a chunk at a time: the same object, but for its choices.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Answer<C> {
    /// `cmpl-…` or `chatcmpl-…`; the same in all chunks.
    pub id: String,
    /// [`Object::TextCompletion`], [`Object::ChatCompletion`] or [`Object::ChatCompletionChunk`].
    pub object: Object,
    /// Arrival of the request, in seconds since 1970; the same in all chunks.
    pub created: u64,
    /// The model's id.
    pub model: String,
    /// One per prompt and `n`, in that order; none in the usage chunk that ends a stream.
    pub choices: Vec<C>,
    /// In a whole answer, in the usage chunk of a stream, and in every chunk where that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
    /// Beside the usage at the end, when asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kv_transfer: Option<KvTransfer>,
    /// In the answer to a request with `do_remote_decode`: for the request that goes on from here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kv_transfer_params: Option<KvTransferParams>,
}

/// A completion, or a chunk of one.
pub type Completion = Answer<Choice>;
/// A chat completion, or a chunk of one.
pub type ChatCompletion = Answer<ChatChoice>;

impl<C> Answer<C> {
    /// An object without content, from which the answer or all chunks of a stream are made.
    fn empty(id: String, object: Object, model: &str) -> Self {
        let (created, model) = (unix_seconds(), model.to_owned());
        Self {
            id,
            object,
            created,
            model,
            choices: Vec::new(),
            usage: None,
            kv_transfer: None,
            kv_transfer_params: None,
        }
    }
}

impl Completion {
    /// A completion without content, from which the answer or all chunks of a stream are made.
    pub fn new(id: Uuid, model: &str) -> Self {
        Self::empty(format!("cmpl-{}", id.simple()), Object::TextCompletion, model)
    }
}

impl ChatCompletion {
    /// A chat completion without content, from which the answer or all chunks of a stream are made.
    pub fn new(id: Uuid, model: &str, stream: bool) -> Self {
        let object = if stream { Object::ChatCompletionChunk } else { Object::ChatCompletion };
        Self::empty(format!("chatcmpl-{}", id.simple()), object, model)
    }
}

/// Seconds since 1970, for `created`.
pub fn unix_seconds() -> u64 {
    // A clock before 1970 is shown as 1970.
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// One generated text, or the next piece of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Choice {
    /// Which choice it is: those of the first prompt come first.
    pub index: u32,
    /// The text; the prompt is repeated before it where that was asked for.
    pub text: String,
    /// When asked for.
    #[serde(default)]
    pub logprobs: Option<Logprobs>,
    /// Why the generation ended; null while it goes on.
    #[serde(default)]
    pub finish_reason: Option<FinishReason>,
}

/// Why a generation ended well.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// An end-of-sequence token, a stop string or a stop token.
    Stop,
    /// `max_tokens` reached.
    Length,
}

/// Tokens of one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Of the prompt, the begin-of-text token included.
    pub prompt_tokens: u32,
    /// Generated.
    pub completion_tokens: u32,
    /// Both.
    pub total_tokens: u32,
    /// More about the prompt.
    pub prompt_tokens_details: PromptTokensDetails,
}

/// More about the prompt's tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PromptTokensDetails {
    /// Tokens whose cache was found from an earlier request.
    pub cached_tokens: u32,
}

impl Usage {
    /// Usage of a request.
    pub fn new(prompt_tokens: u32, completion_tokens: u32, cached_tokens: u32) -> Self {
        Self {
            prompt_tokens,
            completion_tokens,
            total_tokens: prompt_tokens.saturating_add(completion_tokens),
            prompt_tokens_details: PromptTokensDetails { cached_tokens },
        }
    }
}

/// Where the cache came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KvSource {
    /// From a prefill node, over the wire.
    Remote,
    /// The decode node ran the prompt itself.
    Local,
}

/// What the request's KV cache cost: our extension, given when `kv_transfer` asks for it. Times are in milliseconds,
/// sizes in bytes; for a local prefill sizes are 0, and `codec`, `tier` and `ratio` null.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KvTransfer {
    /// Where the cache came from.
    pub source: KvSource,
    /// How it was coded.
    pub codec: Option<String>,
    /// Body ratio aimed at; null for codecs without tiers.
    pub tier: Option<u8>,
    /// When it was coded and sent: `stream` (while the prompt ran) or `after`; null for a local prefill.
    pub mode: Option<String>,
    /// Why the cache was not coded, or not shipped, where the client left that open; null otherwise.
    pub bypass_reason: Option<String>,
    /// The prompt's cache in bf16.
    pub raw_bytes: u64,
    /// What was written to the request's KV streams, headers included.
    pub wire_bytes: u64,
    /// `raw_bytes - wire_bytes`; negative if coding cost more than it saved.
    pub saved_bytes: i64,
    /// `raw_bytes / wire_bytes`.
    pub ratio: Option<f64>,
    /// Tokens of the prompt that the prefill node did not run, since it had their cache from an earlier prompt.
    pub cached_tokens: u32,
    /// Coding, summed over chunks.
    pub encode_ms: f64,
    /// Time during which bytes of the transfer were arriving.
    pub wire_ms: f64,
    /// Share of coding and sending that the prompt pass hid, 0 to 1; null for a local prefill.
    pub overlap: Option<f64>,
    /// Decoding, summed over chunks.
    pub decode_ms: f64,
    /// The forward passes over the prompt, but for the tokens whose cache was there.
    pub prefill_ms: f64,
    /// Wait for the prefill engine.
    pub queue_ms: f64,
    /// Measured speed from prefill to decode node in gigabits per second; null before there was enough to measure.
    pub link_gbps: Option<f64>,
    /// From dispatch to first token as the router forecast it for the way taken; null before node and link were measured.
    pub predicted_ms: Option<f64>,
    /// From the request's arrival to its first token, at the router.
    pub ttft_ms: f64,
    /// From the request's arrival to its second token, at the router; null if there was none.
    pub second_token_ms: Option<f64>,
    /// Who ran the prompt.
    pub prefill_node: String,
    /// Who generated.
    pub decode_node: String,
}
