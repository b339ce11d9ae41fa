//! How the elements of a basis are stored: f16, or f16 for the strongest components and bytes with a scale for the others.
//!
//! In memory all of them are the f32 that a decoder computes with; what was read is written again bit for bit.

use half::f16;

use crate::{
    error::{Error, Result},
    format::bytes::{Reader, Write},
};

const WHAT: &str = "basis";
/// Largest magnitude of a byte element.
const MAX_BYTE: f32 = 127.0;
const ELEMENT_F16: u8 = 0;
const ELEMENT_MIXED: u8 = 1;

/// Rows of a basis as a decoder sees them, with what is needed to write them again.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Rows {
    /// `[rows, width]`.
    pub(crate) values: Vec<f32>,
    /// Scales of the last rows, those that are stored as bytes.
    scales: Vec<f32>,
}

impl Rows {
    /// Rounds `[rows, width]` to what can be stored: the first `wide` rows to f16, the others to bytes.
    pub(crate) fn round(mut values: Vec<f32>, width: usize, wide: usize) -> Self {
        let len = values.len();
        let (first, rest) = values.split_at_mut((wide * width).min(len));
        first.iter_mut().for_each(|x| *x = f16::from_f32(*x).to_f32());
        let scales = rest.chunks_exact_mut(width.max(1)).map(round_to_bytes).collect();
        Self { values, scales }
    }

    /// Number of the element type in the format.
    pub(crate) fn element(&self) -> u8 {
        if self.scales.is_empty() { ELEMENT_F16 } else { ELEMENT_MIXED }
    }

    /// Keeps the first `rows`.
    pub(crate) fn truncate(&mut self, rows: usize, width: usize) {
        let wide = self.wide(width);
        self.values.truncate(rows * width);
        self.scales.truncate(rows.saturating_sub(wide));
    }

    /// Reads `rows` rows of `width` elements.
    pub(crate) fn read_from(reader: &mut Reader<'_>, element: u8, rows: usize, width: usize) -> Result<Self> {
        let wide = match element {
            ELEMENT_F16 => rows,
            ELEMENT_MIXED => {
                let wide = usize::from(reader.u16()?);
                reader.zeros(2)?;
                if wide >= rows {
                    return Err(Error::corrupt(WHAT, format!("{wide} wide rows of {rows}")));
                }
                wide
            }
            other => return Err(Error::corrupt(WHAT, format!("element type {other} is unknown"))),
        };
        let mut values = reader.list(wide * width, |bytes| f16::from_le_bytes(bytes).to_f32())?;
        if !values.iter().all(|x| x.is_finite()) {
            return Err(Error::corrupt(WHAT, "an element is not finite"));
        }
        let (scales, bytes) = read_bytes(reader, rows - wide, width)?;
        values.extend(bytes);
        Ok(Self { values, scales })
    }

    /// The mirror of [`Self::read_from`].
    pub(crate) fn write_to(&self, width: usize, out: &mut Vec<u8>) {
        let wide = self.wide(width);
        if !self.scales.is_empty() {
            out.put_all(&[wide as u16, 0], u16::to_le_bytes);
        }
        let (first, rest) = self.values.split_at(wide * width);
        out.put_all(first, |x| f16::from_f32(x).to_le_bytes());
        write_bytes(rest, &self.scales, width, out);
    }

    /// Bytes of [`Self::write_to`].
    pub(crate) fn encoded_len(&self, width: usize) -> usize {
        let head = if self.scales.is_empty() { 0 } else { 4 };
        head + 2 * self.wide(width) * width + self.scales.len() * (4 + width)
    }

    fn wide(&self, width: usize) -> usize {
        self.values.len() / width.max(1) - self.scales.len()
    }
}

/// Rounds a row to multiples of the scale that is returned.
pub(crate) fn round_to_bytes(row: &mut [f32]) -> f32 {
    let largest = row.iter().fold(0f32, |largest, x| largest.max(x.abs()));
    let scale = if largest > 0.0 { largest / MAX_BYTE } else { 1.0 };
    row.iter_mut().for_each(|x| *x = (*x / scale).round() * scale);
    scale
}

/// Reads `[rows]` scales and `[rows, width]` bytes: scales and values.
pub(crate) fn read_bytes(reader: &mut Reader<'_>, rows: usize, width: usize) -> Result<(Vec<f32>, Vec<f32>)> {
    let scales = reader.finite(rows)?;
    if let Some(scale) = scales.iter().find(|&&scale| !(scale > 0.0 && (scale * MAX_BYTE).is_finite())) {
        return Err(Error::corrupt(WHAT, format!("a scale is {scale}")));
    }
    let bytes = reader.list(rows * width, i8::from_le_bytes)?;
    if bytes.contains(&i8::MIN) {
        return Err(Error::corrupt(WHAT, "a byte element is -128"));
    }
    let rows = bytes.chunks_exact(width.max(1)).zip(&scales);
    Ok((
        scales.clone(),
        rows.flat_map(|(row, scale)| row.iter().map(move |&q| f32::from(q) * scale)).collect(),
    ))
}

/// The mirror of [`read_bytes`].
pub(crate) fn write_bytes(values: &[f32], scales: &[f32], width: usize, out: &mut Vec<u8>) {
    out.put_all(scales, f32::to_le_bytes);
    for (row, scale) in values.chunks_exact(width.max(1)).zip(scales) {
        out.extend(row.iter().map(|x| (x / scale).round() as i8 as u8));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(wide: usize) -> Rows {
        let values = (0..5 * 7).map(|i| ((i * 37 % 101) as f32 - 50.0) / 77.0).collect();
        Rows::round(values, 7, wide)
    }

    fn bytes(rows: &Rows) -> Vec<u8> {
        let mut out = Vec::new();
        rows.write_to(7, &mut out);
        assert_eq!(out.len(), rows.encoded_len(7));
        out
    }

    #[test]
    fn rows_survive_and_have_the_written_size() {
        for wide in [0, 2, 5] {
            let rows = rows(wide);
            let bytes = bytes(&rows);
            let read = Rows::read_from(&mut Reader::new("plan", &bytes), rows.element(), 5, 7).unwrap();
            assert_eq!(read, rows);
        }
    }

    #[test]
    fn rounding_is_off_by_half_a_step_at_most() {
        let exact: Vec<f32> = (0..35).map(|i| ((i * 37 % 101) as f32 - 50.0) / 77.0).collect();
        for (x, rounded) in exact.iter().zip(&rows(0).values) {
            assert!((x - rounded).abs() <= 50.0 / 77.0 / 127.0 / 2.0 + 1e-6);
        }
    }

    #[test]
    fn truncation_keeps_the_first_rows() {
        let mut short = rows(2);
        short.truncate(3, 7);
        assert_eq!(short.values, rows(2).values[..21]);
        assert_eq!(bytes(&short).len(), 4 + 2 * 14 + 4 + 7);
        short.truncate(1, 7);
        assert_eq!((short.element(), bytes(&short).len()), (ELEMENT_F16, 14));
    }

    #[test]
    fn nonsense_is_refused() {
        let good = bytes(&rows(2));
        let read = |bytes: &[u8], element| Rows::read_from(&mut Reader::new("plan", bytes), element, 5, 7);
        assert!(read(&good, 1).is_ok());
        assert!(read(&good, 2).is_err());
        for (at, byte) in [(0, 5), (2, 1), (4 + 28 + 3, 0x7f), (4 + 28 + 12, 0x80)] {
            let mut broken = good.clone();
            broken[at] = byte;
            assert!(read(&broken, 1).is_err(), "byte {at}");
        }
    }
}
