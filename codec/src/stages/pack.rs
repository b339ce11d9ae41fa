//! Stage 5: symbols of a class to bytes, several to a byte in a small base, so that DEFLATE's whole-bit codes come close to the entropy.

use crate::error::{Error, Result};

/// How the symbols of a class share bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Packing {
    /// Five of -1..=1 in a byte.
    Base3,
    /// Three of -2..=2 in a byte.
    Base5,
    /// Two of -7..=7 in a byte.
    Base15,
    /// One of -127..=127 in a byte.
    Base255,
    /// One in two bytes, low and high bytes apart.
    Wide,
}

impl Packing {
    /// Every packing, in the order of their numbers in the format.
    pub(crate) const ALL: [Self; 5] = [Self::Base3, Self::Base5, Self::Base15, Self::Base255, Self::Wide];

    /// Largest magnitude; anything above escapes.
    pub(crate) fn limit(self) -> i16 {
        match self {
            Self::Base3 => 1,
            Self::Base5 => 2,
            Self::Base15 => 7,
            Self::Base255 => 127,
            Self::Wide => i16::MAX,
        }
    }

    /// Bytes of `symbols` symbols.
    pub(crate) fn packed_len(self, symbols: usize) -> usize {
        match self {
            Self::Base3 => symbols.div_ceil(5),
            Self::Base5 => symbols.div_ceil(3),
            Self::Base15 => symbols.div_ceil(2),
            Self::Base255 => symbols,
            Self::Wide => 2 * symbols,
        }
    }
}

/// Packs the symbols of a class into `bytes`, which has the packed length. Symbols over the limit become 0.
pub(crate) fn pack(packing: Packing, symbols: &[i16], bytes: &mut [u8]) {
    match packing {
        Packing::Base3 => pack_base::<3, 5>(symbols, bytes),
        Packing::Base5 => pack_base::<5, 3>(symbols, bytes),
        Packing::Base15 => pack_base::<15, 2>(symbols, bytes),
        Packing::Base255 => pack_base::<255, 1>(symbols, bytes),
        Packing::Wide => pack_wide(symbols, bytes),
    }
}

/// Unpacks a class; the mirror of [`pack`].
///
/// # Errors
/// [`Error::Corrupt`] for a byte that no symbols pack to.
pub(crate) fn unpack(packing: Packing, bytes: &[u8], symbols: &mut [i16]) -> Result<()> {
    let valid = match packing {
        Packing::Base3 => unpack_base::<3, 5>(bytes, symbols),
        Packing::Base5 => unpack_base::<5, 3>(bytes, symbols),
        Packing::Base15 => unpack_base::<15, 2>(bytes, symbols),
        Packing::Base255 => unpack_base::<255, 1>(bytes, symbols),
        Packing::Wide => unpack_wide(bytes, symbols),
    };
    if valid {
        Ok(())
    } else {
        Err(Error::corrupt("packed symbols", format!("a byte is outside the range of {packing:?}")))
    }
}

fn pack_base<const BASE: i16, const COUNT: usize>(symbols: &[i16], bytes: &mut [u8]) {
    let limit = BASE / 2;
    let digit = |symbol: i16| if symbol.unsigned_abs() > limit as u16 { limit } else { symbol + limit };
    let (full, rest) = symbols.as_chunks::<COUNT>();
    for (byte, symbols) in bytes.iter_mut().zip(full) {
        *byte = symbols.iter().rev().fold(0, |sum, &symbol| sum * BASE + digit(symbol)) as u8;
    }
    if !rest.is_empty() {
        let mut last = [0; COUNT];
        last[..rest.len()].copy_from_slice(rest);
        bytes[full.len()] = last.iter().rev().fold(0, |sum, &symbol| sum * BASE + digit(symbol)) as u8;
    }
}

fn unpack_base<const BASE: i16, const COUNT: usize>(bytes: &[u8], symbols: &mut [i16]) -> bool {
    let values = u16::pow(BASE as u16, COUNT as u32);
    let table: [[i16; COUNT]; 256] = std::array::from_fn(|byte| {
        std::array::from_fn(|i| (byte as i16 / BASE.pow(i as u32)) % BASE - BASE / 2)
    });
    let (full, rest) = symbols.as_chunks_mut::<COUNT>();
    let mut largest = 0;
    for (symbols, &byte) in full.iter_mut().zip(bytes) {
        *symbols = table[usize::from(byte)];
        largest = largest.max(byte);
    }
    if !rest.is_empty() {
        let byte = bytes[bytes.len() - 1];
        rest.copy_from_slice(&table[usize::from(byte)][..rest.len()]);
        largest = largest.max(byte);
    }
    u16::from(largest) < values
}

fn pack_wide(symbols: &[i16], bytes: &mut [u8]) {
    let (low, high) = bytes.split_at_mut(symbols.len());
    for ((low, high), &symbol) in low.iter_mut().zip(high).zip(symbols) {
        [*low, *high] = (symbol.max(-i16::MAX) as u16 ^ 0x8000).to_le_bytes();
    }
}

fn unpack_wide(bytes: &[u8], symbols: &mut [i16]) -> bool {
    let (low, high) = bytes.split_at(symbols.len());
    for ((symbol, &low), &high) in symbols.iter_mut().zip(low).zip(high) {
        *symbol = (u16::from_le_bytes([low, high]) ^ 0x8000) as i16;
    }
    !symbols.contains(&i16::MIN)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn symbols_within_the_limit_survive(symbols in prop::collection::vec(-i16::MAX..=i16::MAX, 0..200)) {
            for packing in Packing::ALL {
                let mut bytes = vec![0; packing.packed_len(symbols.len())];
                pack(packing, &symbols, &mut bytes);
                let mut back = vec![0; symbols.len()];
                unpack(packing, &bytes, &mut back).unwrap();
                for (&symbol, &back) in symbols.iter().zip(&back) {
                    let fits = symbol.unsigned_abs() <= packing.limit() as u16;
                    prop_assert_eq!(back, if fits { symbol } else { 0 });
                }
            }
        }

        #[test]
        fn small_symbols_survive_every_packing(symbols in prop::collection::vec(-1i16..=1, 0..200)) {
            for packing in Packing::ALL {
                let mut bytes = vec![0; packing.packed_len(symbols.len())];
                pack(packing, &symbols, &mut bytes);
                let mut back = vec![9; symbols.len()];
                unpack(packing, &bytes, &mut back).unwrap();
                prop_assert_eq!(&back, &symbols);
            }
        }
    }

    #[test]
    fn bytes_that_no_symbols_pack_to_are_refused() {
        for (packing, symbols, byte) in [
            (Packing::Base3, 5, 243),
            (Packing::Base5, 3, 125),
            (Packing::Base15, 2, 225),
            (Packing::Base255, 1, 255),
        ] {
            assert!(unpack(packing, &[byte - 1], &mut vec![0; symbols]).is_ok());
            assert!(unpack(packing, &[byte], &mut vec![0; symbols]).is_err());
            assert!(
                unpack(packing, &[0, byte], &mut vec![0; symbols + 1][..symbols * 2 - (symbols - 1)])
                    .is_err()
            );
        }
        assert!(unpack(Packing::Wide, &[0, 0], &mut [0]).is_err());
    }
}
