//! `POST /v1/completions`: the body's bytes to a [`CompletionRequest`] with every default filled in. Fields that the
//! API has and this server does not honour yet are refused unless they ask for nothing; fields it does not
//! know are ignored, as other servers do.

use std::fmt;

use serde_json::Value;

use crate::error::InvalidRequest;
use crate::fields::{Fields, Interval, show};

/// Tokens generated when `max_tokens` is absent, as OpenAI documents.
pub const DEFAULT_MAX_TOKENS: u32 = 16;
/// Compression tier when `kv_tier` is absent.
pub const DEFAULT_TIER: u8 = 32;
/// Stop strings accepted at most. OpenAI takes 4; agents send more.
pub const MAX_STOPS: usize = 16;
/// Longest stop string accepted, in bytes; bounds the text that may be held back.
pub const MAX_STOP_BYTES: usize = 1024;

/// A completion request, checked; nothing is left to be defaulted.
#[derive(Debug, Clone, PartialEq)]
pub struct CompletionRequest {
    /// Id of the model asked for; whether it is served is for the server to say.
    pub model: String,
    /// What to continue.
    pub prompt: Prompt,
    /// Tokens to generate at most; at least 1.
    pub max_tokens: u32,
    /// 0 (greedy) to 2.
    pub temperature: f32,
    /// Nucleus mass in (0, 1].
    pub top_p: f32,
    /// Keep this many most likely tokens; 0 keeps all.
    pub top_k: u32,
    /// Seed of the draws; none asks for a fresh one.
    pub seed: Option<u64>,
    /// Strings that end the generation; none of them is empty.
    pub stop: Vec<String>,
    /// Whether tokens are sent as they come.
    pub stream: bool,
    /// Whether a stream ends with a usage chunk.
    pub include_usage: bool,
    /// Go on past end-of-sequence tokens.
    pub ignore_eos: bool,
    /// The client's name for its user; nothing depends on it.
    pub user: Option<String>,
    /// Our own fields.
    pub kv: KvOptions,
}

/// What to continue.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Prompt {
    /// Text, to be tokenized here.
    Text(String),
}

/// What a request says about its KV cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvOptions {
    /// `kv_transfer`: report what the transfer was.
    pub report: bool,
    /// `kv_codec`.
    pub codec: KvCodec,
    /// `kv_tier`: body ratio aimed at, 4 to 128.
    pub tier: u8,
    /// `kv_mode`.
    pub mode: KvMode,
}

/// `kv_mode`: when a `kvtc` cache is coded and sent. The other codecs stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum KvMode {
    /// As the router thinks best.
    #[default]
    Auto,
    /// Chunk by chunk while the prompt runs.
    Stream,
    /// When the prompt is done, with finer steps for the tokens that were read.
    After,
}

impl KvMode {
    const ALL: [Self; 3] = [Self::Auto, Self::Stream, Self::After];

    /// The value's name in the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Stream => "stream",
            Self::After => "after",
        }
    }
}

/// `kv_codec`: how the cache is to be coded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum KvCodec {
    /// As the router thinks best.
    #[default]
    Auto,
    /// As it is.
    Raw,
    /// Bit for bit, smaller.
    Lossless,
    /// As 8-bit floats.
    Fp8,
    /// Transform coded.
    Kvtc,
    /// Transform coded as the KVTC paper has it.
    KvtcPaper,
    /// The same, with the window coded too.
    KvtcPaperCodedWindow,
}

impl KvCodec {
    const ALL: [Self; 7] = [
        Self::Auto,
        Self::Raw,
        Self::Lossless,
        Self::Fp8,
        Self::Kvtc,
        Self::KvtcPaper,
        Self::KvtcPaperCodedWindow,
    ];

    /// The codec of a name, if there is one.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|codec| codec.as_str() == name)
    }

    /// The value's name in the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Raw => "raw",
            Self::Lossless => "lossless",
            Self::Fp8 => "fp8",
            Self::Kvtc => "kvtc",
            Self::KvtcPaper => "kvtc-paper",
            Self::KvtcPaperCodedWindow => "kvtc-paper-coded-window",
        }
    }

    /// Whether it is transform coding, which has tiers and needs a calibrated plan on both nodes.
    pub fn is_transform(self) -> bool {
        match self {
            Self::Auto | Self::Raw | Self::Lossless | Self::Fp8 => false,
            Self::Kvtc | Self::KvtcPaper | Self::KvtcPaperCodedWindow => true,
        }
    }
}

impl fmt::Display for KvCodec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl CompletionRequest {
    /// Reads and checks a body.
    ///
    /// # Errors
    /// The first fault found, naming the field.
    pub fn parse(body: &[u8]) -> Result<Self, InvalidRequest> {
        let mut fields = Fields::parse(body)?;
        let model = fields.required_string("model")?;
        refuse_unsupported(&mut fields)?;
        let stream = fields.bool("stream")?.unwrap_or(false);
        Ok(Self {
            model,
            prompt: prompt(&mut fields)?,
            max_tokens: fields
                .integer("max_tokens", 1..=u32::MAX.into())?
                .map_or(DEFAULT_MAX_TOKENS, |value| value as u32),
            temperature: fields.number("temperature", Interval::Closed(0.0, 2.0))?.unwrap_or(1.0) as f32,
            top_p: top_p(&mut fields)?,
            top_k: top_k(&mut fields)?,
            // Negative seeds are as good as others: only equality matters.
            seed: fields.integer("seed", i64::MIN.into()..=u64::MAX.into())?.map(|value| value as u64),
            stop: stop(&mut fields)?,
            stream,
            include_usage: include_usage(&mut fields, stream)?,
            ignore_eos: fields.bool("ignore_eos")?.unwrap_or(false),
            user: fields.string("user")?,
            kv: kv_options(&mut fields)?,
        })
    }
}

fn prompt(fields: &mut Fields) -> Result<Prompt, InvalidRequest> {
    const EXPECTED: &str = "a string";
    match fields.take("prompt") {
        Some(Value::String(text)) if text.is_empty() => Err(InvalidRequest::Range {
            param: "prompt".into(),
            range: "at least one character".into(),
            got: "an empty string".into(),
        }),
        Some(Value::String(text)) => Ok(Prompt::Text(text)),
        Some(list @ Value::Array(_)) => Err(InvalidRequest::Unsupported {
            param: "prompt".into(),
            got: show(&list),
            instead: "send one string per request".into(),
        }),
        Some(other) => {
            Err(InvalidRequest::Type { param: "prompt".into(), expected: EXPECTED, got: show(&other) })
        }
        None => Err(InvalidRequest::Missing { param: "prompt".into(), expected: EXPECTED }),
    }
}

/// A mass so small that it rounds to 0 in 32 bits is kept above it: both keep the likeliest token alone.
fn top_p(fields: &mut Fields) -> Result<f32, InvalidRequest> {
    let mass = fields.number("top_p", Interval::Above(0.0, 1.0))?.unwrap_or(1.0);
    Ok((mass as f32).max(f32::MIN_POSITIVE))
}

/// Clients write "all" as 0, -1 or absent.
fn top_k(fields: &mut Fields) -> Result<u32, InvalidRequest> {
    let value = fields.integer("top_k", -1..=u32::MAX.into())?;
    Ok(value.map_or(0, |value| value.max(0) as u32))
}

fn stop(fields: &mut Fields) -> Result<Vec<String>, InvalidRequest> {
    const EXPECTED: &str = "a string or a list of strings";
    let values = match fields.take("stop") {
        None => return Ok(Vec::new()),
        Some(Value::Array(list)) if list.len() > MAX_STOPS => {
            let range = format!("{MAX_STOPS} strings at most");
            return Err(InvalidRequest::Range { param: "stop".into(), range, got: list.len().to_string() });
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

fn include_usage(fields: &mut Fields, stream: bool) -> Result<bool, InvalidRequest> {
    let Some(mut options) = fields.object("stream_options", "stream_options.")? else { return Ok(false) };
    if !stream {
        return Err(InvalidRequest::Dependent { param: "stream_options".into(), needs: "stream is true" });
    }
    Ok(options.bool("include_usage")?.unwrap_or(false))
}

fn kv_options(fields: &mut Fields) -> Result<KvOptions, InvalidRequest> {
    let codec = fields.named("kv_codec", &KvCodec::ALL, KvCodec::as_str)?.unwrap_or_default();
    let mode = fields.named("kv_mode", &KvMode::ALL, KvMode::as_str)?.unwrap_or_default();
    if mode == KvMode::After && !matches!(codec, KvCodec::Auto | KvCodec::Kvtc) {
        let range = format!(r#""auto" or "stream" when kv_codec is "{codec}""#);
        return Err(InvalidRequest::Range { param: "kv_mode".into(), range, got: r#""after""#.into() });
    }
    Ok(KvOptions {
        mode,
        report: fields.bool("kv_transfer")?.unwrap_or(false),
        codec,
        tier: fields.integer("kv_tier", 4..=128)?.map_or(DEFAULT_TIER, |value| value as u8),
    })
}

/// A value with which a field asks for nothing.
enum Neutral {
    Null,
    Bool(bool),
    Number(f64),
    EmptyList,
    EmptyObject,
}

impl Neutral {
    fn is(&self, value: &Value) -> bool {
        match self {
            Self::Null => value.is_null(),
            Self::Bool(neutral) => value.as_bool() == Some(*neutral),
            Self::Number(neutral) => value.as_f64() == Some(*neutral),
            Self::EmptyList => value.as_array().is_some_and(Vec::is_empty),
            Self::EmptyObject => value.as_object().is_some_and(serde_json::Map::is_empty),
        }
    }
}

impl fmt::Display for Neutral {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("null"),
            Self::Bool(neutral) => neutral.fmt(f),
            Self::Number(neutral) => neutral.fmt(f),
            Self::EmptyList => f.write_str("[]"),
            Self::EmptyObject => f.write_str("{}"),
        }
    }
}

/// Fields that other servers honour and this one does not yet, with the values that ask for nothing: silently
/// dropping the others would give answers that were not asked for.
const NEUTRAL: [(&str, Neutral); 15] = [
    ("n", Neutral::Number(1.0)),
    ("best_of", Neutral::Number(1.0)),
    ("echo", Neutral::Bool(false)),
    ("logprobs", Neutral::Null),
    ("prompt_logprobs", Neutral::Null),
    ("suffix", Neutral::Null),
    ("logit_bias", Neutral::EmptyObject),
    ("presence_penalty", Neutral::Number(0.0)),
    ("frequency_penalty", Neutral::Number(0.0)),
    ("repetition_penalty", Neutral::Number(1.0)),
    ("min_p", Neutral::Number(0.0)),
    ("min_tokens", Neutral::Number(0.0)),
    ("stop_token_ids", Neutral::EmptyList),
    ("skip_special_tokens", Neutral::Bool(true)),
    ("use_beam_search", Neutral::Bool(false)),
];

fn refuse_unsupported(fields: &mut Fields) -> Result<(), InvalidRequest> {
    for (name, neutral) in NEUTRAL {
        if let Some(value) = fields.take(name).filter(|value| !neutral.is(value)) {
            return Err(InvalidRequest::Unsupported {
                param: name.into(),
                got: show(&value),
                instead: format!("leave it out or send {neutral}"),
            });
        }
    }
    Ok(())
}
