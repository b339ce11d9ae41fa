//! Stage 1: rotary positions of keys, removed before projection and restored after, so that equal words give equal rows.
//!
//! Rotate-half pairing of [RoFormer](https://arxiv.org/abs/2104.09864) as in Hugging Face Llama: dimension i turns with i + head_dim/2.

use crate::layout::KvLayout;

/// Cosines and sines for the tokens of one chunk.
#[derive(Debug)]
pub(crate) struct RopeTable {
    half: usize,
    /// `[tokens, head_dim / 2]`.
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl RopeTable {
    /// Tables for `tokens` positions from `first_token`; angles are computed in f64.
    pub(crate) fn new(layout: &KvLayout, first_token: usize, tokens: usize) -> Self {
        let angles = (first_token..first_token + tokens)
            .flat_map(|position| layout.inv_freq.iter().map(move |&freq| position as f64 * f64::from(freq)));
        let (sin, cos) = angles.map(|angle| angle.sin_cos()).map(|(s, c)| (s as f32, c as f32)).unzip();
        Self { half: layout.inv_freq.len(), cos, sin }
    }

    /// Turns one head's key, `[head_dim]`, back to position 0.
    pub(crate) fn remove(&self, token: usize, head: &mut [f32]) {
        self.turn(token, head, -1.0);
    }

    /// Turns one head's key to its position; the mirror of [`Self::remove`].
    pub(crate) fn restore(&self, token: usize, head: &mut [f32]) {
        self.turn(token, head, 1.0);
    }

    fn turn(&self, token: usize, head: &mut [f32], direction: f32) {
        let entries = token * self.half..(token + 1) * self.half;
        let (cos, sin) = (&self.cos[entries.clone()], &self.sin[entries]);
        let (low, high) = head.split_at_mut(self.half);
        for (((low, high), &cos), &sin) in low.iter_mut().zip(high).zip(cos).zip(sin) {
            let (a, b, sin) = (*low, *high, sin * direction);
            *low = a * cos - b * sin;
            *high = b * cos + a * sin;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn restore_undoes_remove_and_matches_the_rotation() {
        let layout = KvLayout { layers: 1, kv_heads: 1, head_dim: 4, inv_freq: vec![1.0, 0.01] };
        let table = RopeTable::new(&layout, 1_000, 3);
        let mut head = [1.0, 0.0, 0.0, 2.0];
        table.restore(2, &mut head);
        let (first, second) = (1_002f64, 10.02f64);
        let expected = [first.cos(), -2.0 * second.sin(), first.sin(), 2.0 * second.cos()];
        for (got, expected) in head.iter().zip(expected) {
            assert!((f64::from(*got) - expected).abs() < 1e-6, "{got} is not {expected}");
        }
        table.remove(2, &mut head);
        for (got, expected) in head.iter().zip([1.0, 0.0, 0.0, 2.0]) {
            assert!((got - expected).abs() < 1e-6);
        }
    }
}
