//! What a request says of its KV cache: our own fields, shared by completions and chat.

use std::fmt;

use crate::error::InvalidRequest;
use crate::fields::Fields;

/// Compression tier when `kv_tier` is absent.
pub const DEFAULT_TIER: u8 = 32;

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
    /// `cache_salt`, digested: prompts share the caches of earlier ones with the same.
    pub cache_salt: Option<[u8; 16]>,
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

/// Reads `kv_transfer`, `kv_codec`, `kv_tier`, `kv_mode` and `cache_salt`.
pub(super) fn read(fields: &mut Fields) -> Result<KvOptions, InvalidRequest> {
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
        cache_salt: cache_salt(fields)?,
    })
}

/// The first half of BLAKE3 of `cache_salt`.
fn cache_salt(fields: &mut Fields) -> Result<Option<[u8; 16]>, InvalidRequest> {
    let Some(salt) = fields.string("cache_salt")? else { return Ok(None) };
    if salt.is_empty() {
        let range = "a string of one character at least".into();
        return Err(InvalidRequest::Range { param: "cache_salt".into(), range, got: r#""""#.into() });
    }
    let mut digest = [0; 16];
    digest.copy_from_slice(&blake3::hash(salt.as_bytes()).as_bytes()[..16]);
    Ok(Some(digest))
}
