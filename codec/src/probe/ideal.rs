//! How near DEFLATE comes to an ideal entropy coder of the same symbols.

use std::{iter, ops::Range, sync::Arc};

use crate::{
    coding::{CodecKind, Limits},
    decode::{Decoder, read_payload, read_shifts},
    error::{Error, Result},
    format::{
        chunk::{ChunkHeader, CodecId},
        segments::{self, Segment},
    },
    kvtc::{Opened, Parts},
    plan::Plan,
    side::{SidePart, read_symbols},
    stages::escape::ESCAPE_BYTES,
};

/// Bytes of a segment's entry in the table of ends.
const ENTRY_BYTES: f64 = 4.0;

/// Symbols of kvtc chunks: what they take, and what they would take at their entropy.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Ideal {
    /// Symbols sent.
    pub symbols: u64,
    /// Entries of escape lists.
    pub escapes: u64,
    /// Zero-order entropy of the symbols in bytes, each class of each side and chunk with the frequencies of its own. A symbol that its class's
    /// packing cannot hold is a symbol value like the others, so escapes are in. Tables of frequencies, which a real coder must send or learn,
    /// are not.
    pub symbol_bytes: f64,
    /// What the same symbols take in the chunks: packed symbols and escape lists, deflated, with their entries in the table of segment ends. A
    /// segment that holds other parts of the payload too is divided in proportion to each part's zero-order entropy of bytes.
    pub coded_bytes: f64,
}

impl Ideal {
    /// What coding costs beyond the entropy, as a share of it; 0 without symbols.
    pub fn overhead(&self) -> f64 {
        if self.symbol_bytes > 0.0 { self.coded_bytes / self.symbol_bytes - 1.0 } else { 0.0 }
    }

    fn plus(self, other: Self) -> Self {
        Self {
            symbols: self.symbols + other.symbols,
            escapes: self.escapes + other.escapes,
            symbol_bytes: self.symbol_bytes + other.symbol_bytes,
            coded_bytes: self.coded_bytes + other.coded_bytes,
        }
    }
}

/// Sums up kvtc chunks that were coded with `plan`. Token features are not needed: symbols are read, rows are not.
///
/// # Errors
/// As [`Decoder::decode`] has them, and [`Error::InvalidArgument`] for a chunk of another codec.
pub fn ideal<'a>(plan: &Arc<Plan>, chunks: impl IntoIterator<Item = &'a [u8]>) -> Result<Ideal> {
    let (layout, model) = (plan.layout().clone(), plan.model_fingerprint());
    let decoder = Decoder::new(layout, model, Some(plan.clone()), Limits::default())?;
    let mut chunks = chunks.into_iter();
    chunks.try_fold(Ideal::default(), |sum, chunk| Ok(sum.plus(of_chunk(plan, &decoder, chunk)?)))
}

fn of_chunk(plan: &Plan, decoder: &Decoder, chunk: &[u8]) -> Result<Ideal> {
    let (header, mut reader) = decoder.open(chunk)?;
    if header.codec != CodecId::Kvtc {
        let detail = format!("a chunk of {} has no symbols of {}", header.kind(), CodecKind::Kvtc);
        return Err(Error::InvalidArgument(detail));
    }
    let (profile, features) = (plan.kvtc(), plan.layout().features());
    let parts = Parts::of(&header, profile, features)?;
    let body_shifts = read_shifts(&header, &parts.roles, &mut reader)?;
    let len = parts.check_payload(&header, features)?;
    let payload = read_payload(&header, len, reader.clone())?;
    let segments = segments::read(&mut reader, len, header.segment_bytes as usize)?;
    let opened = Opened::of(&header, (profile, &parts), body_shifts.as_deref(), &payload)?;
    let stretches = stretches(&header, profile.predictor.as_ref().map(|p| p.id_bytes), &parts, &opened);
    let mut ideal = Ideal {
        escapes: u64::from(header.key_escapes) + u64::from(header.value_escapes),
        coded_bytes: shares(&segments, &payload, header.segment_bytes as usize, &stretches),
        ..Ideal::default()
    };
    for (part, bytes) in &opened.sides {
        let symbols = read_symbols(part.space, &part.order, bytes)?;
        ideal.symbols += symbols.len() as u64;
        let classes = part.order.runs.iter().map(|run| &symbols[run.symbols.clone()]);
        ideal.symbol_bytes += classes.map(symbol_bits).sum::<f64>() / 8.0;
    }
    Ok(ideal)
}

/// A part of the payload that has statistics of its own.
struct Stretch {
    range: Range<usize>,
    is_symbols: bool,
}

fn stretches(
    header: &ChunkHeader,
    id_bytes: Option<usize>,
    parts: &Parts<'_>,
    opened: &Opened<'_>,
) -> Vec<Stretch> {
    let planes = |len: usize, count: usize| iter::repeat_n(len / count, count);
    let before =
        planes(parts.ids, id_bytes.unwrap_or(1)).chain([parts.shifts]).chain(planes(2 * parts.exact, 4));
    let side = |part: &SidePart<'_>, escapes: u32| {
        let tables = &part.space.classes.tables;
        let packed = part.order.runs.iter();
        let packed = packed.map(|run| tables[run.table].packing.packed_len(run.symbols.len()));
        packed.chain(planes(escapes as usize * ESCAPE_BYTES, ESCAPE_BYTES)).collect::<Vec<usize>>()
    };
    let [(keys, _), (values, _)] = &opened.sides;
    let symbols = side(keys, header.key_escapes).into_iter().chain(side(values, header.value_escapes));
    let lengths = before.map(|len| (len, false)).chain(symbols.map(|len| (len, true)));
    let stretches = lengths.scan(0, |end, (len, is_symbols)| {
        *end += len;
        Some(Stretch { range: *end - len..*end, is_symbols })
    });
    stretches.collect()
}

/// Bytes of the segments, table entries included, that go to stretches of symbols.
fn shares(segments: &[Segment<'_>], payload: &[u8], segment_bytes: usize, stretches: &[Stretch]) -> f64 {
    let mut sum = 0.0;
    for (i, segment) in segments.iter().enumerate() {
        let inside = i * segment_bytes..i * segment_bytes + segment.inflated_len;
        let (mut symbols, mut all) = (0.0, 0.0);
        for stretch in stretches {
            let range = stretch.range.start.max(inside.start)..stretch.range.end.min(inside.end);
            if range.is_empty() {
                continue;
            }
            // A stored segment takes the same of every byte.
            let content = &payload[range];
            let bits = if segment.is_stored() { content.len() as f64 } else { byte_bits(content) };
            all += bits;
            symbols += if stretch.is_symbols { bits } else { 0.0 };
        }
        // Segments of one value throughout have no entropy to divide by: what there is goes to the symbols.
        let share = if all > 0.0 { symbols / all } else { 1.0 };
        sum += share * (segment.coded.len() as f64 + ENTRY_BYTES);
    }
    sum
}

/// Zero-order entropy of all symbols together, in bits.
fn symbol_bits(symbols: &[i16]) -> f64 {
    let mut counts = vec![0u32; 1 << 16];
    symbols.iter().for_each(|&symbol| counts[usize::from(symbol as u16)] += 1);
    bits(&counts)
}

fn byte_bits(bytes: &[u8]) -> f64 {
    let mut counts = [0u32; 256];
    bytes.iter().for_each(|&byte| counts[usize::from(byte)] += 1);
    bits(&counts)
}

/// n log2 n less the sum of c log2 c over counts c, which add up to n.
fn bits(counts: &[u32]) -> f64 {
    let term = |count: f64| count * count.log2();
    let used = counts.iter().filter(|&&count| count > 0).map(|&count| f64::from(count));
    let (total, sum) = used.fold((0.0, 0.0), |(total, sum), count| (total + count, sum + term(count)));
    if total > 0.0 { (term(total) - sum).max(0.0) } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entropy_is_that_of_known_frequencies() {
        assert_eq!(byte_bits(&[]), 0.0);
        assert_eq!(byte_bits(&[7; 100]), 0.0);
        assert!((byte_bits(&[0, 1, 2, 3].repeat(10)) - 80.0).abs() < 1e-9);
        // 3 of 4 and 1 of 4: 0.8113 bits.
        assert!((symbol_bits(&[0, 0, 0, -300].repeat(100)) - 400.0 * 0.811_278).abs() < 1e-3);
    }

    #[test]
    fn a_segment_is_divided_by_entropy_and_a_stored_one_by_bytes() {
        let mut payload = vec![0u8; 1_000];
        payload[500..].iter_mut().enumerate().for_each(|(i, byte)| *byte = i as u8);
        let stretch = |range, is_symbols| Stretch { range, is_symbols };
        let halves = [stretch(0..500, false), stretch(500..1_000, true)];
        let share =
            |coded: &[u8]| shares(&[Segment { coded, inflated_len: 1_000 }], &payload, 1_024, &halves);
        assert_eq!(share(&[0; 600]), 604.0);
        assert_eq!(share(&[0; 1_000]), 502.0);
    }
}
