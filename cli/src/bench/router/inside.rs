//! What the router says of its own part, as the difference of two readings of its metrics.

use std::net::SocketAddr;

use anyhow::Context;

use crate::bench::timing::Figures;

/// Buckets of the router's histograms, and what they are called here.
const HISTOGRAMS: [(&str, &str); 2] = [
    ("kvferry_router_dispatch_seconds_bucket", "inside_request_to_prefill"),
    ("kvferry_router_token_seconds_bucket", "inside_token_to_event"),
];

/// One reading.
#[derive(Debug)]
pub(super) struct Inside {
    nodes: f64,
    /// Bounds with the samples up to them, for each of [`HISTOGRAMS`]; none where the router has no such metric.
    histograms: [Vec<(f64, f64)>; 2],
}

impl Inside {
    pub(super) async fn read(router: SocketAddr) -> anyhow::Result<Self> {
        // A router is a neighbour, to which no proxy leads.
        let http = reqwest::Client::builder().no_proxy().build()?;
        let answer = http.get(format!("http://{router}/metrics")).send().await;
        let page = answer.context("the router does not answer")?.error_for_status()?.text().await?;
        let nodes = samples(&page, "kvferry_router_nodes").map(|(_, value)| value).sum();
        let buckets = |(name, _)| {
            let buckets = samples(&page, name);
            buckets.filter_map(|(labels, value)| Some((bound(labels)?, value))).collect()
        };
        Ok(Self { nodes, histograms: HISTOGRAMS.map(buckets) })
    }

    /// Nodes that have joined.
    pub(super) fn nodes(&self) -> f64 {
        self.nodes
    }

    /// What has come since an earlier reading.
    pub(super) fn since(mut self, earlier: &Self) -> Self {
        for (now, before) in self.histograms.iter_mut().zip(&earlier.histograms) {
            for (now, before) in now.iter_mut().zip(before) {
                now.1 -= before.1;
            }
        }
        self
    }

    pub(super) fn put(&self, figures: &mut Figures) {
        for ((_, name), buckets) in HISTOGRAMS.iter().zip(&self.histograms) {
            for (quantile, suffix) in [(0.5, "p50"), (0.9, "p90"), (0.99, "p99")] {
                if let Some(seconds) = quantile_of(buckets, quantile) {
                    figures.put(format!("{name}_{suffix}_us"), seconds * 1e6);
                }
            }
        }
    }
}

/// Labels and value of every sample of this name.
fn samples<'a>(page: &'a str, name: &'a str) -> impl Iterator<Item = (&'a str, f64)> {
    page.lines().filter_map(move |line| {
        let (series, value) = line.rsplit_once(' ')?;
        let labels = series.strip_prefix(name)?.strip_prefix('{')?;
        Some((labels, value.parse().ok()?))
    })
}

/// The bound of a bucket; what lies beyond the last one is infinite.
fn bound(labels: &str) -> Option<f64> {
    let bound = labels.split("le=\"").nth(1)?.split('"').next()?;
    if bound == "+Inf" { Some(f64::INFINITY) } else { bound.parse().ok() }
}

/// As Prometheus' `histogram_quantile`: linear within the bucket. None without samples; infinite beyond the last bound.
fn quantile_of(buckets: &[(f64, f64)], quantile: f64) -> Option<f64> {
    let rank = quantile * buckets.last()?.1;
    let at = buckets.iter().position(|(_, up_to)| *up_to >= rank).filter(|_| rank > 0.0)?;
    let (low, before) = at.checked_sub(1).map_or((0.0, 0.0), |below| buckets[below]);
    let (high, up_to) = buckets[at];
    if high.is_infinite() {
        return Some(high);
    }
    Some(low + (high - low) * (rank - before) / (up_to - before))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "# TYPE kvferry_router_token_seconds histogram\nkvferry_router_token_seconds_sum 3.0\n\
        kvferry_router_token_seconds_bucket{le=\"0.1\"} 50\nkvferry_router_token_seconds_bucket{le=\"0.2\"} 90\n\
        kvferry_router_token_seconds_bucket{le=\"+Inf\"} 100\n";

    #[test]
    fn quantiles_are_those_of_prometheus() {
        let samples = samples(PAGE, "kvferry_router_token_seconds_bucket");
        let buckets: Vec<_> = samples.map(|(labels, value)| (bound(labels).unwrap(), value)).collect();
        assert_eq!(buckets, [(0.1, 50.0), (0.2, 90.0), (f64::INFINITY, 100.0)]);
        assert_eq!(quantile_of(&buckets, 0.25), Some(0.05));
        assert!((quantile_of(&buckets, 0.7).unwrap() - 0.15).abs() < 1e-12);
        assert_eq!(quantile_of(&buckets, 0.99), Some(f64::INFINITY));
        assert_eq!(quantile_of(&[(0.1, 0.0), (f64::INFINITY, 0.0)], 0.5), None);
        assert_eq!(quantile_of(&[], 0.5), None);
    }
}
