//! Averages of what was measured, recent values counting most, and forgotten when they are old.

use std::time::{Duration, Instant};

/// Weight of what was known when one more value comes.
const KEPT: f64 = 0.7;
/// What is older says nothing any more: a machine or a link may have changed, and only a new request shows it.
pub(crate) const MAX_AGE: Duration = Duration::from_secs(300);

/// A value, averaged with weights that fall by the request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mean {
    value: f64,
    at: Instant,
}

/// Milliseconds of a prompt pass as a straight line in its tokens, fitted with weights that fall by the request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fit {
    weight: f64,
    tokens: f64,
    ms: f64,
    tokens_tokens: f64,
    tokens_ms: f64,
    at: Instant,
}

/// A fitted line.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Line {
    /// For any prompt.
    pub(crate) fixed_ms: f64,
    pub(crate) ms_per_token: f64,
    /// Of the prompts seen, on average.
    pub(crate) mean_ms: f64,
}

impl Mean {
    pub(crate) fn new(value: f64, at: Instant) -> Self {
        Self { value, at }
    }

    /// Takes one more value.
    pub(crate) fn add(&mut self, value: f64, at: Instant) {
        let kept = if is_old(self.at, at) { 0.0 } else { KEPT };
        (self.value, self.at) = (kept * self.value + (1.0 - kept) * value, at);
    }

    /// The average, unless it is old.
    pub(crate) fn get(&self, now: Instant) -> Option<f64> {
        (!is_old(self.at, now)).then_some(self.value)
    }
}

impl Fit {
    pub(crate) fn new(tokens: f64, ms: f64, at: Instant) -> Self {
        Self { weight: 1.0, tokens, ms, tokens_tokens: tokens * tokens, tokens_ms: tokens * ms, at }
    }

    /// Takes one more prompt.
    pub(crate) fn add(&mut self, tokens: f64, ms: f64, at: Instant) {
        let kept = if is_old(self.at, at) { 0.0 } else { KEPT };
        let one = Self::new(tokens, ms, at);
        self.weight = kept * self.weight + one.weight;
        self.tokens = kept * self.tokens + one.tokens;
        self.ms = kept * self.ms + one.ms;
        self.tokens_tokens = kept * self.tokens_tokens + one.tokens_tokens;
        self.tokens_ms = kept * self.tokens_ms + one.tokens_ms;
        self.at = at;
    }

    /// The line, unless it is old. Prompts of nearly one length give one through the origin, and so do ones whose
    /// line would not rise or would begin below it.
    pub(crate) fn line(&self, now: Instant) -> Option<Line> {
        if is_old(self.at, now) {
            return None;
        }
        let (mean_tokens, mean_ms) = (self.tokens / self.weight, self.ms / self.weight);
        let spread = self.tokens_tokens / self.weight - mean_tokens * mean_tokens;
        let together = self.tokens_ms / self.weight - mean_tokens * mean_ms;
        let ms_per_token = together / spread;
        let fixed_ms = mean_ms - ms_per_token * mean_tokens;
        let has_slope = spread > 0.01 * mean_tokens * mean_tokens && ms_per_token > 0.0 && fixed_ms >= 0.0;
        Some(if has_slope {
            Line { fixed_ms, ms_per_token, mean_ms }
        } else {
            Line { fixed_ms: 0.0, ms_per_token: mean_ms / mean_tokens, mean_ms }
        })
    }
}

impl Line {
    /// Milliseconds for a prompt of `tokens`.
    pub(crate) fn ms(&self, tokens: f64) -> f64 {
        self.fixed_ms + self.ms_per_token * tokens
    }
}

fn is_old(at: Instant, now: Instant) -> bool {
    now.saturating_duration_since(at) > MAX_AGE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_straight_line_is_found_and_one_length_gives_a_proportion() {
        let now = Instant::now();
        let mut fit = Fit::new(100.0, 30.0, now);
        assert_eq!(fit.line(now), Some(Line { fixed_ms: 0.0, ms_per_token: 0.3, mean_ms: 30.0 }));
        for tokens in [500.0, 900.0, 200.0] {
            fit.add(tokens, 10.0 + 0.2 * tokens, now);
        }
        let line = fit.line(now).unwrap();
        assert!((line.fixed_ms - 10.0).abs() < 1e-6 && (line.ms_per_token - 0.2).abs() < 1e-9, "{line:?}");
        assert!((line.ms(1000.0) - 210.0).abs() < 1e-6);
    }

    #[test]
    fn a_line_that_would_fall_or_begin_below_zero_goes_through_the_origin() {
        let now = Instant::now();
        for second in [10.0, 1000.0] {
            let mut fit = Fit::new(100.0, 30.0, now);
            fit.add(200.0, second, now);
            let line = fit.line(now).unwrap();
            assert!(line.fixed_ms == 0.0 && line.ms_per_token > 0.0, "{line:?}");
        }
    }

    #[test]
    fn a_new_speed_is_followed_within_a_few_requests() {
        let now = Instant::now();
        let mut mean = Mean::new(100.0, now);
        (0..8).for_each(|_| mean.add(10.0, now));
        assert!((10.0..16.0).contains(&mean.get(now).unwrap()));
    }

    #[test]
    fn what_is_old_is_forgotten() {
        let now = Instant::now();
        let later = now + MAX_AGE + Duration::from_secs(1);
        let (mut mean, mut fit) = (Mean::new(1.0, now), Fit::new(10.0, 10.0, now));
        assert!(mean.get(later).is_none() && fit.line(later).is_none());
        mean.add(5.0, later);
        fit.add(10.0, 20.0, later);
        assert_eq!((mean.get(later), fit.line(later).unwrap().ms_per_token), (Some(5.0), 2.0));
    }
}
