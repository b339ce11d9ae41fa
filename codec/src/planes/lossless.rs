//! The `lossless` codec: exponents and signs apart from mantissas, bit for bit.
//!
//! A value becomes a symbol byte (its exponent counted down from its plane's highest, and its sign), which DEFLATE brings to 3 to 4 bits,
//! and 7 bits of mantissa, which nothing makes smaller and which are packed without gaps.

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

/// In place of an exponent's distance from the highest: the exponent is 0 (zeros and subnormals).
const ZERO: u8 = 127;

/// A payload before segments.
#[derive(Debug)]
pub(crate) struct Payload {
    pub(crate) bytes: Vec<u8>,
    /// Offsets, increasing, where statistics change.
    pub(crate) breaks: Vec<usize>,
    /// Wide planes among keys and among values.
    pub(crate) wide: [u32; 2],
}

/// One coded plane.
struct Plane {
    info: PlaneInfo,
    /// A byte a value.
    symbols: Vec<u8>,
    /// 7 bits a value; a byte in wide planes.
    mantissas: Vec<u8>,
}

/// Bytes of `values` packed mantissas.
fn packed_len(values: usize) -> usize {
    (values * 7).div_ceil(8)
}

/// Length of a payload with `wide` wide planes.
pub(crate) fn payload_len(layout: &KvLayout, tokens: usize, wide: usize) -> usize {
    let (planes, values) = (layout.layers * layout.kv_heads, tokens * layout.head_dim);
    let narrow = values + packed_len(values);
    2 * (planes * narrow + tables_len(planes, layout.head_dim)) + wide * (2 * values - narrow)
}

/// Both sides of a block, `[layers, kv_heads, tokens, head_dim]` each, to a payload.
pub(crate) fn encode(layout: &KvLayout, tokens: usize, sides: [&[bf16]; 2]) -> Payload {
    let values = tokens * layout.head_dim;
    let planes: Vec<Plane> = sides[0]
        .par_chunks_exact(values)
        .chain(sides[1].par_chunks_exact(values))
        .map(|plane| Plane::encode(plane, layout.head_dim))
        .collect();
    let sides = planes.split_at(planes.len() / 2);
    let wide = |planes: &[Plane]| planes.iter().filter(|plane| plane.info.order == PlaneOrder::Wide).count();
    let wide = [wide(sides.0), wide(sides.1)];
    let mut bytes = Vec::with_capacity(payload_len(layout, tokens, wide[0] + wide[1]));
    let mut all_breaks = Vec::new();
    for plane in &planes {
        let start = bytes.len();
        bytes.extend_from_slice(&plane.symbols);
        all_breaks.extend(breaks(plane.info.order, values, tokens).map(|at| start + at));
    }
    for plane in &planes {
        bytes.extend_from_slice(&plane.mantissas);
        all_breaks.push(bytes.len());
    }
    write_tables(sides.0.iter().map(|plane| &plane.info), &mut bytes);
    write_tables(sides.1.iter().map(|plane| &plane.info), &mut bytes);
    Payload { bytes, breaks: all_breaks, wide: wide.map(|count| count as u32) }
}

impl Plane {
    fn encode(plane: &[bf16], head_dim: usize) -> Self {
        let by_token: Vec<u16> = plane.iter().map(|x| x.to_bits()).collect();
        let by_feature = transposed(&by_token, head_dim);
        let Some(level) = level(&by_token) else { return Self::wide(&by_token, head_dim) };
        let (order, flips) = (PlaneOrder::of(plane, head_dim), flips(&by_feature, head_dim));
        let values = if order == PlaneOrder::Feature { by_feature } else { by_token };
        let mut symbols = Vec::with_capacity(values.len());
        for_each_with_flip(&values, order, &flips, |flip, bits| symbols.push(symbol(level, flip, bits)));
        Self { info: PlaneInfo { order, level, flips }, symbols, mantissas: pack(&values) }
    }

    fn wide(values: &[u16], head_dim: usize) -> Self {
        Self {
            info: PlaneInfo { order: PlaneOrder::Wide, level: 0, flips: vec![0; head_dim] },
            symbols: values.iter().map(|bits| bits.to_le_bytes()[1]).collect(),
            mantissas: values.iter().map(|bits| bits.to_le_bytes()[0]).collect(),
        }
    }
}

/// The exponent that those of a plane are counted down from, or nothing where they span more than a symbol holds.
fn level(values: &[u16]) -> Option<u8> {
    let mut counts = [0usize; 256];
    values.iter().for_each(|bits| counts[usize::from(bits >> 7 & 0xff)] += 1);
    counts[0] = 0;
    let Some(highest) = counts.iter().rposition(|&count| count > 0) else { return Some(0) };
    let lowest = counts.iter().position(|&count| count > 0)?;
    (highest - lowest < usize::from(ZERO)).then_some(highest as u8)
}

fn symbol(level: u8, flip: u8, bits: u16) -> u8 {
    let exponent = (bits >> 7) as u8;
    let distance = if exponent == 0 { ZERO } else { level - exponent };
    distance << 1 | ((bits >> 15) as u8 ^ flip)
}

/// Sign and exponent of a symbol in place; the mirror of [`symbol`].
fn sign_and_exponent(level: u8, flip: u8, symbol: u8) -> Option<u16> {
    let exponent = match symbol >> 1 {
        ZERO => 0,
        distance => level.checked_sub(distance).filter(|&exponent| exponent > 0)?,
    };
    Some(u16::from(symbol & 1 ^ flip) << 15 | u16::from(exponent) << 7)
}

/// The 7 low bits of every value, 8 values in 7 bytes.
fn pack(values: &[u16]) -> Vec<u8> {
    let mut out = Vec::with_capacity(packed_len(values.len()));
    for values in values.chunks(8) {
        let bits = values
            .iter()
            .enumerate()
            .fold(0u64, |bits, (i, value)| bits | u64::from(value & 0x7f) << (7 * i));
        out.extend_from_slice(&bits.to_le_bytes()[..packed_len(values.len())]);
    }
    out
}

/// Adds mantissas to values; the mirror of [`pack`]. Whether the bits that fill up the last byte are 0.
fn unpack(bytes: &[u8], values: &mut [u16]) -> bool {
    let mut rest = 0;
    for (bytes, values) in bytes.chunks(7).zip(values.chunks_mut(8)) {
        let mut word = [0; 8];
        word[..bytes.len()].copy_from_slice(bytes);
        rest = u64::from_le_bytes(word);
        for value in values {
            *value |= (rest & 0x7f) as u16;
            rest >>= 7;
        }
    }
    rest == 0
}

/// A payload of the length that [`payload_len`] gives to both sides of a block; the mirror of [`encode`].
pub(crate) fn decode(
    layout: &KvLayout,
    tokens: usize,
    wide: [u32; 2],
    payload: &[u8],
) -> Result<[Vec<bf16>; 2]> {
    let (count, values) = (layout.layers * layout.kv_heads, tokens * layout.head_dim);
    let tables = payload.len() - 2 * tables_len(count, layout.head_dim);
    let mut reader = Reader::new("plane table", &payload[tables..]);
    let mut infos = Vec::with_capacity(2 * count);
    for expected in wide {
        let side = read_tables(&mut reader, count, layout.head_dim)?;
        let got = side.iter().filter(|info| info.order == PlaneOrder::Wide).count();
        if got != expected as usize {
            let detail = format!("{got} wide planes, the header says {expected}");
            return Err(Error::corrupt("plane table", detail));
        }
        infos.extend(side);
    }
    let (symbols, mut mantissas) = payload[..tables].split_at(2 * count * values);
    let mut inputs = Vec::with_capacity(infos.len());
    for (info, symbols) in infos.iter().zip(symbols.chunks_exact(values)) {
        let len = if info.order == PlaneOrder::Wide { values } else { packed_len(values) };
        let (head, tail) = mantissas.split_at(len);
        inputs.push((info, symbols, head));
        mantissas = tail;
    }
    let mut sides = [vec![bf16::ZERO; count * values], vec![bf16::ZERO; count * values]];
    let [keys, values_out] = &mut sides;
    inputs
        .into_par_iter()
        .zip(keys.par_chunks_exact_mut(values).chain(values_out.par_chunks_exact_mut(values)))
        .try_for_each(|((info, symbols, mantissas), plane)| decode_plane(info, symbols, mantissas, plane))?;
    Ok(sides)
}

fn decode_plane(info: &PlaneInfo, symbols: &[u8], mantissas: &[u8], plane: &mut [bf16]) -> Result<()> {
    if info.order == PlaneOrder::Wide {
        let bytes = symbols.iter().zip(mantissas);
        plane.iter_mut().zip(bytes).for_each(|(x, (&high, &low))| *x = bf16::from_le_bytes([low, high]));
        return Ok(());
    }
    let mut values = Vec::with_capacity(symbols.len());
    let mut is_valid = true;
    for_each_with_flip(symbols, info.order, &info.flips, |flip, symbol| {
        let bits = sign_and_exponent(info.level, flip, symbol);
        is_valid &= bits.is_some();
        values.push(bits.unwrap_or_default());
    });
    if !(is_valid && unpack(mantissas, &mut values)) {
        return Err(Error::corrupt(
            "plane",
            "an exponent is below 1, or the bits after the last mantissa are not 0",
        ));
    }
    if info.order == PlaneOrder::Feature {
        values = transposed(&values, values.len() / info.flips.len());
    }
    plane.iter_mut().zip(values).for_each(|(x, bits)| *x = bf16::from_bits(bits));
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn round_trip(plane: &[u16], head_dim: usize) -> (PlaneOrder, usize) {
        let plane: Vec<bf16> = plane.iter().map(|&bits| bf16::from_bits(bits)).collect();
        let coded = Plane::encode(&plane, head_dim);
        let mut back = vec![bf16::ZERO; plane.len()];
        decode_plane(&coded.info, &coded.symbols, &coded.mantissas, &mut back).unwrap();
        assert!(back.iter().zip(&plane).all(|(a, b)| a.to_bits() == b.to_bits()));
        (coded.info.order, coded.mantissas.len())
    }

    proptest! {
        #[test]
        fn any_bits_survive(rows in prop::collection::vec(any::<[u16; 6]>(), 1..40)) {
            round_trip(rows.as_flattened(), 6);
        }

        #[test]
        fn bits_of_few_exponents_survive_as_narrow_planes(
            rows in prop::collection::vec(any::<[u16; 6]>(), 1..40), top in 126u16..=255
        ) {
            let narrow: Vec<u16> =
                rows.as_flattened().iter().map(|bits| bits & 0x807f | (top - bits % 119) << 7).collect();
            let (order, len) = round_trip(&narrow, 6);
            prop_assert!(order != PlaneOrder::Wide);
            prop_assert_eq!(len, packed_len(narrow.len()));
        }
    }

    #[test]
    fn zeros_of_both_signs_and_subnormals_fit_narrow_planes() {
        let plane = [0x0000, 0x8000, 0x0001, 0x807f, 0x3f80, 0xbf80, 0x0000, 0x4000];
        assert_ne!(round_trip(&plane, 2).0, PlaneOrder::Wide);
        assert_ne!(round_trip(&[0; 8], 2).0, PlaneOrder::Wide);
    }

    #[test]
    fn a_symbol_below_the_smallest_exponent_is_refused() {
        assert_eq!(sign_and_exponent(5, 0, 4 << 1), Some(1 << 7));
        assert_eq!([5, 6, 126].map(|distance| sign_and_exponent(5, 0, distance << 1)), [None; 3]);
    }
}
