//! `POST /tokenize` and `POST /detokenize`, as vLLM has them.

use super::chat::messages;
use super::prompt::token_id;
use crate::chat::ChatMessage;
use crate::error::InvalidRequest;
use crate::fields::Fields;

/// A request to turn text into tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenizeRequest {
    /// Id of the model; absent, the served one.
    pub model: Option<String>,
    /// What to turn into tokens.
    pub input: TokenizeInput,
    /// Whether begin-of-text is put before it.
    pub add_special_tokens: bool,
    /// Whether every token's text is given too.
    pub return_token_strs: bool,
}

/// What to turn into tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenizeInput {
    /// A text; it may be empty.
    Text(String),
    /// A conversation, through the model's chat template.
    Chat {
        /// The messages.
        messages: Vec<ChatMessage>,
        /// Whether the assistant's next turn is begun.
        add_generation_prompt: bool,
    },
}

/// A request to turn tokens into text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DetokenizeRequest {
    /// Id of the model; absent, the served one.
    pub model: Option<String>,
    /// The tokens.
    pub tokens: Vec<u32>,
}

impl TokenizeRequest {
    /// Reads and checks a body.
    ///
    /// # Errors
    /// The first fault found, naming the field.
    pub fn parse(body: &[u8]) -> Result<Self, InvalidRequest> {
        let mut fields = Fields::parse(body)?;
        let model = fields.string("model")?;
        let text = fields.string("prompt")?;
        let is_chat = text.is_none() && fields.has("messages");
        let input = match text {
            Some(text) => TokenizeInput::Text(text),
            None if is_chat => TokenizeInput::Chat {
                messages: messages(&mut fields)?,
                add_generation_prompt: fields.bool("add_generation_prompt")?.unwrap_or(true),
            },
            None => {
                let expected = "a string, or messages instead";
                return Err(InvalidRequest::Missing { param: "prompt".into(), expected });
            }
        };
        Ok(Self {
            model,
            input,
            // A chat template writes begin-of-text itself.
            add_special_tokens: fields.bool("add_special_tokens")?.unwrap_or(!is_chat),
            return_token_strs: fields.bool("return_token_strs")?.unwrap_or(false),
        })
    }
}

impl DetokenizeRequest {
    /// Reads and checks a body.
    ///
    /// # Errors
    /// The first fault found, naming the field.
    pub fn parse(body: &[u8]) -> Result<Self, InvalidRequest> {
        const EXPECTED: &str = "a list of token ids";
        let mut fields = Fields::parse(body)?;
        let model = fields.string("model")?;
        let missing = || InvalidRequest::Missing { param: "tokens".into(), expected: EXPECTED };
        let list = fields.list("tokens", EXPECTED)?.ok_or_else(missing)?;
        let tokens = list.iter().enumerate().map(|(at, id)| token_id(&format!("tokens[{at}]"), id));
        Ok(Self { model, tokens: tokens.collect::<Result<_, _>>()? })
    }
}
