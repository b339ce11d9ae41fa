//! Seeded numbers: splitmix64, the same on every machine.

use std::f32::consts::TAU;

/// A stream of numbers.
#[derive(Debug, Clone)]
pub(super) struct Random(u64);

impl Random {
    /// Streams of one seed have nothing to do with each other.
    pub(super) fn new(seed: u64, stream: u64) -> Self {
        Self(mix(mix(seed) ^ stream))
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// Above 0, at most 1.
    pub(super) fn uniform(&mut self) -> f32 {
        unit((self.next() >> 40) as u32)
    }

    /// Mean 0, variance 1.
    pub(super) fn gauss(&mut self) -> f32 {
        let bits = self.next();
        let (a, b) = (unit((bits >> 40) as u32), unit((bits & 0xff_ffff) as u32));
        (-2.0 * a.ln()).sqrt() * (TAU * b).cos()
    }

    /// Mean 1.
    pub(super) fn exponential(&mut self) -> f32 {
        -self.uniform().ln()
    }

    /// Each order equally likely.
    pub(super) fn shuffle<T>(&mut self, list: &mut [T]) {
        for i in (1..list.len()).rev() {
            list.swap(i, (self.next() % (i as u64 + 1)) as usize);
        }
    }
}

/// 24 bits to (0, 1].
fn unit(bits: u32) -> f32 {
    (bits + 1) as f32 / (1 << 24) as f32
}

/// The finisher of splitmix64.
pub(super) fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_those_of_the_distributions() {
        let mut random = Random::new(7, 0);
        let count = 200_000;
        let mut mean = |draw: fn(&mut Random) -> f32| {
            (0..count).map(|_| f64::from(draw(&mut random))).sum::<f64>() / f64::from(count)
        };
        assert!((mean(Random::uniform) - 0.5).abs() < 0.01);
        assert!((mean(Random::exponential) - 1.0).abs() < 0.01);
        assert!(mean(Random::gauss).abs() < 0.01);
        assert!((mean(|random| random.gauss().powi(2)) - 1.0).abs() < 0.02);
        assert!((mean(|random| random.gauss().powi(4)) - 3.0).abs() < 0.15);
    }
}
