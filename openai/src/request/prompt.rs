//! `prompt`: a text, token ids, or a list of either.

use serde_json::Value;

use crate::error::InvalidRequest;
use crate::fields::{Fields, show};

/// Prompts accepted in one request at most.
pub const MAX_PROMPTS: usize = 256;

const PARAM: &str = "prompt";
const EXPECTED: &str = "a string, a list of strings, a list of token ids or a list of lists of token ids";

/// What to continue.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Prompt {
    /// Text, to be tokenized here.
    Text(String),
    /// Token ids, which go to the model as they are; at least one.
    Tokens(Vec<u32>),
}

/// Reads the prompts of a request, one at least.
pub(super) fn read(fields: &mut Fields) -> Result<Vec<Prompt>, InvalidRequest> {
    match fields.take(PARAM) {
        None => Err(InvalidRequest::Missing { param: PARAM.into(), expected: EXPECTED }),
        Some(Value::Array(list)) => many(list),
        Some(one) => Ok(vec![text(PARAM.into(), one)?]),
    }
}

fn many(list: Vec<Value>) -> Result<Vec<Prompt>, InvalidRequest> {
    match list.first() {
        None => Err(empty(PARAM.into(), "an empty list", "one prompt or token at least")),
        Some(Value::Number(_)) => Ok(vec![tokens(PARAM, list)?]),
        Some(_) if list.len() > MAX_PROMPTS => Err(InvalidRequest::Range {
            param: PARAM.into(),
            range: format!("{MAX_PROMPTS} prompts at most"),
            got: list.len().to_string(),
        }),
        Some(_) => list.into_iter().enumerate().map(|(index, prompt)| one_of_many(index, prompt)).collect(),
    }
}

fn one_of_many(index: usize, prompt: Value) -> Result<Prompt, InvalidRequest> {
    let param = format!("{PARAM}[{index}]");
    match prompt {
        Value::Array(ids) if ids.is_empty() => Err(empty(param, "an empty list", "one token at least")),
        Value::Array(ids) => tokens(&param, ids),
        other => text(param, other),
    }
}

fn text(param: String, value: Value) -> Result<Prompt, InvalidRequest> {
    match value {
        Value::String(text) if text.is_empty() => {
            Err(empty(param, "an empty string", "at least one character"))
        }
        Value::String(text) => Ok(Prompt::Text(text)),
        other => Err(InvalidRequest::Type { param, expected: EXPECTED, got: show(&other) }),
    }
}

fn tokens(param: &str, ids: Vec<Value>) -> Result<Prompt, InvalidRequest> {
    ids.into_iter()
        .enumerate()
        .map(|(at, id)| token_id(&format!("{param}[{at}]"), &id))
        .collect::<Result<_, _>>()
        .map(Prompt::Tokens)
}

/// One token id; whether the model has it is for the server to say.
pub(super) fn token_id(param: &str, value: &Value) -> Result<u32, InvalidRequest> {
    let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
    id.ok_or_else(|| InvalidRequest::Type {
        param: param.into(),
        expected: "a token id, an integer from 0 to 4294967295",
        got: show(value),
    })
}

fn empty(param: String, got: &str, range: &str) -> InvalidRequest {
    InvalidRequest::Range { param, range: range.into(), got: got.into() }
}
