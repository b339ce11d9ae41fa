//! The text that scrapers read, in the form they ask for: OpenMetrics where their `Accept` names it, as Prometheus does, and
//! otherwise the older Prometheus text format, which is all that some readers know (endpoint pickers among them: OpenMetrics'
//! types `info` and `unknown` make their parsers give up on the whole page).

use std::borrow::Cow;

/// Content type of OpenMetrics text.
pub const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// Content type of the Prometheus text format.
pub const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Whether the scraper's `Accept` names OpenMetrics.
pub(crate) fn wants_open_metrics(accept: &str) -> bool {
    let named = |range: &str| {
        let mut parts = range.split(';').map(str::trim);
        let is_open =
            parts.next().is_some_and(|media| media.eq_ignore_ascii_case("application/openmetrics-text"));
        is_open && !parts.any(|parameter| matches!(parameter, "q=0" | "q=0.0"))
    };
    accept.split(',').any(named)
}

/// OpenMetrics text in the Prometheus text format: a counter's family is named like its samples, `info` becomes a gauge,
/// units and the end mark go.
pub(crate) fn to_prometheus(open_metrics: &str) -> String {
    let mut text = String::with_capacity(open_metrics.len());
    let mut help = None;
    for line in open_metrics.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = rest.split_once(' ');
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' '))
        {
            let (name, kind) = renamed(name, kind);
            if let Some((_, words)) = help.take() {
                text.push_str(&format!("# HELP {name} {words}\n"));
            }
            text.push_str(&format!("# TYPE {name} {kind}\n"));
        } else if !line.starts_with("# UNIT ") && line != "# EOF" {
            text.push_str(line);
            text.push('\n');
        }
    }
    text
}

fn renamed<'a>(name: &'a str, kind: &'a str) -> (Cow<'a, str>, &'a str) {
    match kind {
        "counter" => (Cow::Owned(format!("{name}_total")), kind),
        "info" => (Cow::Owned(format!("{name}_info")), "gauge"),
        "unknown" => (Cow::Borrowed(name), "untyped"),
        _ => (Cow::Borrowed(name), kind),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Registry;

    #[test]
    fn prometheus_asks_for_open_metrics_and_curl_does_not() {
        let prometheus = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,\
                          text/plain;version=0.0.4;q=0.5,*/*;q=0.2";
        assert!(wants_open_metrics(prometheus));
        for other in ["", "*/*", "text/plain", "application/json, application/openmetrics-text;q=0"] {
            assert!(!wants_open_metrics(other), "{other}");
        }
    }

    #[test]
    fn the_older_format_has_the_same_samples_under_families_of_their_names() {
        let registry = Registry::new();
        registry.counter("requests", "Requests taken").inc_by(2);
        registry.histogram("wait_seconds", "Wait", &[0.5]).observe(0.1);
        let open = registry.encode().unwrap();
        let text = to_prometheus(&open);
        for line in [
            "# HELP kvferry_requests_total Requests taken.",
            "# TYPE kvferry_requests_total counter",
            "kvferry_requests_total 2",
            "# TYPE kvferry_build_info gauge",
            "# TYPE kvferry_wait_seconds histogram",
            "kvferry_wait_seconds_bucket{le=\"0.5\"} 1",
        ] {
            assert!(text.lines().any(|present| present == line), "no {line:?} in\n{text}");
        }
        assert!(!text.contains("# EOF") && !text.contains(" info\n"), "{text}");
        let samples =
            |text: &str| text.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect();
        let (before, after): (Vec<String>, Vec<String>) = (samples(&open), samples(&text));
        assert_eq!(before, after);
    }
}
