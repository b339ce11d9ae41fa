//! The tier table: which steps reach which body ratio, measured when the plan was made.

use crate::{
    coding::TIERS,
    error::{Error, Result},
    format::{
        MAX_GRID,
        bytes::{Reader, Write},
    },
};

/// Steps of one tier, as grid exponents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TierSteps {
    /// Ratio of bf16 bytes to coded bytes over body tokens.
    pub tier: u8,
    /// Log2 of the step of keys, in 1/48 octaves.
    pub keys: i16,
    /// Log2 of the step of values, in 1/48 octaves.
    pub values: i16,
}

/// Steps by tier, with at least two entries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TierTable(pub(crate) Vec<TierSteps>);

const WHAT: &str = "tier table";

impl TierTable {
    /// Checks order and ranges.
    pub(crate) fn new(entries: Vec<TierSteps>) -> Result<Self> {
        let in_range = |entry: &TierSteps| {
            TIERS.contains(&entry.tier)
                && [entry.keys, entry.values].iter().all(|e| (-MAX_GRID..=MAX_GRID).contains(e))
        };
        let rises = |pair: &[TierSteps]| {
            pair[0].tier < pair[1].tier && pair[0].keys <= pair[1].keys && pair[0].values <= pair[1].values
        };
        if entries.len() < 2 || !entries.iter().all(in_range) || !entries.windows(2).all(rises) {
            return Err(Error::corrupt(WHAT, format!("{} entries out of order or range", entries.len())));
        }
        Ok(Self(entries))
    }

    /// Steps for any tier: interpolated in log2(tier), the nearest entry outside the table.
    pub(crate) fn steps(&self, tier: u8) -> TierSteps {
        let above = self.0.partition_point(|entry| entry.tier < tier).min(self.0.len() - 1);
        let (low, high) = (self.0[above.saturating_sub(1)], self.0[above]);
        if tier <= low.tier {
            return TierSteps { tier, ..low };
        }
        let log = |tier: u8| f64::from(tier).log2();
        let part = ((log(tier) - log(low.tier)) / (log(high.tier) - log(low.tier))).min(1.0);
        let between = |a: i16, b: i16| (f64::from(a) + part * f64::from(b - a)).round() as i16;
        TierSteps { tier, keys: between(low.keys, high.keys), values: between(low.values, high.values) }
    }

    pub(crate) fn read_from(reader: &mut Reader<'_>, count: usize) -> Result<Self> {
        let entries = (0..count).map(|_| {
            let tier = reader.u8()?;
            reader.zeros(1)?;
            Ok(TierSteps { tier, keys: reader.i16()?, values: reader.i16()? })
        });
        Self::new(entries.collect::<Result<_>>()?)
    }

    pub(crate) fn write_to(&self, out: &mut Vec<u8>) {
        for entry in &self.0 {
            out.put([entry.tier, 0]);
            out.put_all(&[entry.keys, entry.values], i16::to_le_bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_lie_between_the_entries_and_stop_at_the_ends() {
        let entry = |tier, keys, values| TierSteps { tier, keys, values };
        let table = TierTable::new(vec![entry(8, 0, 10), entry(16, 48, 20), entry(64, 148, 40)]).unwrap();
        for expected in
            [entry(4, 0, 10), entry(8, 0, 10), entry(16, 48, 20), entry(32, 98, 30), entry(128, 148, 40)]
        {
            assert_eq!(table.steps(expected.tier), expected);
        }
        let all: Vec<_> = TIERS.map(|tier| table.steps(tier)).collect();
        assert!(all.windows(2).all(|pair| pair[0].keys <= pair[1].keys && pair[0].values <= pair[1].values));
    }

    #[test]
    fn a_table_out_of_order_is_refused() {
        let entry = |tier, keys| TierSteps { tier, keys, values: 0 };
        assert!(TierTable::new(vec![entry(8, 0)]).is_err());
        assert!(TierTable::new(vec![entry(8, 0), entry(8, 1)]).is_err());
        assert!(TierTable::new(vec![entry(8, 1), entry(16, 0)]).is_err());
        assert!(TierTable::new(vec![entry(3, 0), entry(16, 0)]).is_err());
    }
}
