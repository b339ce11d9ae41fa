//! Measures what one connection carries on the loopback: `cargo run --release -p transport --example goodput`.
//!
//! Arguments: mebibytes to send (default 1024), link in Gb/s (default 0: unshaped), parallel streams (default 1).
#![allow(clippy::print_stdout, reason = "a measurement prints its result")]

use transport::probe::{Failure, goodput};

#[tokio::main(flavor = "multi_thread")]
async fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let mebibytes: usize = arguments.next().map_or(Ok(1024), |value| value.parse())?;
    let gbps: f64 = arguments.next().map_or(Ok(0.0), |value| value.parse())?;
    let streams: usize = arguments.next().map_or(Ok(1), |value| value.parse())?;
    let measured = goodput(mebibytes << 20, gbps, streams).await?;
    let (sent, got) = (measured.sender, measured.receiver);
    println!("{:.2} Gb/s: {} bytes in {:.3} s", measured.gbps(), measured.bytes, measured.seconds);
    println!(
        "  wire / stream bytes {:.4}, lost packets {}",
        got.udp_rx_bytes as f64 / measured.bytes as f64,
        sent.lost_packets
    );
    println!(
        "  mtu {} bytes, rtt {:?}, window {} bytes",
        sent.mtu_bytes, sent.rtt, sent.congestion_window_bytes
    );
    Ok(())
}
