//! Everything that can go wrong between a KV cache and its bytes, by what the caller can do about it.

use std::io;

use crate::{coding::Coding, plan::PlanId};

/// Why a chunk or a plan could not be made or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The bytes were damaged or never valid; ask the sender for them again.
    #[error("corrupt {what}: {detail}")]
    Corrupt {
        /// Which structure.
        what: &'static str,
        /// What was wrong, with values.
        detail: String,
    },
    /// The bytes end too early.
    #[error("truncated {what}: {needed} bytes needed, {available} there")]
    Truncated {
        /// Which structure.
        what: &'static str,
        /// Bytes that its fields ask for.
        needed: u64,
        /// Bytes that there are.
        available: u64,
    },
    /// Made by another version of the format; run the same version on both ends.
    #[error("{what} version {got} is not supported, this build reads version {supported}")]
    UnsupportedVersion {
        /// Which structure.
        what: &'static str,
        /// Version found.
        got: u16,
        /// Version that can be read.
        supported: u16,
    },
    /// A codec that this build does not have.
    #[error("codec id {id} is not supported by this build")]
    UnsupportedCodec {
        /// Its number in the container.
        id: u8,
    },
    /// The chunk is coded otherwise than was announced.
    #[error("chunk is coded as {got}, {expected} was announced")]
    CodingMismatch {
        /// What was announced.
        expected: Coding,
        /// What the chunk says.
        got: Coding,
    },
    /// The chunk needs a plan and the decoder has none, or the encoder was asked for a codec that needs one.
    #[error("codec {codec} needs a calibrated plan, and none was loaded")]
    PlanMissing {
        /// The codec.
        codec: &'static str,
    },
    /// The plan was calibrated without the tables of this codec; calibrate again, and load the new plan on both ends.
    #[error(
        "the loaded plan has no tables for codec {codec}; recalibrate the model to get a plan that has them"
    )]
    ProfileMissing {
        /// The codec.
        codec: &'static str,
    },
    /// The plan predicts a cache from the prompt's tokens, and encoder or decoder was not told what is known of them.
    #[error(
        "the plan predicts caches from token ids; give the codec the model's token features (and the encoder the prompt's ids)"
    )]
    FeaturesMissing,
    /// The chunk was coded with another plan; both ends must load the same plan file.
    #[error("chunk was coded with plan {got}, the loaded plan is {expected}")]
    PlanMismatch {
        /// The plan loaded here.
        expected: PlanId,
        /// The plan named in the chunk.
        got: PlanId,
    },
    /// The chunk or plan belongs to another model.
    #[error("{what} belongs to model {}, this is model {}", hex(.got), hex(.expected))]
    ModelMismatch {
        /// Chunk or plan.
        what: &'static str,
        /// Fingerprint of the model here.
        expected: [u8; 16],
        /// Fingerprint found.
        got: [u8; 16],
    },
    /// The chunk or plan is for a cache of another shape.
    #[error("{what} has {field} {got}, the model has {expected}")]
    LayoutMismatch {
        /// Chunk or plan.
        what: &'static str,
        /// Which dimension.
        field: &'static str,
        /// Value here.
        expected: String,
        /// Value found.
        got: String,
    },
    /// More than the limits allow; nothing was allocated for it.
    #[error("{what} is {got}, over the limit of {limit}")]
    LimitExceeded {
        /// Which quantity.
        what: &'static str,
        /// The limit.
        limit: u64,
        /// The value asked for.
        got: u64,
    },
    /// The caller passed something that makes no sense.
    #[error("invalid argument: {0}")]
    InvalidArgument(String),
    /// A plan could not be read from its source.
    #[error("cannot read plan")]
    Io(#[from] io::Error),
    /// The GPU failed, or does not have what was asked of it.
    #[cfg(feature = "cuda")]
    #[error(transparent)]
    Gpu(#[from] gpu::Error),
}

/// Shorthand for this crate.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// A number that a lossy codec cannot code, in the block's token `token`.
    pub(crate) fn not_finite(token: usize) -> Self {
        Self::InvalidArgument(format!("token {token} of the block has a cache entry that is not finite"))
    }

    pub(crate) fn corrupt(what: &'static str, detail: impl Into<String>) -> Self {
        Self::Corrupt { what, detail: detail.into() }
    }
}

/// Lower-case hexadecimal of an id, for messages.
pub(crate) fn hex(bytes: &[u8; 16]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(32), |mut text, byte| {
        write!(text, "{byte:02x}").expect("writing to a string cannot fail; this is a bug");
        text
    })
}
