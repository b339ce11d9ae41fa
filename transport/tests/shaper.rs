//! The simulated link on a clock that the runtime moves, so that the machine's own speed plays no part.
#![allow(clippy::unwrap_used, reason = "a test's helpers fail as its assertions do")]

use std::time::Duration;

use tokio::time::{Instant, sleep_until};
use transport::LinkShaper;
use transport::shaper::PIECE_BYTES;

/// Bytes that each of `streams` senders gets through within `time`.
async fn shares(shaper: &LinkShaper, streams: usize, time: Duration) -> Vec<f64> {
    let end = Instant::now() + time;
    let senders: Vec<_> = (0..streams)
        .map(|_| {
            let shaper = shaper.clone();
            tokio::spawn(async move {
                let mut sent = 0;
                while Instant::now() < end {
                    shaper.pass(PIECE_BYTES).await;
                    sent += PIECE_BYTES;
                    tokio::task::yield_now().await;
                }
                sent as f64
            })
        })
        .collect();
    let mut shares = Vec::new();
    for sender in senders {
        shares.push(sender.await.unwrap());
    }
    shares
}

#[tokio::test(start_paused = true)]
async fn a_second_carries_what_the_speed_says() {
    for gbps in [0.1, 1.0, 10.0, 40.0] {
        let expected = gbps * 1e9 / 8.0;
        let sent = shares(&LinkShaper::new(gbps), 1, Duration::from_secs(1)).await[0];
        assert!((sent / expected - 1.0).abs() < 0.03, "{gbps} Gb/s: {sent} of {expected} bytes");
    }
}

#[tokio::test(start_paused = true)]
async fn many_streams_get_equal_shares_of_one_link() {
    let expected = 1e9 / 8.0;
    let shares = shares(&LinkShaper::new(1.0), 16, Duration::from_secs(1)).await;
    let sum: f64 = shares.iter().sum();
    assert!((sum / expected - 1.0).abs() < 0.03, "{sum} of {expected} bytes");
    // Sleepers of one millisecond wake in any order, so the shares are not exactly equal.
    for share in &shares {
        assert!((share / sum * 16.0 - 1.0).abs() < 0.1, "uneven: {shares:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_small_message_waits_no_longer_than_the_others_take() {
    let shaper = LinkShaper::new(0.1);
    let busy: Vec<_> = (0..4)
        .map(|_| {
            let shaper = shaper.clone();
            tokio::spawn(async move {
                loop {
                    shaper.pass(PIECE_BYTES).await;
                }
            })
        })
        .collect();
    sleep_until(Instant::now() + Duration::from_secs(1)).await;
    let begin = Instant::now();
    shaper.pass(100).await;
    let waited = begin.elapsed();
    // Four pieces of 16 KiB take 5.2 ms at 0.1 Gb/s.
    assert!(waited < Duration::from_millis(8), "{waited:?}");
    busy.iter().for_each(|task| task.abort());
}
