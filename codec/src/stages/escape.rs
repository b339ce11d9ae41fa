//! The list of symbols too large for their class: gaps between positions and values, as four byte planes.

use crate::{
    error::{Error, Result},
    stages::{order::Order, pack::Packing},
};

/// Bytes of one entry: gap and value.
pub(crate) const ESCAPE_BYTES: usize = 4;
/// A value that replaces nothing, for gaps that do not fit.
const BRIDGE: i16 = i16::MIN;

/// One entry of the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Escape {
    gap: u16,
    value: i16,
}

/// Lists the symbols that their class cannot hold. `packing_of` gives a class table's packing.
pub(crate) fn remove(symbols: &[i16], order: &Order, packing_of: impl Fn(usize) -> Packing) -> Vec<Escape> {
    let mut escapes = Vec::new();
    let mut next = 0usize;
    for run in &order.runs {
        let limit = packing_of(run.table).limit() as u16;
        for (offset, &value) in symbols[run.symbols.clone()].iter().enumerate() {
            if value.unsigned_abs() > limit {
                push(&mut escapes, run.symbols.start + offset - next, value);
                next = run.symbols.start + offset + 1;
            }
        }
    }
    escapes
}

fn push(escapes: &mut Vec<Escape>, mut gap: usize, value: i16) {
    while let Some(rest) = gap.checked_sub(usize::from(u16::MAX) + 1) {
        escapes.push(Escape { gap: u16::MAX, value: BRIDGE });
        gap = rest;
    }
    escapes.push(Escape { gap: gap as u16, value });
}

/// Puts listed values back into the symbols; the mirror of [`remove`].
pub(crate) fn restore(escapes: &[Escape], symbols: &mut [i16]) -> Result<()> {
    let mut next = 0usize;
    for escape in escapes {
        let position = next + usize::from(escape.gap);
        let available = symbols.len();
        let Some(symbol) = symbols.get_mut(position) else {
            let detail = format!("an escape points at symbol {position} of {available}");
            return Err(Error::corrupt("escape list", detail));
        };
        if escape.value != BRIDGE {
            *symbol = escape.value;
        }
        next = position + 1;
    }
    Ok(())
}

/// Appends the list as byte planes.
pub(crate) fn write(escapes: &[Escape], out: &mut Vec<u8>) {
    out.extend(escapes.iter().map(|escape| escape.gap.to_le_bytes()[0]));
    out.extend(escapes.iter().map(|escape| escape.gap.to_le_bytes()[1]));
    out.extend(escapes.iter().map(|escape| escape.value.to_le_bytes()[0]));
    out.extend(escapes.iter().map(|escape| escape.value.to_le_bytes()[1]));
}

/// Reads a list that fills `bytes`; the mirror of [`write`].
pub(crate) fn read(bytes: &[u8]) -> Vec<Escape> {
    let count = bytes.len() / ESCAPE_BYTES;
    let plane = |i: usize, entry: usize| bytes[i * count + entry];
    (0..count)
        .map(|entry| Escape {
            gap: u16::from_le_bytes([plane(0, entry), plane(1, entry)]),
            value: i16::from_le_bytes([plane(2, entry), plane(3, entry)]),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stages::order::ClassRun;

    fn order(symbols: usize) -> Order {
        let runs = vec![ClassRun { table: 0, symbols: 0..symbols }];
        Order { bands: vec![], runs, exponents: vec![], kept: vec![], lengths: vec![], symbols }
    }

    #[test]
    fn escapes_survive_far_gaps() {
        for positions in [vec![], vec![0], vec![65_535], vec![65_536], vec![0, 1, 65_538, 200_000, 399_999]] {
            let mut symbols = vec![1i16; 400_000];
            for &position in &positions {
                symbols[position] = -300 - position as i16 % 7;
            }
            let escapes = remove(&symbols, &order(symbols.len()), |_| Packing::Base3);
            let mut bytes = Vec::new();
            write(&escapes, &mut bytes);
            assert_eq!(bytes.len(), escapes.len() * ESCAPE_BYTES);
            let mut back = vec![1i16; 400_000];
            restore(&read(&bytes), &mut back).unwrap();
            assert!(back == symbols, "escapes at {positions:?}");
        }
    }

    #[test]
    fn an_escape_outside_the_symbols_is_refused() {
        assert!(restore(&[Escape { gap: 9, value: 5 }], &mut [0; 10]).is_ok());
        assert!(restore(&[Escape { gap: 10, value: 5 }], &mut [0; 10]).is_err());
        assert!(restore(&[Escape { gap: 65_535, value: BRIDGE }], &mut [0; 10]).is_err());
    }
}
