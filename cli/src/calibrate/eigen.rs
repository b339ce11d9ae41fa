//! Principal axes of a covariance, with faer's symmetric eigensolver.

use anyhow::anyhow;
use faer::{Mat, Side};

/// Eigenvectors of a symmetric `[features, features]` matrix, one per row, in no promised order.
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
    Ok((0..features).flat_map(vector).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_are_orthonormal_and_diagonalise() {
        let n = 5;
        let a: Vec<f64> = (0..n * n).map(|i| ((i * 7 + 3) % 11) as f64 - 5.0).collect();
        let covariance: Vec<f64> =
            (0..n * n).map(|i| (0..n).map(|k| a[k * n + i / n] * a[k * n + i % n]).sum()).collect();
        let axes = axes(&covariance, n).unwrap();
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
