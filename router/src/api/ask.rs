//! What a request asks for, when its body has been checked and its prompts are tokens.

use openai::{Delivery, KvOptions, SamplingOptions};
use tokio::sync::OwnedSemaphorePermit;

use crate::handover::KeptCache;

/// A request that can be run.
#[derive(Debug)]
pub(crate) struct Ask {
    pub(crate) model: String,
    /// One at least.
    pub(crate) prompts: Vec<TokenPrompt>,
    /// Sequences for each prompt.
    pub(crate) n: u32,
    /// Log-probabilities of drawn tokens and of so many likeliest ones.
    pub(crate) logprobs: Option<u8>,
    pub(crate) sampling: SamplingOptions,
    pub(crate) delivery: Delivery,
    pub(crate) kv: KvOptions,
    pub(crate) pins: Pins,
    /// Whether the prompt's cache is to be kept for another request (`kv_transfer_params`).
    pub(crate) keeps: bool,
    /// Where the prompt's cache is kept already, if it is.
    pub(crate) kept: Option<KeptCache>,
    /// One place per sequence that runs at once.
    pub(crate) permit: OwnedSemaphorePermit,
}

/// One prompt.
#[derive(Debug)]
pub(crate) struct TokenPrompt {
    pub(crate) token_ids: Vec<u32>,
    /// Its text, where it is repeated before the answer.
    pub(crate) echo: String,
    /// Tokens to generate at most.
    pub(crate) max_tokens: u32,
}

/// What a request's headers say of where it runs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Pins {
    /// The prefill node that must take it, by its address or name.
    pub(crate) prefill: Option<String>,
    /// Requests with the same go to the same prefill node, as long as its load allows.
    pub(crate) session: Option<String>,
}

impl TokenPrompt {
    /// Its length.
    pub(crate) fn tokens(&self) -> u32 {
        u32::try_from(self.token_ids.len()).unwrap_or(u32::MAX)
    }
}

impl Ask {
    /// Sequences over all prompts.
    pub(crate) fn sequences(&self) -> usize {
        self.prompts.len() * self.n as usize
    }
}
