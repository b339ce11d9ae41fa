//! What a caller may ask for: which codec, how small, and how much memory a stranger's chunk may cost.

use std::{fmt, str::FromStr};

use crate::error::{Error, Result};

/// How a cache becomes bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CodecKind {
    /// bf16 as it is.
    Raw,
    /// bf16 bit for bit, exponents and mantissas apart, deflated.
    Lossless,
    /// 8-bit floats with a scale per layer and head, deflated.
    Fp8,
    /// Transform coding with a calibrated plan.
    Kvtc,
}

impl CodecKind {
    /// Every codec of this build.
    pub const ALL: [Self; 4] = [Self::Raw, Self::Lossless, Self::Fp8, Self::Kvtc];

    /// The name used in APIs and settings.
    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Lossless => "lossless",
            Self::Fp8 => "fp8",
            Self::Kvtc => "kvtc",
        }
    }

    /// Whether both ends need the same [`Plan`](crate::Plan).
    pub fn needs_plan(self) -> bool {
        match self {
            Self::Raw | Self::Lossless | Self::Fp8 => false,
            Self::Kvtc => true,
        }
    }
}

impl fmt::Display for CodecKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for CodecKind {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name).ok_or_else(|| {
            let known = Self::ALL.map(Self::name).join(", ");
            Error::InvalidArgument(format!("unknown codec {name:?}, this build has: {known}"))
        })
    }
}

/// The body ratios that can be asked for.
pub const TIERS: std::ops::RangeInclusive<u8> = 4..=128;

/// How a cache is to be coded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Coding {
    /// With which codec.
    pub kind: CodecKind,
    /// Body ratio aimed at, one of [`TIERS`]; codecs that need no plan ignore it.
    pub tier: u8,
}

impl Coding {
    /// Uncompressed.
    pub const RAW: Self = Self { kind: CodecKind::Raw, tier: 0 };
}

impl fmt::Display for Coding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind.name())?;
        if self.kind.needs_plan() { write!(f, " at tier {}", self.tier) } else { Ok(()) }
    }
}

/// What a decoder is willing to spend on one chunk, whatever the chunk claims.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Tokens in a chunk. A decoder's worst-case memory is about 10 times their bf16 size.
    pub max_tokens: usize,
    /// Encoded bytes of a chunk.
    pub max_chunk_bytes: usize,
}

impl Default for Limits {
    /// 8,192 tokens and 1 GiB: the longest chunk that prefill would send of any model with 16,384 features, uncompressed.
    fn default() -> Self {
        Self { max_tokens: 8_192, max_chunk_bytes: (1 << 30) + 4_096 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_parse_back_and_others_are_refused_with_the_choice() {
        for kind in CodecKind::ALL {
            assert_eq!(kind.to_string().parse::<CodecKind>().unwrap(), kind);
        }
        let error = "gzip".parse::<CodecKind>().unwrap_err().to_string();
        assert!(error.contains("gzip") && error.contains("raw, lossless, fp8, kvtc"), "{error}");
    }
}
