//! What QUIC counted on one connection, as a plain value.

use std::time::Duration;

/// Counters since the connection was made, and the present state of its path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerStats {
    /// UDP payload bytes sent, everything included: headers, acknowledgements, repeats, probes.
    pub udp_tx_bytes: u64,
    /// UDP payload bytes received.
    pub udp_rx_bytes: u64,
    /// UDP datagrams sent.
    pub udp_tx_datagrams: u64,
    /// UDP datagrams received.
    pub udp_rx_datagrams: u64,
    /// Present estimate of the round trip.
    pub rtt: Duration,
    /// Present congestion window, in bytes.
    pub congestion_window_bytes: u64,
    /// Packets taken for lost.
    pub lost_packets: u64,
    /// Bytes in them.
    pub lost_bytes: u64,
    /// Largest UDP payload that the path is known to carry, in bytes.
    pub mtu_bytes: u16,
}

impl From<quinn::ConnectionStats> for PeerStats {
    fn from(stats: quinn::ConnectionStats) -> Self {
        Self {
            udp_tx_bytes: stats.udp_tx.bytes,
            udp_rx_bytes: stats.udp_rx.bytes,
            udp_tx_datagrams: stats.udp_tx.datagrams,
            udp_rx_datagrams: stats.udp_rx.datagrams,
            rtt: stats.path.rtt,
            congestion_window_bytes: stats.path.cwnd,
            lost_packets: stats.path.lost_packets,
            lost_bytes: stats.path.lost_bytes,
            mtu_bytes: stats.path.current_mtu,
        }
    }
}
