//! Which symbol comes where in one side's symbol stream: by class, then group, then component, then token.
//!
//! Neither end is told; both derive the order from the plan's standard deviations, the steps and the groups.

use std::ops::Range;

use crate::{
    plan::space::Space,
    stages::quantize::Steps,
    tokens::{Group, Side},
};

/// Components of one class in one group: a `[components, group tokens]` block of symbols.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Band {
    /// Index of the group.
    pub(crate) group: usize,
    /// Index of the class table.
    pub(crate) table: usize,
    /// Components, most variance first.
    pub(crate) components: Range<usize>,
    /// Position of the first symbol.
    pub(crate) start: usize,
}

/// All symbols of one class: the bands with its table, end to end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ClassRun {
    /// Index of the class table.
    pub(crate) table: usize,
    /// Positions of its symbols.
    pub(crate) symbols: Range<usize>,
}

/// The order of one side of one chunk.
#[derive(Debug)]
pub(crate) struct Order {
    /// In writing order.
    pub(crate) bands: Vec<Band>,
    /// In writing order, empty ones left out.
    pub(crate) runs: Vec<ClassRun>,
    /// Grid exponent of each group's step.
    pub(crate) exponents: Vec<i32>,
    /// Coded components of each group.
    pub(crate) kept: Vec<usize>,
    /// Tokens of each group.
    pub(crate) lengths: Vec<usize>,
    /// Symbols in all.
    pub(crate) symbols: usize,
}

impl Order {
    /// Derives the order.
    pub(crate) fn of(space: &Space, side: Side, steps: &Steps, groups: &[Group]) -> Self {
        let exponents: Vec<i32> = groups.iter().map(|group| steps.exponent(side, group)).collect();
        let mut order = Self {
            bands: Vec::new(),
            runs: Vec::new(),
            kept: exponents.iter().map(|&exponent| space.kept(exponent)).collect(),
            lengths: groups.iter().map(|group| group.tokens.len()).collect(),
            exponents,
            symbols: 0,
        };
        for table in (0..space.classes.tables.len()).rev() {
            order.push_class(space, table);
        }
        order
    }

    fn push_class(&mut self, space: &Space, table: usize) {
        let start = self.symbols;
        for group in 0..self.lengths.len() {
            let components = space.components_of(table, self.exponents[group]);
            if components.is_empty() {
                continue;
            }
            let symbols = components.len() * self.lengths[group];
            self.bands.push(Band { group, table, components, start: self.symbols });
            self.symbols += symbols;
        }
        if self.symbols > start {
            self.runs.push(ClassRun { table, symbols: start..self.symbols });
        }
    }

    /// Symbols of one band.
    pub(crate) fn band_len(&self, band: &Band) -> usize {
        band.components.len() * self.lengths[band.group]
    }

    /// Bytes of the packed symbols.
    pub(crate) fn packed_len(&self, space: &Space) -> usize {
        self.runs
            .iter()
            .map(|run| space.classes.tables[run.table].packing.packed_len(run.symbols.len()))
            .sum()
    }
}
