//! Linear algebra on covariances, with faer: principal axes, and regression.

use anyhow::anyhow;
use faer::linalg::solvers::Solve as _;
use faer::{Mat, MatRef, Side};

/// Eigenvectors of a symmetric `[features, features]` matrix, one per row, that of the largest eigenvalue first.
///
/// # Errors
/// If the solver does not converge.
pub(super) fn axes(covariance: &[f64], features: usize) -> anyhow::Result<Vec<f32>> {
    let matrix = Mat::from_fn(features, features, |i, j| covariance[i * features + j]);
    let eigen = matrix
        .self_adjoint_eigen(Side::Lower)
        .map_err(|e| anyhow!("the eigensolver failed on the covariance: {e:?}"))?;
    let vectors = eigen.U();
    let vector = |i| (0..features).map(move |j| vectors[(j, i)] as f32);
    // The solver has them the other way round.
    Ok((0..features).rev().flat_map(vector).collect())
}

/// Regression of the last `[outputs]` variables of a joint covariance, `[inputs + outputs]` squared, on the first ones: the map,
/// `[outputs, inputs]`. `ridge` times the inputs' mean variance is added to theirs, so that inputs which hardly vary get small weights.
///
/// # Errors
/// If the inputs' covariance is not positive definite in spite of that.
pub(super) fn regress(joint: &[f64], inputs: usize, ridge: f64) -> anyhow::Result<Vec<f32>> {
    let joint = square(joint);
    let outputs = joint.nrows() - inputs;
    let mut of_inputs = joint.submatrix(0, 0, inputs, inputs).to_owned();
    let mean = (0..inputs).map(|i| of_inputs[(i, i)]).sum::<f64>() / inputs.max(1) as f64;
    (0..inputs).for_each(|i| of_inputs[(i, i)] += ridge * mean);
    let factor = of_inputs
        .llt(Side::Lower)
        .map_err(|e| anyhow!("the covariance of the token features is not positive definite: {e:?}"))?;
    let map = factor.solve(joint.submatrix(0, inputs, inputs, outputs));
    Ok((0..outputs).flat_map(|o| (0..inputs).map(move |i| (o, i))).map(|(o, i)| map[(i, o)] as f32).collect())
}

/// Covariance of what a map, `[outputs, inputs]`, leaves of the outputs of a joint covariance: `[outputs]` squared.
pub(super) fn residual(joint: &[f64], inputs: usize, map: &[f32]) -> Vec<f64> {
    let joint = square(joint);
    let outputs = joint.nrows() - inputs;
    let map = Mat::from_fn(outputs, inputs, |o, i| f64::from(map[o * inputs + i]));
    let of_inputs = joint.submatrix(0, 0, inputs, inputs);
    let across = joint.submatrix(inputs, 0, outputs, inputs);
    let explained = &map * across.transpose();
    let left = joint.submatrix(inputs, inputs, outputs, outputs) - &explained - explained.transpose()
        + &map * of_inputs * map.transpose();
    (0..outputs * outputs).map(|at| left[(at / outputs, at % outputs)]).collect()
}

fn square(matrix: &[f64]) -> MatRef<'_, f64> {
    let size = matrix.len().isqrt();
    MatRef::from_row_major_slice(matrix, size, size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_follows_from_the_inputs_leaves_no_residual() {
        // Outputs 2 a - b and b, and noise of variance 3 on the first.
        let (a, b) = (4.0, 9.0);
        let joint =
            [[a, 0.0, 2.0 * a, 0.0], [0.0, b, -b, b], [2.0 * a, -b, 4.0 * a + b + 3.0, -b], [0.0, b, -b, b]];
        let map = regress(joint.as_flattened(), 2, 0.0).unwrap();
        for (got, expected) in map.iter().zip([2.0, -1.0, 0.0, 1.0]) {
            assert!((got - expected).abs() < 1e-6);
        }
        for (got, expected) in residual(joint.as_flattened(), 2, &map).iter().zip([3.0, 0.0, 0.0, 0.0]) {
            assert!((got - expected).abs() < 1e-5, "{got} is not {expected}");
        }
    }

    #[test]
    fn axes_are_orthonormal_and_diagonalise() {
        let n = 5;
        let a: Vec<f64> = (0..n * n).map(|i| ((i * 7 + 3) % 11) as f64 - 5.0).collect();
        let covariance: Vec<f64> =
            (0..n * n).map(|i| (0..n).map(|k| a[k * n + i / n] * a[k * n + i % n]).sum()).collect();
        let axes = axes(&covariance, n).unwrap();
        let energy = |i: usize| {
            let axis = &axes[i * n..(i + 1) * n];
            let image = |r: usize| (0..n).map(|k| f64::from(axis[k]) * covariance[r * n + k]).sum::<f64>();
            (0..n).map(|r| f64::from(axis[r]) * image(r)).sum::<f64>()
        };
        assert!((1..n).all(|i| energy(i - 1) >= energy(i) - 1e-6));
        let axis = |i: usize| axes[i * n..(i + 1) * n].iter().map(|x| f64::from(*x));
        for i in 0..n {
            let image: Vec<f64> =
                (0..n).map(|r| axis(i).enumerate().map(|(k, x)| covariance[r * n + k] * x).sum()).collect();
            for j in 0..n {
                let dot: f64 = axis(i).zip(axis(j)).map(|(x, y)| x * y).sum();
                assert!((dot - f64::from(u8::from(i == j))).abs() < 1e-5);
                let off_diagonal: f64 = axis(j).zip(&image).map(|(x, y)| x * y).sum();
                assert!(i == j || off_diagonal.abs() < 1e-3, "{off_diagonal}");
            }
        }
    }
}
