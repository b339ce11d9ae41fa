//! What needs no symbols: token ids, the shifts, and the row that the plan holds already.

use std::ops::Range;

use half::bf16;

use crate::{
    error::{Error, Result},
    layout::KvBlock,
    plan::{KvtcProfile, predictor::FirstRow, predictor::Predictor},
    predict::{TokenFeatures, Tokens},
    tokens::{Place, Roles},
};

/// A row is the plan's if no element is farther off than rounding on another machine takes it: this share of the largest.
pub(crate) const SAME_ROW: f32 = 1.0 / 128.0;

/// Prompt positions whose ids a chunk's predictions look at.
pub(crate) fn id_range(predictor: &Predictor, place: &Place) -> Range<usize> {
    (place.first_token + 1).saturating_sub(predictor.context)..place.first_token + place.tokens
}

/// Ids as planes of their low, middle and high bytes.
pub(crate) fn write_ids(ids: &[u32], id_bytes: usize, out: &mut Vec<u8>, breaks: &mut Vec<usize>) {
    for byte in 0..id_bytes {
        out.extend(ids.iter().map(|id| id.to_le_bytes()[byte]));
        breaks.push(out.len());
    }
}

/// The mirror of [`write_ids`].
pub(crate) fn read_ids(planes: &[u8], id_bytes: usize) -> Vec<u32> {
    let count = planes.len() / id_bytes;
    let id = |i: usize| (0..id_bytes).map(|byte| u32::from(planes[byte * count + i]) << (8 * byte)).sum();
    (0..count).map(id).collect()
}

/// What a chunk's tokens are predicted from, checked against the plan.
#[derive(Debug)]
pub(crate) struct Known<'a> {
    pub(crate) predictor: &'a Predictor,
    pub(crate) tokens: Tokens<'a>,
}

impl<'a> Known<'a> {
    /// `ids` are those of [`id_range`].
    pub(super) fn of(
        predictor: &'a Predictor,
        place: &Place,
        ids: &[u32],
        features: Option<&'a dyn TokenFeatures>,
    ) -> Result<Self> {
        let features = features.ok_or(Error::FeaturesMissing)?;
        let lead = place.first_token - id_range(predictor, place).start;
        Ok(Self { predictor, tokens: Tokens::of(predictor, features, ids, lead)? })
    }
}

/// Whether the block begins a prompt with the row that the plan holds.
pub(super) fn begins_with(first: &FirstRow, id: u32, block: &KvBlock, head_dim: usize) -> bool {
    let same = |cache: &[bf16], row: &[bf16]| {
        let planes = cache.chunks_exact(block.tokens * head_dim).zip(row.chunks_exact(head_dim));
        let pairs = || {
            planes
                .clone()
                .flat_map(|(plane, row)| plane.iter().zip(row))
                .map(|(a, b)| (a.to_f32(), b.to_f32()))
        };
        let largest = pairs().fold(0f32, |largest, (_, b)| largest.max(b.abs()));
        pairs().all(|(a, b)| (a - b).abs() <= largest * SAME_ROW)
    };
    block.first_token == 0
        && id == first.token
        && same(&block.keys, &first.keys)
        && same(&block.values, &first.values)
}

/// Puts the plan's row at the start of every plane.
pub(super) fn restore_first(row: &[bf16], tokens: usize, head_dim: usize, cache: &mut [bf16]) {
    for (plane, row) in cache.chunks_exact_mut(tokens * head_dim).zip(row.chunks_exact(head_dim)) {
        plane[..head_dim].copy_from_slice(row);
    }
}

/// Exact tokens that the payload holds.
pub(crate) fn sent_exactly(roles: &Roles, has_first: bool) -> Range<usize> {
    usize::from(has_first)..roles.exact.end.max(usize::from(has_first))
}

/// The row that the plan holds, if a chunk says that it starts with it.
pub(super) fn first_row<'a>(
    profile: &'a KvtcProfile,
    place: &Place,
    says_so: bool,
) -> Result<Option<&'a FirstRow>> {
    match (&profile.first, says_so) {
        (_, false) => Ok(None),
        (Some(first), true) if place.first_token == 0 && profile.sinks > 0 => Ok(Some(first)),
        (_, true) => Err(Error::corrupt("chunk header", "it starts with the plan's first row, but cannot")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_survive_as_planes() {
        let ids = [0, 1, 255, 256, 65_535, 70_000];
        for (id_bytes, count) in [(2, 5), (3, 6)] {
            let (mut planes, mut breaks) = (Vec::new(), Vec::new());
            write_ids(&ids[..count], id_bytes, &mut planes, &mut breaks);
            assert_eq!(read_ids(&planes, id_bytes), ids[..count]);
            assert_eq!(breaks.last(), Some(&planes.len()));
        }
    }
}
