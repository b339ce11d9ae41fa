//! `kvferry bench`: against a running cluster, and what it leaves behind there; end to end; the router alone.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

use cluster_tests::Kit;
use cluster_tests::process::binary;
use node::link::Link;
use serde_json::Value;

#[tokio::test(flavor = "multi_thread")]
async fn links_are_shaped_for_the_bench_and_put_back() {
    let mut kit = Kit::start_with(|options| options.prefill_nodes = 0).await;
    let shaped = |config: &mut prefill_node::Config| {
        config.node.link_admin = true;
        config.node.link_gbps = 0.5;
    };
    let prefill = kit.cluster.add_prefill(shaped).await.unwrap();
    kit.cluster.until_joined(2).await.unwrap();
    let admin = prefill.admin_address.to_string();
    let mut bench = tokio::process::Command::new(binary("kvferry"));
    bench.args([
        "bench",
        "cluster",
        "--router",
        kit.cluster.url(),
        "--link-admin",
        &admin,
        "--links",
        "0.02,0",
    ]);
    bench.args(["--prompts", "700", "--runs", "1", "--json"]);
    let output = bench.output().await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let rows: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(rows.len(), 2, "{text}");
    for row in &rows {
        assert!(row["ratio"].as_f64().unwrap() > 10.0, "{row}");
        assert_eq!(row["raw_bytes"].as_u64().unwrap(), row["prompt_tokens"].as_u64().unwrap() * 6144);
    }
    let ttft = |row: usize, name: &str| rows[row][name].as_f64().unwrap();
    // 4.3 MB at 0.02 Gb/s are 1.7 s.
    assert!(ttft(0, "ttft_raw_ms") > 1_500.0, "{text}");
    assert!(ttft(0, "ttft_coded_ms") < ttft(0, "ttft_raw_ms") / 1.5, "{text}");
    let link: Link = cluster_tests::kit::client()
        .get(format!("http://{admin}/link"))
        .send()
        .await
        .unwrap()
        .json()
        .await
        .unwrap();
    assert_eq!(link, Link { gbps: 0.5 });
    kit.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_is_changed_only_where_that_is_allowed_and_makes_sense() {
    let mut kit = Kit::start().await;
    let open = kit.cluster.add_prefill(|config| config.node.link_admin = true).await.unwrap();
    let client = cluster_tests::kit::client();
    let put = async |address: std::net::SocketAddr, body: &str| {
        let request = client.put(format!("http://{address}/link")).header("content-type", "application/json");
        request.body(body.to_owned()).send().await.unwrap().status().as_u16()
    };
    assert_eq!(put(kit.cluster.prefill[0].admin_address, r#"{"gbps": 1}"#).await, 405);
    assert_eq!(put(open.admin_address, r#"{"gbps": -1}"#).await, 400);
    assert_eq!(put(open.admin_address, r#"{"gbps": 0.25}"#).await, 200);
    kit.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn end_to_end_is_measured_beside_what_the_link_allows() {
    let mut bench = tokio::process::Command::new(binary("kvferry"));
    bench.env("KVFERRY_MODEL", cluster_tests::kit::model_dir());
    bench.args(["bench", "e2e", "--tokens", "700", "--runs", "1", "--link-gbps", "0.02", "--json"]);
    let output = bench.output().await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let figures: Value = serde_json::from_slice(&output.stdout).unwrap();
    let of = |name: &str| figures[name].as_f64().unwrap();
    assert!(of("ratio") > 10.0 && of("goodput_unshaped_gbps") > 0.1, "{figures}");
    assert_eq!(of("raw_bytes"), of("prompt_tokens") * 6144.0);
    // 4.3 MB at 0.02 Gb/s are 1.7 s, which a shaped link keeps to.
    assert!((0.5..1.2).contains(&of("raw_share_of_link")), "{figures}");
    assert!(of("ttft_raw_ms") > of("modelled_wire_raw_ms") * 0.9 && of("gain") > 1.5, "{figures}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_router_is_measured_between_stub_nodes_and_clients() {
    let mut bench = tokio::process::Command::new(binary("kvferry"));
    bench.env("KVFERRY_MODEL", cluster_tests::kit::model_dir());
    bench.args(["bench", "router", "--streams", "10", "--seconds", "1", "--stream-tokens", "10", "--json"]);
    let output = bench.output().await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let figures: Value = serde_json::from_slice(&output.stdout).unwrap();
    let of = |name: &str| figures[name].as_f64().unwrap_or_else(|| panic!("no {name} in {figures}"));
    // 10 streams of 20 tokens a second, each of them about half a second long.
    assert!((100.0..300.0).contains(&of("tokens_per_second")), "{figures}");
    assert!((10.0..30.0).contains(&of("requests")), "{figures}");
    for name in ["request_to_prefill", "first_token_to_event", "token_to_event"] {
        let [p50, p90, p99, max] =
            ["p50", "p90", "p99", "max"].map(|suffix| of(&format!("{name}_{suffix}_us")));
        assert!(0.0 < p50 && p50 <= p90 && p90 <= p99 && p99 <= max, "{name}: {figures}");
    }
    let parts = of("request_to_reserve_p50_us") + of("reserved_to_prefill_p50_us");
    assert!(parts < of("request_to_prefill_max_us") * 1.01, "{figures}");
    // What the router sees of a token and of a request is a part of what its clients see.
    assert!(of("inside_token_to_event_p50_us") < of("token_to_event_p50_us"), "{figures}");
    assert!(of("inside_request_to_prefill_p50_us") < of("request_to_prefill_p50_us"), "{figures}");
    // Nagle's algorithm would hold a first token back until the client acknowledges the answer's head, after 40 ms.
    assert!(of("first_token_to_event_p50_us") < 30_000.0, "{figures}");
    assert!(of("resident_kib_with_idle_streams") > of("resident_kib_before_streams"), "{figures}");
    assert!(of("cpu_seconds_per_1000_tokens") > 0.0 && of("kib_per_idle_stream") > 0.0, "{figures}");
}
