//! The bytes of `docs/kv-format.md`, section by section; no arithmetic on cache values happens here.

pub(crate) mod bytes;
pub(crate) mod chunk;
pub(crate) mod digest;
pub(crate) mod segments;

/// Version of chunks and plans that this build writes, and the only one it reads.
pub const FORMAT_VERSION: u16 = 1;

/// First bytes of a chunk.
pub(crate) const CHUNK_MAGIC: [u8; 4] = *b"KVFC";
/// First bytes of a plan.
pub(crate) const PLAN_MAGIC: [u8; 4] = *b"KVFP";

/// Grid exponents beyond this are refused: D between 2^-40 and 2^40 is more than bf16 activations need, and keeps every product finite.
pub(crate) const MAX_GRID: i16 = 1_920;
