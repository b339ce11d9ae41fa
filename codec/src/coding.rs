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
    /// KVTC as [published](https://arxiv.org/abs/2511.01815), the last 128 tokens raw: what [`Self::Kvtc`] is compared with.
    KvtcPaper,
    /// The same with the last 128 tokens coded as [`Self::Kvtc`] codes them, so that only the bodies differ.
    KvtcPaperCodedWindow,
}

impl CodecKind {
    /// Every codec of this build.
    pub const ALL: [Self; 6] =
        [Self::Raw, Self::Lossless, Self::Fp8, Self::Kvtc, Self::KvtcPaper, Self::KvtcPaperCodedWindow];

    /// The name used in APIs and settings.
    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Lossless => "lossless",
            Self::Fp8 => "fp8",
            Self::Kvtc => "kvtc",
            Self::KvtcPaper => "kvtc-paper",
            Self::KvtcPaperCodedWindow => "kvtc-paper-coded-window",
        }
    }

    /// Whether both ends need the same [`Plan`](crate::Plan).
    pub fn needs_plan(self) -> bool {
        match self {
            Self::Raw | Self::Lossless | Self::Fp8 => false,
            Self::Kvtc | Self::KvtcPaper | Self::KvtcPaperCodedWindow => true,
        }
    }

    /// Tiers that can be asked for, increasing; empty where the tier is ignored.
    pub fn tiers(self) -> &'static [u8] {
        match self {
            Self::Raw | Self::Lossless | Self::Fp8 => &[],
            Self::Kvtc => &ALL_TIERS,
            Self::KvtcPaper | Self::KvtcPaperCodedWindow => &PAPER_TIERS,
        }
    }

    /// Refuses a tier that this codec does not have. Codecs that ignore the tier take any.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] that says which there are.
    pub fn check_tier(self, tier: u8) -> Result<()> {
        let tiers = self.tiers();
        if tiers.is_empty() || tiers.contains(&tier) {
            return Ok(());
        }
        let known = match self {
            Self::KvtcPaper | Self::KvtcPaperCodedWindow => {
                let [head @ .., last] = PAPER_TIERS.map(|tier| tier.to_string());
                format!("not one of {self}'s: {} and {last}", head.join(", "))
            }
            _ => format!("outside {} to {}", TIERS.start(), TIERS.end()),
        };
        Err(Error::InvalidArgument(format!("tier {tier} is {known}")))
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

/// The body ratios that can be asked for; kvtc-paper has [`PAPER_TIERS`] only.
pub const TIERS: std::ops::RangeInclusive<u8> = 4..=128;

/// The ratios for which a plan holds a bit plan of kvtc-paper: those of the paper's tables.
pub const PAPER_TIERS: [u8; 4] = [8, 16, 32, 64];

const ALL_TIERS: [u8; 125] = {
    let mut tiers = [0; 125];
    let mut i = 0;
    while i < tiers.len() {
        tiers[i] = *TIERS.start() + i as u8;
        i += 1;
    }
    tiers
};

/// How a cache is to be coded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Coding {
    /// With which codec.
    pub kind: CodecKind,
    /// Body ratio aimed at, one of [`CodecKind::tiers`]; codecs that need no plan ignore it.
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
    /// Tokens in a chunk. A decoder's worst-case memory is about 10 times their bf16 size, and twice that size for every token of context
    /// that the plan's predictor has.
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
    fn tiers_are_checked_against_the_codec_s_own() {
        assert_eq!(CodecKind::Kvtc.tiers(), TIERS.collect::<Vec<_>>());
        for kind in CodecKind::ALL {
            assert!(kind.tiers().iter().all(|&tier| kind.check_tier(tier).is_ok()));
            assert_eq!(kind.check_tier(3).is_ok(), !kind.needs_plan());
        }
        let error = CodecKind::KvtcPaper.check_tier(24).unwrap_err().to_string();
        assert!(error.ends_with("tier 24 is not one of kvtc-paper's: 8, 16, 32 and 64"), "{error}");
        let error = CodecKind::Kvtc.check_tier(3).unwrap_err().to_string();
        assert!(error.ends_with("tier 3 is outside 4 to 128"), "{error}");
    }

    #[test]
    fn names_parse_back_and_others_are_refused_with_the_choice() {
        for kind in CodecKind::ALL {
            assert_eq!(kind.to_string().parse::<CodecKind>().unwrap(), kind);
        }
        let error = "gzip".parse::<CodecKind>().unwrap_err().to_string();
        assert!(error.contains("gzip") && error.contains("raw, lossless, fp8, kvtc"), "{error}");
    }
}
