//! Bytes over time: what the simulated link lets through, how streams share it, what is counted.
#![allow(clippy::unwrap_used, reason = "a test's helpers fail as its assertions do")]

mod kit;

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use kit::{Pair, SOON, pair};
use tokio::sync::Barrier;
use transport::{EndpointConfig, Frame, LinkShaper, Receiver, Stream};

const CHUNK: usize = 256 * 1024;

fn link(gbps: f64) -> EndpointConfig {
    EndpointConfig { link: LinkShaper::new(gbps), ..Default::default() }
}

/// Sends `bytes` in chunks and finishes.
async fn send(mut stream: Stream, bytes: usize) {
    let chunk = Bytes::from(vec![7; CHUNK]);
    for _ in 0..bytes / CHUNK {
        stream.sender.send_data(chunk.clone()).await.unwrap();
    }
    stream.sender.finish().unwrap();
    stream.sender.stopped().await;
}

/// Takes all data and gives its length.
async fn drain(receiver: &mut Receiver) -> usize {
    let mut total = 0;
    while let Frame::Data(data) = receiver.recv::<u8>(SOON).await.unwrap() {
        total += data.len();
    }
    total
}

async fn transfer(pair: &Pair, bytes: usize) -> (Duration, Receiver) {
    let (here, mut there) = pair.stream().await;
    let begin = Instant::now();
    let sending = tokio::spawn(send(here, bytes));
    assert_eq!(drain(&mut there.receiver).await, bytes);
    let elapsed = begin.elapsed();
    sending.await.unwrap();
    (elapsed, there.receiver)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transfer_takes_the_time_that_the_link_needs() {
    let gbps = 0.4;
    let pair = pair(link(gbps)).await;
    let bytes = 200 * CHUNK;
    let expected = bytes as f64 * 8.0 / (gbps * 1e9);
    // A machine that is busy otherwise can only slow a transfer down, so the best of a few counts.
    let mut best = f64::INFINITY;
    for _ in 0..4 {
        let (elapsed, receiver) = transfer(&pair, bytes).await;
        // Chunks follow each other, so that nearly all the time some chunk was arriving.
        let arriving = receiver.receive_time();
        assert!(arriving <= elapsed && arriving > elapsed.mul_f64(0.8), "{arriving:?} of {elapsed:?}");
        best = best.min(elapsed.as_secs_f64() / expected);
        assert!(best > 0.97, "faster than the link: {best} of the time it needs");
        if best < 1.03 {
            return;
        }
    }
    panic!("slower than the link: {best} of the time it needs");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parallel_streams_all_move() {
    const STREAMS: usize = 8;
    let pair = pair(link(0.4)).await;
    let together = Arc::new(Barrier::new(STREAMS));
    let (mut receivers, mut senders) = (Vec::new(), Vec::new());
    for _ in 0..STREAMS {
        let (here, there) = pair.stream().await;
        senders.push(tokio::spawn(send(here, 1 << 30)));
        receivers.push(tokio::spawn(received_within(
            there,
            Arc::clone(&together),
            Duration::from_millis(700),
        )));
    }
    let mut measured = Vec::new();
    for receiver in receivers {
        measured.push(receiver.await.unwrap());
    }
    senders.iter().for_each(|sender| sender.abort());
    let shares: Vec<_> = measured.iter().map(|(bytes, _)| *bytes as f64).collect();
    let mean = shares.iter().sum::<f64>() / STREAMS as f64;
    // How even the link itself is, is measured on a paused clock; here QUIC and the machine have their say.
    assert!(shares.iter().all(|share| (share / mean - 1.0).abs() < 0.5), "mean {mean}: {shares:?}");
}

/// Bytes read in `time` from the moment that all receivers have begun. The stream is given back, so that
/// the others do not get its share before they have been measured.
async fn received_within(mut stream: Stream, together: Arc<Barrier>, time: Duration) -> (u64, Stream) {
    together.wait().await;
    let (begin, before) = (Instant::now(), stream.receiver.bytes_read());
    while begin.elapsed() < time {
        stream.receiver.recv::<u8>(SOON).await.unwrap();
    }
    (stream.receiver.bytes_read() - before, stream)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn counted_bytes_are_those_of_the_wire_within_5_percent() {
    let pair = pair(EndpointConfig::default()).await;
    let before = pair.decode.stats().udp_rx_bytes;
    let (_, receiver) = transfer(&pair, 10 << 20).await;
    let on_the_wire = (pair.decode.stats().udp_rx_bytes - before) as f64;
    let counted = receiver.bytes_read() as f64;
    assert!((on_the_wire / counted - 1.0).abs() < 0.05, "{counted} counted, {on_the_wire} on the wire");
}
