//! How tokens are drawn and when the generation ends: fields that completions and chat share, OpenAI's and vLLM's.

use std::collections::BTreeMap;

use serde_json::Value;

use super::prompt::token_id;
use crate::error::InvalidRequest;
use crate::fields::{Fields, Interval, show};

/// Stop strings accepted at most. OpenAI takes 4; agents send more.
pub const MAX_STOPS: usize = 16;
/// Longest stop string accepted, in bytes; bounds the text that may be held back.
pub const MAX_STOP_BYTES: usize = 1024;
/// Token ids accepted at most in `stop_token_ids`.
pub const MAX_STOP_TOKEN_IDS: usize = 128;
/// Tokens accepted at most in `logit_bias`.
pub const MAX_LOGIT_BIAS: usize = 1024;

/// How tokens are drawn and what ends them. A field says what its name says in OpenAI's or, where OpenAI has none, vLLM's API.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplingOptions {
    /// 0 (greedy) to 2.
    pub temperature: f32,
    /// Nucleus mass in (0, 1].
    pub top_p: f32,
    /// Keep this many most likely tokens; 0 keeps all.
    pub top_k: u32,
    /// Drop tokens less likely than this times the likeliest, 0 to 1.
    pub min_p: f32,
    /// Taken from the logit of every token generated before, -2 to 2.
    pub presence_penalty: f32,
    /// The same for every time that it was generated, -2 to 2.
    pub frequency_penalty: f32,
    /// Divides positive logits of tokens in prompt or text, and multiplies negative ones; above 0, 1 is none.
    pub repetition_penalty: f32,
    /// Added to logits, -100 to 100 each, by token id.
    pub logit_bias: Vec<(u32, f32)>,
    /// Seed of the draws; none asks for a fresh one.
    pub seed: Option<u64>,
    /// Strings that end the generation; none of them is empty.
    pub stop: Vec<String>,
    /// Tokens that end the generation.
    pub stop_token_ids: Vec<u32>,
    /// Nothing ends the generation before so many tokens.
    pub min_tokens: u32,
    /// Go on past end-of-sequence tokens.
    pub ignore_eos: bool,
}

impl Default for SamplingOptions {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            repetition_penalty: 1.0,
            logit_bias: Vec::new(),
            seed: None,
            stop: Vec::new(),
            stop_token_ids: Vec::new(),
            min_tokens: 0,
            ignore_eos: false,
        }
    }
}

/// Reads the fields; `max_tokens` bounds `min_tokens` where it is known.
pub(super) fn read(fields: &mut Fields, max_tokens: Option<u32>) -> Result<SamplingOptions, InvalidRequest> {
    let mut number = |name, range, default: f32| {
        fields.number(name, range).map(|value| value.map_or(default, |value| value as f32))
    };
    let penalty = Interval::Closed(-2.0, 2.0);
    let temperature = number("temperature", Interval::Closed(0.0, 2.0), 1.0)?;
    // A mass so small that it rounds to 0 in 32 bits is kept above it: both keep the likeliest token alone.
    let top_p = number("top_p", Interval::Above(0.0, 1.0), 1.0)?.max(f32::MIN_POSITIVE);
    let min_p = number("min_p", Interval::Closed(0.0, 1.0), 0.0)?;
    let presence_penalty = number("presence_penalty", penalty, 0.0)?;
    let frequency_penalty = number("frequency_penalty", penalty, 0.0)?;
    let repetition_penalty =
        number("repetition_penalty", Interval::Above(0.0, 10.0), 1.0)?.max(f32::MIN_POSITIVE);
    Ok(SamplingOptions {
        temperature,
        top_p,
        top_k: top_k(fields)?,
        min_p,
        presence_penalty,
        frequency_penalty,
        repetition_penalty,
        logit_bias: logit_bias(fields)?,
        // Negative seeds are as good as others: only equality matters.
        seed: fields.integer("seed", i64::MIN.into()..=u64::MAX.into())?.map(|value| value as u64),
        stop: stop(fields)?,
        stop_token_ids: stop_token_ids(fields)?,
        min_tokens: min_tokens(fields, max_tokens)?,
        ignore_eos: fields.bool("ignore_eos")?.unwrap_or(false),
    })
}

/// Clients write "all" as 0, -1 or absent.
fn top_k(fields: &mut Fields) -> Result<u32, InvalidRequest> {
    let value = fields.integer("top_k", -1..=u32::MAX.into())?;
    Ok(value.map_or(0, |value| value.max(0) as u32))
}

fn min_tokens(fields: &mut Fields, max_tokens: Option<u32>) -> Result<u32, InvalidRequest> {
    let most = max_tokens.unwrap_or(u32::MAX);
    Ok(fields.integer("min_tokens", 0..=most.into())?.map_or(0, |value| value as u32))
}

fn logit_bias(fields: &mut Fields) -> Result<Vec<(u32, f32)>, InvalidRequest> {
    const PARAM: &str = "logit_bias";
    let Some(map) = fields.map(PARAM)? else { return Ok(Vec::new()) };
    if map.len() > MAX_LOGIT_BIAS {
        return Err(too_many(PARAM, MAX_LOGIT_BIAS, "tokens", map.len()));
    }
    let biases: Result<BTreeMap<u32, f32>, _> =
        map.into_iter().map(|(key, value)| bias(&key, &value)).collect();
    Ok(biases?.into_iter().collect())
}

fn bias(key: &str, value: &Value) -> Result<(u32, f32), InvalidRequest> {
    let param = format!("logit_bias.{key}");
    let id = key.parse().map_err(|_| InvalidRequest::Type {
        param: param.clone(),
        expected: "named by a token id",
        got: show(&Value::String(key.to_owned())),
    })?;
    let Some(bias) = value.as_f64() else {
        return Err(InvalidRequest::Type { param, expected: "a number", got: show(value) });
    };
    if !(-100.0..=100.0).contains(&bias) {
        return Err(InvalidRequest::Range { param, range: "from -100 to 100".into(), got: bias.to_string() });
    }
    Ok((id, bias as f32))
}

fn stop(fields: &mut Fields) -> Result<Vec<String>, InvalidRequest> {
    const EXPECTED: &str = "a string or a list of strings";
    let values = match fields.take("stop") {
        None => return Ok(Vec::new()),
        Some(Value::Array(list)) if list.len() > MAX_STOPS => {
            return Err(too_many("stop", MAX_STOPS, "strings", list.len()));
        }
        Some(Value::Array(list)) => list,
        Some(one @ Value::String(_)) => vec![one],
        Some(other) => {
            return Err(InvalidRequest::Type { param: "stop".into(), expected: EXPECTED, got: show(&other) });
        }
    };
    values.into_iter().enumerate().map(|(index, value)| stop_string(index, value)).collect()
}

fn stop_string(index: usize, value: Value) -> Result<String, InvalidRequest> {
    let param = format!("stop[{index}]");
    match value {
        Value::String(string) if (1..=MAX_STOP_BYTES).contains(&string.len()) => Ok(string),
        Value::String(string) => Err(InvalidRequest::Range {
            param,
            range: format!("1 to {MAX_STOP_BYTES} bytes long"),
            got: string.len().to_string(),
        }),
        other => Err(InvalidRequest::Type { param, expected: "a string", got: show(&other) }),
    }
}

fn stop_token_ids(fields: &mut Fields) -> Result<Vec<u32>, InvalidRequest> {
    const PARAM: &str = "stop_token_ids";
    let list = fields.list(PARAM, "a list of token ids")?.unwrap_or_default();
    if list.len() > MAX_STOP_TOKEN_IDS {
        return Err(too_many(PARAM, MAX_STOP_TOKEN_IDS, "tokens", list.len()));
    }
    list.iter().enumerate().map(|(at, id)| token_id(&format!("{PARAM}[{at}]"), id)).collect()
}

fn too_many(param: &str, most: usize, what: &str, got: usize) -> InvalidRequest {
    InvalidRequest::Range {
        param: param.into(),
        range: format!("{most} {what} at most"),
        got: got.to_string(),
    }
}
