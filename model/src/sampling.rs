//! One token from one row of logits. A draw depends only on the settings, the logits and the token's position, so a
//! decode node continues exactly where a prefill node stopped and a split run equals an unsplit one.

use std::cmp::Ordering;

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

    /// Tokens that may be drawn with their unnormalised probabilities, most likely first: top-k, then top-p.
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

#[cfg(any(test, feature = "cuda"))]
pub(crate) use candidates::Candidates;

/// Draws that know only the most likely tokens of a row, the rest being on a device.
#[cfg(any(test, feature = "cuda"))]
mod candidates {
    use super::{Sampling, by_weight};

    /// How far a sum in another order may be off, relative to the whole: far more than it is.
    const TOLERANCE: f64 = 1e-9;

    /// The largest logits of a row: every token that is not among them has a smaller one than all that are.
    #[derive(Debug, Clone)]
    pub(crate) struct Candidates {
        /// Tokens and their logits, in any order.
        pub(crate) logits: Vec<(u32, f32)>,
        /// Sum of `exp((logit - largest) / temperature)` over the whole row.
        pub(crate) total: f64,
        /// Logits of the whole row.
        pub(crate) vocab: usize,
    }

    impl Sampling {
        /// What [`Sampling::draw`] would draw from the whole row; none where the candidates leave that open.
        pub(crate) fn draw_among(&self, candidates: &Candidates, position: usize) -> Option<u32> {
            let mut all = self.weights(candidates)?;
            let known = all.len();
            if self.is_greedy() {
                return Some(all[0].0);
            }
            let k = if self.top_k == 0 { candidates.vocab } else { self.top_k.min(candidates.vocab) };
            all.truncate(k);
            // Where all that may be drawn are known, sums are those of the whole row to the last bit.
            let (total, slack) = match k <= known || known == candidates.vocab {
                true => (all.iter().map(|(_, p)| p).sum(), 0.0),
                false if k < candidates.vocab || !candidates.total.is_finite() => return None,
                false => (candidates.total, candidates.total * TOLERANCE),
            };
            if slack > 0.0 && self.top_p >= 1.0 {
                return walk(&all, self.threshold(total, position), slack);
            }
            let limit = f64::from(self.top_p) * total;
            all.truncate(nucleus(&all, limit, slack)?);
            let total = all.iter().map(|(_, p)| p).sum();
            walk(&all, self.threshold(total, position), 0.0)
        }

        /// Unnormalised probabilities as [`Sampling::draw`] has them, most likely first; none without a candidate.
        fn weights(&self, candidates: &Candidates) -> Option<Vec<(u32, f64)>> {
            let top = candidates.logits.iter().map(|(_, logit)| *logit).reduce(f32::max)?;
            let temperature = f64::from(self.temperature);
            let weight = |logit: f32| ((f64::from(logit) - f64::from(top)) / temperature).exp();
            let mut all: Vec<_> = match self.temperature > 0.0 {
                true => candidates.logits.iter().map(|(id, logit)| (*id, weight(*logit))).collect(),
                false => candidates.logits.iter().map(|(id, logit)| (*id, f64::from(*logit))).collect(),
            };
            all.sort_unstable_by(by_weight);
            Some(all)
        }
    }

    /// How many of the most likely tokens hold `limit`; nothing if `slack` decides, or these are too few.
    fn nucleus(all: &[(u32, f64)], limit: f64, slack: f64) -> Option<usize> {
        let mut sum = 0.0;
        for (count, (_, p)) in all.iter().enumerate() {
            if slack > 0.0 && (sum - limit).abs() <= slack {
                return None;
            }
            if sum >= limit {
                return Some(count.max(1));
            }
            sum += p;
        }
        // With nothing but these tokens, all of them are needed.
        (slack == 0.0 || sum - limit > slack).then_some(all.len())
    }

    /// The token at which `left` is used up; nothing if `slack` decides, or rounding at the end.
    fn walk(kept: &[(u32, f64)], mut left: f64, slack: f64) -> Option<u32> {
        for (id, p) in kept {
            left -= p;
            if slack > 0.0 && left.abs() <= slack {
                return None;
            }
            if left < 0.0 {
                return Some(*id);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The `count` largest of `logits`, and the total in another order.
    fn candidates(logits: &[f32], count: usize, temperature: f32) -> Candidates {
        let mut all: Vec<_> = (0..).zip(logits.iter().copied()).collect();
        all.sort_by(|a: &(u32, f32), b| b.1.total_cmp(&a.1));
        let (top, temperature) = (f64::from(all[0].1), f64::from(temperature));
        let total = logits.iter().rev().map(|l| ((f64::from(*l) - top) / temperature).exp()).sum();
        all.truncate(count);
        all.reverse();
        Candidates { logits: all, total, vocab: logits.len() }
    }

    #[test]
    fn candidates_draw_what_the_row_draws() {
        let logits: Vec<f32> = (0..2000).map(|i| ((i * 7919) % 1999) as f32 / 150.0).collect();
        for (top_k, top_p) in
            [(0, 1.0), (0, 0.9), (0, 0.3), (1, 1.0), (40, 0.95), (40, 1.0), (600, 0.5), (5000, 0.7)]
        {
            for temperature in [0.0, 0.05, 0.7, 1.0, 2.0] {
                let sampling = Sampling { temperature, top_p, top_k, seed: 11 };
                for count in [100, 500, 2000] {
                    let candidates = candidates(&logits, count, temperature);
                    let mut told = 0;
                    for position in 0..100 {
                        let drawn = sampling.draw_among(&candidates, position);
                        told += usize::from(drawn.is_some());
                        assert!(drawn.is_none_or(|id| id == sampling.draw(&logits, position)));
                    }
                    // Most of the mass lies in the first hundreds, and all of it in all.
                    // The sum over the first k of more than are known is not.
                    let is_known = top_k == 0 || top_k <= count || top_k >= logits.len();
                    let is_peaked = temperature < 0.1;
                    let enough = count == 2000 || (top_k <= count && top_k > 0) || (is_peaked && is_known);
                    assert!(
                        told == 100 || !enough && (top_p < 1.0 || told > 10),
                        "{sampling:?} {count}: {told}"
                    );
                }
            }
        }
    }

    #[test]
    fn no_candidates_leave_everything_open() {
        let none = Candidates { logits: Vec::new(), total: 5.0, vocab: 5 };
        assert_eq!(Sampling::GREEDY.draw_among(&none, 0), None);
    }

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
