//! Chunks of several prompts in one call.
//!
//! A short prompt has too few tiles, classes and segments to keep all threads busy, and between stages they wait for each other. Side by
//! side, one prompt's work fills the gaps of another's.

use rayon::prelude::*;

use crate::{decode::Decoder, encode::Encoder, error::Result, layout::KvBlock};

/// What [`Encoder::encode_with_shifts`] takes: whose prompt, which stretch of it, and a shift for each of its tokens.
pub type EncodeJob<'a> = (&'a Encoder, &'a KvBlock, Option<&'a [i8]>);

/// Encodes blocks side by side, on the threads that [`Encoder::encode`] uses. Results come in the order of the jobs and are those of a call
/// for each; one that fails spoils no other. At worst the memory of all jobs is needed at once, so bound their number.
pub fn encode_batch(jobs: &[EncodeJob<'_>]) -> Vec<Result<Vec<u8>>> {
    jobs.par_iter().map(|(encoder, block, shifts)| encoder.encode_with_shifts(block, *shifts)).collect()
}

/// Decodes chunks side by side, of one prompt or of many. Results come in the order of the chunks and are those of [`Decoder::decode`]; a
/// bad chunk spoils no other. The decoder's limits hold for each chunk: bound their number.
pub fn decode_batch(decoder: &Decoder, chunks: &[&[u8]]) -> Vec<Result<KvBlock>> {
    chunks.par_iter().map(|chunk| decoder.decode(chunk)).collect()
}
