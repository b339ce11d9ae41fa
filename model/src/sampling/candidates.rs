//! Draws that know only the most likely tokens of a row, the rest being on a device.

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
        // What min-p leaves is known where it drops a candidate: all others are less likely still.
        let dropped = self.min_p > 0.0 && all.last().is_some_and(|(_, p)| *p < f64::from(self.min_p));
        let k = if self.top_k == 0 { candidates.vocab } else { self.top_k.min(candidates.vocab) };
        all.truncate(k);
        if self.min_p > 0.0 {
            if !dropped && known < k {
                return None;
            }
            self.drop_unlikely(&mut all);
        }
        // Where all that may be drawn are known, sums are those of the whole row to the last bit.
        let (total, slack) = match k <= known || dropped || known == candidates.vocab {
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
        for (top_k, top_p, min_p) in [
            (0, 1.0, 0.0),
            (0, 0.9, 0.0),
            (0, 0.3, 0.0),
            (1, 1.0, 0.0),
            (40, 0.95, 0.0),
            (40, 1.0, 0.0),
            (600, 0.5, 0.0),
            (5000, 0.7, 0.0),
            (0, 1.0, 0.2),
            (0, 0.9, 0.02),
            (40, 1.0, 0.05),
            (600, 0.95, 1.0),
            (0, 0.9, 1e-5),
        ] {
            for temperature in [0.0, 0.05, 0.7, 1.0, 2.0] {
                let sampling = Sampling { temperature, top_p, top_k, min_p, seed: 11 };
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
                    let is_within = count == 2000 || (top_k <= count && top_k > 0);
                    // Min-p leaves only candidates where it drops one; where it does not, nothing is told.
                    let last = f64::from(candidates.logits[0].1 - candidates.logits[count - 1].1);
                    let drops = min_p > 0.0 && (last / f64::from(temperature)).exp() < f64::from(min_p);
                    let enough = is_within || if min_p > 0.0 { drops } else { is_peaked && is_known };
                    assert!(
                        told == 100 || !enough && (top_p < 1.0 || min_p > 0.0 || told > 10),
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
}
