//! What a scraper reads of a cluster that has served requests: form, units and labels of every metric, and that the dashboard and
//! the alerts ask for metrics that are there.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

use std::collections::BTreeSet;
use std::path::PathBuf;

use cluster_tests::Kit;
use cluster_tests::exposition::{Families, parse};
use cluster_tests::kit::{client, eventually, metric};
use serde_json::{Value, json};

/// Labels with a closed set of values.
const CLOSED: [(&str, &[&str]); 16] = [
    ("role", &["prefill", "decode"]),
    ("engine", &["0"]),
    ("model_name", &["tiny-llama"]),
    ("codec", &["none", "raw", "lossless", "fp8", "kvtc", "kvtc-paper", "kvtc-paper-coded-window"]),
    ("mode", &["stream", "after"]),
    ("stage", &["encode", "decode"]),
    ("state", &["reserved", "receiving", "ready", "decoding", "done", "failed"]),
    (
        "phase",
        &[
            "reserve",
            "prefill",
            "transfer",
            "first_token",
            "generation",
            "begin",
            "receive",
            "decode",
            "verify",
            "compute",
            "connect",
            "send",
            "accept",
        ],
    ),
    ("decision_type", &["decode-only", "prefill-decode"]),
    ("finished_reason", &["stop", "length", "abort", "error"]),
    ("source", &["local_compute", "local_cache_hit", "external_kv_transfer"]),
    (
        "reason",
        &[
            "asked",
            "only",
            "unmeasured",
            "predicted",
            "explored",
            "local_always",
            "no_prefill_node",
            "prefill_failed",
            "local_quicker",
            "link_fast",
            "no_gain",
            "no_plan",
            "short_prompt",
        ],
    ),
    (
        "way",
        &["local", "raw", "lossless", "fp8", "kvtc", "kvtc/after", "kvtc-paper", "kvtc-paper-coded-window"],
    ),
    ("outcome", &["ok", "cancelled", "invalid_value", "node_busy", "delivered"]),
    ("profile", &["debug", "release"]),
    ("kind", &["node_busy"]),
];
/// Labels that name a node, and those that are numbers.
const NODES: [&str; 3] = ["node", "prefill", "decode"];
const NUMBERS: [&str; 3] = ["le", "status", "tier"];
/// Labels of the build, of which there is one.
const BUILD: [&str; 2] = ["version", "commit"];

/// A cluster that has run prompts on one node and on two, with several codecs, and refused one.
async fn used_cluster() -> Kit {
    let mut kit = Kit::start_with(|options| (options.prefill_nodes, options.decode_nodes) = (0, 0)).await;
    kit.cluster.add_decode(|config| config.node.max_num_seqs = 1).await.unwrap();
    kit.cluster.until_joined(1).await.unwrap();
    let prompt = kit.prompt(300);
    kit.complete(&prompt, 4, json!({})).await;
    kit.cluster.add_prefill(|_| {}).await.unwrap();
    kit.cluster.until_joined(2).await.unwrap();
    // The third finds what the first has left.
    for (codec, salt) in [("raw", "shared"), ("kvtc", "own"), ("fp8", "shared"), ("auto", "own too")] {
        let extra = json!({"kv_codec": codec, "cache_salt": salt, "ignore_eos": true});
        kit.complete(&prompt, 4, extra).await;
    }
    assert_eq!(
        kit.send(&json!({"model": "tiny-llama", "prompt": "a", "temperature": -1})).await.status(),
        400
    );
    kit
}

/// Makes the only slot of the decode node busy, and has it refuse a request.
async fn refuse_one(kit: &Kit) {
    let decode = kit.cluster.decode[0].registry.clone();
    let body =
        json!({"model": "tiny-llama", "prompt": "a", "max_tokens": 6000, "ignore_eos": true, "stream": true});
    let stream = kit.send(&body).await;
    assert_eq!(stream.status(), 200);
    assert_eq!(kit.send(&body).await.status(), 429);
    drop(stream);
    eventually("the slot is free", || metric(&decode, "kvferry_decode_slots_held") == 0.0).await;
}

/// The pages of router, prefill and decode node.
async fn pages(kit: &Kit) -> [(&'static str, Families); 3] {
    let get = async |url: String| client().get(url).send().await.unwrap().text().await.unwrap();
    let admin = |runtime: &node::Runtime| format!("http://{}/metrics", runtime.admin_address);
    [
        ("router", parse(&get(format!("{}/metrics", kit.cluster.url())).await)),
        ("prefill", parse(&get(admin(&kit.cluster.prefill[0])).await)),
        ("decode", parse(&get(admin(&kit.cluster.decode[0])).await)),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn every_metric_has_help_a_base_unit_and_labels_of_few_values() {
    let kit = used_cluster().await;
    refuse_one(&kit).await;
    let nodes: BTreeSet<_> =
        kit.cluster.prefill.iter().chain(&kit.cluster.decode).map(|node| node.id.0.clone()).collect();
    for (process, families) in pages(&kit).await {
        assert!(families.len() > 12, "{process} has {}", families.len());
        for (name, family) in &families {
            check_name(process, name, &family.kind);
            assert!(family.help.len() > 8 && family.help.ends_with('.'), "{name}: {:?}", family.help);
            for (label, value) in family.samples.iter().flat_map(|(_, labels)| labels) {
                let is_known = match CLOSED.iter().find(|(closed, _)| closed == label) {
                    Some((_, values)) => values.contains(&value.as_str()),
                    None if NODES.contains(&label.as_str()) => nodes.contains(value),
                    None if NUMBERS.contains(&label.as_str()) => {
                        value == "+Inf" || value.parse::<f64>().is_ok()
                    }
                    None => BUILD.contains(&label.as_str()),
                };
                assert!(is_known, "{process}: {name}{{{label}={value:?}}} is not a label of few values");
            }
        }
    }
    kit.stop().await;
}

fn check_name(process: &str, name: &str, kind: &str) {
    assert!(["counter", "gauge", "histogram"].contains(&kind), "{name} is a {kind}");
    assert_eq!(name.ends_with("_total"), kind == "counter", "{name}");
    let ours = [format!("kvferry_{process}_"), "kvferry_build_info".to_owned(), "vllm:".to_owned()];
    assert!(ours.iter().any(|prefix| name.starts_with(prefix)), "{name} on {process}");
    let small = ["_ms", "_us", "_milliseconds", "_mb", "_mib", "_gb", "_gbps", "_percent", "_minutes"];
    let stem = name.trim_end_matches("_total");
    assert!(small.iter().all(|unit| !stem.ends_with(unit)), "{name} is not in a base unit");
    let units = ["_seconds", "_bytes", "_tokens", "_ratio"];
    assert!(kind != "histogram" || units.iter().any(|unit| stem.ends_with(unit)), "{name} has no unit");
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_and_router_show_their_load_as_vllm_does() {
    let kit = used_cluster().await;
    for (process, families) in pages(&kit).await {
        for name in ["vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc"] {
            let family = families.get(name).unwrap_or_else(|| panic!("{process} has no {name}"));
            let [(_, labels)] = &family.samples[..] else { panic!("{process}: {:?}", family.samples) };
            let expected = [("model_name", "tiny-llama"), ("engine", "0")];
            assert_eq!(labels.iter().map(|(k, v)| (&**k, &**v)).collect::<Vec<_>>(), expected);
        }
    }
    // A running session is seen on its node at once, and at the router with the next heartbeat.
    let running = "vllm:num_requests_running{model_name=\"tiny-llama\",engine=\"0\"} 1.0";
    let body = json!({"model": "tiny-llama", "prompt": "The linker", "max_tokens": 6000, "ignore_eos": true, "stream": true});
    let stream = kit.send(&body).await;
    let decode = kit.cluster.decode[0].registry.clone();
    eventually("the session runs", || decode.encode().unwrap().contains(running)).await;
    assert!(metric(&decode, "vllm:kv_cache_usage_perc") > 0.09, "6,000 of 65,536 tokens are reserved");
    assert_eq!(metric(&decode, "kvferry_decode_slots_held"), 1.0);
    loop {
        let (_, page) = kit.get("/metrics").await;
        if page.contains(running) {
            break;
        }
        assert!(!page.contains("finished_reason=\"length\"} 6"), "the session ended unseen");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    drop(stream);
    eventually("the slot is free", || metric(&decode, "kvferry_decode_slots_held") == 0.0).await;
    assert_eq!(metric(&decode, "kvferry_decode_tickets_open"), 0.0);
    kit.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_and_times_of_a_transfer_are_counted_once_and_only_where_a_cache_moved() {
    let kit = used_cluster().await;
    let (_, page) = kit.get("/metrics").await;
    let value = |series: &str| -> f64 {
        let line = page.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {series} in\n{page}")).parse().unwrap()
    };
    // Five requests came to a first token; one of them ran on the decode node alone.
    let model = "model_name=\"tiny-llama\",engine=\"0\"";
    assert_eq!(value(&format!("vllm:time_to_first_token_seconds_count{{{model}}}")), 5.0);
    assert_eq!(value(&format!("vllm:prompt_tokens_total{{{model}}}")), 1500.0);
    assert_eq!(value("kvferry_router_pd_decisions_total{decision_type=\"decode-only\"}"), 1.0);
    assert_eq!(value("kvferry_router_local_prefills_total{reason=\"no_prefill_node\"}"), 1.0);
    for stage in ["encode", "wire", "decode"] {
        assert_eq!(value(&format!("kvferry_router_kv_{stage}_seconds_count")), 4.0, "{stage}");
    }
    assert_eq!(value("kvferry_router_kv_ratio_count"), 4.0);
    let source =
        |source| value(&format!("vllm:prompt_tokens_by_source_total{{{model},source=\"{source}\"}}"));
    assert_eq!(
        (source("local_compute"), source("local_cache_hit"), source("external_kv_transfer")),
        (300.0, 299.0, 901.0)
    );
    let of = |what: &str, codec: &str| {
        value(&format!("kvferry_router_kv_{what}_bytes_total{{codec=\"{codec}\"}}"))
    };
    assert_eq!(of("saved", "fp8"), of("raw", "fp8") - of("wire", "fp8"));
    assert_eq!(of("saved", "raw"), 0.0, "headers cost more than nothing saves");
    kit.stop().await;
}

fn deployed(path: &str) -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(path);
    std::fs::read_to_string(path).unwrap()
}

/// Names of metrics in a query.
fn asked(query: &str) -> BTreeSet<String> {
    let words = query.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':'));
    words
        .filter(|word| word.starts_with("kvferry_") || word.starts_with("vllm:"))
        .map(str::to_owned)
        .collect()
}

/// Names of the series that the pages offer.
fn offered(pages: &[(&str, Families)]) -> BTreeSet<String> {
    let families = pages.iter().flat_map(|(_, families)| families);
    let series = families.flat_map(|(name, family)| match family.kind.as_str() {
        "histogram" => ["_bucket", "_sum", "_count"].map(|suffix| format!("{name}{suffix}")).to_vec(),
        _ => vec![name.clone()],
    });
    series.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn dashboard_and_alerts_ask_for_metrics_that_are_exposed() {
    let kit = used_cluster().await;
    refuse_one(&kit).await;
    let offered = offered(&pages(&kit).await);
    let dashboard: Value = serde_json::from_str(&deployed("grafana/dashboards/kvferry.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let mut queries = 0;
    for panel in panels {
        let targets = panel["targets"].as_array().map(Vec::as_slice).unwrap_or_default();
        for target in targets {
            queries += 1;
            let names = asked(target["expr"].as_str().unwrap());
            assert!(!names.is_empty(), "{}: {}", panel["title"], target["expr"]);
            let missing: Vec<_> = names.difference(&offered).collect();
            assert!(missing.is_empty(), "{} asks for {missing:?}", panel["title"]);
        }
    }
    assert!(queries > 30, "{queries} queries");
    let rules = deployed("prometheus/rules.yml");
    let in_rules = asked(&rules);
    assert!(in_rules.len() > 1 && in_rules.is_subset(&offered), "{in_rules:?}");
    kit.stop().await;
}
