//! The ring, the totals, and that a listener is told what is new and no more.

use openai::{KvSource, KvTransfer};
use serde_json::Value;
use transport::ids::RequestId;

use super::ring::MAX_ROWS;
use super::view::State;
use super::{Board, Entry, Read, Sizes};

fn transfer(codec: &str, ttft_ms: f64) -> KvTransfer {
    KvTransfer {
        source: KvSource::Remote,
        codec: Some(codec.into()),
        tier: None,
        mode: Some("stream".into()),
        bypass_reason: None,
        raw_bytes: 6000,
        wire_bytes: if codec == "raw" { 6100 } else { 200 },
        saved_bytes: 0,
        ratio: None,
        cached_tokens: 0,
        encode_ms: 1.0,
        wire_ms: 2.0,
        overlap: Some(0.5),
        decode_ms: 1.0,
        prefill_ms: 9.0,
        queue_ms: 0.0,
        link_gbps: None,
        predicted_ms: None,
        ttft_ms,
        second_token_ms: None,
        prefill_node: "p1".into(),
        decode_node: "d1".into(),
    }
}

fn admitted(board: &Board) -> Entry {
    let entry = board.begin();
    entry.admitted(RequestId::random(), Sizes { sequences: 1, prompt_tokens: 100, max_tokens: 16 });
    entry
}

fn totals(board: &Board) -> Value {
    serde_json::to_value(board.read(0).totals.unwrap()).unwrap()
}

fn numbers(read: &Read) -> Vec<u64> {
    read.requests.iter().map(|request| request.number).collect()
}

#[test]
fn a_request_goes_from_placing_to_done() {
    let board = Board::new();
    let entry = admitted(&board);
    let shown = || board.read(0).requests[0].clone();
    assert_eq!((shown().state, shown().prompt_tokens, shown().max_tokens), (State::Placing, 100, 16));
    entry.first_token(&transfer("kvtc", 40.0));
    entry.token();
    entry.token();
    assert_eq!((shown().state, shown().tokens), (State::Decode, 2));
    entry.second_token(&KvTransfer { second_token_ms: Some(44.0), ..transfer("kvtc", 40.0) });
    entry.end("ok");
    drop(entry);
    let done = shown();
    assert_eq!((done.state, done.outcome, done.tokens), (State::Done, Some("ok"), 2));
    assert!(done.ended.unwrap() >= done.arrived);
    let report = done.kv_transfer.unwrap();
    assert_eq!((report.wire_bytes, report.second_token_ms), (200, Some(44.0)));
}

#[test]
fn a_dropped_request_was_cancelled_and_the_last_clone_decides() {
    let board = Board::new();
    let entry = admitted(&board);
    let clone = entry.clone();
    drop(entry);
    assert_eq!(board.read(0).requests[0].state, State::Placing);
    drop(clone);
    let ended = board.read(0).requests[0].clone();
    assert_eq!((ended.state, ended.outcome), (State::Cancelled, Some("cancelled")));
    assert_eq!(
        (totals(&board)["running"].clone(), totals(&board)["cancelled"].clone()),
        (0.into(), 1.into())
    );
}

#[test]
fn the_ring_keeps_the_newest_and_lines_without_a_place_still_count() {
    let board = Board::new();
    let old = admitted(&board);
    let entries: Vec<Entry> = (0..MAX_ROWS).map(|_| admitted(&board)).collect();
    let read = board.read(0);
    assert_eq!((read.requests.len(), read.requests[0].number), (MAX_ROWS, 1));
    old.first_token(&transfer("raw", 10.0));
    old.end("node_lost");
    assert_eq!(numbers(&board.read(0)), (1..=MAX_ROWS as u64).collect::<Vec<_>>());
    assert_eq!(
        (totals(&board)["failed"].clone(), totals(&board)["wire_bytes"].clone()),
        (1.into(), 6100.into())
    );
    drop(entries);
    assert_eq!(totals(&board)["running"], 0);
}

#[test]
fn refused_requests_are_counted_and_not_shown() {
    let board = Board::new();
    board.begin().end("invalid_value");
    drop(board.begin());
    assert!(board.read(0).requests.is_empty());
    let totals = totals(&board);
    assert_eq!((totals["refused"].clone(), totals["requests"].clone()), (2.into(), 0.into()));
}

#[test]
fn totals_add_up_by_codec_and_medians_tell_raw_from_coded() {
    let board = Board::new();
    let local =
        KvTransfer { source: KvSource::Local, codec: None, raw_bytes: 0, wire_bytes: 0, ..transfer("", 7.0) };
    let sent =
        [("raw", 90.0), ("raw", 110.0), ("kvtc", 30.0), ("kvtc", 50.0), ("fp8", 40.0), ("made-up", 45.0)];
    let reports = sent.map(|(codec, ttft)| transfer(codec, ttft)).into_iter().chain([local]);
    for report in reports {
        let entry = admitted(&board);
        entry.first_token(&report);
        entry.end("ok");
    }
    let totals = totals(&board);
    assert_eq!((totals["done"].clone(), totals["raw_bytes"].clone()), (7.into(), 36_000.into()));
    assert_eq!(totals["wire_bytes"], 2 * 6100 + 4 * 200);
    assert_eq!(totals["saved_bytes"], 36_000 - 13_000);
    assert_eq!(
        (totals["ttft"]["raw"]["p50_ms"].clone(), totals["ttft"]["raw"]["samples"].clone()),
        (100.0.into(), 2.into())
    );
    assert_eq!(totals["ttft"]["coded"]["p50_ms"], 42.5);
    assert_eq!(totals["ttft"]["local"]["p50_ms"], 7.0);
    let names: Vec<&str> =
        totals["codecs"].as_array().unwrap().iter().map(|c| c["codec"].as_str().unwrap()).collect();
    assert_eq!(names, ["fp8", "kvtc", "local", "other", "raw"]);
}

#[test]
fn times_are_kept_within_bounds() {
    let board = Board::new();
    let entry = admitted(&board);
    (0..1000).for_each(|_| entry.first_token(&transfer("raw", 5.0)));
    assert_eq!(totals(&board)["ttft"]["raw"]["samples"], 128);
}

#[test]
fn a_reader_is_told_what_has_changed_since() {
    let board = Board::new();
    let (first, second) = (admitted(&board), admitted(&board));
    let known = board.read(0);
    let quiet = board.read(known.version);
    assert!(quiet.requests.is_empty() && quiet.totals.is_none());
    assert_eq!(quiet.tokens, [(0, 0), (1, 0)]);
    first.token();
    second.end("ok");
    let news = board.read(known.version);
    assert_eq!((numbers(&news), news.tokens.clone()), (vec![1], vec![(0, 1)]));
    assert!(news.totals.is_some());
}
