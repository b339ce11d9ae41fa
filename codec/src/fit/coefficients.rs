//! Held-out rows on a basis: projected once, then quantized and coded at as many steps as the search needs.

use std::ops::Range;

use rayon::prelude::*;

use crate::{
    format::segments::{SEGMENT_BYTES, table_len},
    plan::{elements::Rows, space::Space},
    planes::transposed,
    side::write_symbols,
    stages::{
        deflate::deflate,
        order::Order,
        pca::{TILE_ROWS, project},
        quantize::{GRID_PER_CLASS, Steps, class_of, dequantize, log_sigma, quantize, step_size},
    },
    tokens::{Group, Side, by_shift},
};

/// Rows coded as one chunk when sizes are measured: a prompt of usual length.
const CHUNK_ROWS: usize = 2_048;
/// Half of a chunk's header and digest.
const SIDE_OVERHEAD: usize = 56;

/// `[components, rows]`.
#[derive(Debug)]
pub(crate) struct Coefficients {
    pub(crate) rows: usize,
    data: Vec<f32>,
}

impl Coefficients {
    /// Projects `rows`, `[n, P]`, and sorts the components of `space` by the energy found: sets `log_sigma` and rounds the basis, all but
    /// its first `wide` rows to bytes. The coefficients are those of the rounded basis.
    pub(crate) fn measure(space: &mut Space, rows: &[f32], wide: usize) -> Self {
        let features = space.mean.len();
        let components = space.basis.values.len() / features;
        space.log_sigma = vec![0; components];
        let found = Self::of(space, rows);
        let energy = |j: usize| found.component(j).iter().map(|&y| f64::from(y).powi(2)).sum::<f64>();
        let sigma = |j: usize| (energy(j) / found.rows as f64).sqrt();
        let mut order: Vec<(i16, usize)> = (0..components).map(|j| (log_sigma(sigma(j)), j)).collect();
        order.sort_by_key(|&(sigma, j)| (std::cmp::Reverse(sigma), j));
        let sorted = order.iter().flat_map(|&(_, j)| &space.basis.values[j * features..(j + 1) * features]);
        space.basis = Rows::round(sorted.copied().collect(), features, wide);
        space.log_sigma = order.into_iter().map(|(sigma, _)| sigma).collect();
        Self::of(space, rows)
    }

    /// Projects `rows` on the basis as it is.
    fn of(space: &Space, rows: &[f32]) -> Self {
        let features = space.mean.len();
        let (count, components) = (rows.len() / features, space.log_sigma.len());
        let tiles: Vec<Vec<f32>> = rows
            .par_chunks(TILE_ROWS * features)
            .map(|tile| {
                let mut tile = tile.to_vec();
                tile.resize(TILE_ROWS * features, 0.0);
                project(space, components, &mut tile)
            })
            .collect();
        let component = |j: usize| {
            let strips = tiles.iter().map(move |tile| &tile[j * TILE_ROWS..(j + 1) * TILE_ROWS]);
            strips.flatten().copied().take(count)
        };
        Self { rows: count, data: (0..components).flat_map(component).collect() }
    }

    /// The coefficients of component `j`.
    pub(crate) fn component(&self, j: usize) -> &[f32] {
        &self.data[j * self.rows..(j + 1) * self.rows]
    }

    /// The same numbers as `[rows, components]`.
    pub(crate) fn by_row(&self) -> Vec<f32> {
        if self.rows == 0 { Vec::new() } else { transposed(&self.data, self.rows) }
    }

    /// Bytes of all rows at a step, with a shift per row if there are any, as chunks of usual length; segment tables and half a header
    /// included.
    pub(crate) fn coded_bytes(&self, space: &Space, exponent: i32, shifts: Option<&[i8]>) -> usize {
        let starts: Vec<usize> = (0..self.rows).step_by(CHUNK_ROWS).collect();
        let chunk = |start: usize| {
            let rows = start..(start + CHUNK_ROWS).min(self.rows);
            let groups = groups(rows.len(), shifts.map(|shifts| &shifts[rows.clone()]));
            self.chunk_bytes(space, exponent, rows, &groups)
        };
        starts.into_par_iter().map(chunk).sum()
    }

    /// Sum of squared errors over all components at a step, those that are not coded included.
    pub(crate) fn squared_error(&self, space: &Space, exponent: i32) -> f64 {
        self.squared_errors(space, exponent, None).into_iter().sum()
    }

    /// Sum of squared errors of each component at a step, with a shift per row if there are any.
    pub(crate) fn squared_errors(&self, space: &Space, exponent: i32, shifts: Option<&[i8]>) -> Vec<f64> {
        let groups = groups(self.rows, shifts);
        let error = |j: usize| {
            let component = self.component(j);
            let of_group = |group: &Group| {
                let coefficients: Vec<f32> = group.tokens.iter().map(|&row| component[row]).collect();
                error_of(space, j, exponent_of(exponent, group.shift), &coefficients)
            };
            groups.iter().map(of_group).sum()
        };
        (0..space.log_sigma.len()).into_par_iter().map(error).collect()
    }

    /// Sum of squares of each component.
    pub(crate) fn energies(&self) -> Vec<f64> {
        let energy = |component: &[f32]| component.iter().map(|&y| f64::from(y).powi(2)).sum();
        self.data.par_chunks(self.rows.max(1)).map(energy).collect()
    }

    /// Zero-order entropy of each component's symbols at a step, in bits a symbol; 0 where they are not coded.
    pub(crate) fn entropies(&self, space: &Space, exponent: i32) -> Vec<f32> {
        let kept = space.kept(exponent);
        let entropy = |j: usize| {
            if j >= kept {
                return 0.0;
            }
            let mut symbols = vec![0; self.rows];
            quantize(self.component(j), step_size(exponent), &mut symbols);
            symbols.sort_unstable();
            let share = |run: &[i16]| run.len() as f64 / self.rows as f64;
            symbols.chunk_by(|a, b| a == b).map(|run| -share(run) * share(run).log2()).sum::<f64>() as f32
        };
        (0..space.log_sigma.len()).into_par_iter().map(entropy).collect()
    }

    fn chunk_bytes(&self, space: &Space, exponent: i32, rows: Range<usize>, groups: &[Group]) -> usize {
        let steps = Steps { keys: exponent as i16, ..Steps::default() };
        let order = Order::of(space, Side::Keys, &steps, groups);
        let mut symbols = vec![0; order.symbols];
        for band in &order.bands {
            let tokens = &groups[band.group].tokens;
            let step = step_size(order.exponents[band.group]);
            let components =
                band.components.clone().zip(symbols[band.start..].chunks_exact_mut(tokens.len()));
            for (j, symbols) in components {
                let component = &self.component(j)[rows.clone()];
                let coefficients: Vec<f32> = tokens.iter().map(|&token| component[token]).collect();
                quantize(&coefficients, step, symbols);
            }
        }
        let side = write_symbols(space, &order, &symbols);
        let segments = deflate(&side.bytes, &side.breaks, SEGMENT_BYTES as usize);
        let table = table_len(side.bytes.len() as u64, SEGMENT_BYTES) as usize;
        segments.iter().map(Vec::len).sum::<usize>() + table + SIDE_OVERHEAD
    }
}

/// Rows of one step together.
fn groups(rows: usize, shifts: Option<&[i8]>) -> Vec<Group> {
    match shifts {
        Some(shifts) => by_shift(0..rows, shifts),
        None => vec![Group { tokens: (0..rows).collect(), shift: 0, is_window: false }],
    }
}

/// Exponent of the step of rows with a shift.
pub(crate) fn exponent_of(exponent: i32, shift: i8) -> i32 {
    exponent + GRID_PER_CLASS * i32::from(shift)
}

/// Squared error of coefficients of component `j` that are coded at a step, or not at all.
fn error_of(space: &Space, j: usize, exponent: i32, coefficients: &[f32]) -> f64 {
    let (mut symbols, mut back) = (vec![0; coefficients.len()], vec![0.0; coefficients.len()]);
    if let Ok(table) = usize::try_from(class_of(space.log_sigma[j], exponent) - space.classes.first_class) {
        let table = &space.classes.tables[table.min(space.classes.tables.len() - 1)];
        let step = step_size(exponent);
        quantize(coefficients, step, &mut symbols);
        dequantize(&symbols, &table.centroids, step, &mut back);
    }
    coefficients.iter().zip(back).map(|(y, back)| f64::from(y - back).powi(2)).sum()
}
