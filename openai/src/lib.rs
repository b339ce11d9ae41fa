//! The OpenAI API in types, and text to token ids and back: text lives in this crate and in the router only.
//!
//! ```text
//! bytes ─ request ─► a checked request ─ chat, tokenizer ─► token ids ─► (the cluster)
//! bytes ◄─ sse, response ─ text ◄─ stop ◄─ detokenizer ◄─ token ids ◄─┘
//! ```
//!
//! | module | holds |
//! |---|---|
//! | [`request`] | bodies of completions, chat, tokenize and detokenize: bytes to a validated request |
//! | [`response`] | answers to these and their chunks, usage, log-probabilities, [`KvTransfer`] |
//! | [`models`] | `GET /v1/models` |
//! | [`error`] | what can be wrong with a request; the error object |
//! | [`sse`] | server-sent events, written and read |
//! | [`tokenizer`], [`detokenizer`] | text to ids; ids to text, one at a time |
//! | [`chat`] | a conversation to the text that the model was trained on |
//! | [`stop`] | stop strings across token borders |
//!
//! It knows no HTTP, no network and no cluster. The response types can be read as well as written, so that
//! clients and tests share them.
#![forbid(unsafe_code)]

pub mod chat;
pub mod detokenizer;
pub mod error;
mod fields;
pub mod models;
mod pieces;
pub mod request;
pub mod response;
pub mod sse;
pub mod stop;
pub mod tokenizer;
mod words;

pub use chat::{ChatMessage, ChatTemplate};
pub use detokenizer::Detokenizer;
pub use error::{ApiError, ErrorBody, InvalidRequest};
pub use models::{ModelCard, ModelList};
pub use request::{
    ChatRequest, CompletionRequest, Delivery, DetokenizeRequest, KvCodec, KvHandover, KvMode, KvOptions,
    Prompt, SamplingOptions, TokenizeInput, TokenizeRequest,
};
pub use response::{
    ChatCompletion, Choice, Completion, FinishReason, KvSource, KvTransfer, KvTransferParams, Usage,
};
pub use stop::StopMatcher;
pub use tokenizer::Tokenizer;
