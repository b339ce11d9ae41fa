//! What the codecs without a plan share: a cache is coded plane by plane (one layer's one KV head), each in the order that DEFLATE gets
//! most out of.
//!
//! Along one dimension of a head, magnitudes and often signs are alike, so the bytes of neighbouring dimensions get a Huffman table
//! that fits them. Where whole rows come again (values of the first layer depend on the token alone) the rows stay together, so that DEFLATE
//! can refer back to them.

pub(crate) mod fp8;
pub(crate) mod lossless;

use std::collections::HashSet;

use half::bf16;

use crate::{
    error::{Error, Result},
    format::bytes::Reader,
};

/// Rows are kept together when at least one in so many is a copy of another.
const ROWS_PER_COPY: usize = 8;

/// How the values of a plane follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PlaneOrder {
    /// By token, bf16 bytes unchanged: for planes whose exponents span too much. Lossless only.
    Wide = 0,
    /// By token.
    Token = 1,
    /// By dimension, then token.
    Feature = 2,
}

impl PlaneOrder {
    fn from_byte(byte: u8) -> Result<Self> {
        match byte {
            0 => Ok(Self::Wide),
            1 => Ok(Self::Token),
            2 => Ok(Self::Feature),
            _ => Err(Error::corrupt("plane table", format!("order {byte} is unknown"))),
        }
    }

    /// The better order for a plane `[tokens, head_dim]`.
    fn of(plane: &[bf16], head_dim: usize) -> Self {
        let rows = plane.chunks_exact(head_dim);
        let count = rows.len();
        let different = rows.map(hash).collect::<HashSet<_>>().len();
        if (count - different) * ROWS_PER_COPY >= count { Self::Token } else { Self::Feature }
    }
}

/// Tells rows apart well enough to choose an order.
fn hash(row: &[bf16]) -> u64 {
    row.iter().fold(0, |hash: u64, x| {
        (hash.rotate_left(5) ^ u64::from(x.to_bits())).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    })
}

/// One plane's entry in a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PlaneInfo {
    pub(crate) order: PlaneOrder,
    /// The exponent that others count down from (lossless), or the scale's exponent as two's complement (fp8).
    pub(crate) level: u8,
    /// 1 for each head dimension whose signs are turned, so that the frequent one is always 0.
    pub(crate) flips: Vec<u8>,
}

/// Bytes of the tables of one side.
pub(crate) fn tables_len(planes: usize, head_dim: usize) -> usize {
    planes * (2 + head_dim)
}

/// Appends the tables of one side: orders, levels, flips.
pub(crate) fn write_tables<'a>(infos: impl Iterator<Item = &'a PlaneInfo> + Clone, out: &mut Vec<u8>) {
    out.extend(infos.clone().map(|info| info.order as u8));
    out.extend(infos.clone().map(|info| info.level));
    out.extend(infos.flat_map(|info| &info.flips));
}

/// Reads the tables of one side; the mirror of [`write_tables`].
pub(crate) fn read_tables(reader: &mut Reader<'_>, planes: usize, head_dim: usize) -> Result<Vec<PlaneInfo>> {
    let (orders, levels) = (reader.take(planes)?, reader.take(planes)?);
    let flips = reader.take(planes * head_dim)?;
    if let Some(flip) = flips.iter().find(|&&flip| flip > 1) {
        return Err(Error::corrupt("plane table", format!("a sign flip is {flip}")));
    }
    let infos = orders.iter().zip(levels).zip(flips.chunks_exact(head_dim));
    infos
        .map(|((&order, &level), flips)| {
            Ok(PlaneInfo { order: PlaneOrder::from_byte(order)?, level, flips: flips.to_vec() })
        })
        .collect()
}

/// For each head dimension of a plane in feature order, 1 where most of its values are negative.
fn flips(by_feature: &[u16], head_dim: usize) -> Vec<u8> {
    let negative = |values: &[u16]| values.iter().filter(|&&bits| bits >> 15 == 1).count();
    let dimensions = by_feature.chunks_exact(by_feature.len() / head_dim);
    dimensions.map(|values| u8::from(2 * negative(values) > values.len())).collect()
}

/// `[rows, columns]` to `[columns, rows]`.
pub(crate) fn transposed<T: Copy + Default>(matrix: &[T], columns: usize) -> Vec<T> {
    let rows = matrix.len() / columns;
    let mut out = vec![T::default(); matrix.len()];
    for (r, row) in matrix.chunks_exact(columns).enumerate() {
        for (c, &x) in row.iter().enumerate() {
            out[c * rows + r] = x;
        }
    }
    out
}

/// Every value of a plane in its order, with the flip of its dimension.
fn for_each_with_flip<T: Copy>(values: &[T], order: PlaneOrder, flips: &[u8], mut visit: impl FnMut(u8, T)) {
    if order == PlaneOrder::Feature {
        let tokens = values.len() / flips.len();
        for (&flip, values) in flips.iter().zip(values.chunks_exact(tokens)) {
            values.iter().for_each(|&value| visit(flip, value));
        }
    } else {
        for row in values.chunks_exact(flips.len()) {
            flips.iter().zip(row).for_each(|(&flip, &value)| visit(flip, value));
        }
    }
}

/// Where statistics change inside a plane's bytes, counted from its start; its end included.
fn breaks(order: PlaneOrder, len: usize, tokens: usize) -> impl Iterator<Item = usize> {
    let step = if order == PlaneOrder::Feature { tokens } else { len };
    (1..=len / step.max(1)).map(move |i| i * step)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_survive_and_nonsense_in_them_is_refused() {
        let info = |order, level| PlaneInfo { order, level, flips: vec![1, 0] };
        let infos = [info(PlaneOrder::Wide, 1), info(PlaneOrder::Token, 200), info(PlaneOrder::Feature, 255)];
        let mut bytes = Vec::new();
        write_tables(infos.iter(), &mut bytes);
        assert_eq!(bytes.len(), tables_len(3, 2));
        let read = |bytes: &[u8]| read_tables(&mut Reader::new("chunk", bytes), 3, 2);
        assert_eq!(read(&bytes).unwrap(), infos);
        for (at, byte) in [(0, 3), (7, 2)] {
            let mut broken = bytes.clone();
            broken[at] = byte;
            assert!(matches!(read(&broken), Err(Error::Corrupt { what: "plane table", .. })));
        }
    }

    #[test]
    fn rows_that_come_again_stay_together() {
        let plane: Vec<bf16> = (0..64).map(|i| bf16::from_f32(i as f32)).collect();
        assert_eq!(PlaneOrder::of(&plane, 4), PlaneOrder::Feature);
        let twice = [plane.as_slice(), &plane].concat();
        assert_eq!(PlaneOrder::of(&twice, 4), PlaneOrder::Token);
    }
}
