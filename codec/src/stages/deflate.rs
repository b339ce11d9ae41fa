//! Stage 6: a payload to independent raw DEFLATE segments (RFC 1951), and back, both in parallel.

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};
use rayon::prelude::*;

use crate::{
    error::{Error, Result},
    format::segments::Segment,
    stages::huffman::deflate_literals,
};

/// For content with repeats. Level 1 has fixed Huffman codes; from level 2 on more effort gives 1 to 2 % on rows that repeat.
const LEVEL: u32 = 6;
/// Content has repeats when one of so many of its aligned 8-byte words was there before.
const WORDS_PER_REPEAT: usize = 16;
const WORD_SLOTS: usize = 4_096;

/// Room for an incompressible segment: stored blocks and markers take under 16 bytes for every KiB. Output must
/// not run short: zlib-rs 0.6.8 panics in a later stream when one was abandoned with output pending and then reset.
fn output_bound(content: usize) -> usize {
    content + content / 64 + 64
}

/// Cuts `payload` every `segment_bytes` and compresses each piece; `breaks` are offsets, increasing, where statistics change.
pub(crate) fn deflate(payload: &[u8], breaks: &[usize], segment_bytes: usize) -> Vec<Vec<u8>> {
    let compressor = || Compress::new(Compression::new(LEVEL), false);
    payload
        .par_chunks(segment_bytes)
        .enumerate()
        .map_init(compressor, |compressor, (i, content)| {
            let start = i * segment_bytes;
            let first = breaks.partition_point(|&at| at <= start);
            let breaks = breaks[first..].iter().map(|&at| at - start).take_while(|&at| at < content.len());
            let literals = deflate_literals(content, breaks);
            let repeats = if has_repeats(content) { deflate_repeats(compressor, content) } else { None };
            let shortest = literals.into_iter().chain(repeats).min_by_key(Vec::len);
            shortest.unwrap_or_else(|| content.to_vec())
        })
        .collect()
}

/// Whether words of `content` come again: only then can references pay.
fn has_repeats(content: &[u8]) -> bool {
    let (words, _) = content.as_chunks::<8>();
    let mut seen = [0u64; WORD_SLOTS];
    let mut repeats = 0;
    for word in words {
        let word = u64::from_le_bytes(*word);
        let slot = (word.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 52) as usize;
        repeats += usize::from(seen[slot] == word);
        seen[slot] = word;
    }
    repeats * WORDS_PER_REPEAT >= words.len().max(1)
}

/// One segment with references, or nothing where that does not make it smaller.
fn deflate_repeats(compressor: &mut Compress, content: &[u8]) -> Option<Vec<u8>> {
    compressor.reset();
    let mut out = Vec::with_capacity(output_bound(content.len()));
    let status = compressor.compress_vec(content, &mut out, FlushCompress::Finish).ok()?;
    (status == Status::StreamEnd && out.len() < content.len()).then_some(out)
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::SeedableRng as _;

    use super::*;

    fn segments<'a>(coded: &'a [Vec<u8>], len: usize, segment_bytes: usize) -> Vec<Segment<'a>> {
        let inflated_len = |i: usize| segment_bytes.min(len - i * segment_bytes);
        coded.iter().enumerate().map(|(i, coded)| Segment { coded, inflated_len: inflated_len(i) }).collect()
    }

    proptest! {
        #[test]
        fn inflate_undoes_deflate(
            len in 0usize..100_000, alphabet in 1u16..=256, seed in any::<u64>(), step in 100usize..9_000
        ) {
            let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
            let payload: Vec<u8> = (0..len).map(|_| rng.random_range(0..alphabet) as u8).collect();
            let breaks: Vec<usize> = (0..len).step_by(step).collect();
            let coded = deflate(&payload, &breaks, 16_384);
            prop_assert!(coded.iter().zip(payload.chunks(16_384)).all(|(coded, content)| coded.len() <= content.len()));
            let mut back = vec![0; len];
            inflate(&segments(&coded, len, 16_384), 16_384, &mut back).unwrap();
            prop_assert_eq!(back, payload);
        }

        #[test]
        fn noise_never_inflates_past_its_segment(noise in prop::collection::vec(any::<u8>(), 1..500)) {
            let mut payload = vec![0; 2_048];
            let segment = Segment { coded: &noise, inflated_len: 1_024 };
            let _ = inflate(&[segment], 1_024, &mut payload[..1_024]);
            prop_assert!(payload[1_024..].iter().all(|&byte| byte == 0));
        }
    }

    #[test]
    fn a_segment_of_another_length_is_refused() {
        let coded = deflate(&[7; 1_500], &[], 2_048);
        for (len, is_right) in [(1_499, false), (1_500, true), (1_501, false)] {
            let segment = Segment { coded: &coded[0], inflated_len: len };
            assert_eq!(inflate(&[segment], 2_048, &mut vec![0; len]).is_ok(), is_right);
        }
        let longer = [coded[0].as_slice(), &[0]].concat();
        let segment = Segment { coded: &longer, inflated_len: 1_500 };
        assert!(inflate(&[segment], 2_048, &mut [0; 1_500]).is_err());
    }
}
