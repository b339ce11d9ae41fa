//! Request bodies: bytes to a checked request with every default filled in. Fields that the API has and this server does
//! not honour are refused unless they ask for nothing; fields it does not know are ignored, as other servers do.
//!
//! | file | holds |
//! |---|---|
//! | this one | `POST /v1/completions` |
//! | `chat` | `POST /v1/chat/completions` |
//! | `tokens` | `POST /tokenize` and `/detokenize` |
//! | `prompt`, `sampling`, `delivery`, `kv` | groups of fields that they share |
//! | `handover` | `kv_transfer_params` |
//! | `neutral` | fields that are refused |

mod chat;
mod delivery;
mod handover;
mod kv;
mod neutral;
mod prompt;
mod sampling;
mod tokens;

pub use chat::ChatRequest;
pub use delivery::Delivery;
pub use handover::{KvHandover, MAX_TICKET_BYTES};
pub use kv::{DEFAULT_TIER, KvCodec, KvMode, KvOptions};
pub use prompt::{MAX_PROMPTS, Prompt};
pub use sampling::{MAX_LOGIT_BIAS, MAX_STOP_BYTES, MAX_STOP_TOKEN_IDS, MAX_STOPS, SamplingOptions};
pub use tokens::{DetokenizeRequest, TokenizeInput, TokenizeRequest};

use neutral::Neutral;
use serde_json::Value;

use crate::error::InvalidRequest;
use crate::fields::Fields;

/// Tokens generated when `max_tokens` is absent, as OpenAI documents.
pub const DEFAULT_MAX_TOKENS: u32 = 16;
/// Choices per prompt at most, as OpenAI documents.
pub const MAX_N: u32 = 128;
/// Choices of a request at most, over all of its prompts.
pub const MAX_CHOICES: usize = 256;
/// Log-probabilities at most, beside the drawn token's.
pub const MAX_LOGPROBS: u8 = 20;

/// A completion request, checked; nothing is left to be defaulted.
#[derive(Debug, Clone, PartialEq)]
pub struct CompletionRequest {
    /// Id of the model asked for; whether it is served is for the server to say.
    pub model: String,
    /// What to continue, one at least.
    pub prompts: Vec<Prompt>,
    /// Choices for each prompt.
    pub n: u32,
    /// Tokens to generate at most; at least 1.
    pub max_tokens: u32,
    /// Whether the prompt is repeated before the text.
    pub echo: bool,
    /// Log-probabilities of the drawn token and of so many likeliest ones.
    pub logprobs: Option<u8>,
    /// Whether begin-of-text is put before a prompt of text.
    pub add_special_tokens: bool,
    /// How tokens are drawn.
    pub sampling: SamplingOptions,
    /// How the answer is sent.
    pub delivery: Delivery,
    /// The client's name for its user; nothing depends on it.
    pub user: Option<String>,
    /// Our own fields.
    pub kv: KvOptions,
    /// `kv_transfer_params` as they came, for [`KvHandover::read`]: not every server takes them.
    pub kv_transfer_params: Option<Value>,
}

/// Fields that other servers honour and this one does not, with the values that ask for nothing.
const NEUTRAL: [(&str, Neutral); 6] = [
    ("suffix", Neutral::Null),
    ("prompt_logprobs", Neutral::Null),
    ("prompt_embeds", Neutral::Null),
    ("skip_special_tokens", Neutral::Bool(true)),
    ("use_beam_search", Neutral::Bool(false)),
    ("response_format", Neutral::TextType),
];

impl CompletionRequest {
    /// Reads and checks a body.
    ///
    /// # Errors
    /// The first fault found, naming the field.
    pub fn parse(body: &[u8]) -> Result<Self, InvalidRequest> {
        let mut fields = Fields::parse(body)?;
        let model = fields.required_string("model")?;
        neutral::refuse(&mut fields, &NEUTRAL)?;
        let prompts = prompt::read(&mut fields)?;
        let n = choices(&mut fields, prompts.len())?;
        let max_tokens = tokens_at_most(&mut fields, "max_tokens")?.unwrap_or(DEFAULT_MAX_TOKENS);
        let logprobs = fields.integer("logprobs", 0..=MAX_LOGPROBS.into())?.map(|value| value as u8);
        Ok(Self {
            model,
            prompts,
            n,
            max_tokens,
            echo: echo(&mut fields, logprobs)?,
            logprobs,
            add_special_tokens: fields.bool("add_special_tokens")?.unwrap_or(true),
            sampling: sampling::read(&mut fields, Some(max_tokens))?,
            delivery: delivery::read(&mut fields)?,
            user: fields.string("user")?,
            kv: kv::read(&mut fields)?,
            kv_transfer_params: fields.take(handover::PARAM),
        })
    }
}

fn tokens_at_most(fields: &mut Fields, name: &str) -> Result<Option<u32>, InvalidRequest> {
    Ok(fields.integer(name, 1..=u32::MAX.into())?.map(|value| value as u32))
}

/// `n`. More candidates than choices, as `best_of` asks for, would cost their tokens and never be seen.
fn choices(fields: &mut Fields, prompts: usize) -> Result<u32, InvalidRequest> {
    let n = fields.integer("n", 1..=MAX_N.into())?.map_or(1, |value| value as u32);
    let best_of = fields.integer("best_of", 1..=MAX_N.into())?;
    if let Some(best_of) = best_of.filter(|best_of| *best_of != i128::from(n)) {
        return Err(InvalidRequest::Unsupported {
            param: "best_of".into(),
            got: best_of.to_string(),
            instead: format!("leave it out or send the value of n, {n}"),
        });
    }
    if prompts * n as usize > MAX_CHOICES {
        let range = format!("at most {} for {prompts} prompts", MAX_CHOICES / prompts);
        return Err(InvalidRequest::Range { param: "n".into(), range, got: n.to_string() });
    }
    Ok(n)
}

/// The prompt's own log-probabilities, which the two together ask for, would need the logits of every prompt token.
fn echo(fields: &mut Fields, logprobs: Option<u8>) -> Result<bool, InvalidRequest> {
    let echo = fields.bool("echo")?.unwrap_or(false);
    if echo && logprobs.is_some() {
        return Err(InvalidRequest::Unsupported {
            param: "echo".into(),
            got: "true together with logprobs".into(),
            instead: "ask for one of the two".into(),
        });
    }
    Ok(echo)
}
