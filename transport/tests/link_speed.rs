//! How fast the sender takes the link to be, on links of known speed.
#![allow(clippy::unwrap_used, reason = "a test's helpers fail as its assertions do")]

mod kit;

use std::time::Duration;

use bytes::Bytes;
use kit::{Pair, SOON, pair};
use transport::{EndpointConfig, Frame, LinkShaper};

async fn on_link(gbps: f64) -> Pair {
    pair(EndpointConfig { link: LinkShaper::new(gbps), ..Default::default() }).await
}

/// Sends frames with a pause before each, to a reader that pauses after each, and gives the sender's estimate at the end.
async fn estimate(pair: &Pair, frames: &[usize], sender: Duration, reader: Duration) -> Option<f64> {
    let (mut here, mut there) = pair.stream().await;
    let reading = tokio::spawn(async move {
        while let Frame::Data(_) = there.receiver.recv::<u8>(SOON).await.unwrap() {
            tokio::time::sleep(reader).await;
        }
    });
    for &bytes in frames {
        tokio::time::sleep(sender).await;
        here.sender.send_data(Bytes::from(vec![7; bytes])).await.unwrap();
    }
    let gbps = here.sender.link_gbps();
    here.sender.finish().unwrap();
    here.sender.stopped().await;
    reading.await.unwrap();
    gbps
}

/// Retries, since a machine that is busy otherwise can disturb any single measurement.
async fn is_near(gbps: f64, frames: &[usize], sender: Duration, reader: Duration) {
    let mut seen = Vec::new();
    for _ in 0..6 {
        let estimate = estimate(&on_link(gbps).await, frames, sender, reader).await.unwrap_or(0.0);
        seen.push(estimate / gbps);
        if (0.8..1.2).contains(&(estimate / gbps)) {
            return;
        }
    }
    panic!("{gbps} Gb/s was taken for {seen:?} of it");
}

const NONE: Duration = Duration::ZERO;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_link_is_measured_within_20_percent() {
    for gbps in [0.05, 0.2, 1.0] {
        let second = (gbps * 1e9 / 8.0) as usize;
        is_near(gbps, &[second / 8; 4], NONE, NONE).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_producer_that_is_slower_than_the_link_does_not_hide_it() {
    let pause = Duration::from_millis(40);
    is_near(0.05, &[60_000; 12], pause, NONE).await;
    is_near(0.2, &[100_000; 12], pause, NONE).await;
    is_near(1.0, &[1_000_000; 12], pause, NONE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_small_cache_is_enough_for_a_first_estimate() {
    is_near(0.05, &[300_000], NONE, NONE).await;
    is_near(0.2, &[600_000], NONE, NONE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_reader_does_not_make_the_link_slow() {
    // 6 MB within the stream's window, and 30 MB far beyond it, at a fifth of the link's speed.
    is_near(0.2, &[1_000_000; 6], NONE, Duration::from_millis(200)).await;
    is_near(1.0, &[1_000_000; 30], NONE, Duration::from_millis(40)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_speed_is_noticed() {
    let link = LinkShaper::new(0.05);
    let pair = pair(EndpointConfig { link: link.clone(), ..Default::default() }).await;
    for (gbps, seconds) in [(0.05, 0.5), (0.5, 0.8), (0.1, 3.0)] {
        link.set_gbps(gbps);
        let bytes = (gbps * 1e9 / 8.0 * seconds / 4.0) as usize;
        let seen = estimate(&pair, &[bytes; 4], NONE, NONE).await.unwrap() / gbps;
        assert!((0.7..1.4).contains(&seen), "{gbps} Gb/s was taken for {seen} of it");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_alone_are_no_measurement() {
    let pair = on_link(0.05).await;
    let (mut here, mut there) = pair.stream().await;
    for _ in 0..100 {
        here.sender.send(&[1u8; 32]).await.unwrap();
        there.receiver.recv_message::<[u8; 32]>(SOON).await.unwrap();
    }
    assert_eq!(here.sender.link_gbps(), None);
}
