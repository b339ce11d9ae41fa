//! How tokens are drawn, and what is told of a draw: the part of a request that both kinds of node look into. Their
//! bounds are what a node takes; it refuses more as [`FailureKind::Invalid`](crate::message::FailureKind::Invalid).

use serde::{Deserialize, Serialize};

/// Most entries of [`Sampling::logit_bias`].
pub const MAX_LOGIT_BIAS: usize = 1024;
/// Most entries of [`Sampling::stop_token_ids`].
pub const MAX_STOP_TOKEN_IDS: usize = 128;
/// Most tokens that [`Sampling::logprobs`] may ask for.
pub const MAX_LOGPROBS: u8 = 20;

/// How tokens are drawn. A draw depends on these, the logits, the position and, where something is penalized, the tokens so
/// far; so any node continues where another stopped.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sampling {
    /// 0 is greedy.
    pub temperature: f32,
    /// Nucleus mass in (0, 1]; 1 keeps everything.
    pub top_p: f32,
    /// Keep this many most likely tokens; 0 keeps everything.
    pub top_k: u32,
    /// Seed of the draws.
    pub seed: u64,
    /// Go on past end-of-sequence tokens.
    pub ignore_eos: bool,
    /// Drop tokens less likely, after temperature, than this share of the likeliest one's probability; 0 keeps everything.
    pub min_p: f32,
    /// Taken once from the logit of every token that was generated already, in [-2, 2].
    pub presence_penalty: f32,
    /// Taken from a token's logit as often as it was generated already, in [-2, 2].
    pub frequency_penalty: f32,
    /// Above 0; logits above 0 of the prompt's and the generated tokens are divided by it, others multiplied. 1 changes nothing.
    pub repetition_penalty: f32,
    /// Added to logits, before penalties; in [-100, 100].
    pub logit_bias: Vec<(u32, f32)>,
    /// Neither end-of-sequence tokens nor `stop_token_ids` can be drawn before so many tokens were generated.
    pub min_tokens: u32,
    /// Tokens that end the generation as end-of-sequence tokens do, also where these are ignored.
    pub stop_token_ids: Vec<u32>,
    /// Tell of every draw its log-probability and those of so many most likely tokens.
    pub logprobs: Option<u8>,
}

impl Default for Sampling {
    /// The API's defaults: drawn from the model's own distribution.
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_p: 1.0,
            top_k: 0,
            seed: 0,
            ignore_eos: false,
            min_p: 0.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            repetition_penalty: 1.0,
            logit_bias: Vec::new(),
            min_tokens: 0,
            stop_token_ids: Vec::new(),
            logprobs: None,
        }
    }
}

impl Sampling {
    /// Whether draws depend on the prompt's tokens.
    #[must_use]
    pub fn penalizes_prompt(&self) -> bool {
        self.repetition_penalty != 1.0
    }

    /// What a decode node that does not get the prompt has to know of it: its distinct tokens in ascending order, none where
    /// draws do not depend on them.
    #[must_use]
    pub fn penalized(&self, prompt: &[u32]) -> Vec<u32> {
        if !self.penalizes_prompt() {
            return Vec::new();
        }
        let mut ids = prompt.to_vec();
        ids.sort_unstable();
        ids.dedup();
        ids
    }
}

/// How likely a token was: natural logarithms of the model's own distribution, the softmax of its logits before bias,
/// penalties and temperature. Finite and not above 0.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Logprobs {
    /// Of the token that was drawn.
    pub drawn: f32,
    /// The most likely tokens, likeliest first, of equals the one with the smaller id first; the drawn one need not be among
    /// them.
    pub top: Vec<(u32, f32)>,
}
