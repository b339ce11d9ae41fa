//! Rotary position embedding in Hugging Face's rotate-half layout: elements `i` and `i + head_dim/2` turn together.

use crate::config::{Llama3Scaling, Rope};

/// Angular frequencies per position, `[head_dim / 2]`.
///
/// Llama 3.1's scaling (its reference code, `apply_scaling`): wavelengths longer than the original context over
/// `low_freq_factor` are slowed by `factor`, those shorter than it over `high_freq_factor` kept, the rest blended.
#[must_use]
pub fn inv_freq(rope: &Rope, head_dim: usize) -> Vec<f32> {
    (0..head_dim / 2)
        .map(|pair| {
            let base = rope.theta.powf(-2.0 * pair as f64 / head_dim as f64);
            rope.scaling.map_or(base, |scaling| scale(base, &scaling)) as f32
        })
        .collect()
}

fn scale(freq: f64, s: &Llama3Scaling) -> f64 {
    let periods = s.original_max_position_embeddings as f64 * freq / std::f64::consts::TAU;
    if periods < s.low_freq_factor {
        freq / s.factor
    } else if periods > s.high_freq_factor {
        freq
    } else {
        let keep = (periods - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor);
        (1.0 - keep) * freq / s.factor + keep * freq
    }
}

/// Cosines and sines of positions `0..max_positions`, each `[max_positions, head_dim / 2]`, row-major.
#[derive(Debug, Clone)]
pub struct RopeTable {
    half: usize,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl RopeTable {
    /// Tables for the given frequencies. Angles are f64 products: at position 100,000 an f32 angle is off by 0.004.
    #[must_use]
    pub fn new(inv_freq: &[f32], max_positions: usize) -> Self {
        let angles = (0..max_positions).flat_map(|p| inv_freq.iter().map(move |f| p as f64 * f64::from(*f)));
        let (cos, sin) = angles.map(|a| (a.cos() as f32, a.sin() as f32)).unzip();
        Self { half: inv_freq.len(), cos, sin }
    }

    /// Positions the tables cover.
    #[must_use]
    pub fn positions(&self) -> usize {
        self.cos.len() / self.half
    }

    /// Cosines and sines.
    #[cfg(feature = "cuda")]
    pub(crate) fn tables(&self) -> (&[f32], &[f32]) {
        (&self.cos, &self.sin)
    }

    /// Turns one head's vector `x` `[head_dim]` to `position`, writing `out` `[head_dim]`.
    ///
    /// # Panics
    /// When `position` is outside of the tables or a slice has another length.
    pub fn rotate(&self, position: usize, x: &[f32], out: &mut [f32]) {
        let half = self.half;
        let row = position * half..(position + 1) * half;
        let (cos, sin) = (&self.cos[row.clone()], &self.sin[row]);
        let (x1, x2) = (&x[..half], &x[half..2 * half]);
        let (out1, out2) = out.split_at_mut(half);
        for i in 0..half {
            out1[i] = x1[i] * cos[i] - x2[i] * sin[i];
            out2[i] = x2[i] * cos[i] + x1[i] * sin[i];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llama3_scaling_slows_only_long_wavelengths() {
        let scaling = Llama3Scaling {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 8192,
        };
        let plain = inv_freq(&Rope { theta: 5e5, scaling: None }, 128);
        let scaled = inv_freq(&Rope { theta: 5e5, scaling: Some(scaling) }, 128);
        assert_eq!(plain[0], scaled[0]);
        assert!((plain[63] / scaled[63] - 8.0).abs() < 1e-5);
        assert!(plain.iter().zip(&scaled).all(|(p, s)| s <= p && *s >= p / 8.001));
    }

    #[test]
    fn rotation_keeps_norms_and_depends_on_the_distance_only() {
        let table = RopeTable::new(&inv_freq(&Rope { theta: 1e4, scaling: None }, 8), 64);
        let (q, k) = ([1., -2., 3., 0.5, 0.1, 2., -1., 4.], [0.3, 1., -1., 2., 0.7, -0.2, 1., 1.]);
        let dot = |a: usize, b: usize| {
            let (mut x, mut y) = ([0f32; 8], [0f32; 8]);
            table.rotate(a, &q, &mut x);
            table.rotate(b, &k, &mut y);
            x.iter().zip(&y).map(|(x, y)| x * y).sum::<f32>()
        };
        assert!((dot(5, 2) - dot(43, 40)).abs() < 1e-4);
        assert!((dot(5, 2) - dot(5, 3)).abs() > 1e-3);
    }
}
