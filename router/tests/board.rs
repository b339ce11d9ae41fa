//! The board and the page over real HTTP: what they show, to how many, and what they never show.
#![allow(clippy::unwrap_used, reason = "a test's helpers fail as its assertions do")]

mod kit;

use std::time::Duration;

use kit::{Bench, SOON, Script, Then, body, ids};
use reqwest::Response;
use serde_json::{Value, json};
use transport::message::{FailureKind, FinishReason};

const TEXT: &str = " there was a little dog";

fn story() -> Script {
    Script::says(TEXT, Then::Finish(FinishReason::Length))
}

async fn board(bench: &Bench) -> Value {
    let response = bench.client.get(bench.url("/board")).send().await.unwrap();
    assert_eq!(response.status(), 200);
    serde_json::from_str(&response.text().await.unwrap()).unwrap()
}

/// The board, once it is as it should be.
async fn shows(bench: &Bench, what: impl Fn(&Value) -> bool) -> Value {
    let deadline = tokio::time::Instant::now() + SOON;
    loop {
        let board = board(bench).await;
        if what(&board) {
            return board;
        }
        assert!(tokio::time::Instant::now() < deadline, "not in time: {board:#}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A listener of the feed.
struct Listener {
    response: Response,
    rest: String,
}

impl Listener {
    async fn new(bench: &Bench) -> Self {
        let response = bench.client.get(bench.url("/board/events")).send().await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Self { response, rest: String::new() }
    }

    /// The next event's name and object; none when the feed has ended.
    async fn next(&mut self) -> Option<(String, Value)> {
        loop {
            if let Some((event, rest)) = self.rest.split_once("\n\n") {
                let (name, data) = event.split_once('\n').unwrap();
                let name = name.strip_prefix("event: ").unwrap().to_owned();
                let data = serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap();
                self.rest = rest.to_owned();
                return Some((name, data));
            }
            let chunk = tokio::time::timeout(SOON, self.response.chunk()).await.unwrap().unwrap()?;
            self.rest.push_str(std::str::from_utf8(&chunk).unwrap());
        }
    }

    /// The first change of which something is true.
    async fn until(&mut self, what: impl Fn(&Value) -> bool) -> Value {
        loop {
            let (name, change) = self.next().await.unwrap();
            assert_eq!(name, "change");
            if what(&change) {
                return change;
            }
        }
    }
}

#[tokio::test]
async fn a_request_is_on_the_board_with_its_nodes_and_bytes_and_without_its_text() {
    let bench = Bench::new().await;
    let _nodes = bench.pair(story()).await;
    let id = "7d444840-9dc0-11d1-b245-5ffdce74fad2";
    let secret = body(json!({"prompt": "Agatha Quillfeather", "max_tokens": 64, "user": "Agatha"}));
    let request = bench.client.post(bench.url("/v1/completions")).header("x-request-id", id);
    assert_eq!(request.body(secret.to_string()).send().await.unwrap().status(), 200);
    let board = shows(&bench, |board| board["requests"][0]["state"] == "done").await;
    let request = &board["requests"][0];
    assert_eq!((request["id"].clone(), request["outcome"].clone()), (json!(id), json!("ok")));
    assert_eq!(request["tokens"], ids(TEXT).len());
    assert_eq!((request["prefill_node"].clone(), request["decode_node"].clone()), (json!("p1"), json!("d1")));
    assert_eq!((request["codec"].clone(), request["attempts"].clone()), (json!("raw"), json!(1)));
    assert_eq!(request["kv_transfer"]["wire_bytes"], 16_000);
    assert!(request["kv_transfer"]["second_token_ms"].as_f64().unwrap() > 0.0);
    assert_eq!(
        (board["totals"]["saved_bytes"].clone(), board["totals"]["done"].clone()),
        (json!(304_000), json!(1))
    );
    assert_eq!((board["model"].clone(), board["max_model_len"].clone()), (json!("tiny"), json!(8192)));
    assert_eq!(board["links"], json!([{"prefill": "p1", "decode": "d1", "gbps": 40.0}]));
    let nodes = board["nodes"].as_array().unwrap();
    assert_eq!((nodes[0]["id"].clone(), nodes[0]["role"].clone()), (json!("d1"), json!("decode")));
    assert_eq!((nodes[1]["max_sessions"].clone(), nodes[1]["has_plan"].clone()), (json!(8), json!(true)));
    let text = board.to_string();
    assert!(!text.contains("Agatha") && !text.contains("little dog"), "{text}");
}

#[tokio::test]
async fn cancelled_failed_and_refused_requests_are_told_apart() {
    let bench = Bench::new().await;
    let nodes = bench.pair(Script::says(TEXT, Then::Stall)).await;
    let stream = bench.post(&body(json!({"stream": true, "max_tokens": 1000}))).await;
    shows(&bench, |board| board["requests"][0]["tokens"] == ids(TEXT).len()).await;
    assert_eq!(board(&bench).await["totals"]["running"], 1);
    drop(stream);
    shows(&bench, |board| board["requests"][0]["state"] == "cancelled").await;
    drop(nodes);
    shows(&bench, |board| board["nodes"] == json!([])).await;
    assert_eq!(bench.refused(&body(json!({}))).await.0, 503);
    assert_eq!(bench.refused(&body(json!({"max_tokens": 0}))).await.0, 400);
    let board = shows(&bench, |board| board["totals"]["refused"] == 1).await;
    assert_eq!(
        (board["requests"][1]["state"].clone(), board["requests"][1]["outcome"].clone()),
        (json!("failed"), json!("no_node"))
    );
    assert_eq!(
        (board["requests"].as_array().unwrap().len(), board["totals"]["running"].clone()),
        (2, json!(0))
    );
}

#[tokio::test]
async fn the_feed_begins_with_everything_and_goes_on_with_the_news() {
    let bench = Bench::new().await;
    let mut listener = Listener::new(&bench).await;
    let (name, everything) = listener.next().await.unwrap();
    assert_eq!(
        (name.as_str(), everything["requests"].clone(), everything["nodes"].clone()),
        ("snapshot", json!([]), json!([]))
    );
    let _prefill = bench.node("p1", transport::message::Role::Prefill, Script::default()).await;
    let joined = listener.until(|change| change["nodes"][0]["id"] == "p1").await;
    assert!(joined.get("requests").is_none() && joined.get("totals").is_none(), "{joined}");
    let decode = bench.node("d1", transport::message::Role::Decode, story()).await;
    listener.until(|change| change["nodes"][0]["id"] == "d1").await;
    bench.answered(&body(json!({"max_tokens": 64}))).await;
    let done = listener.until(|change| change["requests"][0]["state"] == "done").await;
    assert_eq!(done["totals"]["done"], 1);
    drop(decode);
    let left = listener.until(|change| change["gone"] == json!(["d1"])).await;
    assert!(left.get("requests").is_none(), "{left}");
}

#[tokio::test]
async fn listeners_are_bounded_and_their_places_come_back() {
    let bench = Bench::new().await;
    let mut listeners = Vec::new();
    for _ in 0..32 {
        listeners.push(Listener::new(&bench).await);
    }
    let refused = bench.client.get(bench.url("/board/events")).send().await.unwrap();
    assert_eq!((refused.status().as_u16(), refused.headers()["retry-after"].to_str().unwrap()), (503, "1"));
    assert!(refused.text().await.unwrap().contains("too_many_listeners"));
    listeners.truncate(16);
    let deadline = tokio::time::Instant::now() + SOON;
    while bench.client.get(bench.url("/board/events")).send().await.unwrap().status() != 200 {
        assert!(tokio::time::Instant::now() < deadline, "no place came back");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_listener_does_not_keep_a_draining_router() {
    let bench = Bench::new().await;
    let mut listener = Listener::new(&bench).await;
    assert_eq!(listener.next().await.unwrap().0, "snapshot");
    bench.drain();
    assert!(listener.next().await.is_none());
    bench.shut_down().await;
}

#[tokio::test]
async fn a_retried_request_shows_the_nodes_that_did_it() {
    let bench = Bench::with(|config| config.retries = 1).await;
    let (_prefill, _bad) = bench.pair(Script::refuses(FailureKind::Busy)).await;
    let _good = bench.node("d2", transport::message::Role::Decode, story()).await;
    bench.sees("kvferry_router_nodes{role=\"decode\"} 2").await;
    for _ in 0..4 {
        bench.answered(&body(json!({"max_tokens": 64}))).await;
    }
    let board = shows(&bench, |board| board["totals"]["done"] == 4).await;
    let requests = board["requests"].as_array().unwrap();
    assert!(requests.iter().all(|request| request["decode_node"] == "d2"), "{board:#}");
    assert!(requests.iter().any(|request| request["attempts"] == 2), "{board:#}");
}

#[tokio::test]
async fn a_request_with_several_sequences_is_one_line() {
    let bench = Bench::new().await;
    let _nodes = bench.pair(story()).await;
    let id = "7d444840-9dc0-11d1-b245-5ffdce74fad3";
    let two = body(json!({"n": 2, "max_tokens": 64}));
    let request = bench.client.post(bench.url("/v1/completions")).header("x-request-id", id);
    assert_eq!(request.body(two.to_string()).send().await.unwrap().status(), 200);
    let board = shows(&bench, |board| board["requests"][0]["state"] == "done").await;
    let request = &board["requests"][0];
    assert_eq!((request["id"].clone(), request["sequences"].clone()), (json!(id), json!(2)));
    assert_eq!(
        (request["max_tokens"].clone(), request["tokens"].clone()),
        (json!(128), json!(2 * ids(TEXT).len()))
    );
    assert_eq!(board["requests"].as_array().unwrap().len(), 1);
    assert_eq!(
        (board["totals"]["requests"].clone(), board["totals"]["raw_bytes"].clone()),
        (json!(1), json!(640_000))
    );
}

#[tokio::test]
async fn the_pages_and_their_files_come_from_the_router_alone() {
    let bench = Bench::new().await;
    for path in ["/", "/docs"] {
        comes_from_the_router_alone(&bench, path).await;
    }
}

async fn comes_from_the_router_alone(bench: &Bench, path: &str) {
    let get = async |path: &str| bench.client.get(bench.url(path)).send().await.unwrap();
    let page = get(path).await;
    let header = |name: &str| page.headers()[name].to_str().unwrap().to_owned();
    assert_eq!((page.status().as_u16(), header("content-type").as_str()), (200, "text/html; charset=utf-8"));
    assert_eq!(header("x-content-type-options"), "nosniff");
    assert!(header("content-security-policy").starts_with("default-src 'none'; script-src 'self'"));
    let tag = header("etag");
    let html = page.text().await.unwrap();
    assert!(!html.contains("://"), "the page names another origin");
    let files: Vec<&str> = html.split('"').filter(|part| part.starts_with("/page/")).collect();
    assert!(files.len() >= 5, "{files:?}");
    for file in files {
        let response = get(file).await;
        assert_eq!(
            (response.status().as_u16(), response.headers()["x-content-type-options"].to_str().unwrap()),
            (200, "nosniff"),
            "{file}"
        );
    }
    let again = bench.client.get(bench.url(path)).header("if-none-match", &tag).send().await.unwrap();
    assert_eq!((again.status().as_u16(), again.headers()["etag"].to_str().unwrap()), (304, tag.as_str()));
    assert_eq!(again.text().await.unwrap(), "");
    assert_eq!(bench.client.post(bench.url(path)).send().await.unwrap().status(), 405);
}
