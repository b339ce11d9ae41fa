//! Log-probabilities in the two shapes of the API. All are natural logarithms.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// A token as it was drawn, with what else could have been.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenLogprobs {
    /// The token that was drawn.
    pub drawn: TokenLogprob,
    /// The likeliest tokens, likeliest first.
    pub top: Vec<TokenLogprob>,
}

/// One token with its log-probability.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TokenLogprob {
    /// The token's text; bytes that are no UTF-8 become U+FFFD.
    pub token: String,
    /// The log-probability.
    pub logprob: f32,
    /// The token's bytes, from which characters of several tokens can be put together.
    pub bytes: Vec<u8>,
}

/// Of completions: four lists with one entry per token.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Logprobs {
    /// Where each token's text begins in the choice's text, in characters.
    pub text_offset: Vec<u32>,
    /// The log-probability of each token.
    pub token_logprobs: Vec<f32>,
    /// Each token's text.
    pub tokens: Vec<String>,
    /// The likeliest tokens at each place, and the drawn one, by text.
    pub top_logprobs: Vec<BTreeMap<String, f32>>,
}

/// Of chat: one object per token.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ChatLogprobs {
    /// The tokens of the content.
    pub content: Vec<ChatTokenLogprobs>,
}

/// One token of a chat answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ChatTokenLogprobs {
    /// The token that was drawn.
    #[serde(flatten)]
    pub drawn: TokenLogprob,
    /// The likeliest tokens, likeliest first.
    pub top_logprobs: Vec<TokenLogprob>,
}

impl Logprobs {
    /// Lists for tokens whose texts begin at `offset` of the choice's text, which moves on past them.
    pub fn of(tokens: Vec<TokenLogprobs>, offset: &mut u32) -> Self {
        let mut lists = Self::default();
        for TokenLogprobs { drawn, top } in tokens {
            lists.text_offset.push(*offset);
            *offset += u32::try_from(drawn.token.chars().count()).unwrap_or(u32::MAX);
            let mut likeliest: BTreeMap<String, f32> = BTreeMap::new();
            // Different tokens can have the same text; the likelier one stands for it.
            for TokenLogprob { token, logprob, .. } in top {
                likeliest.entry(token).or_insert(logprob);
            }
            likeliest.entry(drawn.token.clone()).or_insert(drawn.logprob);
            lists.top_logprobs.push(likeliest);
            lists.token_logprobs.push(drawn.logprob);
            lists.tokens.push(drawn.token);
        }
        lists
    }
}

impl From<Vec<TokenLogprobs>> for ChatLogprobs {
    fn from(tokens: Vec<TokenLogprobs>) -> Self {
        let content = tokens.into_iter();
        let content =
            content.map(|TokenLogprobs { drawn, top }| ChatTokenLogprobs { drawn, top_logprobs: top });
        Self { content: content.collect() }
    }
}
