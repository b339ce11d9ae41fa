//! How much of a delivery's work the prompt pass hid: work is kept in spans of time, since the instant that divides it is
//! known only later.

use std::time::{Duration, Instant};

/// Time spent on one kind of work, one span per chunk.
#[derive(Debug, Clone, Default)]
pub(crate) struct Busy {
    spans: Vec<(Instant, Instant)>,
}

impl Busy {
    /// A span that ends now.
    pub(crate) fn since(&mut self, started: Instant) {
        self.spans.push((started, Instant::now()));
    }

    /// All of it.
    pub(crate) fn total(&self) -> Duration {
        self.spans.iter().map(|(start, end)| end.saturating_duration_since(*start)).sum()
    }

    /// What lay before an instant.
    fn before(&self, at: Instant) -> Duration {
        self.spans.iter().map(|(start, end)| at.min(*end).saturating_duration_since(*start)).sum()
    }
}

/// Share of all `work` that lay before an instant; 0 if there was none.
pub(crate) fn overlap(work: &[Busy], at: Instant) -> f32 {
    let sum = |part: fn(&Busy, Instant) -> Duration| -> f32 {
        work.iter().map(|busy| part(busy, at).as_secs_f32()).sum()
    };
    let (before, total) = (sum(Busy::before), sum(|busy, _| busy.total()));
    if total > 0.0 { before / total } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_lay_before_counts_as_hidden() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let busy =
            |spans: &[(u64, u64)]| Busy { spans: spans.iter().map(|&(a, b)| (at(a), at(b))).collect() };
        let (coding, sending) = (busy(&[(0, 10), (20, 30)]), busy(&[(10, 20), (30, 40)]));
        assert_eq!(coding.total(), Duration::from_millis(20));
        for (done, expected) in [(0, 0.0), (10, 0.25), (25, 0.625), (40, 1.0), (99, 1.0)] {
            let share = overlap(&[coding.clone(), sending.clone()], at(done));
            assert!((share - expected).abs() < 1e-6, "{done}: {share}");
        }
        assert_eq!(overlap(&[], start), 0.0);
    }
}
