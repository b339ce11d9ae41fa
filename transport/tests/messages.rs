//! Every message kind crosses a real connection unchanged, and data frames between them.
#![allow(clippy::unwrap_used, reason = "a test's helpers fail as its assertions do")]

mod kit;

use bytes::Bytes;
use kit::{SOON, pair};
use serde::Serialize;
use serde::de::DeserializeOwned;
use transport::ids::{InstanceId, LeaseId, NodeId, PromptDigest, RequestId, Ticket};
use transport::message::*;
use transport::{EndpointConfig, Frame};

async fn crosses<M>(pair: &kit::Pair, messages: Vec<M>)
where
    M: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug,
{
    let mut here = pair.prefill.open().await.unwrap();
    for message in &messages {
        here.sender.send(message).await.unwrap();
    }
    here.sender.finish().unwrap();
    let mut there = pair.decode.accept().await.unwrap();
    for message in messages {
        assert_eq!(there.receiver.recv::<M>(SOON).await.unwrap(), Frame::Message(message));
    }
    assert_eq!(there.receiver.recv::<M>(SOON).await.unwrap(), Frame::End);
    assert_eq!(there.receiver.recv::<M>(SOON).await.unwrap(), Frame::End);
    assert_eq!(here.sender.bytes_written(), there.receiver.bytes_read());
}

fn sampling() -> Sampling {
    Sampling {
        temperature: 0.7,
        top_p: 0.9,
        top_k: 40,
        seed: u64::MAX,
        ignore_eos: true,
        min_p: 0.05,
        presence_penalty: 0.5,
        frequency_penalty: -0.25,
        repetition_penalty: 1.1,
        logit_bias: (0..MAX_LOGIT_BIAS as u32).map(|id| (id, id as f32 / 8.0 - 64.0)).collect(),
        min_tokens: 16,
        stop_token_ids: vec![13, u32::MAX],
        logprobs: Some(MAX_LOGPROBS),
    }
}

fn logprobs() -> Logprobs {
    Logprobs { drawn: -7.5, top: (0..20).map(|id| (id * 1000, -0.25 * id as f32)).collect() }
}

fn coding() -> KvCoding {
    KvCoding { codec: "kvtc".into(), tier: 32, mode: KvMode::After }
}

fn trace() -> TraceContext {
    TraceContext { trace_id: [0xab; 16], span_id: [0xcd; 8], flags: 1 }
}

fn failure() -> Failure {
    Failure { kind: FailureKind::Busy, message: "no slot for 4096 tokens".into() }
}

fn reserve(source: KvSource) -> Request {
    Request::Reserve(Reserve {
        request: RequestId::random(),
        prompt_tokens: 4096,
        max_tokens: 128,
        sampling: sampling(),
        prompt_ids: vec![1, 2, 128_000],
        source,
        trace: Some(trace()),
    })
}

fn prefill(token_ids: Vec<u32>) -> Request {
    Request::Prefill(Prefill {
        request: RequestId::random(),
        token_ids,
        cache_salt: Some([9; 16]),
        sampling: sampling(),
        coding: coding(),
        target: Some(target()),
        trace: Some(trace()),
    })
}

fn target() -> DecodeTarget {
    DecodeTarget {
        node: NodeId("decode-1".into()),
        instance: InstanceId::random(),
        address: "[::1]:7001".parse().unwrap(),
        ticket: Ticket::random(),
    }
}

fn keep(token_ids: Vec<u32>) -> Request {
    let Request::Prefill(prefill) = prefill(token_ids) else { unreachable!("it has just been made") };
    Request::Prefill(Prefill { target: None, ..prefill })
}

fn holder(prompt: &[u32]) -> Holder {
    Holder {
        node: NodeId("prefill-1".into()),
        instance: InstanceId::random(),
        address: "10.0.0.3:7002".parse().unwrap(),
        lease: LeaseId::random(),
        prompt: PromptDigest::of(prompt),
    }
}

fn deliver(prompt: &[u32]) -> Request {
    let (request, lease) = (RequestId::random(), LeaseId::random());
    let prompt = PromptDigest::of(prompt);
    Request::Deliver(Deliver { request, lease, prompt, target: target(), trace: Some(trace()) })
}

fn kept() -> Kept {
    Kept {
        lease: LeaseId::random(),
        expires: u64::MAX,
        first_token: 17,
        logprobs: Some(logprobs()),
        reason: FinishReason::Length,
        stats: transfer().prefill,
    }
}

fn transfer() -> Transfer {
    Transfer {
        coding: Some(coding()),
        prefill_node: Some(NodeId("prefill-1".into())),
        raw_bytes: 1 << 40,
        wire_bytes: 1 << 35,
        wire_ms: 12.5,
        decode_ms: 3.25,
        prefill: PrefillStats {
            cached_tokens: 64,
            queue_ms: 1.0,
            prefill_ms: 250.0,
            encode_ms: 40.0,
            overlap: 0.5,
            link_gbps: 9.5,
        },
    }
}

#[tokio::test]
async fn every_message_arrives_as_it_was_sent() {
    let pair = pair(EndpointConfig::default()).await;
    let register = Register {
        kv_address: Some("10.0.0.2:7001".parse().unwrap()),
        max_session_tokens: 131_072,
        kv_capacity_tokens: 1 << 20,
        max_sessions: 32,
        chunk_tokens: 256,
        after_chunk_tokens: 2048,
        prefix_cache_tokens: 16_384,
    };
    let load = Load { running: 1, waiting: 2, kept: 4, kv_used_tokens: 3, is_draining: true };
    crosses(&pair, vec![Control::Register(register), Control::Heartbeat(load)]).await;
    let local = KvSource::Local { token_ids: vec![1, 2, 128_000] };
    crosses(&pair, vec![reserve(KvSource::Remote), reserve(local), prefill(vec![5; 10])]).await;
    let handed_over = KvSource::Kept(holder(&[1, 2, 3]));
    crosses(&pair, vec![keep(vec![1, 2, 3]), reserve(handed_over), deliver(&[1, 2, 3])]).await;
    crosses(
        &pair,
        vec![
            FromDecode::Reserved { ticket: Ticket::random() },
            FromDecode::Ready { first_token: 17, logprobs: None, transfer: transfer() },
            FromDecode::Ready { first_token: 17, logprobs: Some(logprobs()), transfer: transfer() },
            FromDecode::Token { id: u32::MAX, logprobs: None },
            FromDecode::Token { id: 0, logprobs: Some(logprobs()) },
            FromDecode::Finished { reason: FinishReason::Length },
            FromDecode::Fail(failure()),
        ],
    )
    .await;
    crosses(&pair, vec![FromPrefill::Prefilled, FromPrefill::Kept(kept()), FromPrefill::Fail(failure())])
        .await;
    crosses(&pair, vec![KvReply::Accepted, KvReply::Fail(failure())]).await;
}

#[tokio::test]
async fn a_prompt_of_128k_tokens_fits_a_message() {
    let pair = pair(EndpointConfig::default()).await;
    crosses(&pair, vec![prefill((0..131_072).map(|i| u32::MAX - i).collect())]).await;
}

#[tokio::test]
async fn a_cache_travels_as_data_between_messages() {
    let pair = pair(EndpointConfig::default()).await;
    let begin = KvStream::Begin {
        ticket: Ticket::random(),
        coding: coding(),
        prompt_tokens: 9,
        trace: Some(trace()),
    };
    let end = KvStream::End {
        chunks: 3,
        digest: [3; 16],
        first_token: 4,
        logprobs: Some(logprobs()),
        stats: PrefillStats::default(),
    };
    let chunks = [Bytes::from(vec![1; 3_000_000]), Bytes::new(), Bytes::from_static(b"last")];
    let mut here = pair.prefill.open().await.unwrap();
    let (sent, expected) = (begin.clone(), chunks.clone());
    let sending = async {
        here.sender.send(&sent).await.unwrap();
        for chunk in chunks {
            here.sender.send_data(chunk).await.unwrap();
        }
        here.sender.send(&end).await.unwrap();
        here.sender.finish().unwrap();
        here.receiver.recv_message::<KvReply>(SOON).await.unwrap()
    };
    let receiving = async {
        let mut there = pair.decode.accept().await.unwrap();
        assert_eq!(there.receiver.recv_message::<KvStream>(SOON).await.unwrap(), begin);
        for chunk in expected {
            assert_eq!(there.receiver.recv::<KvStream>(SOON).await.unwrap(), Frame::Data(chunk));
        }
        assert_eq!(there.receiver.recv_message::<KvStream>(SOON).await.unwrap(), end);
        assert_eq!(there.receiver.recv::<KvStream>(SOON).await.unwrap(), Frame::End);
        there.sender.send(&KvReply::Accepted).await.unwrap();
        there.sender.finish().unwrap();
    };
    let (reply, ()) = tokio::join!(sending, receiving);
    assert_eq!(reply, KvReply::Accepted);
}

#[test]
fn a_token_is_encoded_as_documented() {
    let frame = transport::frame::encode_message(&FromDecode::Token { id: 300, logprobs: None }).unwrap();
    assert_eq!(frame[..], [0x01, 0x04, 0x00, 0x00, 0x00, 0x02, 0xac, 0x02, 0x00]);
}

#[test]
fn a_list_longer_than_its_message_is_refused() {
    // One entry of the bias is there and 2^28 are announced.
    let one = Sampling { logit_bias: vec![(7, 1.0)], ..Sampling::default() };
    let payload = transport::frame::encode_message(&one).unwrap().slice(5..);
    assert_eq!(transport::frame::decode_message::<Sampling>(&payload).unwrap(), one);
    let at = payload.len() - (1 + 5) - 3;
    assert_eq!(payload[at..at + 2], [1, 7]);
    let forged = [&payload[..at], &[0x80, 0x80, 0x80, 0x80, 0x01], &payload[at + 1..]].concat();
    assert!(transport::frame::decode_message::<Sampling>(&forged).is_err());
}

#[test]
fn a_prompts_digest_is_that_of_its_tokens_in_order() {
    let bytes: Vec<u8> = [1_u32, 2, 128_000].iter().flat_map(|id| id.to_le_bytes()).collect();
    let digest = PromptDigest::of(&[1, 2, 128_000]);
    assert_eq!(digest.0[..], blake3::hash(&bytes).as_bytes()[..16]);
    assert_ne!(digest, PromptDigest::of(&[2, 1, 128_000]));
    assert_ne!(digest, PromptDigest::of(&[1, 2]));
}

#[test]
fn a_decode_node_is_told_of_a_prompt_what_it_penalizes() {
    let prompt = [9, 3, 9, 0, 3];
    assert!(Sampling::default().penalized(&prompt).is_empty());
    let penalizing = Sampling { repetition_penalty: 1.1, ..Sampling::default() };
    assert_eq!(penalizing.penalized(&prompt), [0, 3, 9]);
}

#[test]
fn an_id_is_encoded_as_documented() {
    let ticket = Ticket(uuid::Uuid::from_bytes([0xee; 16]));
    let frame = transport::frame::encode_message(&FromDecode::Reserved { ticket }).unwrap();
    assert_eq!(frame[..7], [0x01, 18, 0, 0, 0, 0x00, 16]);
    assert_eq!(frame[7..], [0xee; 16]);
}
