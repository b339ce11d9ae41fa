//! The seed's quantizer and format: a range per component over all tokens of the call, symbols of two bytes whatever their
//! width, zlib over everything.
//!
//! A component is a header of 11 bytes, little endian: its index (u16), its width (u8), least value and step (f32 each); then one
//! u16 per token.

use std::io::{Read as _, Write as _};

use anyhow::{Context as _, ensure};
use flate2::Compression;
use flate2::read::ZlibDecoder;
use flate2::write::ZlibEncoder;

/// Bytes before a component's symbols.
pub(super) const HEADER_BYTES: usize = 11;
/// Bytes of a symbol.
pub(super) const SYMBOL_BYTES: usize = 2;
/// Effort of zlib.
const LEVEL: u32 = 6;

/// Coefficients, `[components, tokens]`, to the bytes of the components that have a width.
pub(super) fn serialize(coefficients: &[f32], tokens: usize, bits: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    for (index, (component, &bits)) in coefficients.chunks_exact(tokens).zip(bits).enumerate() {
        if bits == 0 {
            continue;
        }
        let largest = ((1u32 << bits) - 1) as f32;
        let (least, most) = range(component);
        let step = if most > least { (most - least) / largest } else { 1.0 };
        out.extend((index as u16).to_le_bytes());
        out.push(bits);
        out.extend(least.to_le_bytes());
        out.extend(step.to_le_bytes());
        for &y in component {
            let symbol = ((y - least) / step).round_ties_even().clamp(0.0, largest);
            out.extend((symbol as u16).to_le_bytes());
        }
    }
    out
}

/// Bytes to coefficients, `[components, tokens]`, zeros for those that have none; the mirror of [`serialize`].
pub(super) fn deserialize(mut bytes: &[u8], tokens: usize, components: usize) -> anyhow::Result<Vec<f32>> {
    let mut coefficients = vec![0.0; components * tokens];
    while !bytes.is_empty() {
        let (header, rest) = bytes.split_first_chunk::<HEADER_BYTES>().context("a header is cut off")?;
        let [i0, i1, _bits, l0, l1, l2, l3, s0, s1, s2, s3] = *header;
        let index = usize::from(u16::from_le_bytes([i0, i1]));
        let (least, step) = (f32::from_le_bytes([l0, l1, l2, l3]), f32::from_le_bytes([s0, s1, s2, s3]));
        ensure!(index < components, "component {index} of {components}");
        let (symbols, rest) = rest.split_at_checked(tokens * SYMBOL_BYTES).context("symbols are cut off")?;
        let (symbols, _) = symbols.as_chunks::<SYMBOL_BYTES>();
        let component = &mut coefficients[index * tokens..][..tokens];
        for (y, symbol) in component.iter_mut().zip(symbols) {
            *y = f32::from(u16::from_le_bytes(*symbol)) * step + least;
        }
        bytes = rest;
    }
    Ok(coefficients)
}

/// zlib at the seed's level.
pub(super) fn deflate(bytes: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::new(LEVEL));
    encoder.write_all(bytes)?;
    Ok(encoder.finish()?)
}

/// The mirror of [`deflate`], of not more than `limit` bytes.
pub(super) fn inflate(bytes: &[u8], limit: usize) -> anyhow::Result<Vec<u8>> {
    let mut out = Vec::new();
    ZlibDecoder::new(bytes).take(limit as u64 + 1).read_to_end(&mut out)?;
    ensure!(out.len() <= limit, "more than {limit} bytes come out of zlib");
    Ok(out)
}

fn range(component: &[f32]) -> (f32, f32) {
    let least = component.iter().copied().fold(f32::INFINITY, f32::min);
    (least, component.iter().copied().fold(f32::NEG_INFINITY, f32::max))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKENS: usize = 50;

    /// Five components of falling range.
    fn coefficients() -> Vec<f32> {
        let value = |i: usize| ((i * 7_919) % 101) as f32 / 50.0 - 1.0;
        (0..5 * TOKENS).map(|i| value(i) * 8.0 / (1 + i / TOKENS) as f32).collect()
    }

    #[test]
    fn coefficients_come_back_within_half_a_step_of_their_own_range() {
        let (exact, bits) = (coefficients(), [8, 3, 0, 1, 2]);
        let back = deserialize(&serialize(&exact, TOKENS, &bits), TOKENS, 5).unwrap();
        let pairs = exact.chunks_exact(TOKENS).zip(back.chunks_exact(TOKENS));
        for ((exact, back), bits) in pairs.zip(bits) {
            let (least, most) = range(exact);
            let step = (most - least) / ((1u32 << bits) - 1) as f32;
            for (a, b) in exact.iter().zip(back) {
                let bound = if bits == 0 { a.abs() } else { step / 2.0 * 1.0001 };
                assert!((a - b).abs() <= bound, "{bits} bits: {a} came back as {b}");
            }
        }
    }

    #[test]
    fn a_component_is_eleven_bytes_and_two_for_each_token_whatever_its_width() {
        for bits in 1..=8 {
            let bytes = serialize(&coefficients(), TOKENS, &[0, bits, 0, 0, 0]);
            assert_eq!(bytes.len(), 11 + 2 * TOKENS, "{bits} bits");
            assert_eq!(bytes[..3], [1, 0, bits]);
            // The upper byte of every symbol is 0: all that zlib wins back first.
            assert!(bytes[HEADER_BYTES..].iter().skip(1).step_by(2).all(|&byte| byte == 0));
        }
        assert!(serialize(&coefficients(), TOKENS, &[0; 5]).is_empty());
    }

    #[test]
    fn one_range_serves_all_tokens_so_one_outlier_costs_the_others() {
        let mut calm = vec![0.0; TOKENS];
        calm.iter_mut().step_by(2).for_each(|y| *y = 1.0);
        let wild: Vec<f32> = [&calm[..TOKENS - 1], &[1_000.0]].concat();
        let back = deserialize(&serialize(&wild, TOKENS, &[4]), TOKENS, 1).unwrap();
        assert!(back[..TOKENS - 1].iter().all(|&y| y == 0.0), "{back:?}");
        let back = deserialize(&serialize(&calm, TOKENS, &[4]), TOKENS, 1).unwrap();
        assert_eq!(back, calm);
        let flat = deserialize(&serialize(&[2.5; TOKENS], TOKENS, &[4]), TOKENS, 1).unwrap();
        assert_eq!(flat, [2.5; TOKENS]);
    }

    #[test]
    fn zlib_is_undone_and_nothing_else_is_taken() {
        let bytes = serialize(&coefficients(), TOKENS, &[8, 4, 4, 2, 1]);
        let coded = deflate(&bytes).unwrap();
        assert_eq!(inflate(&coded, bytes.len()).unwrap(), bytes);
        assert!(inflate(&coded, bytes.len() - 1).is_err());
        assert!(inflate(&coded[..coded.len() - 3], bytes.len()).is_err());
        for cut in [5, HEADER_BYTES + 7] {
            assert!(deserialize(&bytes[..cut], TOKENS, 5).is_err());
        }
        assert!(deserialize(&bytes, TOKENS, 4).is_err());
    }
}
