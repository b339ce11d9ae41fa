//! Tables of forecasts and choices.

use super::*;

const BYTES_PER_TOKEN: f64 = 32_768.0;

/// A data-centre GPU with Llama 3.2 1B: 10 ms and 0.05 ms a token.
fn setting(tokens: f64, gbps: f64) -> Setting {
    Setting {
        cached_tokens: 0.0,
        prompt_tokens: tokens,
        raw_bytes: tokens * BYTES_PER_TOKEN,
        chunk_tokens: 256.0,
        after_chunk_tokens: 2048.0,
        queue_ms: 0.0,
        prefill: Line { fixed_ms: 10.0, ms_per_token: 0.05, mean_ms: 60.0 },
        local: None,
        link: gbps * 1e9 / 8.0 / 1e3,
        decode_in_flight: 0.0,
    }
}

/// Coders of 10 GB/s raw, 3 GB/s cast and 2 GB/s transform.
fn coders(tokens: f64) -> Vec<Coder> {
    let raw = tokens * BYTES_PER_TOKEN;
    let coder = |codec, mode, gigabytes: f64, ratio: f64| Coder {
        codec,
        mode,
        encode: gigabytes * 1e6,
        decode: gigabytes * 1e6,
        wire_bytes: raw / ratio,
    };
    vec![
        coder(KvCodec::Raw, KvMode::Stream, 10.0, 1.0),
        coder(KvCodec::Lossless, KvMode::Stream, 3.0, 1.5),
        coder(KvCodec::Fp8, KvMode::Stream, 3.0, 2.4),
        coder(KvCodec::Kvtc, KvMode::Stream, 2.0, 18.0),
        coder(KvCodec::Kvtc, KvMode::After, 2.0, 22.0),
    ]
}

fn forecasts(setting: &Setting) -> Vec<Forecast> {
    let split = coders(setting.prompt_tokens).iter().map(|coder| setting.split(coder)).collect::<Vec<_>>();
    split.into_iter().chain([setting.local()]).collect()
}

fn chosen(setting: &Setting) -> String {
    choose(&forecasts(setting), false).unwrap().way.name()
}

#[test]
fn what_the_prefill_node_has_it_need_not_run() {
    let raw = coders(4000.0).remove(0);
    let whole = setting(4000.0, 100.0);
    let half = Setting { cached_tokens: 2000.0, ..whole };
    let saved = whole.split(&raw).ms - half.split(&raw).ms;
    assert!((90.0..=101.0).contains(&saved), "2,000 tokens of 0.05 ms each are {saved} ms");
    assert_eq!(whole.local().ms, half.local().ms);
}

#[test]
fn a_pipeline_goes_at_the_pace_of_its_slowest_stage() {
    assert_eq!(pipeline(&[10.0, 20.0, 30.0], 1.0), 60.0);
    assert_eq!(pipeline(&[10.0, 20.0, 30.0], 10.0), 6.0 + 27.0);
    assert_eq!(pipeline(&[0.0, 0.0, 0.0], 5.0), 0.0);
    // With ever smaller chunks only the slowest stage is left.
    assert!((pipeline(&[10.0, 20.0, 30.0], 1e9) - 30.0).abs() < 1e-6);
}

#[test]
fn stages_overlap_in_one_mode_and_follow_the_prompt_in_the_other() {
    let setting = Setting { queue_ms: 7.0, ..setting(1024.0, 0.0) };
    let setting = Setting { link: 1024.0, ..setting }; // bytes a millisecond
    let coder = |mode| Coder {
        codec: KvCodec::Kvtc,
        mode,
        encode: setting.raw_bytes / 20.0,
        decode: setting.raw_bytes / 8.0,
        wire_bytes: 40.0 * 1024.0,
    };
    let prefill = 10.0 + 0.05 * 1024.0;
    // Four chunks: prefill is the slowest stage.
    let expected = 7.0 + (prefill + 20.0 + 40.0 + 8.0) / 4.0 + prefill * 0.75;
    assert!((setting.split(&coder(KvMode::Stream)).ms - expected).abs() < 1e-9);
    // One chunk.
    assert!((setting.split(&coder(KvMode::After)).ms - (7.0 + prefill + 68.0)).abs() < 1e-9);
    let halves = Setting { after_chunk_tokens: 512.0, ..setting };
    assert!((halves.split(&coder(KvMode::After)).ms - (7.0 + prefill + 34.0 + 20.0)).abs() < 1e-9);
}

#[test]
fn length_and_link_decide() {
    for (tokens, gbps, may_be_local, expected) in [
        // A fast link hides behind the prompt pass, whatever the length.
        (100.0, 400.0, true, "raw"),
        (8000.0, 400.0, true, "raw"),
        (8000.0, 6.0, true, "raw"),
        // The longer the prompt and the slower the link, the more there is to code away.
        (8000.0, 3.0, true, "fp8"),
        (2000.0, 1.0, true, "kvtc"),
        // One chunk has nothing to overlap with, so the fewest bytes win; and so they do where only the wire counts.
        (200.0, 1.0, true, "kvtc/after"),
        (30_000.0, 0.02, false, "kvtc/after"),
        // Where the wire takes longer than the prompt itself, nothing is shipped.
        (30_000.0, 0.02, true, "local"),
    ] {
        let setting = setting(tokens, gbps);
        let mut forecasts = forecasts(&setting);
        forecasts.retain(|forecast| may_be_local || forecast.way != Way::Local);
        let chosen = choose(&forecasts, false).unwrap().way.name();
        assert_eq!(chosen, expected, "{tokens} tokens, {gbps} Gb/s: {forecasts:#?}");
    }
}

#[test]
fn a_prompt_stays_away_from_a_busy_decode_node_and_goes_there_past_a_long_queue() {
    let idle = setting(8000.0, 0.1);
    assert_eq!(chosen(&idle), "local");
    assert_eq!(chosen(&Setting { decode_in_flight: 3.0, ..idle }), "kvtc");
    let slow = Line { fixed_ms: 100.0, ms_per_token: 1.0, mean_ms: 300.0 };
    assert_eq!(chosen(&Setting { local: Some(slow), ..idle }), "kvtc");
    let fast = setting(8000.0, 400.0);
    assert_eq!(chosen(&fast), "raw");
    assert_eq!(chosen(&Setting { queue_ms: 500.0, ..fast }), "local");
}

#[test]
fn of_equals_the_one_that_loses_least_is_taken_and_then_the_cheapest_and_the_one_with_the_fewest_bytes() {
    let forecast = |codec, cost, wire_bytes| Forecast {
        way: Way::Split { codec, mode: KvMode::Stream },
        ms: cost,
        cost,
        wire_bytes,
    };
    use KvCodec::{Fp8, Kvtc, Lossless, Raw};
    for (forecasts, expected) in [
        (vec![forecast(Kvtc, 100.0, 1.0), forecast(Fp8, 104.0, 8.0), forecast(Raw, 105.1, 20.0)], Fp8),
        (
            vec![forecast(Kvtc, 100.0, 1.0), forecast(Raw, 105.0, 20.0), forecast(Lossless, 104.0, 14.0)],
            Lossless,
        ),
        (vec![forecast(Raw, 100.0, 20.0), forecast(Lossless, 101.0, 14.0)], Raw),
        (vec![forecast(Raw, 100.0, 20.0), forecast(Lossless, 100.0, 14.0)], Lossless),
        (vec![forecast(Kvtc, 10.0, 1.0), forecast(Raw, 11.9, 20.0)], Raw),
        (vec![forecast(Kvtc, 10.0, 1.0), forecast(Raw, 12.1, 20.0)], Kvtc),
    ] {
        let chosen = choose(&forecasts, false).unwrap().way;
        assert_eq!(chosen, Way::Split { codec: expected, mode: KvMode::Stream }, "{forecasts:?}");
    }
    assert_eq!(choose(&[], false), None);
}

#[test]
fn exploring_takes_the_second_best_unless_it_is_far_off() {
    let forecast = |codec, cost| Forecast {
        way: Way::Split { codec, mode: KvMode::Stream },
        ms: cost,
        cost,
        wire_bytes: 1.0,
    };
    let close =
        [forecast(KvCodec::Raw, 300.0), forecast(KvCodec::Kvtc, 100.0), forecast(KvCodec::Fp8, 149.0)];
    let codec = |chosen: Option<Forecast>| chosen.unwrap().way.name();
    assert_eq!(codec(choose(&close, false)), "kvtc");
    assert_eq!(codec(choose(&close, true)), "fp8");
    let far = [forecast(KvCodec::Raw, 300.0), forecast(KvCodec::Kvtc, 100.0)];
    assert_eq!(codec(choose(&far, true)), "kvtc");
    assert_eq!(codec(choose(&far[..1], true)), "raw");
}
