//! Tokens that stay as they are: bf16, all low bytes of a side, then all high bytes.

use std::ops::Range;

use half::bf16;

/// Appends tokens `range` of one side's cache, `[layers, kv_heads, range, head_dim]`, and notes where its two halves end.
pub(crate) fn write(
    cache: &[bf16],
    tokens: usize,
    head_dim: usize,
    range: Range<usize>,
    out: &mut Vec<u8>,
    breaks: &mut Vec<usize>,
) {
    let planes = cache.chunks_exact(tokens * head_dim);
    let range = range.start * head_dim..range.end * head_dim;
    let exact: Vec<[u8; 2]> =
        planes.flat_map(|plane| plane[range.clone()].iter().map(|x| x.to_le_bytes())).collect();
    for byte in 0..2 {
        out.extend(exact.iter().map(|bytes| bytes[byte]));
        breaks.push(out.len());
    }
}

/// Puts them back into a cache; the mirror of [`write`]. `bytes` has the length that the range implies.
pub(crate) fn restore(bytes: &[u8], tokens: usize, head_dim: usize, range: Range<usize>, cache: &mut [bf16]) {
    let (low, high) = bytes.split_at(bytes.len() / 2);
    let mut elements = low.iter().zip(high).map(|(&low, &high)| bf16::from_le_bytes([low, high]));
    for plane in cache.chunks_exact_mut(tokens * head_dim) {
        for (to, from) in plane[range.start * head_dim..range.end * head_dim].iter_mut().zip(&mut elements) {
            *to = from;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_of_tokens_comes_back_where_it_was() {
        let cache: Vec<bf16> = (0..60).map(|i| bf16::from_f32(i as f32 * 1.7)).collect();
        let (mut bytes, mut breaks) = (Vec::new(), Vec::new());
        write(&cache, 5, 4, 1..3, &mut bytes, &mut breaks);
        assert_eq!((bytes.len(), breaks), (2 * 3 * 2 * 4, vec![24, 48]));
        let mut back = vec![bf16::ZERO; 60];
        restore(&bytes, 5, 4, 1..3, &mut back);
        for (i, (got, expected)) in back.iter().zip(&cache).enumerate() {
            let is_inside = (1..3).contains(&(i / 4 % 5));
            assert_eq!(*got, if is_inside { *expected } else { bf16::ZERO });
        }
    }
}
