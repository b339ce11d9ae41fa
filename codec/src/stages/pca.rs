//! Stage 3: rows to coefficients on the plan's basis, and back.
//!
//! Rows go in tiles of a fixed height, the last one padded, and components in blocks of a fixed number, so that a row's result does not
//! depend on its neighbours, on threads or on how a prompt was cut into chunks.

use crate::{
    plan::space::Space,
    stages::product::{Matrix, Onto, multiply},
};

/// Rows per tile.
pub(crate) const TILE_ROWS: usize = 128;
/// Components per product; a tile is charged for whole blocks.
const BLOCK: usize = 64;

/// Components that are computed where `kept` are wanted: whole blocks, as far as the basis goes.
pub(crate) fn computed(space: &Space, kept: usize) -> usize {
    kept.next_multiple_of(BLOCK).min(space.log_sigma.len())
}

/// Coefficients of a full tile, `[kept or more, TILE_ROWS]`. `rows` is `[TILE_ROWS, P]` and is centred and weighted in place.
pub(crate) fn project(space: &Space, kept: usize, rows: &mut [f32]) -> Vec<f32> {
    let features = space.mean.len();
    for row in rows.chunks_exact_mut(features) {
        for (x, mean) in row.iter_mut().zip(&space.mean) {
            *x -= mean;
        }
        if let Some(weights) = &space.weights {
            for (x, weight) in row.iter_mut().zip(weights) {
                *x *= weight;
            }
        }
    }
    let computed = computed(space, kept);
    let mut coefficients = vec![0.0; computed * TILE_ROWS];
    let rows = Matrix::row_major(rows, TILE_ROWS, features).transposed();
    let blocks = space.basis.values[..computed * features].chunks(BLOCK * features);
    for (basis, out) in blocks.zip(coefficients.chunks_mut(BLOCK * TILE_ROWS)) {
        multiply(Matrix::row_major(basis, basis.len() / features, features), rows, out, Onto::Nothing);
    }
    coefficients
}

/// Room for the coefficients of a tile that [`reconstruct`] takes, all 0.
pub(crate) fn no_coefficients(space: &Space, kept: usize) -> Vec<f32> {
    vec![0.0; computed(space, kept) * TILE_ROWS]
}

/// Rows of a full tile, `[TILE_ROWS, P]`, from coefficients of whole blocks; the mirror of [`project`].
pub(crate) fn reconstruct(space: &Space, coefficients: &[f32]) -> Vec<f32> {
    let features = space.mean.len();
    let mut rows = vec![0.0; TILE_ROWS * features];
    for (basis, y) in space.basis.values.chunks(BLOCK * features).zip(coefficients.chunks(BLOCK * TILE_ROWS))
    {
        let components = y.len() / TILE_ROWS;
        let y = Matrix::row_major(y, components, TILE_ROWS).transposed();
        multiply(y, Matrix::row_major(basis, components, features), &mut rows, Onto::Sum);
    }
    for row in rows.chunks_exact_mut(features) {
        if let Some(inverse) = &space.inverse_weights {
            for (x, weight) in row.iter_mut().zip(inverse) {
                *x *= weight;
            }
        }
        for (x, mean) in row.iter_mut().zip(&space.mean) {
            *x += mean;
        }
    }
    rows
}
