//! One token from one row of logits. A draw depends only on the settings, the logits and the token's position, so a
//! decode node continues exactly where a prefill node stopped and a split run equals an unsplit one.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// How tokens are drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// 0 takes the most likely token; otherwise logits are divided by it.
    pub temperature: f32,
    /// Of the most likely tokens keep as few as hold this probability, in (0, 1].
    pub top_p: f32,
    /// Keep at most this many of the most likely tokens; 0 keeps all.
    pub top_k: usize,
    /// Seed of the draws.
    pub seed: u64,
}

impl Sampling {
    /// Always the most likely token.
    pub const GREEDY: Self = Self { temperature: 0.0, top_p: 1.0, top_k: 0, seed: 0 };

    /// Draws the token that will stand at `position` of the sequence from `logits` `[vocab]`.
    ///
    /// # Panics
    /// When `logits` is empty.
    #[must_use]
    pub fn draw(&self, logits: &[f32], position: usize) -> u32 {
        if self.temperature <= 0.0 || self.top_k == 1 {
            return argmax(logits);
        }
        let kept = self.kept(logits);
        let total: f64 = kept.iter().map(|(_, p)| p).sum();
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        rng.set_stream(position as u64);
        let mut left = rng.random::<f64>() * total;
        for (id, p) in &kept {
            left -= p;
            if left < 0.0 {
                return *id;
            }
        }
        kept.last().expect("at least one token is kept; this is a bug").0
    }

    /// Tokens that may be drawn with their unnormalised probabilities, most likely first: top-k, then top-p.
    fn kept(&self, logits: &[f32]) -> Vec<(u32, f64)> {
        let top = f64::from(logits[argmax(logits) as usize]);
        let temperature = f64::from(self.temperature);
        let weight = |logit: f32| ((f64::from(logit) - top) / temperature).exp();
        let mut all: Vec<(u32, f64)> = (0..).zip(logits.iter().map(|l| weight(*l))).collect();
        let k = if self.top_k == 0 { all.len() } else { self.top_k.min(all.len()) };
        let by_weight = |a: &(u32, f64), b: &(u32, f64)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
        if k < all.len() {
            all.select_nth_unstable_by(k, by_weight);
            all.truncate(k);
        }
        all.sort_unstable_by(by_weight);
        let limit = f64::from(self.top_p) * all.iter().map(|(_, p)| p).sum::<f64>();
        let mut sum = 0.0;
        let needed = all.iter().take_while(|(_, p)| {
            let more = sum < limit;
            sum += p;
            more
        });
        let needed = needed.count().max(1);
        all.truncate(needed);
        all
    }
}

/// Index of the largest logit, the first of equals.
fn argmax(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (i, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = i;
        }
    }
    best as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOGITS: [f32; 5] = [1.0, 3.0, 2.0, -1.0, 0.0];

    fn drawn(sampling: Sampling) -> Vec<u32> {
        let mut ids: Vec<u32> = (0..2000).map(|position| sampling.draw(&LOGITS, position)).collect();
        ids.sort_unstable();
        ids.dedup();
        ids
    }

    #[test]
    fn greedy_takes_the_first_of_the_largest() {
        assert_eq!(Sampling::GREEDY.draw(&LOGITS, 3), 1);
        assert_eq!(Sampling::GREEDY.draw(&[2.0, 5.0, 5.0], 0), 1);
    }

    #[test]
    fn top_k_and_top_p_bound_what_can_be_drawn() {
        let hot = Sampling { temperature: 5.0, top_p: 1.0, top_k: 0, seed: 1 };
        assert_eq!(drawn(hot), [0, 1, 2, 3, 4]);
        assert_eq!(drawn(Sampling { top_k: 2, ..hot }), [1, 2]);
        // At temperature 1 the largest two hold 0.844 of the mass, the largest three 0.958.
        let nucleus = Sampling { temperature: 1.0, top_p: 0.9, top_k: 0, seed: 1 };
        assert_eq!(drawn(nucleus), [0, 1, 2]);
        assert_eq!(drawn(Sampling { top_p: 1e-6, ..nucleus }), [1]);
    }

    #[test]
    fn draws_follow_the_distribution_and_only_seed_and_position() {
        let sampling = Sampling { temperature: 1.0, top_p: 1.0, top_k: 0, seed: 9 };
        let n = 20_000;
        let ones = (0..n).filter(|p| sampling.draw(&LOGITS, *p) == 1).count() as f64 / n as f64;
        let z: f64 = LOGITS.iter().map(|l| f64::from(*l).exp()).sum();
        assert!((ones - 3f64.exp() / z).abs() < 0.015, "{ones}");
        assert_eq!(sampling.draw(&LOGITS, 77), sampling.draw(&LOGITS, 77));
        let other = Sampling { seed: 10, ..sampling };
        assert!((0..50).any(|p| other.draw(&LOGITS, p) != sampling.draw(&LOGITS, p)));
    }
}
