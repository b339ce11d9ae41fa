//! How the segments of a chunk compare with what zlib makes of the same bytes.

use flate2::{Compress, Compression, FlushCompress};

use crate::{
    decode::read_payload,
    error::{Error, Result},
    format::{
        bytes::Reader,
        chunk::{ChunkHeader, CodecId},
        digest::unseal,
        segments,
    },
};

/// Coded bytes of a chunk with DEFLATE segments over those of zlib at `level` for the same segments, each stored where it would grow.
///
/// # Errors
/// As [`Decoder::decode`](crate::Decoder::decode) has them for damaged bytes, [`Error::InvalidArgument`] for other chunks than kvtc's with
/// their shifts inside.
pub fn over_zlib(chunk: &[u8], level: u32) -> Result<f64> {
    let mut reader = Reader::new("chunk", unseal("chunk", chunk)?);
    let header = ChunkHeader::read_from(&mut reader)?;
    if header.codec != CodecId::Kvtc || header.has_shifts {
        return Err(Error::InvalidArgument("a chunk that is not kvtc's, or has a table of shifts".into()));
    }
    let (len, segment_bytes) = (header.payload_bytes as usize, header.segment_bytes as usize);
    let payload = read_payload(&header, len, reader.clone())?;
    let segments = segments::read(&mut reader, len, segment_bytes)?;
    let ours: usize = segments.iter().map(|segment| segment.coded.len()).sum();
    let theirs: usize = payload.chunks(segment_bytes).map(|content| zlib_len(content, level)).sum();
    Ok(ours as f64 / theirs.max(1) as f64)
}

fn zlib_len(content: &[u8], level: u32) -> usize {
    let mut out = Vec::with_capacity(content.len() + content.len() / 64 + 64);
    let mut compressor = Compress::new(Compression::new(level), false);
    let status = compressor.compress_vec(content, &mut out, FlushCompress::Finish);
    if status.is_ok() { out.len().min(content.len()) } else { content.len() }
}
