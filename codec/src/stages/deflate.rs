//! Stage 6: a payload to independent raw DEFLATE segments (RFC 1951), and back, both in parallel.

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};
use rayon::prelude::*;

use crate::{
    error::{Error, Result},
    format::segments::Segment,
};

/// Statistics change at class boundaries; a new Huffman table there pays from about this many bytes.
const MIN_BLOCK_BYTES: usize = 1_024;

/// Cuts `payload` every `segment_bytes` and compresses each piece; `breaks` are offsets, increasing, where statistics change.
pub(crate) fn deflate(payload: &[u8], breaks: &[usize], segment_bytes: usize) -> Vec<Vec<u8>> {
    let compressor = || Compress::new(Compression::new(6), false);
    payload
        .par_chunks(segment_bytes)
        .enumerate()
        .map_init(compressor, |compressor, (i, content)| {
            let start = i * segment_bytes;
            let first = breaks.partition_point(|&at| at <= start);
            let breaks = breaks[first..].iter().map(|&at| at - start).take_while(|&at| at < content.len());
            compressor.reset();
            deflate_segment(compressor, content, breaks).unwrap_or_else(|| content.to_vec())
        })
        .collect()
}

/// One segment, or nothing where DEFLATE does not make it smaller.
fn deflate_segment(
    compressor: &mut Compress,
    content: &[u8],
    breaks: impl Iterator<Item = usize>,
) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(content.len());
    let mut start = 0;
    for end in breaks {
        if end - start >= MIN_BLOCK_BYTES && content.len() - end >= MIN_BLOCK_BYTES {
            feed(compressor, &content[start..end], &mut out, FlushCompress::Partial)?;
            start = end;
        }
    }
    feed(compressor, &content[start..], &mut out, FlushCompress::Finish)?;
    (out.len() < content.len()).then_some(out)
}

/// Compresses into the spare capacity of `out`; nothing when it is used up, which means that storing is better.
fn feed(compressor: &mut Compress, content: &[u8], out: &mut Vec<u8>, flush: FlushCompress) -> Option<()> {
    let before = compressor.total_in();
    let status = compressor.compress_vec(content, out, flush).ok()?;
    let all_taken = compressor.total_in() - before == content.len() as u64;
    let finished = flush != FlushCompress::Finish || status == Status::StreamEnd;
    (all_taken && finished && out.len() < out.capacity()).then_some(())
}

/// Inflates segments into `payload`, whose length is theirs together; the mirror of [`deflate`].
///
/// # Errors
/// [`Error::Corrupt`] when a segment does not inflate to exactly its length from exactly its bytes.
pub(crate) fn inflate(segments: &[Segment<'_>], segment_bytes: usize, payload: &mut [u8]) -> Result<()> {
    payload.par_chunks_mut(segment_bytes).zip(segments).enumerate().try_for_each_init(
        || Decompress::new(false),
        |inflater, (i, (out, segment))| {
            if segment.is_stored() {
                out.copy_from_slice(segment.coded);
                return Ok(());
            }
            inflater.reset(false);
            let status = inflater.decompress(segment.coded, out, FlushDecompress::Finish);
            let whole = inflater.total_in() == segment.coded.len() as u64
                && inflater.total_out() == out.len() as u64
                && matches!(status, Ok(Status::StreamEnd));
            if whole { Ok(()) } else { Err(bad_segment(i, segment, inflater.total_out())) }
        },
    )
}

fn bad_segment(i: usize, segment: &Segment<'_>, inflated: u64) -> Error {
    let detail = format!(
        "segment {i} of {} bytes inflated to {inflated} bytes before it ended or broke, {} needed",
        segment.coded.len(),
        segment.inflated_len
    );
    Error::corrupt("segment", detail)
}
