//! What goes wrong between two nodes ends in an honest error and a free slot, never in a token from a broken cache.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

use std::time::Duration;

use cluster_tests::kit::{eventually, metric};
use cluster_tests::stub::{Delivery, Job, StubPrefill, compute};
use cluster_tests::{Kit, oracle};
use model::Sampling;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use transport::message::{FromPrefill, KvStream, Logprobs};

/// How long a client that must not get a token is watched.
const WATCHED: Duration = Duration::from_millis(500);
const MAX_TOKENS: u32 = 12;

/// A cluster whose only prefill node is the test's.
async fn with_stub() -> (Kit, StubPrefill) {
    let kit = Kit::start_with(|options| {
        options.prefill_nodes = 0;
        options.router.local_prefill = router::LocalPrefill::Never;
        options.router.retries = 0;
    })
    .await;
    let identity = kit.cluster.identity("prefill").unwrap();
    let stub = StubPrefill::join(&kit.loaded, kit.cluster.router.quic, &identity).await;
    kit.cluster.until_joined(2).await.unwrap();
    (kit, stub)
}

fn request(kit: &Kit, prompt: &str) -> JoinHandle<(u16, Value)> {
    let url = format!("{}/v1/completions", kit.cluster.url());
    let body = json!({"model": "tiny-llama", "prompt": prompt, "max_tokens": MAX_TOKENS, "temperature": 0});
    tokio::spawn(async move {
        let response = cluster_tests::kit::client().post(url).json(&body).send().await.unwrap();
        (response.status().as_u16(), response.json().await.unwrap())
    })
}

async fn slots_are_free(kit: &Kit) {
    let registry = &kit.cluster.decode[0].registry;
    eventually("slots are freed", || metric(registry, "kvferry_decode_kv_used_tokens") == 0.0).await;
    assert_eq!(metric(registry, "kvferry_decode_sessions"), 0.0, "no session is left in any state");
}

/// Delivers a job as it should be, so that the cluster is seen to work after whatever went wrong before.
async fn serve_well(kit: &Kit, stub: &mut StubPrefill, prompt: &str) {
    let answer = request(kit, prompt);
    let Job { prefill, mut router } = stub.job().await;
    let Delivery { chunks, end } = compute(&kit.loaded, &prefill);
    let mut kv = stub.open(&prefill).await;
    for chunk in chunks {
        kv.sender.send_data(chunk).await.unwrap();
    }
    kv.sender.send(&end).await.unwrap();
    kv.sender.finish().unwrap();
    router.sender.send(&FromPrefill::Prefilled).await.unwrap();
    let (status, body) = answer.await.unwrap();
    assert_eq!(status, 200, "{body}");
    let ids = kit.tokenizer.encode(prompt).unwrap();
    let expected = oracle::generate(&kit.loaded, &ids, MAX_TOKENS as usize, &Sampling::GREEDY);
    assert_eq!(body["choices"][0]["text"], kit.tokenizer.decode(&expected));
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_cache_is_incomplete_the_client_gets_no_token() {
    let (kit, mut stub) = with_stub().await;
    let url = format!("{}/v1/completions", kit.cluster.url());
    let body =
        json!({"model": "tiny-llama", "prompt": kit.prompt(600), "max_tokens": MAX_TOKENS, "stream": true});
    let (seen, mut bytes) = tokio::sync::mpsc::unbounded_channel();
    let answer = tokio::spawn(async move {
        let mut response = cluster_tests::kit::client().post(url).json(&body).send().await.unwrap();
        let status = response.status().as_u16();
        while let Some(piece) = response.chunk().await.unwrap() {
            drop(seen.send(piece));
        }
        status
    });
    let Job { prefill, mut router } = stub.job().await;
    let Delivery { chunks, end } = compute(&kit.loaded, &prefill);
    let mut kv = stub.open(&prefill).await;
    for chunk in chunks {
        kv.sender.send_data(chunk).await.unwrap();
    }
    // Everything but the closing message is there: a careless decode node could begin.
    let early = tokio::time::timeout(WATCHED, bytes.recv()).await;
    assert!(early.is_err(), "{early:?} came from an unfinished cache");
    assert_eq!(metric(&kit.cluster.decode[0].registry, "kvferry_decode_steps_total"), 0.0);
    kv.sender.send(&end).await.unwrap();
    kv.sender.finish().unwrap();
    router.sender.send(&FromPrefill::Prefilled).await.unwrap();
    assert_eq!(answer.await.unwrap(), 200);
    assert!(bytes.recv().await.is_some(), "nothing was streamed");
    slots_are_free(&kit).await;
    kit.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_deliveries_are_refused_and_cost_nobody_else() {
    let (kit, mut stub) = with_stub().await;
    let prompt = kit.prompt(600);
    for (damage, said) in [
        ("flipped byte", "chunk at token 256"),
        ("missing chunk", "was to come"),
        ("swapped chunks", "was to come"),
        ("wrong digest", "digest"),
        ("logprobs unasked", "not asked for"),
        ("cut stream", "closing message"),
    ] {
        let answer = request(&kit, &prompt);
        let Job { prefill, router } = stub.job().await;
        let Delivery { mut chunks, end } = compute(&kit.loaded, &prefill);
        let mut kv = stub.open(&prefill).await;
        match damage {
            "flipped byte" => {
                let mut bytes = chunks[1].to_vec();
                bytes[2000] ^= 1;
                chunks[1] = bytes.into();
            }
            "missing chunk" => drop(chunks.remove(1)),
            "swapped chunks" => chunks.swap(0, 1),
            "cut stream" => chunks.truncate(1),
            _ => {}
        }
        for chunk in chunks {
            // Decode may stop the stream as soon as it sees the damage.
            drop(kv.sender.send_data(chunk).await);
        }
        if let "wrong digest" | "logprobs unasked" = damage {
            let mut end = end;
            let KvStream::End { digest, logprobs, .. } = &mut end else {
                panic!("a delivery ends with its end");
            };
            match damage {
                "wrong digest" => digest[0] ^= 1,
                _ => *logprobs = Some(Logprobs { drawn: -1.0, top: vec![] }),
            }
            drop(kv.sender.send(&end).await);
        } else if damage != "cut stream" {
            drop(kv.sender.send(&end).await);
        }
        drop(kv.sender.finish());
        let (status, body) = answer.await.unwrap();
        drop((kv, router));
        assert!(status >= 500, "{damage}: {status} {body}");
        assert!(body["error"]["message"].as_str().is_some_and(|m| m.contains(said)), "{damage}: {body}");
        slots_are_free(&kit).await;
    }
    assert_eq!(metric(&kit.cluster.decode[0].registry, "kvferry_decode_steps_total"), 0.0);
    serve_well(&kit, &mut stub, &prompt).await;
    kit.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ticket_opens_its_slot_once() {
    let (kit, mut stub) = with_stub().await;
    let prompt = kit.prompt(40);
    let answer = request(&kit, &prompt);
    let Job { prefill, router } = stub.job().await;
    let first = stub.open(&prefill).await;
    let registry = &kit.cluster.decode[0].registry;
    eventually("the ticket is used", || {
        metric(registry, "kvferry_decode_sessions{state=\"receiving\"}") == 1.0
    })
    .await;
    let mut second = stub.open(&prefill).await;
    let reply = second.receiver.recv_message::<transport::message::KvReply>(Duration::from_secs(5)).await;
    assert!(
        matches!(&reply, Ok(transport::message::KvReply::Fail(failure)) if failure.message.contains("ticket")),
        "{reply:?}"
    );
    drop((first, router));
    assert!(answer.await.unwrap().0 >= 500);
    slots_are_free(&kit).await;
    kit.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_frees_its_slot() {
    let kit = Kit::start().await;
    let body = json!({"model": "tiny-llama", "prompt": "Once", "max_tokens": 8000, "ignore_eos": true, "stream": true});
    let mut response = kit.send(&body).await;
    assert!(response.chunk().await.unwrap().is_some());
    let registry = &kit.cluster.decode[0].registry;
    assert!(metric(registry, "kvferry_decode_kv_used_tokens") > 8000.0);
    drop(response);
    slots_are_free(&kit).await;
    assert!(metric(registry, "kvferry_decode_generated_tokens_total") < 7000.0);
    kit.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_during_the_transfer_stops_prefill_too() {
    let (kit, mut stub) = with_stub().await;
    let answer = request(&kit, &kit.prompt(600));
    let Job { prefill, router } = stub.job().await;
    let kv = stub.open(&prefill).await;
    answer.abort();
    let patience = cluster_tests::kit::PATIENCE;
    let stopped =
        tokio::time::timeout(patience, async { tokio::join!(kv.sender.stopped(), router.sender.stopped()) });
    stopped.await.expect("both streams of the prefill node end");
    slots_are_free(&kit).await;
    kit.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_decode_node_refuses_and_recovers() {
    let mut kit = Kit::start_with(|options| {
        options.decode_nodes = 0;
        options.router.retries = 0;
    })
    .await;
    kit.cluster.add_decode(|config| config.node.kv_capacity_tokens = 1000).await.unwrap();
    kit.cluster.until_joined(2).await.unwrap();
    let body = json!({"model": "tiny-llama", "prompt": "Once", "max_tokens": 900, "ignore_eos": true, "stream": true});
    let mut running = kit.send(&body).await;
    assert!(running.chunk().await.unwrap().is_some());
    let refused = kit.send(&body).await;
    assert!([429, 503].contains(&refused.status().as_u16()), "{}", refused.status());
    assert!(refused.headers().contains_key("retry-after"));
    drop(running);
    slots_are_free(&kit).await;
    assert_eq!(kit.send(&body).await.status(), 200);
    kit.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_may_come_and_go() {
    let mut kit = Kit::start_with(|options| options.decode_nodes = 2).await;
    let prompt = kit.prompt(50);
    kit.complete(&prompt, 4, json!({})).await;
    let leaving = kit.cluster.decode.remove(0);
    leaving.shutdown.end();
    leaving.finished().await;
    drop(leaving);
    kit.cluster.until_joined(2).await.unwrap();
    for _ in 0..3 {
        kit.complete(&prompt, 4, json!({})).await;
    }
    kit.cluster.add_decode(|_| {}).await.unwrap();
    kit.cluster.add_prefill(|_| {}).await.unwrap();
    kit.cluster.until_joined(4).await.unwrap();
    for _ in 0..4 {
        kit.complete(&prompt, 4, json!({})).await;
    }
    kit.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_draining_node_is_given_nothing_new() {
    let mut kit = Kit::start_with(|options| {
        options.decode_nodes = 2;
        options.router.retries = 0;
    })
    .await;
    let body = json!({"model": "tiny-llama", "prompt": "Once", "max_tokens": 8000, "ignore_eos": true, "stream": true});
    let mut running = kit.send(&body).await;
    assert!(running.chunk().await.unwrap().is_some());
    let used = |node: &node::Runtime| metric(&node.registry, "kvferry_decode_kv_used_tokens");
    let busy = kit.cluster.decode.iter().position(|node| used(node) > 0.0).unwrap();
    let leaving = kit.cluster.decode.remove(busy);
    leaving.shutdown.drain();
    // The heartbeat that says so takes a moment to arrive; a request in between is refused, never lost.
    let prompt = kit.prompt(50);
    let probe = json!({"model": "tiny-llama", "prompt": prompt, "max_tokens": 2});
    tokio::time::sleep(Duration::from_millis(200)).await;
    for _ in 0..6 {
        let answer = kit.send(&probe).await;
        assert_eq!(answer.status(), 200, "{}", answer.text().await.unwrap());
    }
    drop(running);
    leaving.finished().await;
    kit.stop().await;
}
