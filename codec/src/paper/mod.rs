//! kvtc-paper: [KVTC](https://arxiv.org/abs/2511.01815) as published, the reference that `kvtc` is compared with.
//!
//! Rows and PCA are those of `kvtc` without weights. What differs: coefficients are quantized in groups of consecutive components, each
//! with a 16-bit shift and scale per token, to types and sizes that a dynamic program chose under a budget of bits; sinks are
//! fp8; the window is raw, or coded as `kvtc` codes it.
//!
//! | file | is |
//! |---|---|
//! | `quantize` | one group of one token: numbers to codes, and back |
//! | `allocate` | the dynamic program: measured errors and budgets to groups |
//! | `profile` | what a plan holds for this codec |
//! | `body` | rows of body tokens to payload bytes, and back |
//! | `sinks` | the same for sinks |
//! | `chunk` | the payload of a chunk, all parts of it |

pub(crate) mod allocate;
pub(crate) mod body;
pub(crate) mod chunk;
pub(crate) mod profile;
pub(crate) mod quantize;
pub(crate) mod sinks;

use crate::{
    plan::space::Space,
    stages::quantize::{GRID_PER_OCTAVE, step_size},
};

/// What a group of components is quantized to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum GroupType {
    /// Nothing: the components are not coded.
    Drop = 0,
    /// 2-bit integers between the group's least and largest.
    Int2 = 1,
    /// 4-bit integers between the group's least and largest.
    Int4 = 2,
    /// E4M3 floats, scaled to the group's largest magnitude.
    Fp8 = 3,
}

impl GroupType {
    /// Every type, in the order of their numbers in the format.
    pub const ALL: [Self; 4] = [Self::Drop, Self::Int2, Self::Int4, Self::Fp8];

    /// Bits of a coefficient.
    pub fn bits(self) -> usize {
        match self {
            Self::Drop => 0,
            Self::Int2 => 2,
            Self::Int4 => 4,
            Self::Fp8 => 8,
        }
    }
}

/// Sizes a group can have, in the order of their numbers in the format.
pub(crate) const GROUP_SIZES: [usize; 5] = [1, 16, 64, 256, 1_024];
/// Bits of a group's shift and scale, for every token.
pub(crate) const SIDE_BITS: usize = 32;

/// A group of consecutive components in a bit plan of kvtc-paper.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BitGroup {
    /// What its coefficients become.
    pub kind: GroupType,
    /// Its first component, 0 having the most variance.
    pub first: usize,
    /// Its number of components: 1, 16, 64, 256 or 1,024.
    pub size: usize,
}

impl BitGroup {
    /// Bits that it takes of every token before DEFLATE, shift and scale included.
    pub fn bits(&self) -> usize {
        group_bits(self.kind, self.size)
    }

    /// The component after its last.
    pub(crate) fn end(&self) -> usize {
        self.first + self.size
    }
}

pub(crate) fn group_bits(kind: GroupType, size: usize) -> usize {
    if kind == GroupType::Drop { 0 } else { kind.bits() * size + SIDE_BITS }
}

/// Components up to the last that is coded.
pub(crate) fn kept(groups: &[BitGroup]) -> usize {
    groups.iter().rev().find(|group| group.kind != GroupType::Drop).map_or(0, BitGroup::end)
}

/// One side of kvtc-paper's tables: a coefficient is the product of a basis row and a row less the mean.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PaperSpace<'a> {
    /// `[P]`.
    pub mean: &'a [f32],
    /// `[components, P]`, one unit vector per row, most variance first. Components that no tier codes are left out.
    pub basis: &'a [f32],
    /// Log2 of each component's standard deviation on the calibration rows, in 1/48 octaves.
    pub log_sigma: &'a [i16],
}

impl<'a> PaperSpace<'a> {
    pub(crate) fn of(space: &'a Space) -> Self {
        Self { mean: &space.mean, basis: &space.basis.values, log_sigma: &space.log_sigma }
    }

    /// Standard deviations of the components, most first.
    pub fn sigma(&self) -> impl ExactSizeIterator<Item = f32> + 'a {
        const { assert!(GRID_PER_OCTAVE == 48) };
        self.log_sigma.iter().map(|&log| step_size(log.into()))
    }
}
