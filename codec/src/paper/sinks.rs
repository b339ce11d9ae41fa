//! Sinks: every value an E4M3 float times a power of two for its token and plane, so that no cut of a prompt changes one.

use std::ops::Range;

use half::bf16;

use crate::{
    error::{Error, Result},
    planes::fp8::{LARGEST, SCALES, code, magnitude, power_of_two, scale},
};

/// Bytes of `count` sinks, keys and values.
pub(crate) fn len(planes: usize, head_dim: usize, count: usize) -> usize {
    2 * planes * count * (head_dim + 1)
}

/// Appends codes of keys and of values, `[layers, kv_heads, range, head_dim]`, then their scales, `[layers, kv_heads, range]`.
///
/// # Errors
/// [`Error::InvalidArgument`] for a value that is not finite.
pub(crate) fn write(
    sides: [&[bf16]; 2],
    tokens: usize,
    head_dim: usize,
    range: Range<usize>,
    out: &mut Vec<u8>,
) -> Result<()> {
    let mut scales = Vec::new();
    for plane in sides.into_iter().flat_map(|side| side.chunks_exact(tokens * head_dim)) {
        for (token, head) in plane.chunks_exact(head_dim).enumerate().take(range.end).skip(range.start) {
            if !head.iter().all(|x| x.is_finite()) {
                return Err(Error::not_finite(token));
            }
            let bits: Vec<u16> = head.iter().map(|x| x.to_bits()).collect();
            let scale = scale(&bits);
            out.extend(bits.iter().map(|&bits| code(scale, bits)));
            scales.push(scale as u8);
        }
    }
    out.append(&mut scales);
    Ok(())
}

/// Puts sinks back; the mirror of [`write`]. `bytes` has the length that [`len`] gives.
pub(crate) fn restore(
    bytes: &[u8],
    tokens: usize,
    head_dim: usize,
    range: Range<usize>,
    sides: [&mut [bf16]; 2],
) -> Result<()> {
    let (codes, scales) = bytes.split_at(bytes.len() / (head_dim + 1) * head_dim);
    let mut heads = codes.chunks_exact(head_dim).zip(scales);
    for plane in sides.into_iter().flat_map(|side| side.chunks_exact_mut(tokens * head_dim)) {
        let sinks = plane[range.start * head_dim..range.end * head_dim].chunks_exact_mut(head_dim);
        for (head, (codes, &scale)) in sinks.zip(&mut heads) {
            restore_head(codes, scale as i8, head)?;
        }
    }
    Ok(())
}

fn restore_head(codes: &[u8], scale: i8, head: &mut [bf16]) -> Result<()> {
    if !SCALES.contains(&scale) {
        return Err(Error::corrupt("sinks", format!("a scale is 2^{scale}")));
    }
    for (x, &code) in head.iter_mut().zip(codes) {
        if code & 0x7f > LARGEST {
            return Err(Error::corrupt("sinks", "a code is not a number"));
        }
        // Exactly a finite bf16, as in the fp8 codec.
        let magnitude = magnitude(code & 0x7f) * power_of_two(scale);
        *x = bf16::from_f32(if code > 0x7f { -magnitude } else { magnitude });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2 planes of 3 tokens of 4 dimensions, each token of another magnitude.
    fn side(factor: f32) -> Vec<bf16> {
        (0..24).map(|i| bf16::from_f32((i as f32 - 11.3) * factor * 10f32.powi(i / 4 % 3))).collect()
    }

    fn coded(keys: &[bf16], values: &[bf16], range: Range<usize>) -> Vec<u8> {
        let mut bytes = Vec::new();
        write([keys, values], 3, 4, range, &mut bytes).unwrap();
        bytes
    }

    #[test]
    fn sinks_come_back_within_an_eighth_of_an_octave_and_others_are_left_alone() {
        let (keys, values) = (side(0.01), side(-30.0));
        let bytes = coded(&keys, &values, 1..3);
        assert_eq!(bytes.len(), len(2, 4, 2));
        let mut back = [vec![bf16::ZERO; 24], vec![bf16::ZERO; 24]];
        let [back_keys, back_values] = &mut back;
        restore(&bytes, 3, 4, 1..3, [back_keys, back_values]).unwrap();
        for (back, side) in back.iter().zip([keys, values]) {
            for (i, (x, back)) in side.iter().zip(back).enumerate() {
                let (x, back) = (x.to_f32(), back.to_f32());
                let is_inside = i / 4 % 3 > 0;
                assert!(
                    if is_inside { (x - back).abs() <= x.abs() / 16.0 } else { back == 0.0 },
                    "{x} {back}"
                );
            }
        }
    }

    #[test]
    fn codes_and_scales_that_are_no_numbers_are_refused() {
        let whole = coded(&side(1.0), &side(1.0), 0..1);
        let restore =
            |bytes: &[u8]| restore(bytes, 3, 4, 0..1, [&mut [bf16::ZERO; 24], &mut [bf16::ZERO; 24]]);
        assert!(restore(&whole).is_ok());
        for (at, byte) in [(0, 0x7f), (5, 0xff), (16, 0x80), (19, 120)] {
            let mut bytes = whole.clone();
            bytes[at] = byte;
            assert!(matches!(restore(&bytes), Err(Error::Corrupt { what: "sinks", .. })), "{at}");
        }
    }
}
