//! Mean and covariance of rows that come in a stream.

use rayon::prelude::*;

use crate::{
    error::{Error, Result},
    stages::product::{Matrix, Onto, multiply},
};

/// Rows of the product computed by one task.
const BLOCK: usize = 256;

/// Sums of rows `[n, P]` and of their outer products, in f64 over f32 batches.
#[derive(Debug, Clone)]
pub struct Covariance {
    features: usize,
    rows: usize,
    /// Mean of the first batch: taking it off first keeps the f32 products small where the mean is large.
    pivot: Vec<f32>,
    sum: Vec<f64>,
    /// `[P, P]`.
    products: Vec<f64>,
}

impl Covariance {
    /// Empty sums for rows of `features` features.
    pub fn new(features: usize) -> Self {
        Self {
            features,
            rows: 0,
            pivot: Vec::new(),
            sum: vec![0.0; features],
            products: vec![0.0; features * features],
        }
    }

    /// Rows seen so far.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Adds rows, `[n, P]`; a few thousand at a time keep the f32 part of the sums accurate.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a part of a row or a number that is not finite.
    pub fn push(&mut self, rows: &[f32]) -> Result<()> {
        let features = self.features;
        if !rows.len().is_multiple_of(features) {
            return Err(Error::InvalidArgument(format!("{} numbers are no rows of {features}", rows.len())));
        }
        if !rows.iter().all(|x| x.is_finite()) {
            return Err(Error::InvalidArgument("a row holds a number that is not finite".to_owned()));
        }
        let count = rows.len() / features;
        if count == 0 {
            return Ok(());
        }
        if self.pivot.is_empty() {
            let mean = |sum: f64| (sum / count as f64) as f32;
            self.pivot = column_sums(rows, features).into_iter().map(mean).collect();
        }
        let mut centred = rows.to_vec();
        for row in centred.chunks_exact_mut(features) {
            row.iter_mut().zip(&self.pivot).for_each(|(x, pivot)| *x -= pivot);
        }
        let sums = column_sums(&centred, features);
        self.sum.iter_mut().zip(sums).for_each(|(total, sum)| *total += sum);
        self.add_products(&centred, count);
        self.rows += count;
        Ok(())
    }

    fn add_products(&mut self, centred: &[f32], count: usize) {
        let features = self.features;
        let matrix = Matrix::row_major(centred, count, features);
        self.products.par_chunks_mut(BLOCK * features).enumerate().for_each(|(i, products)| {
            let height = products.len() / features;
            let block: Vec<f32> = centred
                .chunks_exact(features)
                .flat_map(|row| &row[i * BLOCK..i * BLOCK + height])
                .copied()
                .collect();
            let mut product = vec![0.0; products.len()];
            multiply(
                Matrix::row_major(&block, count, height).transposed(),
                matrix,
                &mut product,
                Onto::Nothing,
            );
            products.iter_mut().zip(product).for_each(|(total, x)| *total += f64::from(x));
        });
    }

    /// Mean, `[P]`, and covariance, `[P, P]` (divided by n).
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when no rows were pushed.
    pub fn finish(self) -> Result<(Vec<f32>, Vec<f64>)> {
        if self.rows == 0 {
            return Err(Error::InvalidArgument("a covariance of no rows".to_owned()));
        }
        let n = self.rows as f64;
        let shift: Vec<f64> = self.sum.iter().map(|sum| sum / n).collect();
        let mut covariance = self.products;
        for (row, &a) in covariance.chunks_exact_mut(self.features).zip(&shift) {
            row.iter_mut().zip(&shift).for_each(|(x, &b)| *x = *x / n - a * b);
        }
        let mean = self.pivot.iter().zip(shift).map(|(&pivot, shift)| (f64::from(pivot) + shift) as f32);
        Ok((mean.collect(), covariance))
    }
}

fn column_sums(rows: &[f32], features: usize) -> Vec<f64> {
    let mut sums = vec![0.0; features];
    for row in rows.chunks_exact(features) {
        sums.iter_mut().zip(row).for_each(|(sum, &x)| *sum += f64::from(x));
    }
    sums
}

#[cfg(test)]
mod tests {
    use rand::{RngExt as _, SeedableRng as _};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    #[test]
    fn streamed_sums_equal_the_definition() {
        let (rows, features) = (500, 7);
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let data: Vec<f32> =
            (0..rows * features).map(|i| rng.random::<f32>() + 50.0 * (i % features) as f32).collect();
        let mut sums = Covariance::new(features);
        for batch in data.chunks(features * 123) {
            sums.push(batch).unwrap();
        }
        let (mean, covariance) = sums.finish().unwrap();
        let column = |j: usize| data.iter().skip(j).step_by(features).map(|&x| f64::from(x));
        for i in 0..features {
            assert!((column(i).sum::<f64>() / rows as f64 - f64::from(mean[i])).abs() < 1e-4);
            for j in 0..features {
                let (a, b) = (column(i).sum::<f64>() / rows as f64, column(j).sum::<f64>() / rows as f64);
                let expected =
                    column(i).zip(column(j)).map(|(x, y)| (x - a) * (y - b)).sum::<f64>() / rows as f64;
                assert!((covariance[i * features + j] - expected).abs() < 1e-4, "{i} {j}");
            }
        }
    }

    #[test]
    fn broken_input_is_refused() {
        let mut sums = Covariance::new(3);
        assert!(sums.push(&[1.0; 4]).is_err());
        assert!(sums.push(&[f32::NAN; 3]).is_err());
        assert!(sums.finish().is_err());
    }
}
