//! Plans and caches of models that do not exist are coded as those of real ones: to the ratio that was asked for.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

mod common;

use std::{sync::Arc, time::Instant};

use codec::{
    CodecKind, Coding, Decoder, Encoder, KvBlock, KvLayout, Limits, Plan, TokenFeatures,
    probe::synthetic::{HashedFeatures, Synthetic, shifts},
};
use common::{MODEL, layout, same_bits};

const FEATURES: HashedFeatures = HashedFeatures { width: 32, vocabulary: 4_096 };

fn measured() -> Plan {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/tiny-llama/plan.kvtc");
    Plan::from_bytes(&std::fs::read(path).unwrap()).unwrap()
}

/// Predicted from two tokens.
fn predicted(layout: &KvLayout) -> Synthetic {
    let features: Arc<dyn TokenFeatures> = Arc::new(FEATURES);
    Synthetic::new(layout, MODEL, &measured(), Some((2, features)), 5).unwrap()
}

fn plain(layout: &KvLayout) -> Synthetic {
    Synthetic::new(layout, MODEL, &measured(), None, 5).unwrap()
}

struct Prompt<'a> {
    of: &'a Synthetic,
    block: KvBlock,
    ids: Vec<u32>,
}

impl<'a> Prompt<'a> {
    fn new(of: &'a Synthetic, tokens: usize) -> Self {
        let ids = of.ids(tokens, 1);
        Self { of, block: of.block(0, tokens, &ids, 2).unwrap(), ids }
    }

    fn encode(&self, tier: u8, shifts: Option<&[i8]>) -> Vec<u8> {
        let (plan, coding) = (self.of.plan(), Coding { kind: CodecKind::Kvtc, tier });
        let encoder = Encoder::new(plan.layout().clone(), MODEL, Some(plan.clone()), coding, self.ids.len());
        let encoder = encoder.unwrap();
        let encoder = match self.of.features() {
            Some(features) => encoder.predicting(features.clone(), Arc::from(&*self.ids)).unwrap(),
            None => encoder,
        };
        encoder.encode_with_shifts(&self.block, shifts).unwrap()
    }

    fn ratio(&self, chunk: &[u8]) -> f64 {
        (self.ids.len() * self.of.plan().layout().bytes_per_token()) as f64 / chunk.len() as f64
    }
}

#[test]
fn bodies_are_coded_to_the_ratio_of_the_tier() {
    // Body alone: with the window, whose step is finer, a short prompt has less.
    let layout = layout(8, 4, 64);
    let of = plain(&layout);
    let body = of.block(4, 1_024, &[], 2).unwrap();
    for tier in [8, 16, 32, 64] {
        let coding = Coding { kind: CodecKind::Kvtc, tier };
        let encoder = Encoder::new(layout.clone(), MODEL, Some(of.plan().clone()), coding, 4 + 1_024 + 128);
        let chunk = encoder.unwrap().encode(&body).unwrap();
        let ratio = (1_024 * layout.bytes_per_token()) as f64 / chunk.len() as f64 / f64::from(tier);
        assert!((0.85..1.15).contains(&ratio), "tier {tier} is off by {ratio}");
    }
}

#[test]
fn prompts_come_back_from_their_chunk() {
    let of = predicted(&layout(2, 2, 24));
    let prompt = Prompt::new(&of, 400);
    let (plan, shifts) = (of.plan(), shifts(400, 3));
    let chunk = prompt.encode(8, Some(&shifts));
    let decoder = Decoder::new(plan.layout().clone(), MODEL, Some(plan.clone()), Limits::default()).unwrap();
    let back = decoder.predicting(of.features().unwrap().clone()).decode(&chunk).unwrap();
    let (mut error, mut energy) = (0.0, 0.0);
    for (a, b) in back.keys.iter().zip(&prompt.block.keys) {
        error += (a.to_f64() - b.to_f64()).powi(2);
        energy += b.to_f64().powi(2);
    }
    assert!(error > 0.0 && error < 0.1 * energy, "error of {error} in {energy}");
}

#[test]
fn a_plan_is_the_same_every_time_and_survives_its_file() {
    let layout = layout(2, 2, 24);
    let (plan, again) = (predicted(&layout), predicted(&layout));
    assert_eq!(plan.plan().id(), again.plan().id());
    let read = Plan::from_bytes(&plan.plan().to_bytes()).unwrap();
    assert_eq!(&read, plan.plan().as_ref());
    let weights = read.layer_weights().unwrap();
    assert!((weights.iter().sum::<f32>() - 2.0).abs() < 1e-5);
    let features: Arc<dyn TokenFeatures> = Arc::new(FEATURES);
    let other = Synthetic::new(&layout, MODEL, &measured(), Some((2, features)), 6).unwrap();
    assert_ne!(other.plan().id(), plan.plan().id());
}

#[test]
fn pieces_of_a_prompt_fit_together() {
    let of = predicted(&layout(2, 3, 16));
    let prompt = Prompt::new(&of, 200);
    for range in [0..7, 1..2, 100..150] {
        let piece = of.block(range.start, range.len(), &prompt.ids, 2).unwrap();
        assert!(same_bits(&piece, &common::cut(&prompt.block, range, 16)));
    }
    assert!(of.block(100, 101, &prompt.ids, 2).is_err());
}

#[test]
fn rows_follow_from_the_tokens_in_part() {
    let of = predicted(&layout(2, 3, 16));
    let mut prompt = Prompt::new(&of, 1_000);
    let with_its_ids = prompt.encode(32, None).len();
    prompt.ids.reverse();
    let with_others = prompt.encode(32, None).len();
    assert!(
        with_others * 4 > with_its_ids * 5,
        "{with_others} bytes with wrong ids, {with_its_ids} with right ones"
    );
}

/// `cargo test --release -p codec --test synthetic -- --ignored --nocapture`
#[test]
#[ignore = "takes a minute and 3 GB: the size of Llama 3.2 1B"]
fn a_cache_of_the_size_of_llama_3_2_1b_has_the_ratio_of_its_tier() {
    let (tokens, start) = (4_096, Instant::now());
    let features: Arc<dyn TokenFeatures> = Arc::new(HashedFeatures { width: 2_048, vocabulary: 128_256 });
    let of = Synthetic::new(&layout(16, 8, 64), MODEL, &measured(), Some((2, features)), 5).unwrap();
    println!("plan: {:?}, components {:?}", start.elapsed(), of.plan().components());
    let prompt = Prompt::new(&of, tokens);
    println!("plan and {tokens} tokens: {:?}", start.elapsed());
    for tier in [16, 32] {
        let kept = of.plan().kept_components(tier);
        let ratios =
            [None, Some(&*shifts(tokens, 3))].map(|shifts| prompt.ratio(&prompt.encode(tier, shifts)));
        println!("tier {tier}: keeps {kept:?}, ratios without and with shifts {ratios:.2?}");
        let of_tier = ratios.map(|ratio| ratio / f64::from(tier));
        assert!(of_tier.iter().all(|ratio| (0.85..1.15).contains(ratio)), "{of_tier:?} at tier {tier}");
    }
}
