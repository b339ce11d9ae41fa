//! Times as they travel in messages.

use std::time::Duration;

/// Milliseconds, fractions included.
#[must_use]
pub fn ms(duration: Duration) -> f32 {
    duration.as_secs_f32() * 1e3
}
