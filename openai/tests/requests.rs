//! Request bodies, good and bad, as a table; and answers as bytes.
#![allow(clippy::unwrap_used, reason = "a test's helpers fail as its assertions do")]

use openai::{
    Choice, Completion, CompletionRequest, InvalidRequest, KvCodec, KvMode, KvOptions, Prompt, Usage,
};
use proptest::prelude::*;
use serde_json::{Value, json};

fn parse(body: &Value) -> Result<CompletionRequest, InvalidRequest> {
    CompletionRequest::parse(body.to_string().as_bytes())
}

/// A good body with some fields changed.
fn with(fields: Value) -> Value {
    let mut body = json!({"model": "m", "prompt": "p"});
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    body
}

#[test]
fn defaults_are_those_of_the_api() {
    let expected = CompletionRequest {
        model: "m".into(),
        prompt: Prompt::Text("p".into()),
        max_tokens: 16,
        temperature: 1.0,
        top_p: 1.0,
        top_k: 0,
        seed: None,
        stop: vec![],
        stream: false,
        include_usage: false,
        ignore_eos: false,
        user: None,
        kv: KvOptions { report: false, codec: KvCodec::Auto, tier: 32, mode: KvMode::Auto },
    };
    assert_eq!(parse(&with(json!({}))), Ok(expected.clone()));
    let nulls =
        json!({"max_tokens": null, "stop": null, "stream_options": null, "logprobs": null, "kv_tier": null});
    assert_eq!(parse(&with(nulls)), Ok(expected.clone()));
    let neutral = json!({"n": 1, "best_of": 1, "echo": false, "suffix": null, "logit_bias": {}, "presence_penalty": 0,
        "frequency_penalty": 0.0, "repetition_penalty": 1.0, "top_k": -1, "min_p": 0, "unheard_of": [1, {"a": 2}]});
    assert_eq!(parse(&with(neutral)), Ok(expected));
}

#[test]
fn every_field_is_read() {
    let request = parse(&with(json!({
        "max_tokens": 5, "temperature": 0.5, "top_p": 0.25, "top_k": 40, "seed": -1, "stop": "END", "stream": true,
        "stream_options": {"include_usage": true, "continuous_usage_stats": false}, "ignore_eos": true, "user": "u",
        "kv_transfer": true, "kv_codec": "kvtc", "kv_tier": 64, "kv_mode": "after",
    })))
    .unwrap();
    assert_eq!((request.max_tokens, request.temperature, request.top_p, request.top_k), (5, 0.5, 0.25, 40));
    assert_eq!((request.seed, request.stop.as_slice()), (Some(u64::MAX), &["END".to_owned()][..]));
    assert!(request.stream && request.include_usage && request.ignore_eos);
    assert_eq!(request.user.as_deref(), Some("u"));
    assert_eq!(request.kv, KvOptions { report: true, codec: KvCodec::Kvtc, tier: 64, mode: KvMode::After });
}

#[test]
fn every_codec_has_its_name() {
    for (name, codec) in [
        ("auto", KvCodec::Auto),
        ("raw", KvCodec::Raw),
        ("lossless", KvCodec::Lossless),
        ("fp8", KvCodec::Fp8),
        ("kvtc", KvCodec::Kvtc),
        ("kvtc-paper", KvCodec::KvtcPaper),
        ("kvtc-paper-coded-window", KvCodec::KvtcPaperCodedWindow),
    ] {
        assert_eq!(parse(&with(json!({"kv_codec": name}))).unwrap().kv.codec, codec);
        assert_eq!(codec.as_str(), name);
    }
}

#[test]
fn a_mode_goes_with_every_codec_that_has_it() {
    for (codec, mode, expected) in [
        ("auto", "after", KvMode::After),
        ("kvtc", "after", KvMode::After),
        ("kvtc", "stream", KvMode::Stream),
        ("raw", "stream", KvMode::Stream),
        ("kvtc-paper", "auto", KvMode::Auto),
    ] {
        assert_eq!(parse(&with(json!({"kv_codec": codec, "kv_mode": mode}))).unwrap().kv.mode, expected);
    }
    for codec in ["raw", "lossless", "fp8", "kvtc-paper", "kvtc-paper-coded-window"] {
        assert!(parse(&with(json!({"kv_codec": codec, "kv_mode": "after"}))).is_err(), "{codec}");
    }
}

#[test]
fn stop_takes_a_string_or_a_list() {
    for (stop, expected) in
        [(json!("a"), vec!["a"]), (json!(["a", "b"]), vec!["a", "b"]), (json!([]), vec![])]
    {
        assert_eq!(parse(&with(json!({"stop": stop}))).unwrap().stop, expected);
    }
}

#[test]
fn every_fault_names_its_field_and_what_belongs_there() {
    let long = "x".repeat(1025);
    let cases = [
        (json!({"model": null}), "model", "model is required: give a string"),
        (json!({"model": 7}), "model", "model must be a string, got 7"),
        (json!({"prompt": null}), "prompt", "prompt is required"),
        (json!({"prompt": ""}), "prompt", "at least one character, got an empty string"),
        (
            json!({"prompt": ["a", "b"]}),
            "prompt",
            "prompt = a list of 2 is not supported yet; send one string",
        ),
        (json!({"prompt": {"text": "a"}}), "prompt", "must be a string, got an object"),
        (json!({"max_tokens": 0}), "max_tokens", "max_tokens must be from 1 to 4294967295, got 0"),
        (json!({"max_tokens": 1.5}), "max_tokens", "max_tokens must be an integer, got 1.5"),
        (json!({"max_tokens": "16"}), "max_tokens", "max_tokens must be an integer, got \"16\""),
        (json!({"max_tokens": 1u64 << 40}), "max_tokens", "got 1099511627776"),
        (json!({"temperature": 2.5}), "temperature", "temperature must be from 0 to 2, got 2.5"),
        (json!({"temperature": -0.1}), "temperature", "got -0.1"),
        (json!({"temperature": true}), "temperature", "temperature must be a number, got true"),
        (json!({"top_p": 0}), "top_p", "top_p must be above 0 and at most 1, got 0"),
        (json!({"top_p": 1.01}), "top_p", "at most 1, got 1.01"),
        (json!({"top_k": -2}), "top_k", "got -2"),
        (json!({"seed": 1e30}), "seed", "seed must be an integer"),
        (json!({"stop": 3}), "stop", "stop must be a string or a list of strings, got 3"),
        (json!({"stop": ["a", 3]}), "stop[1]", "stop[1] must be a string, got 3"),
        (json!({"stop": [""]}), "stop[0]", "stop[0] must be 1 to 1024 bytes long, got 0"),
        (json!({"stop": long}), "stop[0]", "got 1025"),
        (json!({"stop": vec!["a"; 17]}), "stop", "stop must be 16 strings at most, got 17"),
        (json!({"stream": "yes"}), "stream", "stream must be a boolean, got \"yes\""),
        (json!({"stream_options": {}}), "stream_options", "only allowed when stream is true"),
        (json!({"stream": true, "stream_options": 1}), "stream_options", "must be an object, got 1"),
        (
            json!({"stream": true, "stream_options": {"include_usage": 1}}),
            "stream_options.include_usage",
            "stream_options.include_usage must be a boolean, got 1",
        ),
        (json!({"user": 1}), "user", "user must be a string"),
        (
            json!({"kv_codec": "zip"}),
            "kv_codec",
            "kv_codec must be \"auto\", \"raw\", \"lossless\", \"fp8\", \"kvtc\", \"kvtc-paper\" or \"kvtc-paper-coded-window\", got \"zip\"",
        ),
        (
            json!({"kv_mode": "later"}),
            "kv_mode",
            "kv_mode must be \"auto\", \"stream\" or \"after\", got \"later\"",
        ),
        (
            json!({"kv_codec": "fp8", "kv_mode": "after"}),
            "kv_mode",
            "kv_mode must be \"auto\" or \"stream\" when kv_codec is \"fp8\", got \"after\"",
        ),
        (json!({"kv_tier": 3}), "kv_tier", "kv_tier must be from 4 to 128, got 3"),
        (json!({"kv_tier": 129}), "kv_tier", "got 129"),
        (json!({"kv_transfer": "1"}), "kv_transfer", "kv_transfer must be a boolean"),
        (json!({"n": 2}), "n", "n = 2 is not supported yet; leave it out or send 1"),
        (json!({"best_of": 3}), "best_of", "not supported yet"),
        (json!({"echo": true}), "echo", "not supported yet"),
        (json!({"logprobs": 0}), "logprobs", "not supported yet"),
        (json!({"suffix": "s"}), "suffix", "not supported yet"),
        (json!({"logit_bias": {"5": 1}}), "logit_bias", "not supported yet"),
        (json!({"presence_penalty": 0.5}), "presence_penalty", "not supported yet"),
        (json!({"frequency_penalty": -1}), "frequency_penalty", "not supported yet"),
        (json!({"repetition_penalty": 1.1}), "repetition_penalty", "not supported yet"),
    ];
    for (fields, param, words) in cases {
        let error = parse(&with(fields.clone())).unwrap_err();
        assert_eq!(error.param(), Some(param), "{fields}");
        assert!(error.to_string().contains(words), "{fields}: {error}");
    }
}

#[test]
fn bodies_that_are_no_object_are_refused() {
    for (body, words) in [
        ("", "EOF while parsing a value at line 1 column 0"),
        ("{\"model\":\n \"m\",}", "line 2 column 6"),
        (r#"{"model":"m","prompt":"p","temperature":1e999}"#, "number out of range at line 1"),
        (r#"{"temperature":NaN}"#, "line 1 column 16"),
        ("[]", "must be a JSON object, got a list of 0"),
        ("\"model\"", "must be a JSON object, got \"model\""),
        (r#"{"model":"m"} extra"#, "trailing characters"),
    ] {
        let error = CompletionRequest::parse(body.as_bytes()).unwrap_err();
        assert_eq!(error.param(), None, "{body}");
        assert!(error.to_string().contains(words), "{body}: {error}");
    }
    assert!(CompletionRequest::parse("[".repeat(100_000).as_bytes()).is_err());
}

#[test]
fn a_clients_long_value_is_not_repeated_in_full() {
    let error = parse(&with(json!({"kv_codec": "é".repeat(10_000)}))).unwrap_err();
    assert!(error.to_string().len() < 200, "{error}");
}

#[test]
fn an_answer_has_the_apis_shape() {
    let mut completion = Completion::new(Default::default(), "m");
    completion.created = 5;
    completion.choices.push(Choice::new("hi".into(), Some(openai::FinishReason::Length)));
    let chunk = serde_json::to_value(&completion).unwrap();
    assert_eq!(
        chunk,
        json!({"id": "cmpl-00000000000000000000000000000000", "object": "text_completion", "created": 5, "model": "m",
            "choices": [{"index": 0, "text": "hi", "logprobs": null, "finish_reason": "length"}]})
    );
    completion.usage = Some(Usage::new(3, 4));
    let usage = serde_json::to_value(&completion).unwrap()["usage"].clone();
    let details = json!({"cached_tokens": 0});
    assert_eq!(
        usage,
        json!({"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7, "prompt_tokens_details": details})
    );
    assert_eq!(serde_json::from_value::<Completion>(chunk).unwrap().choices, completion.choices);
}

proptest! {
    #[test]
    fn no_bytes_make_the_parser_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = CompletionRequest::parse(&bytes);
    }

    #[test]
    fn a_request_that_passes_is_within_all_ranges(temperature in -1.0..4.0f64, top_p in -1.0..2.0f64, tier in 0..200) {
        if let Ok(request) = parse(&with(json!({"temperature": temperature, "top_p": top_p, "kv_tier": tier}))) {
            prop_assert!((0.0..=2.0).contains(&request.temperature));
            prop_assert!(request.top_p > 0.0 && request.top_p <= 1.0);
            prop_assert!((4..=128).contains(&request.kv.tier));
        }
    }
}
