//! The `fp8` codec: every value an E4M3 float (OCP 8-bit floating point) times a power of two per plane, the prompt's sinks exact.
//!
//! A power of two moves values within E4M3's range and adds no rounding of its own; on real caches a scale per
//! dimension or token is no closer, and costs bytes.

use half::bf16;
use rayon::prelude::*;

use crate::{
    error::{Error, Result},
    format::bytes::Reader,
    layout::KvLayout,
    planes::{
        PlaneInfo, PlaneOrder, breaks, flips, for_each_with_flip, read_tables, tables_len, transposed,
        write_tables,
    },
};

/// Code of E4M3's largest number, 448.
pub(crate) const LARGEST: u8 = 0x7e;
/// Scales by which every code is a finite bf16 without rounding.
pub(crate) const SCALES: std::ops::RangeInclusive<i8> = -120..=119;
/// Largest mantissa of a plane's maximum at which it still rounds to 448 or below: 1.8125 x 256 = 464.
const TOP_MANTISSA: u16 = 0x68;

/// The coded part of a payload.
#[derive(Debug)]
pub(crate) struct Payload {
    pub(crate) bytes: Vec<u8>,
    /// Offsets, increasing, where statistics change.
    pub(crate) breaks: Vec<usize>,
}

/// Length of the coded part.
pub(crate) fn payload_len(layout: &KvLayout, coded_tokens: usize) -> usize {
    let planes = layout.layers * layout.kv_heads;
    2 * (planes * coded_tokens * layout.head_dim + tables_len(planes, layout.head_dim))
}

/// All tokens of a block but the first `exact`.
///
/// # Errors
/// [`Error::InvalidArgument`] for a value that is not finite.
pub(crate) fn encode(layout: &KvLayout, tokens: usize, exact: usize, sides: [&[bf16]; 2]) -> Result<Payload> {
    let (head_dim, values) = (layout.head_dim, tokens * layout.head_dim);
    let planes: Vec<(PlaneInfo, Vec<u8>)> = sides[0]
        .par_chunks_exact(values)
        .chain(sides[1].par_chunks_exact(values))
        .map(|plane| {
            check_finite(plane, head_dim)?;
            Ok(encode_plane(&plane[exact * head_dim..], head_dim))
        })
        .collect::<Result<_>>()?;
    let mut bytes = Vec::with_capacity(payload_len(layout, tokens - exact));
    let mut all_breaks = Vec::new();
    for (info, codes) in &planes {
        let start = bytes.len();
        bytes.extend_from_slice(codes);
        all_breaks.extend(breaks(info.order, codes.len(), tokens - exact).map(|at| start + at));
    }
    let sides = planes.split_at(planes.len() / 2);
    write_tables(sides.0.iter().map(|plane| &plane.0), &mut bytes);
    write_tables(sides.1.iter().map(|plane| &plane.0), &mut bytes);
    Ok(Payload { bytes, breaks: all_breaks })
}

fn check_finite(plane: &[bf16], head_dim: usize) -> Result<()> {
    match plane.iter().position(|x| !x.is_finite()) {
        Some(at) => Err(Error::not_finite(at / head_dim)),
        None => Ok(()),
    }
}

fn encode_plane(plane: &[bf16], head_dim: usize) -> (PlaneInfo, Vec<u8>) {
    let order = PlaneOrder::of(plane, head_dim);
    if plane.is_empty() {
        return (PlaneInfo { order, level: 0, flips: vec![0; head_dim] }, Vec::new());
    }
    let by_token: Vec<u16> = plane.iter().map(|x| x.to_bits()).collect();
    let by_feature = transposed(&by_token, head_dim);
    let (scale, flips) = (scale(&by_token), flips(&by_feature, head_dim));
    let values = if order == PlaneOrder::Feature { by_feature } else { by_token };
    let mut codes = Vec::with_capacity(values.len());
    for_each_with_flip(&values, order, &flips, |flip, bits| codes.push(code(scale, bits) ^ flip << 7));
    (PlaneInfo { order, level: scale as u8, flips }, codes)
}

/// The scale that puts a plane's largest magnitude in E4M3's highest octave.
pub(crate) fn scale(values: &[u16]) -> i8 {
    let largest = values.iter().map(|bits| bits & 0x7fff).max().unwrap_or_default();
    let exponent = i32::from(largest >> 7) - 127;
    let scale = if largest & 0x7f <= TOP_MANTISSA { exponent - 8 } else { exponent - 7 };
    scale.clamp((*SCALES.start()).into(), (*SCALES.end()).into()) as i8
}

/// 2^exponent, for exponents of normal numbers.
pub(crate) fn power_of_two(exponent: i8) -> f32 {
    f32::from_bits(((i32::from(exponent) + 127) as u32) << 23)
}

/// Code of a bf16, sign included.
pub(crate) fn code(scale: i8, bits: u16) -> u8 {
    // -120 to 119 may be negated without leaving the normal numbers.
    let magnitude = f32::from_bits(u32::from(bits & 0x7fff) << 16) * power_of_two(-scale);
    nearest(magnitude) | (bits >> 15 << 7) as u8
}

/// Code of a magnitude: to nearest, ties to even, no further than 448.
pub(crate) fn nearest(magnitude: f32) -> u8 {
    if magnitude < power_of_two(-6) {
        // Subnormal codes count units of 2^-9; 8 of them are the first normal code.
        (magnitude * 512.0).round_ties_even() as u8
    } else {
        let bits = magnitude.to_bits();
        let rounded = (bits + 0x7_ffff + (bits >> 20 & 1)) >> 20;
        (rounded - (120 << 3)).min(LARGEST.into()) as u8
    }
}

/// Magnitude of a code at scale 1; the mirror of [`nearest`]. 127 is not a number and must not come here.
pub(crate) fn magnitude(code: u8) -> f32 {
    match code >> 3 {
        0 => f32::from(code) / 512.0,
        exponent => f32::from(8 + (code & 7)) / 8.0 * power_of_two(exponent as i8 - 7),
    }
}

/// The coded part of a payload, of the length that [`payload_len`] gives, into both sides of a block behind their `exact` tokens; the
/// mirror of [`encode`].
pub(crate) fn decode(
    layout: &KvLayout,
    tokens: usize,
    exact: usize,
    payload: &[u8],
    sides: &mut [Vec<bf16>; 2],
) -> Result<()> {
    let (count, head_dim) = (layout.layers * layout.kv_heads, layout.head_dim);
    let (values, coded) = (tokens * head_dim, (tokens - exact) * head_dim);
    let (codes, tables) = payload.split_at(2 * count * coded);
    let mut reader = Reader::new("plane table", tables);
    let mut infos = read_tables(&mut reader, count, head_dim)?;
    infos.extend(read_tables(&mut reader, count, head_dim)?);
    let magnitudes: [f32; 128] = std::array::from_fn(|code| magnitude(code as u8));
    let [keys, values_out] = sides;
    infos
        .par_iter()
        .enumerate()
        .zip(keys.par_chunks_exact_mut(values).chain(values_out.par_chunks_exact_mut(values)))
        .try_for_each(|((i, info), plane)| {
            let codes = &codes[i * coded..][..coded];
            decode_plane(info, codes, &magnitudes, &mut plane[exact * head_dim..])
        })
}

fn decode_plane(info: &PlaneInfo, codes: &[u8], magnitudes: &[f32; 128], plane: &mut [bf16]) -> Result<()> {
    if info.order == PlaneOrder::Wide {
        return Err(Error::corrupt("plane table", "a wide plane in an fp8 chunk"));
    }
    let scale = info.level as i8;
    if !SCALES.contains(&scale) {
        return Err(Error::corrupt("plane table", format!("a scale is 2^{scale}")));
    }
    if codes.iter().any(|code| code & 0x7f > LARGEST) {
        return Err(Error::corrupt("plane", "a code is not a number"));
    }
    if codes.is_empty() {
        return Ok(());
    }
    let mut values = Vec::with_capacity(codes.len());
    for_each_with_flip(codes, info.order, &info.flips, |flip, code| {
        let magnitude = magnitudes[usize::from(code & 0x7f)] * power_of_two(scale);
        values.push(bf16::from_f32(if code >> 7 == flip { magnitude } else { -magnitude }));
    });
    if info.order == PlaneOrder::Feature {
        values = transposed(&values, values.len() / info.flips.len());
    }
    plane.copy_from_slice(&values);
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_code_survives_at_every_scale() {
        for scale in SCALES {
            for expected in (0..=LARGEST).chain(0x80..=0x80 | LARGEST) {
                let magnitude = magnitude(expected & 0x7f) * power_of_two(scale);
                let x = if expected >> 7 == 1 { -magnitude } else { magnitude };
                let exact = bf16::from_f32(x);
                assert!(exact.is_finite() && exact.to_f32() == x, "{x}");
                assert_eq!(code(scale, exact.to_bits()), expected);
            }
        }
    }

    #[test]
    fn every_finite_number_goes_to_the_nearest_code_ties_to_even() {
        for bits in 0..0x7f80 {
            // Above 2^20 the distances to all codes look alike even in f64.
            let x = f64::from(bf16::from_bits(bits).to_f32()).min(f64::from(1 << 20));
            let distance = |code: &u8| (f64::from(magnitude(*code)) - x).abs();
            let nearest =
                (0..=LARGEST).min_by(|a, b| distance(a).total_cmp(&distance(b)).then((a & 1).cmp(&(b & 1))));
            assert_eq!(Some(code(0, bits)), nearest, "{x}");
        }
    }

    proptest! {
        #[test]
        fn the_error_is_half_a_step_of_eight_to_the_octave(rows in prop::collection::vec(any::<[u16; 6]>(), 1..40)) {
            let finite = |bits: u16| bf16::from_bits(if bits & 0x7f80 == 0x7f80 { bits & 0xbfff } else { bits });
            let plane: Vec<bf16> = rows.as_flattened().iter().map(|&bits| finite(bits)).collect();
            let (info, codes) = encode_plane(&plane, 6);
            let mut back = vec![bf16::ZERO; plane.len()];
            let magnitudes = std::array::from_fn(|code| magnitude(code as u8));
            decode_plane(&info, &codes, &magnitudes, &mut back).unwrap();
            for (x, back) in plane.iter().zip(&back) {
                let (x, back) = (x.to_f32(), back.to_f32());
                prop_assert!(back.is_finite());
                let bound = (x.abs() / 16.0).max(power_of_two(info.level as i8) / 1024.0);
                // Only the top of bf16's own range saturates.
                prop_assert!((x - back).abs() <= bound || x.abs() > 1.8125 * power_of_two(127), "{} {}", x, back);
            }
        }
    }
}
