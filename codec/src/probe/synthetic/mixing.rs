//! An orthonormal transform with no structure that a codec could profit from, in O(P log P): signs turned at random, Walsh-Hadamard
//! transforms of blocks, a random order, and again.

use rayon::prelude::*;

use crate::probe::synthetic::random::Random;

/// Rounds; in two of them a power of two is mixed through, other numbers of features have smaller blocks and need more.
const ROUNDS: usize = 3;

/// The transform of P features.
#[derive(Debug, Clone)]
pub(super) struct Mixing {
    /// Features of one Walsh-Hadamard transform: the largest power of two that divides P.
    block: usize,
    rounds: Vec<Round>,
}

#[derive(Debug, Clone)]
struct Round {
    /// `[P]`, plus or minus the transform's scale.
    signs: Vec<f32>,
    /// `[P]`: where each result comes from.
    order: Vec<u32>,
}

impl Mixing {
    pub(super) fn new(features: usize, random: &mut Random) -> Self {
        let block = 1 << features.trailing_zeros();
        let scale = 1.0 / (block as f32).sqrt();
        let rounds = if block == features { ROUNDS - 1 } else { ROUNDS };
        let round = |_| {
            let signs = (0..features).map(|_| if random.next() & 1 == 0 { scale } else { -scale }).collect();
            let mut order: Vec<u32> = (0..features as u32).collect();
            random.shuffle(&mut order);
            Round { signs, order }
        };
        Self { block, rounds: (0..rounds).map(round).collect() }
    }

    /// Turns `[P]` in place.
    pub(super) fn apply(&self, row: &mut [f32]) {
        let mut mixed = row.to_vec();
        for round in &self.rounds {
            mixed.iter_mut().zip(&round.signs).for_each(|(x, sign)| *x *= sign);
            mixed.chunks_exact_mut(self.block).for_each(hadamard);
            row.iter_mut().zip(&round.order).for_each(|(x, &from)| *x = mixed[from as usize]);
            mixed.copy_from_slice(row);
        }
    }

    /// What the first `components` unit vectors become: an orthonormal basis, `[components, P]`.
    pub(super) fn basis(&self, components: usize) -> Vec<f32> {
        let features = self.rounds[0].signs.len();
        let mut basis = vec![0.0; components * features];
        basis.par_chunks_exact_mut(features).enumerate().for_each(|(j, row)| {
            row[j] = 1.0;
            self.apply(row);
        });
        basis
    }
}

/// The transform of a power of two of numbers, unscaled.
fn hadamard(block: &mut [f32]) {
    let mut half = 1;
    while half < block.len() {
        for pair in block.chunks_exact_mut(2 * half) {
            let (low, high) = pair.split_at_mut(half);
            for (a, b) in low.iter_mut().zip(high) {
                (*a, *b) = (*a + *b, *a - *b);
            }
        }
        half *= 2;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_basis_is_orthonormal_for_any_even_number_of_features() {
        for features in [2, 6, 32, 96] {
            let basis = Mixing::new(features, &mut Random::new(3, 0)).basis(features);
            let rows: Vec<&[f32]> = basis.chunks_exact(features).collect();
            for (i, a) in rows.iter().enumerate() {
                for (j, b) in rows.iter().enumerate() {
                    let product: f32 = a.iter().zip(*b).map(|(a, b)| a * b).sum();
                    let expected = if i == j { 1.0 } else { 0.0 };
                    assert!((product - expected).abs() < 1e-5, "{features} features: {i} . {j} = {product}");
                }
            }
        }
    }

    #[test]
    fn vectors_are_spread_over_all_features() {
        let basis = Mixing::new(1_024, &mut Random::new(3, 0)).basis(8);
        let largest = basis.iter().fold(0f32, |largest, x| largest.max(x.abs()));
        assert!(largest < 6.0 / 32.0, "an element is {largest}");
    }
}
