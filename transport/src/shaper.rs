//! A link of a given speed in front of an endpoint's streams, for demonstrations and measurements on one machine.
//!
//! A token bucket kept as a timeline: the link is busy until some instant, and each piece of a frame books the
//! next stretch of it. Bookings are first come, first served and each stream holds at most one, so streams share
//! the link evenly. Waits are tokio timers, which are about 1 ms coarse: a piece that is due within
//! the slack goes at once, and a link that woke late catches up through the burst, so the mean rate is kept without spinning.
//!
//! What it is not: it counts stream bytes, not the few percent of UDP and QUIC headers, and adds no delay or loss.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Bytes that book the link at once. Small, so that streams interleave.
pub const PIECE_BYTES: usize = 16 * 1024;
/// Slower links would overflow the timeline.
const SLOWEST_GBPS: f64 = 1e-6;
/// How far behind its schedule the link may fall and still catch up.
const BURST: Duration = Duration::from_millis(2);
/// How far ahead of its schedule a piece may go rather than wait for a timer that is coarser.
const SLACK: Duration = Duration::from_micros(500);

/// A simulated link; clones share it.
#[derive(Debug, Clone)]
pub struct LinkShaper {
    link: Option<Arc<Link>>,
}

#[derive(Debug)]
struct Link {
    bytes_per_second: f64,
    busy_until: Mutex<Instant>,
}

impl LinkShaper {
    /// A link of `gbps` gigabits (10^9 bits) per second, 1 kb/s at least; zero, negative or NaN means no limit.
    pub fn new(gbps: f64) -> Self {
        let link = (gbps > 0.0 && gbps.is_finite()).then(|| Link {
            bytes_per_second: gbps.max(SLOWEST_GBPS) * 1e9 / 8.0,
            busy_until: Mutex::new(Instant::now()),
        });
        Self { link: link.map(Arc::new) }
    }

    /// No limit.
    pub fn unshaped() -> Self {
        Self { link: None }
    }

    /// Speed in gigabits per second, or none without a limit.
    pub fn gbps(&self) -> Option<f64> {
        self.link.as_ref().map(|link| link.bytes_per_second * 8.0 / 1e9)
    }

    /// Waits until `bytes` may go. Dropped while waiting, its stretch of the link stays unused.
    pub async fn pass(&self, bytes: usize) {
        let Some(link) = &self.link else { return };
        let start = link.book(bytes, Instant::now());
        if start > Instant::now() + SLACK {
            tokio::time::sleep_until(start).await;
        }
    }
}

impl Link {
    /// Books the link for `bytes` and gives the instant at which they may go.
    fn book(&self, bytes: usize, now: Instant) -> Instant {
        let mut busy_until = self.busy_until.lock().unwrap_or_else(PoisonError::into_inner);
        // A small piece may always go after a rest; a rest never earns more than the burst.
        let one_piece = self.time_for(PIECE_BYTES);
        let earliest = now.checked_sub(BURST.max(one_piece)).unwrap_or(now);
        let start = (*busy_until).max(earliest);
        *busy_until = start + self.time_for(bytes);
        start
    }

    fn time_for(&self, bytes: usize) -> Duration {
        Duration::from_secs_f64(bytes as f64 / self.bytes_per_second)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes booked within one second of a clock that is looked at every `tick`.
    fn booked_in_a_second(gbps: f64, tick: Duration) -> f64 {
        let shaper = LinkShaper::new(gbps);
        let link = shaper.link.as_ref().unwrap();
        let begin = Instant::now();
        let mut booked = 0;
        let mut now = begin;
        while now < begin + Duration::from_secs(1) {
            let start = link.book(PIECE_BYTES, now);
            while now < start {
                now += tick;
            }
            booked += PIECE_BYTES;
        }
        booked as f64
    }

    #[test]
    fn a_coarse_timer_does_not_slow_the_link() {
        for gbps in [1.0, 10.0, 100.0] {
            let expected = gbps * 1e9 / 8.0;
            let got = booked_in_a_second(gbps, Duration::from_micros(1100));
            assert!((got / expected - 1.0).abs() < 0.03, "{gbps} Gb/s: {got} of {expected} bytes");
        }
    }

    #[test]
    fn a_rest_earns_no_more_than_the_burst() {
        let shaper = LinkShaper::new(8.0);
        let link = shaper.link.as_ref().unwrap();
        let later = Instant::now() + Duration::from_secs(60);
        let mut at_once = 0;
        while link.book(PIECE_BYTES, later) <= later {
            at_once += PIECE_BYTES;
        }
        assert!(at_once <= 2_000_000 + PIECE_BYTES, "{at_once} bytes at once on a 1 GB/s link");
    }

    #[test]
    fn nonsense_speeds_mean_no_limit() {
        for gbps in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert_eq!(LinkShaper::new(gbps).gbps(), None);
        }
    }

    #[test]
    fn a_crawling_link_still_moves_a_piece() {
        let shaper = LinkShaper::new(1e-300);
        let link = shaper.link.as_ref().unwrap();
        let now = Instant::now();
        assert!(link.book(PIECE_BYTES, now + Duration::from_secs(1)) <= now + Duration::from_secs(1));
    }
}
