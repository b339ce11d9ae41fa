//! One chunk to be decoded, as far as the host knows it, and what it tells the kernels.

use gpu::KvView;

use super::job::{check_ids, check_size};
use crate::cuda::{
    codec::CudaCodec,
    order::{SideParts, SlotParts, Slots, Words},
    tables::BLOCK,
};
use crate::{
    error::{Error, Result},
    format::chunk::ChunkHeader,
    kvtc::{self, id_range, read_ids, shifts_of},
    plan::KvtcProfile,
    side::SidePart,
    tokens::{Shifts, Side, groups},
};

/// One chunk, as far as the host knows it.
pub(super) struct Opened<'a> {
    pub(super) profile: &'a KvtcProfile,
    pub(super) kv: KvView,
    pub(super) header: ChunkHeader,
    pub(super) parts: kvtc::Parts<'a>,
    pub(super) ids: Vec<u32>,
    pub(super) sides: [SidePart<'a>; 2],
    pub(super) slots: Slots,
}

impl<'a> Opened<'a> {
    pub(super) fn of(
        codec: &CudaCodec,
        (profile, parts): (&'a KvtcProfile, kvtc::Parts<'a>),
        header: ChunkHeader,
        (head, body_shifts): (&[u8], Option<&[i8]>),
        kv: KvView,
    ) -> Result<Self> {
        let (ids, rest) = head.split_at(parts.ids);
        let all_shifts = header.has_token_shifts.then(|| shifts_of(&rest[..parts.shifts])).transpose()?;
        let shifts = match (&all_shifts, body_shifts) {
            (Some(all), _) => Shifts::All(all),
            (None, Some(body)) => Shifts::Body(body),
            (None, None) => Shifts::None,
        };
        let groups = groups(&parts.roles, shifts);
        let keys = SidePart::of(profile, Side::Keys, &header.steps, &groups, header.key_escapes)?;
        let values = SidePart::of(profile, Side::Values, &header.steps, &groups, header.value_escapes)?;
        let before = (parts.ids + parts.shifts + 2 * parts.exact) as u64;
        let (expected, symbols) = ((keys.len + values.len) as u64, header.payload_bytes - before);
        if expected != symbols {
            let detail = format!("{symbols} bytes of symbols, its counts give {expected}");
            return Err(Error::corrupt("chunk header", detail));
        }
        let ids = match &profile.predictor {
            Some(predictor) => read_ids(ids, predictor.id_bytes),
            None => Vec::new(),
        };
        if profile.predictor.is_some() {
            check_ids(codec, &ids)?;
        }
        let sides = [keys, values];
        check_size([&sides[0].order, &sides[1].order])?;
        let slots = Slots::of(&groups, [&sides[0].order.kept, &sides[1].order.kept]);
        Ok(Self { profile, kv, header, parts, ids, sides, slots })
    }

    /// Components that any token needs at most, in whole blocks; a product needs something to sum over.
    pub(super) fn needed(&self) -> usize {
        let all = 0..self.slots.tokens.len();
        let needed = |side: &SidePart<'_>| self.slots.needed(all.clone(), &side.order.kept);
        self.sides.iter().map(needed).max().unwrap_or(0).max(BLOCK)
    }

    /// What the kernels are told; the first word is the flag that they set.
    pub(super) fn words(&self) -> (Words, SlotParts, [SideParts; 2], u64) {
        let mut words = Words::default();
        words.push([0]);
        let slots = SlotParts::push(&self.slots, &mut words);
        let sides = [&self.sides[0], &self.sides[1]];
        let sides =
            sides.map(|side| SideParts::push(side.space, &side.order, &self.slots, slots, &mut words));
        let ids = words.push(self.ids.iter().copied());
        (words, slots, sides, ids)
    }

    /// Tokens before the chunk whose ids are known.
    pub(super) fn lead(&self) -> usize {
        let place = self.header.place();
        self.profile.predictor.as_ref().map_or(0, |p| place.first_token - id_range(p, &place).start)
    }
}
