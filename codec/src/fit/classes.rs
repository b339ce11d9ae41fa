//! Class tables from data: centroids are means, packings are whatever makes the fewest bytes.

use rayon::prelude::*;

use crate::{
    fit::coefficients::Coefficients,
    format::segments::SEGMENT_BYTES,
    plan::{
        classes::{ClassTable, ClassTables},
        space::Space,
    },
    stages::{
        deflate::deflate,
        escape::ESCAPE_BYTES,
        pack::{Packing, pack},
        quantize::{CENTROIDS, GRID_PER_CLASS, GRID_PER_OCTAVE, quantize, step_size},
    },
};

/// Lowest class that may be coded: sigma is a quarter of the step, 2 % of a Gaussian's symbols are not 0.
const LOWEST_CLASS: i32 = -6;
/// Classes up to sigma = 2^12 steps have a table of their own.
const CLASSES: usize = 42;
/// Steps at which statistics are taken, in grid units apart.
const LADDER: usize = 2 * GRID_PER_CLASS as usize;
/// Components with less than 2^-12 of the largest deviation do not stretch the ladder.
const MAX_SPREAD: i32 = 12 * GRID_PER_OCTAVE;
/// Symbols packed per class and step to choose a packing.
const MAX_SYMBOLS: usize = 1 << 16;
/// Fewer samples than this make a mean that is worse than the middle of the cell.
const MIN_SAMPLES: f64 = 20.0;

/// What was seen of one class.
#[derive(Debug, Clone, Default)]
struct ClassStats {
    /// Number and sum, in steps, of the magnitudes that became symbol 1, 2, ... 8.
    count: [f64; CENTROIDS],
    sum: [f64; CENTROIDS],
    /// Bytes under each packing.
    bytes: [f64; Packing::ALL.len()],
}

/// Neutral tables: every class one symbol a byte, centroids in the middle.
pub(crate) fn neutral() -> ClassTables {
    ClassTables { first_class: LOWEST_CLASS, tables: vec![ClassStats::default().table(); CLASSES] }
}

/// Takes statistics over a ladder of steps that brings every component through many classes. `space` has neutral tables.
pub(crate) fn fit(space: &Space, coefficients: &Coefficients) -> ClassTables {
    let Some((&top, &bottom)) = space.log_sigma.first().zip(space.log_sigma.last()) else { return neutral() };
    let (top, bottom) = (i32::from(top), i32::from(bottom));
    let start = bottom.max(top - MAX_SPREAD) - 4 * GRID_PER_OCTAVE;
    let ladder: Vec<i32> = (start..=top + GRID_PER_OCTAVE).step_by(LADDER).collect();
    let tables = (0..CLASSES).into_par_iter().map(|table| {
        let mut stats = ClassStats::default();
        for &exponent in &ladder {
            stats.add(space, coefficients, table, exponent);
        }
        stats.table()
    });
    ClassTables { first_class: LOWEST_CLASS, tables: tables.collect() }
}

impl ClassStats {
    fn add(&mut self, space: &Space, coefficients: &Coefficients, table: usize, exponent: i32) {
        let components = space.components_of(table, exponent);
        let stride = (components.len() * coefficients.rows).div_ceil(MAX_SYMBOLS).max(1);
        let step = step_size(exponent);
        let mut symbols = Vec::new();
        for j in components.step_by(stride) {
            let magnitudes = coefficients.component(j);
            let start = symbols.len();
            symbols.resize(start + magnitudes.len(), 0);
            quantize(magnitudes, step, &mut symbols[start..]);
            for (y, symbol) in magnitudes.iter().zip(&symbols[start..]) {
                let slot = usize::from(symbol.unsigned_abs()).wrapping_sub(1);
                if slot < CENTROIDS {
                    self.count[slot] += 1.0;
                    self.sum[slot] += f64::from(y.abs() / step);
                }
            }
        }
        for (bytes, packing) in self.bytes.iter_mut().zip(Packing::ALL) {
            *bytes += coded_bytes(packing, &symbols) as f64;
        }
    }

    fn table(&self) -> ClassTable {
        let best = (0..Packing::ALL.len()).min_by(|&a, &b| self.bytes[a].total_cmp(&self.bytes[b]));
        let seen = self.bytes.iter().any(|&bytes| bytes > 0.0);
        let packing = best.filter(|_| seen).map_or(Packing::Wide, |best| Packing::ALL[best]);
        let mut centroids = [0.0; CENTROIDS];
        for (slot, centroid) in centroids.iter_mut().enumerate() {
            let is_known = self.count[slot] >= MIN_SAMPLES;
            *centroid = if is_known { (self.sum[slot] / self.count[slot]) as f32 } else { (slot + 1) as f32 };
        }
        ClassTable { packing, centroids }
    }
}

fn coded_bytes(packing: Packing, symbols: &[i16]) -> usize {
    let limit = packing.limit() as u16;
    let escapes = symbols.iter().filter(|symbol| symbol.unsigned_abs() > limit).count();
    let mut bytes = vec![0; packing.packed_len(symbols.len())];
    pack(packing, symbols, &mut bytes);
    let segments = deflate(&bytes, &[], SEGMENT_BYTES as usize);
    segments.iter().map(Vec::len).sum::<usize>() + escapes * ESCAPE_BYTES
}
