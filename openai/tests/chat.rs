//! Chat and token requests, good and bad, as tables; chat answers as bytes.
#![allow(clippy::unwrap_used, reason = "a test's helpers fail as its assertions do")]

use openai::response::{ChatChoice, Delta, Logprobs, TokenLogprob, TokenLogprobs};
use openai::{
    ChatCompletion, ChatMessage, ChatRequest, DetokenizeRequest, FinishReason, InvalidRequest, TokenizeInput,
    TokenizeRequest,
};
use proptest::prelude::*;
use serde_json::{Value, json};

fn parse(body: &Value) -> Result<ChatRequest, InvalidRequest> {
    ChatRequest::parse(body.to_string().as_bytes())
}

/// A good body with some fields changed.
fn with(fields: Value) -> Value {
    let mut body = json!({"model": "m", "messages": [{"role": "user", "content": "hi"}]});
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    body
}

fn message(role: &str, content: &str) -> ChatMessage {
    ChatMessage { role: role.into(), content: content.into() }
}

#[test]
fn what_real_clients_send_is_taken() {
    // The OpenAI SDK, aiperf and guidellm, field by field.
    let request = parse(&with(json!({
        "max_completion_tokens": 8, "max_tokens": 4, "temperature": 0, "stream": true,
        "stream_options": {"include_usage": true}, "n": 1, "tools": [], "tool_choice": "none", "stop": null,
        "response_format": {"type": "text"}, "modalities": ["text"], "parallel_tool_calls": true, "store": false,
        "metadata": {"a": "b"}, "service_tier": "auto", "reasoning_effort": "low", "logprobs": true,
    })))
    .unwrap();
    assert_eq!((request.max_tokens, request.logprobs, request.n), (Some(8), Some(0), 1));
    assert!(request.delivery.stream && request.delivery.include_usage && request.add_generation_prompt);
    assert_eq!(parse(&with(json!({"max_tokens": 4}))).unwrap().max_tokens, Some(4));
    assert_eq!(parse(&with(json!({"logprobs": true, "top_logprobs": 3}))).unwrap().logprobs, Some(3));
    assert_eq!(
        (parse(&with(json!({}))).unwrap().max_tokens, parse(&with(json!({}))).unwrap().logprobs),
        (None, None)
    );
}

#[test]
fn messages_come_in_every_shape_of_text() {
    let messages = json!([
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "name": "u"},
        {"role": "assistant", "content": null, "tool_calls": []},
        {"role": "assistant", "content": "c", "refusal": null},
    ]);
    let read = parse(&with(json!({"messages": messages}))).unwrap().messages;
    assert_eq!(
        read,
        [
            message("system", "Be brief."),
            message("user", "a\nb"),
            message("assistant", ""),
            message("assistant", "c")
        ]
    );
}

#[test]
fn every_fault_names_its_field_and_what_belongs_there() {
    let user = |content: Value| json!({"messages": [{"role": "user", "content": content}]});
    let image = json!([{"type": "image_url", "image_url": {"url": "data:"}}]);
    let cases = [
        (json!({"messages": null}), "messages", "messages is required: give a list of messages"),
        (json!({"messages": "hi"}), "messages", "messages must be a list of messages, got \"hi\""),
        (json!({"messages": []}), "messages", "messages must be 1 to 4096 messages, got 0"),
        (json!({"messages": ["hi"]}), "messages[0]", "messages[0] must be an object"),
        (json!({"messages": [{"content": "a"}]}), "messages[0].role", "is required"),
        (json!({"messages": [{"role": "robot", "content": "a"}]}), "messages[0].role", "got \"robot\""),
        (
            json!({"messages": [{"role": "tool", "content": "a"}]}),
            "messages[0].role",
            "tools are not offered",
        ),
        (json!({"messages": [{"role": "user"}]}), "messages[0].content", "is required: give a text"),
        (
            json!({"messages": [{"role": "assistant", "tool_calls": [{"id": "x"}]}]}),
            "messages[0].tool_calls",
            "not supported yet; send text only",
        ),
        (user(json!(7)), "messages[0].content", "must be a string or a list of text parts, got 7"),
        (
            user(image),
            "messages[0].content[0]",
            "a part of type \"image_url\" is not supported yet; this model reads text",
        ),
        (user(json!([{"type": "text"}])), "messages[0].content[0]", "must be {\"type\": \"text\""),
        (json!({"tools": [{"type": "function"}]}), "tools", "tools = a list of 1 is not supported yet"),
        (json!({"tool_choice": "auto"}), "tool_choice", "leave it out or send \"none\""),
        (json!({"response_format": {"type": "json_schema"}}), "response_format", "not supported yet"),
        (json!({"top_logprobs": 2}), "top_logprobs", "only allowed when logprobs is true"),
        (json!({"logprobs": 2}), "logprobs", "logprobs must be a boolean, got 2"),
        (json!({"max_completion_tokens": 0}), "max_completion_tokens", "from 1 to"),
        (json!({"max_tokens": 3, "min_tokens": 4}), "min_tokens", "from 0 to 3, got 4"),
        (json!({"n": 129}), "n", "from 1 to 128"),
    ];
    for (fields, param, words) in cases {
        let error = parse(&with(fields.clone())).unwrap_err();
        assert_eq!(error.param(), Some(param), "{fields}: {error}");
        assert!(error.to_string().contains(words), "{fields}: {error}");
    }
}

#[test]
fn texts_and_conversations_can_be_tokenized() {
    let parse = |body: Value| TokenizeRequest::parse(body.to_string().as_bytes());
    let text = parse(json!({"prompt": "", "return_token_strs": true})).unwrap();
    assert_eq!(
        (text.input, text.add_special_tokens, text.return_token_strs),
        (TokenizeInput::Text(String::new()), true, true)
    );
    let chat = parse(json!({"model": "m", "messages": [{"role": "user", "content": "a"}]})).unwrap();
    let input = TokenizeInput::Chat { messages: vec![message("user", "a")], add_generation_prompt: true };
    assert_eq!((chat.input, chat.add_special_tokens), (input, false));
    assert_eq!(parse(json!({})).unwrap_err().param(), Some("prompt"));
    assert_eq!(parse(json!({"prompt": ["a"]})).unwrap_err().param(), Some("prompt"));
    let parse = |body: Value| DetokenizeRequest::parse(body.to_string().as_bytes());
    assert_eq!(parse(json!({"tokens": [1, 2]})).unwrap().tokens, [1, 2]);
    assert_eq!(parse(json!({"tokens": [1, 2.5]})).unwrap_err().param(), Some("tokens[1]"));
    assert_eq!(parse(json!({"tokens": "a"})).unwrap_err().param(), Some("tokens"));
}

#[test]
fn a_chunk_has_the_apis_shape() {
    let mut chunk = ChatCompletion::new(Default::default(), "m", true);
    chunk.created = 5;
    let delta = Delta { role: Some("assistant".into()), content: Some("hi".into()) };
    chunk.choices.push(ChatChoice {
        index: 0,
        message: None,
        delta: Some(delta),
        logprobs: None,
        finish_reason: Some(FinishReason::Stop),
    });
    assert_eq!(
        serde_json::to_value(&chunk).unwrap(),
        json!({"id": "chatcmpl-00000000000000000000000000000000", "object": "chat.completion.chunk", "created": 5,
            "model": "m", "choices": [{"index": 0, "delta": {"role": "assistant", "content": "hi"}, "logprobs": null,
            "finish_reason": "stop"}]})
    );
}

#[test]
fn logprobs_of_completions_are_four_lists() {
    let token = |token: &str, logprob| TokenLogprob { token: token.into(), logprob, bytes: token.into() };
    let tokens = vec![
        TokenLogprobs { drawn: token("né", -1.0), top: vec![token("a", -0.5), token("a", -0.75)] },
        TokenLogprobs { drawn: token("x", -0.25), top: vec![token("x", -0.25)] },
    ];
    let mut offset = 10;
    let lists = Logprobs::of(tokens, &mut offset);
    assert_eq!(
        serde_json::to_value(lists).unwrap(),
        json!({"text_offset": [10, 12], "token_logprobs": [-1.0, -0.25], "tokens": ["né", "x"],
            "top_logprobs": [{"a": -0.5, "né": -1.0}, {"x": -0.25}]})
    );
    assert_eq!(offset, 13);
}

proptest! {
    #[test]
    fn no_bytes_make_a_parser_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = ChatRequest::parse(&bytes);
        let _ = TokenizeRequest::parse(&bytes);
        let _ = DetokenizeRequest::parse(&bytes);
    }
}
