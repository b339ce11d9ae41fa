//! One group of one token: coefficients to codes with a shift and a scale, and back.
//!
//! Integers are asymmetric min/max, q = round((y - shift) / scale) with the shift at the least coefficient and the scale a 3rd or 15th of the
//! range. fp8 is E4M3 of (y - shift) / scale with the largest magnitude at 448; its shift is written as the paper charges it, but this
//! encoder leaves it 0 (see docs/codec-notes.md). Whatever is measured for the bit plan is measured by this very code.

use half::f16;

use crate::{
    paper::GroupType,
    planes::fp8::{magnitude, nearest},
};

/// Added and taken off again, it rounds a magnitude below 2^22 to an integer, ties to even, in plain additions.
const ROUND: f32 = 12_582_912.0;
/// Largest and least normal magnitude of E4M3.
const FP8_MAX: f32 = 448.0;
const FP8_NORMAL: f32 = 1.0 / 64.0;

/// What all coefficients of a group share, both exact f16; the scale is not negative.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Affine {
    pub(crate) shift: f32,
    pub(crate) scale: f32,
}

impl Affine {
    /// For a group that has at least one coefficient and is not dropped.
    pub(crate) fn of(kind: GroupType, group: &[f32]) -> Self {
        let (least, largest) = range(group);
        if kind == GroupType::Fp8 {
            return Self { shift: 0.0, scale: to_f16(largest.max(-least) / FP8_MAX) };
        }
        let shift = to_f16(least);
        Self { shift, scale: to_f16(((largest - shift) / levels(kind)).max(0.0)) }
    }

    /// Reciprocal of the scale; 0 for a group without range, whose codes are then all 0.
    fn inverse(self) -> f32 {
        if self.scale > 0.0 { 1.0 / self.scale } else { 0.0 }
    }
}

/// Largest code of an integer type.
fn levels(kind: GroupType) -> f32 {
    ((1u32 << kind.bits()) - 1) as f32
}

/// Nearest f16 within its finite range.
fn to_f16(x: f32) -> f32 {
    let max = f16::MAX.to_f32();
    f16::from_f32(x.clamp(-max, max)).to_f32()
}

fn range(group: &[f32]) -> (f32, f32) {
    let (lanes, rest) = group.as_chunks::<8>();
    let (mut least, mut largest) = ([f32::INFINITY; 8], [f32::NEG_INFINITY; 8]);
    let mut see = |i: usize, y: f32| {
        least[i] = if y < least[i] { y } else { least[i] };
        largest[i] = if y > largest[i] { y } else { largest[i] };
    };
    for lane in lanes {
        lane.iter().enumerate().for_each(|(i, &y)| see(i, y));
    }
    rest.iter().enumerate().for_each(|(i, &y)| see(i, y));
    (least.into_iter().fold(f32::INFINITY, f32::min), largest.into_iter().fold(f32::NEG_INFINITY, f32::max))
}

fn int_level(y: f32, shift: f32, inverse: f32, levels: f32) -> f32 {
    let scaled = (y - shift) * inverse;
    let scaled = if scaled > 0.0 { scaled } else { 0.0 };
    let scaled = if scaled < levels { scaled } else { levels };
    (scaled + ROUND) - ROUND
}

/// The E4M3 number nearest to a magnitude, ties to even, no further than 448.
fn fp8_level(magnitude: f32) -> f32 {
    // Subnormal numbers are units of 2^-9; elsewhere 3 bits of mantissa stay.
    let low = ((magnitude * 512.0 + ROUND) - ROUND) / 512.0;
    let bits = magnitude.to_bits();
    let high = f32::from_bits((bits + 0x7_ffff + (bits >> 20 & 1)) & !0xf_ffff);
    let high = if high < FP8_MAX { high } else { FP8_MAX };
    if magnitude < FP8_NORMAL { low } else { high }
}

/// Codes of a group, one per coefficient.
pub(crate) fn quantize(kind: GroupType, affine: Affine, group: &[f32], codes: &mut [u8]) {
    let (shift, inverse) = (affine.shift, affine.inverse());
    match kind {
        GroupType::Drop => {}
        GroupType::Int2 | GroupType::Int4 => {
            let levels = levels(kind);
            for (code, &y) in codes.iter_mut().zip(group) {
                *code = int_level(y, shift, inverse, levels) as u8;
            }
        }
        GroupType::Fp8 => {
            for (code, &y) in codes.iter_mut().zip(group) {
                let scaled = (y - shift) * inverse;
                *code = nearest(scaled.abs()) | u8::from(scaled < 0.0) << 7;
            }
        }
    }
}

/// What the codes of a type stand for before scale and shift; a code that is not a number must not come here.
pub(crate) fn values(kind: GroupType) -> [f32; 256] {
    std::array::from_fn(|code| match (kind, code as u8) {
        (GroupType::Fp8, code) if code & 0x7f == 0x7f => 0.0,
        (GroupType::Fp8, code) if code > 0x7f => -magnitude(code & 0x7f),
        (GroupType::Fp8, code) => magnitude(code),
        (_, code) => f32::from(code),
    })
}

/// Sum of squared errors that quantizing a group makes; for a dropped one its energy.
pub(crate) fn squared_error(kind: GroupType, group: &[f32]) -> f32 {
    if kind == GroupType::Drop {
        return sum_squares(group, |y| y);
    }
    let affine = Affine::of(kind, group);
    let (shift, scale, inverse) = (affine.shift, affine.scale, affine.inverse());
    if kind == GroupType::Fp8 {
        sum_squares(group, |y| {
            let scaled = (y - shift) * inverse;
            y - (fp8_level(scaled.abs()).copysign(scaled) * scale + shift)
        })
    } else {
        let levels = levels(kind);
        sum_squares(group, |y| y - (int_level(y, shift, inverse, levels) * scale + shift))
    }
}

/// Sum of f(y)^2, in eight sums side by side.
fn sum_squares(group: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let (lanes, rest) = group.as_chunks::<8>();
    let mut sums = [0f32; 8];
    for lane in lanes {
        for (sum, &y) in sums.iter_mut().zip(lane) {
            *sum += f(y) * f(y);
        }
    }
    sums.iter_mut().zip(rest).for_each(|(sum, &y)| *sum += f(y) * f(y));
    sums.iter().sum()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CODED: [GroupType; 3] = [GroupType::Int2, GroupType::Int4, GroupType::Fp8];

    fn back(kind: GroupType, group: &[f32]) -> Vec<f32> {
        let affine = Affine::of(kind, group);
        let mut codes = vec![0; group.len()];
        quantize(kind, affine, group, &mut codes);
        let values = values(kind);
        codes.iter().map(|&code| values[usize::from(code)] * affine.scale + affine.shift).collect()
    }

    #[test]
    fn integers_are_min_max_and_floats_reach_448() {
        let group = [-1.0, -0.6, 0.4, 2.0];
        let affine = Affine::of(GroupType::Int2, &group);
        assert_eq!(affine, Affine { shift: -1.0, scale: 1.0 });
        let mut codes = [0; 4];
        quantize(GroupType::Int2, affine, &group, &mut codes);
        assert_eq!(codes, [0, 0, 1, 3]);
        let affine = Affine::of(GroupType::Fp8, &[-896.0, 3.0]);
        assert_eq!(affine, Affine { shift: 0.0, scale: 2.0 });
        quantize(GroupType::Fp8, affine, &[-896.0, 3.0], &mut codes);
        assert_eq!(codes[..2], [0xfe, 0x3c]);
    }

    #[test]
    fn the_fast_rounding_to_e4m3_is_the_coder_s() {
        for bits in (0..0x4500_0000u32).step_by(997) {
            let x = f32::from_bits(bits);
            assert_eq!(fp8_level(x), magnitude(nearest(x)), "{x}");
        }
    }

    #[test]
    fn groups_without_range_and_beyond_f16_stay_finite() {
        for kind in CODED {
            assert_eq!(back(kind, &[0.0; 16]), [0.0; 16]);
            assert!((back(kind, &[0.7]).first().unwrap() - 0.7).abs() < 1e-3);
            for wild in [1e30, -1e30, f32::INFINITY, f32::NAN] {
                let mut group = [0.5; 16];
                group[3] = wild;
                assert!(back(kind, &group).iter().all(|y| y.is_finite()), "{kind:?} {wild}");
            }
        }
    }

    proptest! {
        #[test]
        fn the_error_is_bounded_and_is_the_one_that_is_measured(
            group in prop::collection::vec(-8f32..8.0, 1..70), scale in -6i32..8
        ) {
            let group: Vec<f32> = group.iter().map(|y| y * 2f32.powi(scale)).collect();
            for kind in CODED {
                let (affine, back) = (Affine::of(kind, &group), back(kind, &group));
                for (y, back) in group.iter().zip(&back) {
                    let half = match kind {
                        // E4M3 has 8 steps an octave, and units of 2^-9.
                        GroupType::Fp8 => (y.abs() / 16.0).max(affine.scale / 1_024.0),
                        _ => affine.scale / 2.0,
                    };
                    // Shift and scale are themselves rounded to f16.
                    let slack = (affine.shift.abs() + 448.0 * affine.scale) / 1_000.0;
                    prop_assert!((y - back).abs() <= half + slack, "{:?}: {} came back as {}", kind, y, back);
                }
                let expected: f64 = group.iter().zip(&back).map(|(y, back)| f64::from(y - back).powi(2)).sum();
                let got = f64::from(squared_error(kind, &group));
                prop_assert!((got - expected).abs() <= 1e-4 * expected + 1e-12, "{} is not {}", got, expected);
            }
        }
    }
}
