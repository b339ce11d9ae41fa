//! DEFLATE blocks of literals alone (RFC 1951, dynamic Huffman codes), cut where statistics change.
//!
//! Bytes that are the product of quantization or of floats' exponents have hardly any repeats, but the matches that a general DEFLATE
//! finds in them (three bytes that happen to be equal) cost more bits than the literals they replace: 10 to 20 % on exponents.

use std::cmp::Reverse;

/// Literals and the end of a block.
const SYMBOLS: usize = 257;
const END: usize = 256;
/// Longest code of a literal, and of a code length.
const MAX_CODE: u8 = 15;
const MAX_LENGTH_CODE: u8 = 7;
/// Pieces shorter than this never get a table of their own, so they are not looked at apart.
const MIN_PIECE: usize = 256;
/// Estimated bits of a block's header, and of each symbol in its table.
const HEADER_BITS: f32 = 90.0;
const SYMBOL_BITS: f32 = 3.5;
/// Order in which the lengths of the length code are written.
const LENGTH_ORDER: [usize; 19] = [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15];

/// How often each byte occurs.
type Histogram = [u32; 256];

/// One DEFLATE stream of `content`, or nothing where it would not be smaller; `breaks` are offsets, increasing, where statistics may
/// change.
pub(crate) fn deflate_literals(content: &[u8], breaks: impl Iterator<Item = usize>) -> Option<Vec<u8>> {
    let blocks = blocks(content, breaks);
    let estimate: f32 = blocks.iter().map(|(_, histogram)| bits(histogram)).sum();
    if estimate >= content.len() as f32 * 8.0 {
        return None;
    }
    let mut out = BitWriter::with_capacity(content.len() + content.len() / 8);
    let mut start = 0;
    for (i, (end, histogram)) in blocks.iter().enumerate() {
        write_block(&content[start..*end], histogram, i + 1 == blocks.len(), &mut out);
        start = *end;
    }
    let out = out.finish();
    (out.len() < content.len()).then_some(out)
}

/// Joins neighbouring pieces as long as one table for both is cheaper than two: ends and histograms of the blocks.
fn blocks(content: &[u8], breaks: impl Iterator<Item = usize>) -> Vec<(usize, Histogram)> {
    let mut blocks: Vec<(usize, Histogram)> = Vec::new();
    let (mut start, mut last_bits) = (0, 0.0);
    for end in breaks.chain([content.len()]) {
        let is_last = end == content.len();
        if end <= start || (!is_last && end - start < MIN_PIECE) {
            continue;
        }
        let piece = histogram(&content[start..end]);
        let piece_bits = bits(&piece);
        start = end;
        if let Some((last_end, last)) = blocks.last_mut() {
            let joined: Histogram = std::array::from_fn(|i| last[i] + piece[i]);
            let joined_bits = bits(&joined);
            if joined_bits <= last_bits + piece_bits {
                (*last_end, *last, last_bits) = (end, joined, joined_bits);
                continue;
            }
        }
        blocks.push((end, piece));
        last_bits = piece_bits;
    }
    blocks
}

fn histogram(content: &[u8]) -> Histogram {
    // Four tables, since equal bytes in a row would wait for each other's count.
    let mut counts = [[0u32; 256]; 4];
    let (quads, rest) = content.as_chunks::<4>();
    for quad in quads {
        for (counts, &byte) in counts.iter_mut().zip(quad) {
            counts[usize::from(byte)] += 1;
        }
    }
    rest.iter().for_each(|&byte| counts[0][usize::from(byte)] += 1);
    std::array::from_fn(|i| counts.iter().map(|counts| counts[i]).sum())
}

/// Estimated size of a block: its entropy and its header.
fn bits(histogram: &Histogram) -> f32 {
    let (mut total, mut used, mut sum) = (0u32, 0u32, 0f32);
    for &count in histogram.iter().filter(|&&count| count > 0) {
        total += count;
        used += 1;
        sum += count as f32 * (count as f32).log2();
    }
    let entropy = if total == 0 { 0.0 } else { total as f32 * (total as f32).log2() - sum };
    entropy + HEADER_BITS + SYMBOL_BITS * used as f32
}

fn write_block(content: &[u8], histogram: &Histogram, is_last: bool, out: &mut BitWriter) {
    let mut counts = [0u32; SYMBOLS];
    counts[..END].copy_from_slice(histogram);
    counts[END] = 1;
    let lengths = code_lengths(&counts, MAX_CODE);
    out.put(u64::from(is_last) | 0b10 << 1, 3);
    write_tables(&lengths, out);
    let codes = codes(&lengths);
    for &byte in content {
        let (code, length) = codes[usize::from(byte)];
        out.put(code.into(), length.into());
    }
    let (code, length) = codes[END];
    out.put(code.into(), length.into());
}

/// Code lengths of an optimal prefix code, none above `limit`; 0 where the count is 0.
fn code_lengths(counts: &[u32], limit: u8) -> Vec<u8> {
    let mut counts = counts.to_vec();
    loop {
        let lengths = huffman(&counts);
        if lengths.iter().all(|&length| length <= limit) {
            return lengths;
        }
        // Flatter counts give shorter codes; equal counts give 9 bits for 257 symbols, so this ends.
        counts.iter_mut().filter(|count| **count > 0).for_each(|count| *count = *count / 2 + 1);
    }
}

/// Huffman's algorithm with two queues: leaves by count, and inner nodes, which are made in the order of their weight.
fn huffman(counts: &[u32]) -> Vec<u8> {
    let mut leaves: Vec<(u32, usize)> =
        counts.iter().enumerate().filter(|&(_, &count)| count > 0).map(|(i, &count)| (count, i)).collect();
    leaves.sort_unstable_by_key(|&leaf| Reverse(leaf));
    let count = leaves.len();
    let mut inner: Vec<u32> = Vec::with_capacity(count);
    let mut parents = vec![0usize; 2 * count];
    let (mut next_leaf, mut next_inner) = (count, 0);
    while inner.len() + 1 < count {
        let mut weight = 0;
        for _ in 0..2 {
            let takes_leaf =
                next_leaf > 0 && inner.get(next_inner).is_none_or(|&inner| leaves[next_leaf - 1].0 <= inner);
            let node = if takes_leaf {
                next_leaf -= 1;
                weight += leaves[next_leaf].0;
                next_leaf
            } else {
                weight += inner[next_inner];
                next_inner += 1;
                count + next_inner - 1
            };
            parents[node] = count + inner.len();
        }
        inner.push(weight);
    }
    let mut depths = vec![0u8; 2 * count];
    for node in (count..count + inner.len().saturating_sub(1)).rev() {
        depths[node] = depths[parents[node]] + 1;
    }
    let mut lengths = vec![0; counts.len()];
    for (leaf, &(_, symbol)) in leaves.iter().enumerate() {
        lengths[symbol] = depths[parents[leaf]] + 1;
    }
    lengths
}

/// Canonical codes, first bit lowest as DEFLATE packs them.
fn codes(lengths: &[u8]) -> Vec<(u16, u8)> {
    let mut next = [0u16; MAX_CODE as usize + 2];
    for &length in lengths.iter().filter(|&&length| length > 0) {
        next[usize::from(length) + 1] += 1;
    }
    let mut code = 0;
    for first in &mut next[1..] {
        code = (code + *first) << 1;
        *first = code;
    }
    lengths
        .iter()
        .map(|&length| {
            if length == 0 {
                return (0, 0);
            }
            let code = &mut next[usize::from(length)];
            *code += 1;
            ((*code - 1).reverse_bits() >> (16 - length), length)
        })
        .collect()
}

/// Literal code lengths and a distance code without codes, run-length coded and Huffman coded once more.
fn write_tables(lengths: &[u8], out: &mut BitWriter) {
    let mut all = lengths.to_vec();
    all.push(0);
    let runs = runs(&all);
    let mut counts = [0u32; 19];
    runs.iter().for_each(|run| counts[run.symbol] += 1);
    let length_lengths = code_lengths(&counts, MAX_LENGTH_CODE);
    let used = LENGTH_ORDER.iter().rposition(|&i| length_lengths[i] > 0).map_or(4, |last| (last + 1).max(4));
    out.put((lengths.len() - SYMBOLS) as u64, 5);
    out.put(0, 5);
    out.put(used as u64 - 4, 4);
    for &i in &LENGTH_ORDER[..used] {
        out.put(length_lengths[i].into(), 3);
    }
    let codes = codes(&length_lengths);
    for run in runs {
        let (code, length) = codes[run.symbol];
        out.put(code.into(), length.into());
        out.put(run.extra, run.extra_bits);
    }
}

/// A symbol of the length code with its extra bits.
struct Run {
    symbol: usize,
    extra: u64,
    extra_bits: u32,
}

fn runs(lengths: &[u8]) -> Vec<Run> {
    let mut runs = Vec::new();
    for group in lengths.chunk_by(|a, b| a == b) {
        let (length, mut left) = (usize::from(group[0]), group.len());
        if length > 0 {
            runs.push(Run { symbol: length, extra: 0, extra_bits: 0 });
            left -= 1;
        }
        while left > 0 {
            let (symbol, taken, least, extra_bits) = match (length, left) {
                (0, 11..) => (18, left.min(138), 11, 7),
                (0, 3..) => (17, left, 3, 3),
                (1.., 3..) => (16, left.min(6), 3, 2),
                _ => (length, 1, 1, 0),
            };
            runs.push(Run { symbol, extra: (taken - least) as u64, extra_bits });
            left -= taken;
        }
    }
    runs
}

/// Bits, lowest first.
struct BitWriter {
    out: Vec<u8>,
    pending: u64,
    count: u32,
}

impl BitWriter {
    fn with_capacity(bytes: usize) -> Self {
        Self { out: Vec::with_capacity(bytes), pending: 0, count: 0 }
    }

    /// Appends the `count` low bits of `bits`, at most 32; the others must be 0.
    fn put(&mut self, bits: u64, count: u32) {
        self.pending |= bits << self.count;
        self.count += count;
        if self.count >= 32 {
            self.out.extend_from_slice(&(self.pending as u32).to_le_bytes());
            self.pending >>= 32;
            self.count -= 32;
        }
    }

    fn finish(mut self) -> Vec<u8> {
        let bytes = self.count.div_ceil(8) as usize;
        self.out.extend_from_slice(&self.pending.to_le_bytes()[..bytes]);
        self.out
    }
}

#[cfg(test)]
mod tests {
    use flate2::{Decompress, FlushDecompress, Status};
    use proptest::prelude::*;
    use rand::SeedableRng as _;

    use super::*;

    fn inflate(coded: &[u8], len: usize) -> Vec<u8> {
        let mut out = vec![0; len];
        let mut inflater = Decompress::new(false);
        let status = inflater.decompress(coded, &mut out, FlushDecompress::Finish).unwrap();
        assert_eq!((status, inflater.total_out()), (Status::StreamEnd, len as u64));
        assert_eq!(inflater.total_in(), coded.len() as u64);
        out
    }

    proptest! {
        #[test]
        fn another_inflater_reads_what_is_written(
            len in 1usize..40_000, skew in 0.5f64..40.0, seed in any::<u64>(), step in 1usize..5_000
        ) {
            let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
            let content: Vec<u8> = (0..len).map(|_| (rng.random::<f64>().powf(skew) * 256.0) as u8).collect();
            if let Some(coded) = deflate_literals(&content, (0..len).step_by(step)) {
                prop_assert!(coded.len() < len);
                prop_assert_eq!(inflate(&coded, len), content);
            }
        }
    }

    #[test]
    fn counts_like_fibonaccis_stay_within_the_limit() {
        let mut content = Vec::new();
        let (mut a, mut b) = (1usize, 1usize);
        for byte in 0..24 {
            content.extend(std::iter::repeat_n(byte, a));
            (a, b) = (b, a + b);
        }
        let coded = deflate_literals(&content, std::iter::empty()).unwrap();
        assert!(inflate(&coded, content.len()) == content);
    }

    #[test]
    fn one_byte_over_and_over_costs_a_bit_each() {
        let coded = deflate_literals(&[7; 8_000], std::iter::empty()).unwrap();
        assert!(coded.len() < 1_020 && inflate(&coded, 8_000) == [7; 8_000]);
    }

    #[test]
    fn pieces_with_statistics_of_their_own_get_blocks_of_their_own() {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(1);
        let content: Vec<u8> =
            (0..8_192).map(|i| rng.random_range(0..8u8) + 64 * (i / 2_048) as u8).collect();
        let (apart, together) =
            (blocks(&content, (0..8_192).step_by(512)), blocks(&content, std::iter::empty()));
        assert_eq!(apart.iter().map(|block| block.0).collect::<Vec<_>>(), [2_048, 4_096, 6_144, 8_192]);
        assert_eq!(together.len(), 1);
    }
}
