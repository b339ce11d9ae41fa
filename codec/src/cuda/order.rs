//! What the host tells the kernels of a chunk: which token stands where, which symbol comes where. One upload a chunk.

use std::cmp::Reverse;

use gpu::{CUdeviceptr, DeviceRepr};

use super::tables::BLOCK;
use crate::{
    plan::space::Space,
    stages::{order::Order, quantize::step_size},
    tokens::Group,
};

/// `struct SideOrder` of `kernels/kvtc.cuh`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(super) struct SideOrder {
    groups: CUdeviceptr,
    at: CUdeviceptr,
    tables: CUdeviceptr,
    bands: CUdeviceptr,
    slot_group: CUdeviceptr,
    log_sigma: CUdeviceptr,
    first_class: i32,
    group_count: u32,
    table_count: u32,
    band_count: u32,
    pub(super) symbols: u32,
    reserved: u32,
}

// SAFETY: plain integers in C's layout, the same as the kernels' struct.
unsafe impl DeviceRepr for SideOrder {}

/// Tokens of all groups, those with the most components first.
#[derive(Debug)]
pub(super) struct Slots {
    /// Chunk token of each slot.
    pub(super) tokens: Vec<u32>,
    /// Group of each slot.
    groups: Vec<u8>,
    /// First slot of each group.
    first: Vec<u32>,
}

impl Slots {
    /// `kept` are the components of each group, of keys and of values. A group per shift at most, so their numbers fit a byte.
    pub(super) fn of(groups: &[Group], kept: [&[usize]; 2]) -> Self {
        let mut by_kept: Vec<usize> = (0..groups.len()).collect();
        by_kept.sort_by_key(|&group| Reverse(kept[0][group] + kept[1][group]));
        let mut slots = Self { tokens: Vec::new(), groups: Vec::new(), first: vec![0; groups.len()] };
        for group in by_kept {
            slots.first[group] = slots.tokens.len() as u32;
            slots.tokens.extend(groups[group].tokens.iter().map(|&token| token as u32));
            slots.groups.resize(slots.tokens.len(), group as u8);
        }
        slots
    }

    /// Components that slots need at most, in whole blocks.
    pub(super) fn needed(&self, slots: std::ops::Range<usize>, kept: &[usize]) -> usize {
        let groups = self.groups[slots].chunk_by(|a, b| a == b).map(|same| usize::from(same[0]));
        groups.map(|group| kept[group]).max().unwrap_or(0).next_multiple_of(BLOCK)
    }
}

/// Words on their way to the device, in parts that start on 16-byte boundaries.
#[derive(Debug, Default)]
pub(super) struct Words {
    pub(super) all: Vec<u32>,
}

/// Offset of a part of [`Words`], in bytes.
pub(super) type Offset = u64;

impl Words {
    pub(super) fn push(&mut self, words: impl IntoIterator<Item = u32>) -> Offset {
        self.all.resize(self.all.len().next_multiple_of(4), 0);
        let offset = self.all.len() * size_of::<u32>();
        self.all.extend(words);
        offset as Offset
    }

    fn push_bytes(&mut self, bytes: &[u8]) -> Offset {
        self.push(bytes.chunks(4).map(|bytes| {
            let mut word = [0; 4];
            word[..bytes.len()].copy_from_slice(bytes);
            u32::from_le_bytes(word)
        }))
    }
}

/// Parts of the upload that both sides share.
#[derive(Debug, Clone, Copy)]
pub(super) struct SlotParts {
    pub(super) tokens: Offset,
    groups: Offset,
}

impl SlotParts {
    pub(super) fn push(slots: &Slots, words: &mut Words) -> Self {
        Self { tokens: words.push(slots.tokens.iter().copied()), groups: words.push_bytes(&slots.groups) }
    }
}

/// Parts of the upload that are one side's.
#[derive(Debug, Clone, Copy)]
pub(super) struct SideParts {
    groups: Offset,
    at: Offset,
    tables: Offset,
    bands: Offset,
    slot_groups: Offset,
    order: SideOrder,
}

impl SideParts {
    /// Lays out one side's order.
    pub(super) fn push(
        space: &Space,
        order: &Order,
        slots: &Slots,
        shared: SlotParts,
        words: &mut Words,
    ) -> Self {
        let tables = space.classes.tables.len();
        let mut at = vec![0; order.lengths.len() * tables * 2];
        for band in &order.bands {
            let entry = (band.group * tables + band.table) * 2;
            at[entry..entry + 2].copy_from_slice(&[band.start as u32, band.components.start as u32]);
        }
        let bands = order.bands.iter();
        let bands = bands.flat_map(|b| [b.start, b.group, b.components.start, b.table].map(|n| n as u32));
        Self {
            groups: words.push(group_words(order, slots)),
            at: words.push(at),
            tables: words.push(table_words(space, order)),
            bands: words.push(bands),
            slot_groups: shared.groups,
            order: SideOrder {
                groups: 0,
                at: 0,
                tables: 0,
                bands: 0,
                slot_group: 0,
                log_sigma: 0,
                first_class: space.classes.first_class,
                group_count: order.lengths.len() as u32,
                table_count: tables as u32,
                band_count: order.bands.len() as u32,
                symbols: order.symbols as u32,
                reserved: 0,
            },
        }
    }

    /// The order once the words lie at `base`.
    pub(super) fn at(&self, base: CUdeviceptr, log_sigma: CUdeviceptr) -> SideOrder {
        SideOrder {
            groups: base + self.groups,
            at: base + self.at,
            tables: base + self.tables,
            bands: base + self.bands,
            slot_group: base + self.slot_groups,
            log_sigma,
            ..self.order
        }
    }
}

/// `struct Group` of each group.
fn group_words(order: &Order, slots: &Slots) -> Vec<u32> {
    let group = |group: usize| {
        let step = step_size(order.exponents[group]);
        let [length, kept] = [order.lengths[group], order.kept[group]].map(|n| n as u32);
        let exponent = order.exponents[group] as u32;
        [exponent, length, slots.first[group], kept, step.to_bits(), (1.0 / step).to_bits(), 0, 0]
    };
    (0..order.lengths.len()).flat_map(group).collect()
}

/// `struct ClassTable` of each class.
fn table_words(space: &Space, order: &Order) -> Vec<u32> {
    let mut words = vec![0; space.classes.tables.len() * 12];
    for (words, table) in words.chunks_exact_mut(12).zip(&space.classes.tables) {
        words[0] = table.packing as u32;
        words[4..].copy_from_slice(&table.centroids.map(f32::to_bits));
    }
    let mut byte = 0;
    for run in &order.runs {
        let symbols = run.symbols.len();
        words[run.table * 12 + 1..run.table * 12 + 4]
            .copy_from_slice(&[run.symbols.start, symbols, byte].map(|n| n as u32));
        byte += space.classes.tables[run.table].packing.packed_len(symbols);
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_start_with_the_groups_that_need_most() {
        let group = |tokens: &[usize]| Group { tokens: tokens.to_vec(), shift: 0, is_window: false };
        let slots = Slots::of(&[group(&[2]), group(&[0, 3]), group(&[1])], [&[5, 70, 9], &[5, 1, 9]]);
        assert_eq!(slots.tokens, [0, 3, 1, 2]);
        assert_eq!((slots.groups.as_slice(), slots.first.as_slice()), (&[1, 1, 2, 0][..], &[3, 0, 2][..]));
        assert_eq!(
            [slots.needed(0..4, &[5, 70, 9]), slots.needed(2..4, &[5, 70, 9]), slots.needed(3..4, &[0; 3])],
            [128, 64, 0]
        );
    }

    #[test]
    fn parts_start_on_16_byte_boundaries() {
        let mut words = Words::default();
        assert_eq!([words.push([1]), words.push_bytes(&[1, 2, 3, 4, 5]), words.push([])], [0, 16, 32]);
        assert_eq!(words.all[4..6], [0x0403_0201, 5]);
    }
}
