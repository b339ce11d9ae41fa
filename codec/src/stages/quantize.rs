//! Stage 4: coefficients to integers on one uniform step, and back through the centroids of each class.
//!
//! Steps and standard deviations live on one integer grid of 1/48 octave, so both ends agree on every class exactly.

use crate::{
    error::Result,
    format::bytes::Reader,
    tokens::{Group, Side},
};

/// Grid units in an octave.
pub(crate) const GRID_PER_OCTAVE: i32 = 48;
/// Grid units in a class, and in one shift: a third of an octave.
pub(crate) const GRID_PER_CLASS: i32 = 16;
/// Centroids stored per class; larger magnitudes are rare or so far up the slope that the centre of the cell is right.
pub(crate) const CENTROIDS: usize = 8;
/// Added before rounding down: below 1/2 zero gets a wider cell, which saves more bytes than the error costs.
const ROUNDING: f32 = 0.40;
/// Largest symbol magnitude.
pub(crate) const MAX_SYMBOL: i16 = i16::MAX;

/// Grid exponents of the steps of a chunk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Steps {
    pub(crate) keys: i16,
    pub(crate) values: i16,
    pub(crate) window_keys: i16,
    pub(crate) window_values: i16,
}

impl Steps {
    pub(crate) fn read_from(reader: &mut Reader<'_>) -> Result<Self> {
        Ok(Self {
            keys: reader.i16()?,
            values: reader.i16()?,
            window_keys: reader.i16()?,
            window_values: reader.i16()?,
        })
    }

    /// In the order of the format.
    pub(crate) fn all(&self) -> [i16; 4] {
        [self.keys, self.values, self.window_keys, self.window_values]
    }

    /// Grid exponent for the tokens of a group.
    pub(crate) fn exponent(&self, side: Side, group: &Group) -> i32 {
        let step = match (side, group.is_window) {
            (Side::Keys, false) => self.keys,
            (Side::Values, false) => self.values,
            (Side::Keys, true) => self.window_keys,
            (Side::Values, true) => self.window_values,
        };
        i32::from(step) + GRID_PER_CLASS * i32::from(group.shift)
    }
}

/// Class of a component: log2(sigma / D) in thirds of an octave, rounded.
pub(crate) fn class_of(log_sigma: i16, exponent: i32) -> i32 {
    (i32::from(log_sigma) - exponent + GRID_PER_CLASS / 2).div_euclid(GRID_PER_CLASS)
}

/// 2^(exponent / 48). Exact powers of two times a rounded constant, so that every machine gets the same bits.
pub(crate) fn step_size(exponent: i32) -> f32 {
    let (octave, part) = (exponent.div_euclid(GRID_PER_OCTAVE), exponent.rem_euclid(GRID_PER_OCTAVE));
    let fraction = (f64::from(part) / f64::from(GRID_PER_OCTAVE)).exp2() as f32;
    fraction * f32::from_bits(((octave.clamp(-126, 127) + 127) as u32) << 23)
}

/// Nearest grid exponent of a standard deviation; `i16::MIN` for 0.
pub(crate) fn log_sigma(sigma: f64) -> i16 {
    (sigma.log2() * f64::from(GRID_PER_OCTAVE)).round() as i16
}

/// q = sign(y) floor(|y| / D + 0.40), one symbol per coefficient. Beyond +-32,767 it saturates.
pub(crate) fn quantize(coefficients: &[f32], step: f32, symbols: &mut [i16]) {
    let inverse = 1.0 / step;
    for (symbol, &y) in symbols.iter_mut().zip(coefficients) {
        let magnitude = (y.abs() * inverse + ROUNDING).min(f32::from(MAX_SYMBOL)) as i32;
        *symbol = (if y < 0.0 { -magnitude } else { magnitude }) as i16;
    }
}

/// Coefficients of one class; the mirror of [`quantize`]. `centroids` are those of magnitudes 1 to 8, in steps.
pub(crate) fn dequantize(symbols: &[i16], centroids: &[f32; CENTROIDS], step: f32, coefficients: &mut [f32]) {
    let mut table = [0f32; 2 * CENTROIDS + 1];
    for (i, centroid) in centroids.iter().enumerate() {
        table[CENTROIDS + 1 + i] = centroid * step;
        table[CENTROIDS - 1 - i] = -centroid * step;
    }
    for (y, &symbol) in coefficients.iter_mut().zip(symbols) {
        let slot = (i32::from(symbol) + CENTROIDS as i32) as usize;
        *y = table.get(slot).copied().unwrap_or_else(|| f32::from(symbol) * step);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_powers_of_two_on_octaves_and_rise_between() {
        assert_eq!([step_size(-96), step_size(0), step_size(48)], [0.25, 1.0, 2.0]);
        let steps: Vec<f32> = (-200..200).map(step_size).collect();
        assert!(steps.windows(2).all(|pair| (pair[1] / pair[0] - 2f32.powf(1.0 / 48.0)).abs() < 1e-6));
    }

    #[test]
    fn classes_are_rounded_thirds_of_an_octave() {
        assert_eq!([class_of(0, 0), class_of(7, 0), class_of(8, 0)], [0, 0, 1]);
        assert_eq!([class_of(-8, 0), class_of(-9, 0), class_of(48, 0)], [0, -1, 3]);
        assert_eq!(class_of(100, 20), class_of(100 + 16, 20 + 16));
    }

    #[test]
    fn the_error_of_a_coefficient_is_bounded_by_its_cell() {
        let coefficients: Vec<f32> = (-4_000..4_000).map(|i| i as f32 * 0.013).collect();
        let (mut symbols, mut back) = (vec![0; 8_000], vec![0.0; 8_000]);
        quantize(&coefficients, 0.7, &mut symbols);
        dequantize(&symbols, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0], 0.7, &mut back);
        for (y, back) in coefficients.iter().zip(&back) {
            assert!((y - back).abs() <= 0.6001 * 0.7, "{y} came back as {back}");
        }
    }

    #[test]
    fn huge_coefficients_saturate() {
        let mut symbols = [0; 2];
        quantize(&[1e30, -1e30], 1.0, &mut symbols);
        assert_eq!(symbols, [MAX_SYMBOL, -MAX_SYMBOL]);
    }
}
