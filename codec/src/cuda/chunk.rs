//! What the host derives of a chunk before any kernel runs, in one upload for both directions.

use std::sync::Arc;

use gpu::{CUdeviceptr, CudaStream, Device, KvView};

use super::{
    buffers::{Grown, GrownPinned},
    order::{Offset, SideOrder, SideParts, SlotParts, Slots, Words},
    products::Tokens,
    tables::SideTables,
};
use crate::{
    kvtc::id_range,
    plan::KvtcProfile,
    stages::order::Order,
    tokens::{Group, Place, Side},
};

/// A chunk's layout, and where its parts lie in the upload.
#[derive(Debug)]
pub(super) struct Chunk {
    pub(super) slots: Slots,
    place: Place,
    words: Words,
    slot_parts: SlotParts,
    sides: [SideParts; 2],
    ids: Offset,
    lead: usize,
    prefix: Offset,
}

/// A chunk's parts on the device.
#[derive(Debug, Clone, Copy)]
pub(super) struct Uploaded {
    base: CUdeviceptr,
    /// The bytes that a payload starts with.
    pub(super) prefix: CUdeviceptr,
}

impl Chunk {
    /// `ids` are those that predictions look at, `prefix` what a payload starts with; either may be empty.
    pub(super) fn of(
        profile: &KvtcProfile,
        place: Place,
        groups: &[Group],
        orders: [&Order; 2],
        ids: &[u32],
        prefix: &[u8],
    ) -> Self {
        let slots = Slots::of(groups, orders.map(|order| order.kept.as_slice()));
        let mut words = Words::default();
        let slot_parts = SlotParts::push(&slots, &mut words);
        let sides = [(Side::Keys, orders[0]), (Side::Values, orders[1])]
            .map(|(side, order)| SideParts::push(profile.space(side), order, &slots, slot_parts, &mut words));
        let first_id = profile.predictor.as_ref().map(|predictor| id_range(predictor, &place).start);
        let lead = first_id.map_or(0, |first| place.first_token - first);
        let ids = words.push(ids.iter().copied());
        let prefix = words.push_bytes(prefix);
        Self { slots, place, words, slot_parts, sides, ids, lead, prefix }
    }

    /// Queues the upload.
    pub(super) fn upload(&self, upload: &mut Upload, stream: &Arc<CudaStream>) -> gpu::Result<Uploaded> {
        let base = upload.words(stream, &self.words.all)?;
        Ok(Uploaded { base, prefix: base + self.prefix })
    }

    /// How kernels find the chunk's tokens.
    pub(super) fn tokens(&self, at: Uploaded, kv: KvView) -> Tokens {
        Tokens {
            kv,
            first_token: self.place.first_token,
            count: self.place.tokens,
            slot_tokens: at.base + self.slot_parts.tokens,
            ids: at.base + self.ids,
            lead: self.lead,
        }
    }

    /// How kernels find one side's symbols.
    pub(super) fn order(&self, at: Uploaded, side: Side, tables: &SideTables) -> SideOrder {
        self.sides[side as usize].at(at.base, super::buffers::pointer(&tables.log_sigma))
    }
}

/// Memory through which words and bytes go to the device.
#[derive(Debug)]
pub(super) struct Upload {
    device: Device,
    host: GrownPinned<u32>,
    words: Grown<u32>,
}

impl Upload {
    pub(super) fn new(device: &Device) -> Self {
        Self { device: device.clone(), host: GrownPinned::new(), words: Grown::new("the order of a chunk") }
    }

    /// Queues the upload of `words`; no earlier one may be in flight.
    fn words(&mut self, stream: &Arc<CudaStream>, words: &[u32]) -> gpu::Result<CUdeviceptr> {
        let host = self.host.reserve(&self.device, words.len())?;
        host.as_mut_slice()?[..words.len()].copy_from_slice(words);
        host.copy_to(stream, words.len(), self.words.reserve(&self.device, stream, words.len())?)?;
        Ok(self.words.pointer())
    }

    /// Bytes held on the device.
    pub(super) fn bytes(&self) -> usize {
        self.words.bytes()
    }
}
