//! Stage 3: rows to coefficients on the plan's basis, and back.
//!
//! Rows go in tiles of a fixed height, the last one padded, so that a row's result does not depend on its neighbours,
//! on threads or on how a prompt was cut into chunks.

use crate::{
    plan::space::Space,
    stages::product::{Matrix, multiply},
};

/// Rows per tile.
pub(crate) const TILE_ROWS: usize = 128;

/// Coefficients of a full tile, `[kept, TILE_ROWS]`. `rows` is `[TILE_ROWS, P]` and is centred and weighted in place.
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
    let mut coefficients = vec![0.0; kept * TILE_ROWS];
    let rows = Matrix::row_major(rows, TILE_ROWS, features).transposed();
    multiply(Matrix::row_major(&space.basis, kept, features), rows, &mut coefficients);
    coefficients
}

/// Rows of a full tile, `[TILE_ROWS, P]`; the mirror of [`project`].
pub(crate) fn reconstruct(space: &Space, kept: usize, coefficients: &[f32]) -> Vec<f32> {
    let features = space.mean.len();
    let mut rows = vec![0.0; TILE_ROWS * features];
    let coefficients = Matrix::row_major(coefficients, kept, TILE_ROWS).transposed();
    if kept > 0 {
        multiply(coefficients, Matrix::row_major(&space.basis, kept, features), &mut rows);
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
