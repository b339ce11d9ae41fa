//! A link of a given speed in front of an endpoint's streams, for demonstrations and measurements on one machine.
//!
//! A token bucket kept as a timeline: the link is busy until some instant, and each piece of a frame books the
//! next stretch of it. Bookings are first come, first served and each stream holds at most one, so streams share
//! the link evenly. Waits are tokio timers, which are about 1 ms coarse, so the account is kept instead of spinning:
//! a piece that is due very soon goes at once, and senders that woke late catch up what they missed. A link at rest
//! saves up nothing: a short transfer takes as long as on a real link.
//!
//! The speed can be changed while streams run; pieces already booked keep their place.
//!
//! What it is not: it counts stream bytes, not the few percent of UDP and QUIC headers, and adds no delay or loss.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Bytes that book the link at once. Small, so that streams interleave.
pub const PIECE_BYTES: usize = 16 * 1024;
/// Slower links would overflow the timeline.
const SLOWEST_GBPS: f64 = 1e-6;
/// How late a busy link may be and still catch up.
const CATCH_UP: Duration = Duration::from_millis(20);
/// A link that nobody has used for so long was at rest, not late.
pub(crate) const REST: Duration = Duration::from_millis(3);
/// How far ahead of its schedule a piece may go rather than wait for a timer that is coarser.
const SLACK: Duration = Duration::from_micros(500);

/// A simulated link; clones share it.
#[derive(Debug, Clone)]
pub struct LinkShaper {
    timeline: Arc<Mutex<Timeline>>,
}

#[derive(Debug)]
struct Timeline {
    /// None without a limit.
    bytes_per_second: Option<f64>,
    /// End of the last booking.
    busy_until: Instant,
    /// When a piece last went out.
    last_used: Instant,
}

impl LinkShaper {
    /// A link of `gbps` gigabits (10^9 bits) per second, 1 kb/s at least; zero, negative or NaN means no limit.
    pub fn new(gbps: f64) -> Self {
        let (bytes_per_second, now) = (bytes_per_second(gbps), Instant::now());
        let timeline = Timeline { bytes_per_second, busy_until: now, last_used: now };
        Self { timeline: Arc::new(Mutex::new(timeline)) }
    }

    /// No limit.
    pub fn unshaped() -> Self {
        Self::new(0.0)
    }

    /// Speed in gigabits per second, or none without a limit.
    pub fn gbps(&self) -> Option<f64> {
        self.timeline().bytes_per_second.map(|speed| speed * 8.0 / 1e9)
    }

    /// Makes it a link of another speed from the next piece on; see [`Self::new`] for what `gbps` means.
    pub fn set_gbps(&self, gbps: f64) {
        let mut timeline = self.timeline();
        timeline.bytes_per_second = bytes_per_second(gbps);
        // What was booked at the old speed may lie far ahead.
        timeline.busy_until = timeline.busy_until.min(Instant::now());
    }

    /// Waits until `bytes` may go. Dropped while waiting, its stretch of the link stays unused.
    pub async fn pass(&self, bytes: usize) {
        let Some(start) = self.timeline().book(bytes, Instant::now()) else { return };
        if start > Instant::now() + SLACK {
            tokio::time::sleep_until(start).await;
        }
        self.timeline().last_used = Instant::now();
    }

    fn timeline(&self) -> MutexGuard<'_, Timeline> {
        self.timeline.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Timeline {
    /// Books the link for `bytes` and gives the instant at which they may go; none without a limit.
    fn book(&mut self, bytes: usize, now: Instant) -> Option<Instant> {
        let time = Duration::from_secs_f64(bytes as f64 / self.bytes_per_second?);
        let allowance =
            if now.saturating_duration_since(self.last_used) < REST { CATCH_UP } else { Duration::ZERO };
        let start = self.busy_until.max(now.checked_sub(allowance).unwrap_or(now));
        self.busy_until = start + time;
        Some(start)
    }
}

fn bytes_per_second(gbps: f64) -> Option<f64> {
    (gbps > 0.0 && gbps.is_finite()).then(|| gbps.max(SLOWEST_GBPS) * 1e9 / 8.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes through the link within `time`, by one sender whose timer only wakes at multiples of `tick`.
    fn sent_within(link: &LinkShaper, begin: Instant, time: Duration, tick: Duration) -> f64 {
        let (mut now, mut sent) = (begin, 0);
        while now < begin + time {
            let start = link.timeline().book(PIECE_BYTES, now).unwrap();
            while now + SLACK < start {
                now += tick;
            }
            link.timeline().last_used = now;
            sent += PIECE_BYTES;
        }
        sent as f64
    }

    #[test]
    fn a_coarse_timer_does_not_slow_the_link() {
        for gbps in [1.0, 10.0, 100.0] {
            for tick in [Duration::from_micros(1100), Duration::from_millis(10)] {
                let sent = sent_within(&LinkShaper::new(gbps), Instant::now(), Duration::from_secs(1), tick);
                let expected = gbps * 1e9 / 8.0;
                assert!(
                    (sent / expected - 1.0).abs() < 0.03,
                    "{gbps} Gb/s, {tick:?}: {sent} of {expected} bytes"
                );
            }
        }
    }

    #[test]
    fn a_rest_saves_nothing_up() {
        let link = LinkShaper::new(1.0);
        let later = Instant::now() + Duration::from_secs(60);
        let sent = sent_within(&link, later, Duration::from_millis(10), Duration::from_millis(1));
        let expected = 1e9 / 8.0 * 0.010;
        assert!((sent / expected - 1.0).abs() < 0.15, "{sent} of {expected} bytes in 10 ms after a rest");
    }

    #[test]
    fn nonsense_speeds_mean_no_limit() {
        for gbps in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert_eq!(LinkShaper::new(gbps).gbps(), None);
        }
    }

    #[test]
    fn a_crawling_link_still_moves_a_piece() {
        let link = LinkShaper::new(1e-300);
        let later = Instant::now() + Duration::from_secs(1);
        let mut timeline = link.timeline();
        assert_eq!(timeline.book(PIECE_BYTES, later), Some(later));
        assert!(timeline.book(PIECE_BYTES, later) > Some(later + Duration::from_secs(60)));
    }

    #[test]
    fn a_change_of_speed_forgets_what_the_old_one_had_booked() {
        let link = LinkShaper::new(1e-300);
        let later = Instant::now() + Duration::from_secs(1);
        link.timeline().book(PIECE_BYTES, later);
        link.set_gbps(1.0);
        assert_eq!(link.timeline().book(PIECE_BYTES, later), Some(later));
        link.set_gbps(0.0);
        assert_eq!(link.gbps(), None);
        assert_eq!(link.timeline().book(PIECE_BYTES, later), None);
    }
}
