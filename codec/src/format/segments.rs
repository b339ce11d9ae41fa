//! The table of segment ends: where each independently coded piece of a payload lies.

use crate::{
    error::{Error, Result},
    format::bytes::{Reader, Write},
};

/// Default size of an inflated segment: small enough for one GPU warp each, large enough that block headers cost under 1 %.
pub(crate) const SEGMENT_BYTES: u32 = 16 * 1024;
/// What a decoder accepts.
pub(crate) const SEGMENT_BYTES_RANGE: std::ops::RangeInclusive<u32> = 1_024..=1 << 20;

/// One segment: coded bytes and the length they inflate to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Segment<'a> {
    /// Raw DEFLATE, or the content itself where both lengths agree.
    pub(crate) coded: &'a [u8],
    /// Bytes of content.
    pub(crate) inflated_len: usize,
}

impl Segment<'_> {
    /// Whether `coded` is a plain copy.
    pub(crate) fn is_stored(&self) -> bool {
        self.coded.len() == self.inflated_len
    }
}

/// Bytes of the table for a payload of `payload_bytes`.
pub(crate) fn table_len(payload_bytes: u64, segment_bytes: u32) -> u64 {
    payload_bytes.div_ceil(u64::from(segment_bytes)) * 4
}

/// Appends table and segments.
pub(crate) fn write(segments: &[Vec<u8>], out: &mut Vec<u8>) -> Result<()> {
    let mut end = 0u32;
    for segment in segments {
        let len = u32::try_from(segment.len()).ok();
        end = len.and_then(|len| end.checked_add(len)).ok_or_else(|| Error::LimitExceeded {
            what: "coded bytes of a chunk",
            limit: u64::from(u32::MAX),
            got: u64::from(end) + segment.len() as u64,
        })?;
        out.put(end.to_le_bytes());
    }
    for segment in segments {
        out.extend_from_slice(segment);
    }
    Ok(())
}

/// Reads the table and cuts the rest of `reader` into segments; the mirror of [`write`].
pub(crate) fn read<'a>(
    reader: &mut Reader<'a>,
    payload_bytes: usize,
    segment_bytes: usize,
) -> Result<Vec<Segment<'a>>> {
    let ends = reader.list(payload_bytes.div_ceil(segment_bytes), u32::from_le_bytes)?;
    let mut start = 0;
    let mut segments = Vec::with_capacity(ends.len());
    for (i, end) in ends.into_iter().enumerate() {
        let inflated_len = segment_bytes.min(payload_bytes - i * segment_bytes);
        let coded_len = end.checked_sub(start).map_or(0, |len| len as usize);
        if coded_len == 0 || coded_len > inflated_len {
            let detail =
                format!("segment {i} of {inflated_len} bytes spans {start}..{end} of the coded bytes");
            return Err(Error::corrupt("segment table", detail));
        }
        segments.push(Segment { coded: reader.take(coded_len)?, inflated_len });
        start = end;
    }
    match reader.remaining() {
        0 => Ok(segments),
        extra => Err(Error::corrupt("segment table", format!("{extra} bytes follow the last segment"))),
    }
}
