//! `POST /v1/chat/completions`: the body's bytes to a [`ChatRequest`].

use serde_json::Value;

use super::neutral::{self, Neutral};
use super::{
    Delivery, KvOptions, MAX_LOGPROBS, SamplingOptions, choices, delivery, handover, kv, sampling,
    tokens_at_most,
};
use crate::chat::ChatMessage;
use crate::error::InvalidRequest;
use crate::fields::{Fields, show};

/// Messages accepted in one request at most.
const MAX_MESSAGES: usize = 4096;

/// A chat request, checked.
#[derive(Debug, Clone, PartialEq)]
pub struct ChatRequest {
    /// Id of the model asked for; whether it is served is for the server to say.
    pub model: String,
    /// The conversation, one message at least.
    pub messages: Vec<ChatMessage>,
    /// Whether the assistant's next turn is begun.
    pub add_generation_prompt: bool,
    /// Choices.
    pub n: u32,
    /// Tokens to generate at most, at least 1; absent, what the context leaves.
    pub max_tokens: Option<u32>,
    /// Log-probabilities of the drawn token and of so many likeliest ones.
    pub logprobs: Option<u8>,
    /// How tokens are drawn.
    pub sampling: SamplingOptions,
    /// How the answer is sent.
    pub delivery: Delivery,
    /// The client's name for its user; nothing depends on it.
    pub user: Option<String>,
    /// Our own fields.
    pub kv: KvOptions,
    /// `kv_transfer_params` as they came, for [`KvHandover::read`](super::KvHandover::read).
    pub kv_transfer_params: Option<Value>,
}

/// Fields that other servers honour and this one does not, with the values that ask for nothing.
const NEUTRAL: [(&str, Neutral); 14] = [
    ("tools", Neutral::EmptyList),
    ("tool_choice", Neutral::Text("none")),
    ("functions", Neutral::EmptyList),
    ("function_call", Neutral::Text("none")),
    ("response_format", Neutral::TextType),
    ("modalities", Neutral::TextList),
    ("audio", Neutral::Null),
    ("web_search_options", Neutral::Null),
    ("chat_template", Neutral::Null),
    ("chat_template_kwargs", Neutral::EmptyObject),
    ("documents", Neutral::EmptyList),
    ("continue_final_message", Neutral::Bool(false)),
    ("echo", Neutral::Bool(false)),
    ("use_beam_search", Neutral::Bool(false)),
];

impl ChatRequest {
    /// Reads and checks a body.
    ///
    /// # Errors
    /// The first fault found, naming the field.
    pub fn parse(body: &[u8]) -> Result<Self, InvalidRequest> {
        let mut fields = Fields::parse(body)?;
        let model = fields.required_string("model")?;
        neutral::refuse(&mut fields, &NEUTRAL)?;
        neutral::refuse(&mut fields, &[("skip_special_tokens", Neutral::Bool(true))])?;
        // The older name counts where the newer one is absent, as OpenAI has it.
        let older = tokens_at_most(&mut fields, "max_tokens")?;
        let max_tokens = tokens_at_most(&mut fields, "max_completion_tokens")?.or(older);
        Ok(Self {
            model,
            messages: messages(&mut fields)?,
            add_generation_prompt: fields.bool("add_generation_prompt")?.unwrap_or(true),
            n: choices(&mut fields, 1)?,
            max_tokens,
            logprobs: logprobs(&mut fields)?,
            sampling: sampling::read(&mut fields, max_tokens)?,
            delivery: delivery::read(&mut fields)?,
            user: fields.string("user")?,
            kv: kv::read(&mut fields)?,
            kv_transfer_params: fields.take(handover::PARAM),
        })
    }
}

fn logprobs(fields: &mut Fields) -> Result<Option<u8>, InvalidRequest> {
    let wanted = fields.bool("logprobs")?.unwrap_or(false);
    let top = fields.integer("top_logprobs", 0..=MAX_LOGPROBS.into())?.map(|value| value as u8);
    match (wanted, top) {
        (true, top) => Ok(Some(top.unwrap_or(0))),
        (false, None | Some(0)) => Ok(None),
        (false, Some(_)) => {
            Err(InvalidRequest::Dependent { param: "top_logprobs".into(), needs: "logprobs is true" })
        }
    }
}

/// Reads `messages`; shared with `/tokenize`.
pub(super) fn messages(fields: &mut Fields) -> Result<Vec<ChatMessage>, InvalidRequest> {
    const PARAM: &str = "messages";
    const EXPECTED: &str = "a list of messages";
    let missing = || InvalidRequest::Missing { param: PARAM.into(), expected: EXPECTED };
    let list = fields.list(PARAM, EXPECTED)?.ok_or_else(missing)?;
    if !(1..=MAX_MESSAGES).contains(&list.len()) {
        let range = format!("1 to {MAX_MESSAGES} messages");
        return Err(InvalidRequest::Range { param: PARAM.into(), range, got: list.len().to_string() });
    }
    list.into_iter().enumerate().map(|(index, value)| message(index, value)).collect()
}

fn message(index: usize, value: Value) -> Result<ChatMessage, InvalidRequest> {
    let param = |name: &str| format!("messages[{index}].{name}");
    let Value::Object(mut message) = value else {
        let param = format!("messages[{index}]");
        return Err(InvalidRequest::Type { param, expected: "an object", got: show(&value) });
    };
    for name in ["tool_calls", "function_call", "audio"] {
        if let Some(value) =
            message.remove(name).filter(|value| !value.is_null() && *value != Value::Array(Vec::new()))
        {
            let instead = "send text only".to_owned();
            return Err(InvalidRequest::Unsupported { param: param(name), got: show(&value), instead });
        }
    }
    let role = role(param("role"), message.remove("role"))?;
    let content = message.remove("content").filter(|content| !content.is_null());
    let content = match content {
        Some(content) => text(&param("content"), content)?,
        // An assistant's turn may be empty.
        None if role == "assistant" => String::new(),
        None => return Err(InvalidRequest::Missing { param: param("content"), expected: "a text" }),
    };
    Ok(ChatMessage { role, content })
}

/// OpenAI's `developer` is what models were trained to know as `system`.
fn role(param: String, value: Option<Value>) -> Result<String, InvalidRequest> {
    const EXPECTED: &str = "\"system\", \"developer\", \"user\" or \"assistant\"";
    match value {
        None | Some(Value::Null) => Err(InvalidRequest::Missing { param, expected: EXPECTED }),
        Some(Value::String(role)) => match role.as_str() {
            "developer" => Ok("system".into()),
            "system" | "user" | "assistant" => Ok(role),
            "tool" | "function" => Err(InvalidRequest::Unsupported {
                param,
                got: show(&Value::String(role)),
                instead: "tools are not offered; send the result in a user's message".into(),
            }),
            _ => {
                Err(InvalidRequest::Range { param, range: EXPECTED.into(), got: show(&Value::String(role)) })
            }
        },
        Some(other) => Err(InvalidRequest::Type { param, expected: EXPECTED, got: show(&other) }),
    }
}

/// A text, or a list of text parts, which are joined by line breaks as vLLM does.
fn text(param: &str, content: Value) -> Result<String, InvalidRequest> {
    match content {
        Value::String(text) => Ok(text),
        Value::Array(parts) => {
            let parts =
                parts.into_iter().enumerate().map(|(at, part)| text_part(&format!("{param}[{at}]"), &part));
            Ok(parts.collect::<Result<Vec<_>, _>>()?.join("\n"))
        }
        other => Err(InvalidRequest::Type {
            param: param.into(),
            expected: "a string or a list of text parts",
            got: show(&other),
        }),
    }
}

fn text_part(param: &str, part: &Value) -> Result<String, InvalidRequest> {
    match (&part["type"], &part["text"]) {
        (Value::String(kind), Value::String(text)) if kind == "text" => Ok(text.clone()),
        (Value::String(kind), _) if kind != "text" => Err(InvalidRequest::Unsupported {
            param: param.into(),
            got: format!("a part of type {}", show(&part["type"])),
            instead: "this model reads text only".into(),
        }),
        _ => Err(InvalidRequest::Type {
            param: param.into(),
            expected: r#"{"type": "text", "text": "..."}"#,
            got: show(part),
        }),
    }
}
