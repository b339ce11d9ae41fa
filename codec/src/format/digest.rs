//! The 16 bytes at the end of every chunk and plan that tell damage from data.

use crate::error::{Error, Result};

/// Length of a digest.
pub(crate) const DIGEST_BYTES: usize = 16;

/// Below this one thread is quicker than several.
const PARALLEL_BYTES: usize = 256 << 10;

/// First 16 bytes of BLAKE3.
pub(crate) fn digest(bytes: &[u8]) -> [u8; DIGEST_BYTES] {
    let hash = if bytes.len() < PARALLEL_BYTES {
        blake3::hash(bytes)
    } else {
        blake3::Hasher::new().update_rayon(bytes).finalize()
    };
    let mut head = [0; DIGEST_BYTES];
    head.copy_from_slice(&hash.as_bytes()[..DIGEST_BYTES]);
    head
}

/// Appends the digest of everything that is there.
pub(crate) fn seal(bytes: &mut Vec<u8>) {
    let digest = digest(bytes);
    bytes.extend_from_slice(&digest);
}

/// Cuts off the digest at the end of `bytes` without a look at it.
pub(crate) fn split<'a>(what: &'static str, bytes: &'a [u8]) -> Result<(&'a [u8], &'a [u8; DIGEST_BYTES])> {
    bytes.split_last_chunk::<DIGEST_BYTES>().ok_or(Error::Truncated {
        what,
        needed: DIGEST_BYTES as u64,
        available: bytes.len() as u64,
    })
}

/// Checks the digest at the end of `bytes`; the mirror of [`seal`].
pub(crate) fn unseal<'a>(what: &'static str, bytes: &'a [u8]) -> Result<&'a [u8]> {
    let (content, stored) = split(what, bytes)?;
    if digest(content) != *stored {
        return Err(Error::corrupt(what, "its digest does not match its bytes"));
    }
    Ok(content)
}
