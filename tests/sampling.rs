//! Every setting of a draw at the nodes: a request that is split gives what an unsplit one gives, and what cannot be drawn as
//! asked is refused.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

use cluster_tests::kit::{device, loaded};
use cluster_tests::nodes::{Answer, Asked, Nodes, recv};
use cluster_tests::oracle;
use node::{DeviceChoice, sampling};
use transport::ids::Ticket;
use transport::message::{Failure, FailureKind, FinishReason, FromPrefill, KvSource, Sampling};

fn asked(max_tokens: u32, sampling: Sampling) -> Asked {
    let prompt = (0..300).map(|i| 20 + (i * i * 31 + i * 7) % 900).collect();
    Asked { prompt, max_tokens, sampling }
}

fn greedy() -> Sampling {
    Sampling { temperature: 0.0, ..Sampling::default() }
}

/// The same from both nodes and from one, and on a CPU from no node at all.
async fn everywhere(nodes: &Nodes, asked: &Asked) -> Answer {
    let split = nodes.split(asked).await.unwrap();
    assert_eq!(split, nodes.whole(asked).await.unwrap(), "split against whole: {asked:?}");
    if device() == DeviceChoice::Cpu {
        let (loaded, max) = (loaded(), asked.max_tokens as usize);
        let config = loaded.llama.config();
        let draws = sampling::draws(&asked.sampling, config, &asked.prompt);
        let ends = sampling::ends(&asked.sampling, config);
        let drawn = oracle::draw(&loaded, &asked.prompt, max, draws, &ends);
        let expected: Vec<_> = drawn.into_iter().map(sampling::told).collect();
        assert_eq!(split.tokens, expected, "nodes against one process: {asked:?}");
    }
    split
}

#[tokio::test(flavor = "multi_thread")]
async fn a_split_run_with_every_setting_equals_an_unsplit_one() {
    let nodes = Nodes::start(&loaded()).await;
    let eos = loaded().llama.config().eos_token_ids.clone();
    for (temperature, seed) in [(0.0, 0), (0.8, 1), (1.3, 2)] {
        let full = Sampling {
            temperature,
            seed,
            ignore_eos: true,
            top_p: 0.97,
            top_k: 400,
            min_p: 0.001,
            presence_penalty: 0.7,
            frequency_penalty: 0.3,
            repetition_penalty: 1.2,
            logit_bias: vec![(300, 1.5), (301, -2.0)],
            min_tokens: 12,
            stop_token_ids: vec![eos[0], 302],
            logprobs: Some(5),
        };
        let answer = everywhere(&nodes, &asked(24, full)).await;
        assert!(answer.tokens.len() >= 12);
        let told = answer.tokens.iter().map(|(_, told)| told.as_ref().unwrap());
        assert!(told.clone().all(|told| told.top.len() == 5 && told.drawn <= 0.0));
    }
    nodes.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_setting_alone_changes_what_is_drawn_but_for_what_is_only_told() {
    let nodes = Nodes::start(&loaded()).await;
    let plain = Sampling { ignore_eos: true, ..greedy() };
    // Long enough that tokens come again, whichever way the last bits fall on a machine.
    let asked = |sampling| asked(96, sampling);
    let without = everywhere(&nodes, &asked(plain.clone())).await;
    assert!(without.tokens.iter().all(|(_, told)| told.is_none()));
    for one in [
        Sampling { repetition_penalty: 1.5, ..plain.clone() },
        Sampling { frequency_penalty: 1.5, ..plain.clone() },
        Sampling { presence_penalty: 2.0, ..plain.clone() },
        Sampling { logit_bias: vec![(without.ids()[3], -100.0)], ..plain.clone() },
    ] {
        assert_ne!(everywhere(&nodes, &asked(one.clone())).await.ids(), without.ids(), "{one:?}");
    }
    let told = Sampling { logprobs: Some(0), ..plain };
    assert_eq!(everywhere(&nodes, &asked(told)).await.ids(), without.ids());
    nodes.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_end_waits_for_min_tokens() {
    let nodes = Nodes::start(&loaded()).await;
    let eos = loaded().llama.config().eos_token_ids[0];
    // Nothing is likelier than these two wherever they can be drawn.
    for (min_tokens, stop) in [(0, eos), (1, eos), (5, eos), (12, eos), (5, 77)] {
        let wanted = Sampling {
            logit_bias: vec![(stop, 100.0)],
            min_tokens,
            stop_token_ids: if stop == eos { vec![] } else { vec![stop] },
            ..greedy()
        };
        let answer = everywhere(&nodes, &asked(12, wanted)).await;
        let before = answer.ids().iter().take_while(|id| **id != stop).count();
        assert_eq!(before, min_tokens as usize, "{:?}", answer.ids());
        // The end itself is given out and counts.
        let (tokens, reason) = match min_tokens {
            12 => (12, FinishReason::Length),
            _ => (min_tokens as usize + 1, FinishReason::Stop),
        };
        assert_eq!((answer.tokens.len(), answer.reason), (tokens, reason));
    }
    nodes.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_token_ends_the_answer_also_where_ends_of_text_are_ignored() {
    let nodes = Nodes::start(&loaded()).await;
    let plain = Sampling { ignore_eos: true, ..greedy() };
    let free = everywhere(&nodes, &asked(16, plain.clone())).await;
    assert_eq!((free.tokens.len(), free.reason), (16, FinishReason::Length));
    for at in [0, 1, 7, 15] {
        let stop = free.ids()[at];
        let first = free.ids().iter().position(|id| *id == stop).unwrap();
        let answer =
            everywhere(&nodes, &asked(16, Sampling { stop_token_ids: vec![stop], ..plain.clone() })).await;
        assert_eq!(answer.ids(), free.ids()[..=first]);
        assert_eq!(answer.reason, FinishReason::Stop);
    }
    nodes.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_drawn_as_asked_is_refused_by_both_nodes() {
    let nodes = Nodes::start(&loaded()).await;
    let vocab = loaded().llama.config().vocab_size as u32;
    for (name, wrong) in [
        ("temperature", Sampling { temperature: f32::NAN, ..greedy() }),
        ("top_p", Sampling { top_p: 0.0, ..greedy() }),
        ("min_p", Sampling { min_p: 1.5, ..greedy() }),
        ("presence_penalty", Sampling { presence_penalty: f32::INFINITY, ..greedy() }),
        ("frequency_penalty", Sampling { frequency_penalty: -2.1, ..greedy() }),
        ("repetition_penalty", Sampling { repetition_penalty: 0.0, ..greedy() }),
        ("logit_bias", Sampling { logit_bias: vec![(1, f32::NEG_INFINITY)], ..greedy() }),
        ("logit_bias", Sampling { logit_bias: vec![(vocab, 1.0)], ..greedy() }),
        ("logit_bias", Sampling { logit_bias: vec![(1, 1.0); 1025], ..greedy() }),
        ("stop_token_ids", Sampling { stop_token_ids: vec![vocab], ..greedy() }),
        ("stop_token_ids", Sampling { stop_token_ids: vec![1; 129], ..greedy() }),
        ("logprobs", Sampling { logprobs: Some(21), ..greedy() }),
    ] {
        let asked = asked(8, wrong);
        let refused =
            |failure: &Failure| failure.kind == FailureKind::Invalid && failure.message.starts_with(name);
        let failure = nodes.whole(&asked).await.unwrap_err();
        assert!(refused(&failure), "{name}: {failure:?}");
        let failure = nodes.split(&asked).await.unwrap_err();
        assert!(refused(&failure), "{name}: {failure:?}");
        match recv(&mut nodes.prefill(&asked, Ticket::random()).await).await {
            FromPrefill::Fail(failure) => assert!(refused(&failure), "{name}: {failure:?}"),
            other => panic!("{name} was taken: {other:?}"),
        }
    }
    let more = asked(8, Sampling { min_tokens: 9, ..greedy() });
    assert!(nodes.whole(&more).await.unwrap_err().message.starts_with("min_tokens"));
    assert_eq!(
        nodes.whole(&asked(8, greedy())).await.unwrap(),
        nodes.split(&asked(8, greedy())).await.unwrap()
    );
    nodes.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_decode_node_is_told_of_a_prompt_must_fit_it() {
    let nodes = Nodes::start(&loaded()).await;
    let vocab = loaded().llama.config().vocab_size as u32;
    let penalizing = asked(8, Sampling { repetition_penalty: 1.1, ..greedy() });
    for ids in [vec![], vec![2, 1], vec![1, 1], vec![vocab], (0..301).collect()] {
        let failure = nodes.reserve(&penalizing, KvSource::Remote, ids).await.unwrap_err();
        assert_eq!(failure.kind, FailureKind::Invalid, "{failure:?}");
        assert!(failure.message.contains("prompt_ids"), "{failure:?}");
    }
    let unasked = nodes.reserve(&asked(8, greedy()), KvSource::Remote, vec![1]).await.unwrap_err();
    assert!(unasked.message.contains("prompt_ids"), "{unasked:?}");
    let local = KvSource::Local { token_ids: penalizing.prompt.clone() };
    let twice = nodes.reserve(&penalizing, local, vec![1]).await.unwrap_err();
    assert!(twice.message.contains("prompt_ids"), "{twice:?}");
    nodes.stop().await;
}
