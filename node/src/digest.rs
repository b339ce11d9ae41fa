//! Digest over the data frames of one KV stream, in order: what the sender counted must be what the receiver got.

/// First 16 bytes of BLAKE3 over every chunk's bytes.
#[derive(Debug, Default)]
pub struct KvDigest {
    hasher: blake3::Hasher,
    chunks: u32,
}

impl KvDigest {
    /// Takes the next chunk.
    pub fn add(&mut self, chunk: &[u8]) {
        self.hasher.update(chunk);
        self.chunks += 1;
    }

    /// Chunks so far, and their digest.
    #[must_use]
    pub fn finish(&self) -> (u32, [u8; 16]) {
        let mut digest = [0; 16];
        digest.copy_from_slice(&self.hasher.finalize().as_bytes()[..16]);
        (self.chunks, digest)
    }
}
