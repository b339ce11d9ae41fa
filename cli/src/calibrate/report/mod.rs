//! What a calibration found, for people: a table on the terminal, and a report with pictures.

mod numbers;
mod pictures;
mod sections;
#[cfg(test)]
mod tests;

use std::path::Path;

use anyhow::Context;
use codec::fit::TierCost;
use codec::inspect::{Part, inspect};
use comfy_table::{CellAlignment, Table, TableStyle, presets};
use indicatif::BinaryBytes;

use super::clock::Clock;
use super::memory::Memory;
use super::{Args, Fitted, Seen};
use numbers::{components_for, log2, percent, seconds};

/// Everything that is known at the end.
pub(super) struct Found<'a> {
    pub(super) args: &'a Args,
    /// Longest document, in tokens.
    pub(super) longest: usize,
    pub(super) memory: Memory,
    pub(super) seen: &'a Seen,
    pub(super) fitted: &'a Fitted,
    /// The plan's file.
    pub(super) bytes: &'a [u8],
    pub(super) clock: &'a Clock,
}

impl Found<'_> {
    /// Prints the short form.
    ///
    /// # Errors
    /// When the plan's own bytes cannot be read back.
    pub(super) fn print(&self) -> anyhow::Result<()> {
        eprintln!("{}", self.tiers());
        for line in self.lines()? {
            eprintln!("{line}");
        }
        Ok(())
    }

    /// Writes report.md and its pictures into `dir`, which is made if need be.
    ///
    /// # Errors
    /// When something cannot be written.
    pub(super) fn write(&self, dir: &Path) -> anyhow::Result<()> {
        std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        pictures::write(self, dir)?;
        let path = dir.join("report.md");
        std::fs::write(&path, sections::all(self)?)
            .with_context(|| format!("cannot write {}", path.display()))?;
        eprintln!("report.md and its pictures written to {}", dir.display());
        Ok(())
    }

    /// Where the plan's bytes go.
    fn parts(&self) -> anyhow::Result<Vec<Part>> {
        Ok(inspect(self.bytes, None)?.into_iter().flat_map(|item| item.parts).collect())
    }

    fn tiers(&self) -> String {
        let measured = &self.fitted.measured;
        let shifted = measured.per_token.as_ref();
        let rows = measured.uniform.iter().enumerate().map(|(i, cost)| {
            let of_shifted = shifted.map(|costs| log2(costs[i].steps.keys));
            vec![
                cost.steps.tier.to_string(),
                log2(cost.steps.keys),
                of_shifted.unwrap_or_else(|| "-".to_owned()),
                format!("{:.0}, {:.0}", cost.keys.components, cost.values.components),
                key_share(cost),
                percent(cost.keys.error),
                percent(cost.values.error),
            ]
        });
        let header =
            ["tier", "log2 step", "per token", "components K, V", "K of bytes", "error K", "error V"];
        table(presets::UTF8_FULL_CONDENSED, &header, rows)
    }

    fn lines(&self) -> anyhow::Result<Vec<String>> {
        let measured = &self.fitted.measured;
        let mut lines = Vec::new();
        if let Some(left) = self.fitted.left {
            let (keys, values) = left.held_out;
            let (keys, values) = (percent(keys), percent(values));
            lines.push(format!("token ids leave {keys} of the variance of keys and {values} of values"));
        }
        for (side, spectrum) in [("keys", &measured.keys), ("values", &measured.values)] {
            let [half, most, all] = [0.5, 0.9, 0.99].map(|share| components_for(&spectrum.sigma, share));
            lines.push(format!("50, 90, 99 % of the energy of {side}: {half}, {most}, {all} components"));
        }
        let times = self.clock.phases().iter().map(|(phase, time)| format!("{phase} {}", seconds(*time)));
        let times = times.collect::<Vec<_>>().join(", ");
        lines.push(format!("time: {times}; {} in all", seconds(self.clock.elapsed())));
        let bases: u64 =
            self.parts()?.iter().filter(|part| part.name.ends_with("basis")).map(|p| p.bytes).sum();
        let (keys, values) = self.fitted.plan.components();
        lines.push(format!(
            "plan: {}, {} of it bases ({keys} components of keys and {values} of values)",
            BinaryBytes(self.bytes.len() as u64),
            BinaryBytes(bases)
        ));
        Ok(lines)
    }
}

fn key_share(cost: &TierCost) -> String {
    percent(cost.keys.bytes as f64 / cost.bytes() as f64)
}

/// A table whose first column is text and whose others are numbers.
fn table(style: TableStyle, header: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(style);
    table.set_header(header.iter().copied());
    rows.for_each(|row| {
        table.add_row(row);
    });
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.to_string()
}
