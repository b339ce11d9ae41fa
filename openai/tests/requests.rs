//! Request bodies, good and bad, as a table; and answers as bytes.
#![allow(clippy::unwrap_used, reason = "a test's helpers fail as its assertions do")]

use openai::{
    Choice, Completion, CompletionRequest, Delivery, InvalidRequest, KvCodec, KvHandover, KvMode, KvOptions,
    Prompt, SamplingOptions, Usage,
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
        prompts: vec![Prompt::Text("p".into())],
        n: 1,
        max_tokens: 16,
        echo: false,
        logprobs: None,
        add_special_tokens: true,
        sampling: SamplingOptions::default(),
        delivery: Delivery::default(),
        user: None,
        kv: KvOptions { report: false, codec: KvCodec::Auto, tier: 32, mode: KvMode::Auto, cache_salt: None },
        kv_transfer_params: None,
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
        "max_tokens": 5, "temperature": 0.5, "top_p": 0.25, "top_k": 40, "min_p": 0.125, "seed": -1, "stop": "END",
        "stop_token_ids": [7, 8], "min_tokens": 2, "presence_penalty": 0.5, "frequency_penalty": -1,
        "repetition_penalty": 1.5, "logit_bias": {"12": -100, "3": 2.5}, "n": 3, "best_of": 3, "logprobs": 4,
        "stream": true, "stream_options": {"include_usage": true, "continuous_usage_stats": true}, "ignore_eos": true,
        "add_special_tokens": false, "user": "u", "kv_transfer": true, "kv_codec": "kvtc", "kv_tier": 64, "kv_mode": "after",
    })))
    .unwrap();
    assert_eq!(
        (request.max_tokens, request.n, request.logprobs, request.add_special_tokens),
        (5, 3, Some(4), false)
    );
    let sampling = SamplingOptions {
        temperature: 0.5,
        top_p: 0.25,
        top_k: 40,
        min_p: 0.125,
        presence_penalty: 0.5,
        frequency_penalty: -1.0,
        repetition_penalty: 1.5,
        logit_bias: vec![(3, 2.5), (12, -100.0)],
        seed: Some(u64::MAX),
        stop: vec!["END".into()],
        stop_token_ids: vec![7, 8],
        min_tokens: 2,
        ignore_eos: true,
    };
    assert_eq!(request.sampling, sampling);
    assert_eq!(request.delivery, Delivery { stream: true, include_usage: true, continuous_usage: true });
    assert_eq!(request.user.as_deref(), Some("u"));
    assert_eq!(
        request.kv,
        KvOptions { report: true, codec: KvCodec::Kvtc, tier: 64, mode: KvMode::After, cache_salt: None }
    );
}

#[test]
fn prompts_are_texts_or_tokens_one_or_many() {
    let text = |text: &str| Prompt::Text(text.into());
    for (prompt, expected) in [
        (json!("a"), vec![text("a")]),
        (json!(["a", "b"]), vec![text("a"), text("b")]),
        (json!([1, 2, 3]), vec![Prompt::Tokens(vec![1, 2, 3])]),
        (json!([[1, 2], [3]]), vec![Prompt::Tokens(vec![1, 2]), Prompt::Tokens(vec![3])]),
        (json!(["a", [3]]), vec![text("a"), Prompt::Tokens(vec![3])]),
    ] {
        assert_eq!(parse(&with(json!({"prompt": prompt}))).unwrap().prompts, expected, "{prompt}");
    }
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
        assert_eq!(parse(&with(json!({"stop": stop}))).unwrap().sampling.stop, expected);
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
        (json!({"prompt": []}), "prompt", "prompt must be one prompt or token at least, got an empty list"),
        (json!({"prompt": ["a", ""]}), "prompt[1]", "at least one character, got an empty string"),
        (json!({"prompt": [[1], []]}), "prompt[1]", "one token at least, got an empty list"),
        (
            json!({"prompt": [1, "a"]}),
            "prompt[1]",
            "must be a token id, an integer from 0 to 4294967295, got \"a\"",
        ),
        (json!({"prompt": [1, -1]}), "prompt[1]", "got -1"),
        (json!({"prompt": vec!["a"; 257]}), "prompt", "prompt must be 256 prompts at most, got 257"),
        (json!({"prompt": {"text": "a"}}), "prompt", "must be a string, a list of strings"),
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
        (json!({"n": 0}), "n", "n must be from 1 to 128, got 0"),
        (json!({"n": 100, "prompt": ["a", "b", "c"]}), "n", "n must be at most 85 for 3 prompts, got 100"),
        (
            json!({"best_of": 3}),
            "best_of",
            "best_of = 3 is not supported yet; leave it out or send the value of n, 1",
        ),
        (
            json!({"echo": true, "logprobs": 0}),
            "echo",
            "true together with logprobs is not supported yet; ask for one",
        ),
        (json!({"logprobs": 21}), "logprobs", "logprobs must be from 0 to 20, got 21"),
        (json!({"logprobs": true}), "logprobs", "logprobs must be an integer"),
        (json!({"suffix": "s"}), "suffix", "not supported yet"),
        (
            json!({"response_format": {"type": "json_object"}}),
            "response_format",
            "an object is not supported yet",
        ),
        (json!({"logit_bias": [1]}), "logit_bias", "logit_bias must be an object, got a list of 1"),
        (json!({"logit_bias": {"x": 1}}), "logit_bias.x", "must be named by a token id, got \"x\""),
        (json!({"logit_bias": {"5": 101}}), "logit_bias.5", "from -100 to 100, got 101"),
        (json!({"logit_bias": {"5": "1"}}), "logit_bias.5", "must be a number"),
        (json!({"presence_penalty": 2.5}), "presence_penalty", "from -2 to 2, got 2.5"),
        (json!({"frequency_penalty": "1"}), "frequency_penalty", "must be a number"),
        (json!({"repetition_penalty": 0}), "repetition_penalty", "above 0 and at most 10, got 0"),
        (json!({"min_p": 1.5}), "min_p", "from 0 to 1, got 1.5"),
        (json!({"min_tokens": 17}), "min_tokens", "from 0 to 16, got 17"),
        (json!({"stop_token_ids": 5}), "stop_token_ids", "must be a list of token ids, got 5"),
        (json!({"stop_token_ids": ["a"]}), "stop_token_ids[0]", "must be a token id"),
        (json!({"stop_token_ids": vec![1; 129]}), "stop_token_ids", "128 tokens at most, got 129"),
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
    let finish_reason = Some(openai::FinishReason::Length);
    completion.choices.push(Choice { index: 0, text: "hi".into(), logprobs: None, finish_reason });
    let chunk = serde_json::to_value(&completion).unwrap();
    assert_eq!(
        chunk,
        json!({"id": "cmpl-00000000000000000000000000000000", "object": "text_completion", "created": 5, "model": "m",
            "choices": [{"index": 0, "text": "hi", "logprobs": null, "finish_reason": "length"}]})
    );
    completion.usage = Some(Usage::new(3, 4, 2));
    let usage = serde_json::to_value(&completion).unwrap()["usage"].clone();
    let details = json!({"cached_tokens": 2});
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
            prop_assert!((0.0..=2.0).contains(&request.sampling.temperature));
            prop_assert!(request.sampling.top_p > 0.0 && request.sampling.top_p <= 1.0);
            prop_assert!((4..=128).contains(&request.kv.tier));
        }
    }
}

#[test]
fn a_handover_is_kept_taken_or_neither() {
    let read = |fields: Value| {
        let request = parse(&with(json!({"kv_transfer_params": fields}))).unwrap();
        request.kv_transfer_params.map_or(Ok(None), KvHandover::read)
    };
    // What vLLM's proxies send to a prefill instance.
    let keep = json!({
        "do_remote_decode": true, "do_remote_prefill": false, "remote_engine_id": null, "remote_block_ids": null,
        "remote_host": null, "remote_port": null,
    });
    assert_eq!(read(keep), Ok(Some(KvHandover::Keep)));
    let take = json!({"do_remote_prefill": true, "kvferry_ticket": "abc", "remote_host": 7, "tp_size": "?"});
    assert_eq!(read(take), Ok(Some(KvHandover::Take { ticket: "abc".into() })));
    for neither in [json!(null), json!({}), json!({"do_remote_decode": false, "do_remote_prefill": null})] {
        assert_eq!(read(neither), Ok(None));
    }
    for (wrong, param, code) in [
        (json!([]), "kv_transfer_params", "invalid_type"),
        (json!({"do_remote_decode": 1}), "kv_transfer_params.do_remote_decode", "invalid_type"),
        (json!({"do_remote_prefill": "yes"}), "kv_transfer_params.do_remote_prefill", "invalid_type"),
        (json!({"do_remote_prefill": true}), "kv_transfer_params.kvferry_ticket", "missing_field"),
        (json!({"kvferry_ticket": {}}), "kv_transfer_params.kvferry_ticket", "invalid_type"),
        (
            json!({"do_remote_prefill": true, "kvferry_ticket": "a".repeat(1025)}),
            "kv_transfer_params.kvferry_ticket",
            "invalid_value",
        ),
        (
            json!({"do_remote_prefill": true, "do_remote_decode": true}),
            "kv_transfer_params.do_remote_prefill",
            "invalid_combination",
        ),
    ] {
        let error = read(wrong.clone()).unwrap_err();
        assert_eq!((error.param(), error.code()), (Some(param), code), "{wrong}");
    }
}
