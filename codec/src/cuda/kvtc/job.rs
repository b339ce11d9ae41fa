//! One chunk to be encoded, as far as the host knows it, and what it tells the kernels.

use gpu::KvView;

use crate::cuda::{
    codec::CudaCodec,
    order::{Offset, SideParts, SlotParts, Slots, Words},
};
use crate::{
    error::{Error, Result},
    format::chunk::ChunkHeader,
    kvtc::{id_range, write_ids},
    plan::{KvtcProfile, Plan},
    stages::order::Order,
    tokens::{Place, Roles, Shifts, Side, WINDOW, groups},
};

/// What the device counts, at the start of the uploaded words.
#[derive(Debug, Clone, Copy)]
pub(super) enum Count {
    /// Smallest token with an entry that is not finite.
    NotFinite,
    /// Whether the first row is not the plan's.
    Differs,
    /// Symbols that escaped, of keys and of values.
    Escaped,
    EscapedValues,
    /// Length of the lists.
    Entries,
    EntriesValues,
}
pub(super) const COUNTS: [u32; 6] = [u32::MAX, 0, 0, 0, 0, 0];

/// One chunk, as far as the host knows it.
pub(in crate::cuda) struct Job<'a> {
    pub(super) plan: &'a Plan,
    pub(super) kv: KvView,
    pub(super) place: Place,
    pub(super) roles: Roles,
    pub(super) header: ChunkHeader,
    /// Ids and shifts, the payload's first bytes.
    pub(super) head: Vec<u8>,
    pub(super) breaks: Vec<usize>,
    pub(super) orders: [Order; 2],
    pub(super) slots: Slots,
    /// Bytes of packed symbols.
    pub(super) packed: [usize; 2],
    /// Whether the prompt begins with the token whose row the plan holds.
    pub(super) may_start_with_first: bool,
}

/// The parts of the upload.
pub(super) struct Parts {
    pub(super) slots: SlotParts,
    pub(super) sides: [SideParts; 2],
    pub(super) ids: Offset,
    pub(super) lead: usize,
}

impl<'a> Job<'a> {
    pub(in crate::cuda) fn of(
        codec: &CudaCodec,
        plan: &'a Plan,
        kv: KvView,
        header: ChunkHeader,
        ids: &[u32],
        shifts: Option<&[i8]>,
    ) -> Result<Self> {
        let (profile, place) = (plan.kvtc(), header.place());
        let roles = Roles::of(place, profile.sinks, WINDOW);
        let shifts = shifts.map(|shifts| &shifts[roles.coded()]);
        let (mut head, mut breaks) = (Vec::new(), Vec::new());
        if let Some(predictor) = &profile.predictor {
            let ids = &ids[id_range(predictor, &place)];
            check_ids(codec, ids)?;
            write_ids(ids, predictor.id_bytes, &mut head, &mut breaks);
        }
        if let Some(shifts) = shifts {
            head.extend(shifts.iter().map(|&shift| shift as u8));
            breaks.push(head.len());
        }
        let groups = groups(&roles, shifts.map_or(Shifts::None, Shifts::All));
        let order = |side: Side| Order::of(profile.space(side), side, &header.steps, &groups);
        let orders = [order(Side::Keys), order(Side::Values)];
        let packed =
            [Side::Keys, Side::Values].map(|side| orders[side as usize].packed_len(profile.space(side)));
        check_size([&orders[0], &orders[1]])?;
        let slots = Slots::of(&groups, [&orders[0].kept, &orders[1].kept]);
        let may_start_with_first = place.first_token == 0
            && profile.sinks > 0
            && profile.first.as_ref().is_some_and(|first| first.token == ids[0]);
        Ok(Self { plan, kv, place, roles, header, head, breaks, orders, slots, packed, may_start_with_first })
    }

    /// Components that any token needs at most, in whole blocks.
    pub(super) fn needed(&self) -> usize {
        let all = 0..self.slots.tokens.len();
        self.orders.iter().map(|order| self.slots.needed(all.clone(), &order.kept)).max().unwrap_or(0)
    }

    pub(super) fn profile(&self) -> &'a KvtcProfile {
        self.plan.kvtc()
    }

    /// What the kernels are told.
    pub(super) fn words(&self, ids: &[u32]) -> (Words, Parts) {
        let mut words = Words::default();
        words.push(COUNTS);
        let slots = SlotParts::push(&self.slots, &mut words);
        let sides = [Side::Keys, Side::Values].map(|side| {
            let (space, order) = (self.profile().space(side), &self.orders[side as usize]);
            SideParts::push(space, order, &self.slots, slots, &mut words)
        });
        let range =
            self.profile().predictor.as_ref().map_or(0..0, |predictor| id_range(predictor, &self.place));
        let lead = if range.is_empty() { 0 } else { self.place.first_token - range.start };
        let ids = words.push(ids[range].iter().copied());
        (words, Parts { slots, sides, ids, lead })
    }
}

/// Refuses ids that have no features.
pub(super) fn check_ids(codec: &CudaCodec, ids: &[u32]) -> Result<()> {
    let vocabulary = codec.features.as_ref().ok_or(Error::FeaturesMissing)?.vocabulary();
    match ids.iter().find(|&&id| id as usize >= vocabulary) {
        Some(id) => {
            Err(Error::corrupt("token ids", format!("{id} is outside of the vocabulary of {vocabulary}")))
        }
        None => Ok(()),
    }
}

/// Kernels count symbols, and the bytes that they take, in 32 bits.
pub(super) fn check_size(orders: [&Order; 2]) -> Result<()> {
    const MOST: u64 = u32::MAX as u64 / 2;
    match orders.iter().map(|order| order.symbols as u64).find(|&symbols| symbols > MOST) {
        Some(got) => Err(Error::LimitExceeded { what: "symbols of one side of a chunk", limit: MOST, got }),
        None => Ok(()),
    }
}
