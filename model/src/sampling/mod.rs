//! One token from one row of logits. A draw depends only on the settings, the logits, the token's position and, where the
//! settings penalize tokens, those so far; so a decode node continues exactly where a prefill node stopped and a split run
//! equals an unsplit one.
//!
//! [`Sampling`] is the plain draw. [`Draws`] is what a session has: that draw, what is to be done to the logits before it
//! ([`Edits`]), and what is to be told of it ([`Logprobs`]).

#[cfg(any(test, feature = "cuda"))]
mod candidates;
mod draws;
mod edits;
mod logprobs;

use std::cmp::Ordering;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

#[cfg(feature = "cuda")]
pub(crate) use self::candidates::Candidates;
pub use self::draws::{Drawn, Draws};
pub use self::edits::Edits;
pub use self::logprobs::Logprobs;

/// How tokens are drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// 0 takes the most likely token; otherwise logits are divided by it.
    pub temperature: f32,
    /// Of the most likely tokens keep as few as hold this probability, in (0, 1].
    pub top_p: f32,
    /// Keep at most this many of the most likely tokens; 0 keeps all.
    pub top_k: usize,
    /// Drop tokens whose probability is below this share of the most likely one's, in [0, 1]; 0 keeps all.
    pub min_p: f32,
    /// Seed of the draws.
    pub seed: u64,
}

impl Sampling {
    /// Always the most likely token.
    pub const GREEDY: Self = Self { temperature: 0.0, top_p: 1.0, top_k: 0, min_p: 0.0, seed: 0 };

    /// Whether the most likely token is always taken.
    #[must_use]
    pub fn is_greedy(&self) -> bool {
        self.temperature <= 0.0 || self.top_k == 1
    }

    /// Draws the token that will stand at `position` of the sequence from `logits` `[vocab]`.
    ///
    /// # Panics
    /// When `logits` is empty.
    #[must_use]
    pub fn draw(&self, logits: &[f32], position: usize) -> u32 {
        if self.is_greedy() {
            return argmax(logits);
        }
        let kept = self.kept(logits);
        let total = kept.iter().map(|(_, p)| p).sum();
        let mut left = self.threshold(total, position);
        for (id, p) in &kept {
            left -= p;
            if left < 0.0 {
                return *id;
            }
        }
        kept.last().expect("at least one token is kept; this is a bug").0
    }

    /// A uniform draw from `[0, total)` that belongs to the position.
    fn threshold(&self, total: f64, position: usize) -> f64 {
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        rng.set_stream(position as u64);
        rng.random::<f64>() * total
    }

    /// Keeps of tokens with their weights, most likely first, those that min-p leaves: the first one weighs 1.
    fn drop_unlikely(&self, all: &mut Vec<(u32, f64)>) {
        if self.min_p > 0.0 {
            let least = f64::from(self.min_p);
            all.truncate(all.partition_point(|(_, p)| *p >= least).max(1));
        }
    }

    /// Tokens that may be drawn with their unnormalised probabilities, most likely first: top-k, then min-p, then
    /// top-p.
    fn kept(&self, logits: &[f32]) -> Vec<(u32, f64)> {
        let top = f64::from(logits[argmax(logits) as usize]);
        let temperature = f64::from(self.temperature);
        let weight = |logit: f32| ((f64::from(logit) - top) / temperature).exp();
        let mut all: Vec<(u32, f64)> = (0..).zip(logits.iter().map(|l| weight(*l))).collect();
        let k = if self.top_k == 0 { all.len() } else { self.top_k.min(all.len()) };
        if k < all.len() {
            all.select_nth_unstable_by(k, by_weight);
            all.truncate(k);
        }
        all.sort_unstable_by(by_weight);
        self.drop_unlikely(&mut all);
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

/// Most likely first, of equals the one with the smaller id.
fn by_weight(a: &(u32, f64), b: &(u32, f64)) -> Ordering {
    b.1.total_cmp(&a.1).then(a.0.cmp(&b.0))
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
        let hot = Sampling { temperature: 5.0, seed: 1, ..Sampling::GREEDY };
        assert_eq!(drawn(hot), [0, 1, 2, 3, 4]);
        assert_eq!(drawn(Sampling { top_k: 2, ..hot }), [1, 2]);
        // At temperature 1 the largest two hold 0.844 of the mass, the largest three 0.958.
        let nucleus = Sampling { temperature: 1.0, top_p: 0.9, seed: 1, ..Sampling::GREEDY };
        assert_eq!(drawn(nucleus), [0, 1, 2]);
        assert_eq!(drawn(Sampling { top_p: 1e-6, ..nucleus }), [1]);
    }

    #[test]
    fn min_p_drops_what_is_less_likely_than_its_share_of_the_likeliest() {
        // Against the largest, the others have exp of -1, -2, -3 and -4: 0.368, 0.135, 0.0498, 0.0183.
        let sampling = Sampling { temperature: 1.0, seed: 1, ..Sampling::GREEDY };
        for (min_p, left) in [
            (0.0, &[0, 1, 2, 3, 4][..]),
            (0.01, &[0, 1, 2, 3, 4]),
            (0.02, &[0, 1, 2, 4]),
            (0.2, &[1, 2]),
            (1.0, &[1]),
        ] {
            assert_eq!(drawn(Sampling { min_p, ..sampling }), left, "{min_p}");
        }
        // After temperature: at 2, the shares are 0.607, 0.368, 0.223 and 0.135.
        assert_eq!(drawn(Sampling { min_p: 0.2, temperature: 2.0, ..sampling }), [0, 1, 2, 4]);
        // Before top-p, whose mass is of what is left: 0.73 and 0.27 of the two.
        assert_eq!(drawn(Sampling { min_p: 0.3, top_p: 0.72, ..sampling }), [1]);
        assert_eq!(drawn(Sampling { min_p: 0.3, top_p: 0.74, ..sampling }), [1, 2]);
        assert_eq!(drawn(Sampling { min_p: 0.2, top_k: 1, ..sampling }), [1]);
    }

    #[test]
    fn draws_follow_the_distribution_and_only_seed_and_position() {
        let sampling = Sampling { temperature: 1.0, seed: 9, ..Sampling::GREEDY };
        let n = 20_000;
        let ones = (0..n).filter(|p| sampling.draw(&LOGITS, *p) == 1).count() as f64 / n as f64;
        let z: f64 = LOGITS.iter().map(|l| f64::from(*l).exp()).sum();
        assert!((ones - 3f64.exp() / z).abs() < 0.015, "{ones}");
        assert_eq!(sampling.draw(&LOGITS, 77), sampling.draw(&LOGITS, 77));
        let other = Sampling { seed: 10, ..sampling };
        assert!((0..50).any(|p| other.draw(&LOGITS, p) != sampling.draw(&LOGITS, p)));
    }
}
