//! Where a calibration's time goes.

use std::time::{Duration, Instant};

/// Phases that are done, and the one that runs.
#[derive(Debug)]
pub(super) struct Clock {
    started: Instant,
    since: Instant,
    phases: Vec<(&'static str, Duration)>,
}

impl Clock {
    pub(super) fn start() -> Self {
        let now = Instant::now();
        Self { started: now, since: now, phases: Vec::new() }
    }

    /// Ends a phase; the next one begins.
    pub(super) fn end(&mut self, phase: &'static str) {
        let now = Instant::now();
        self.phases.push((phase, now - self.since));
        self.since = now;
    }

    /// Phases in the order in which they ended.
    pub(super) fn phases(&self) -> &[(&'static str, Duration)] {
        &self.phases
    }

    /// From the start to the end of the last phase.
    pub(super) fn elapsed(&self) -> Duration {
        self.since - self.started
    }
}
