//! The codec on the GPU against the codec on the CPU: what one wrote the other reads, and both refuse the same.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests")]
#![allow(
    missing_docs,
    missing_debug_implementations,
    unreachable_pub,
    reason = "a test kit of several files"
)]

mod common;
#[path = "common/device_cache.rs"]
mod device_cache;

use std::{ops::Range, sync::Arc};

use codec::{
    CodecKind, Coding, Decoder, Encoder, Error, KvBlock, KvLayout, Limits, Plan, TokenFeatures,
    probe::synthetic::{HashedFeatures, Synthetic},
};
use common::{MODEL, layout, same_bits};
use device_cache::{DeviceCache, POISON};
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

const FEATURES: HashedFeatures = HashedFeatures { width: 32, vocabulary: 4_096 };
/// What a decoded element may differ by, as a share of the largest element of its side: two units in that one's last place.
const TOLERANCE: f32 = 1.0 / 64.0;

fn measured() -> Plan {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/tiny-llama/plan.kvtc");
    Plan::from_bytes(&std::fs::read(path).unwrap()).unwrap()
}

fn shapes() -> Vec<(KvLayout, bool)> {
    let features = [(2, 2, 16), (4, 2, 64), (3, 5, 8), (2, 1, 128)];
    let shapes = features.map(|(layers, heads, dim)| layout(layers, heads, dim));
    shapes.into_iter().flat_map(|layout| [(layout.clone(), false), (layout, true)]).collect()
}

/// A prompt on both sides of the bus.
struct Kit {
    synthetic: Synthetic,
    block: KvBlock,
    ids: Vec<u32>,
    device: DeviceCache,
}

impl Kit {
    fn new(layout: &KvLayout, is_predicted: bool, tokens: usize) -> Self {
        let features: Arc<dyn TokenFeatures> = Arc::new(FEATURES);
        let predictor = is_predicted.then_some((2, features));
        let synthetic = Synthetic::new(layout, MODEL, &measured(), predictor, 5).unwrap();
        let ids = synthetic.ids(tokens, 1);
        let block = synthetic.block(0, tokens, &ids, 2).unwrap();
        let plan = Some(Arc::clone(synthetic.plan()));
        let features = is_predicted.then_some(&FEATURES as &dyn TokenFeatures);
        let device = DeviceCache::new(layout, plan, features, tokens);
        Self { synthetic, block, ids, device }
    }

    fn layout(&self) -> KvLayout {
        self.synthetic.plan().layout().clone()
    }

    fn encoder(&self, tier: u8) -> Encoder {
        let (plan, coding) = (Some(self.synthetic.plan().clone()), Coding { kind: CodecKind::Kvtc, tier });
        let encoder = Encoder::new(self.layout(), MODEL, plan, coding, self.ids.len()).unwrap();
        match self.synthetic.features() {
            Some(features) => encoder.predicting(features.clone(), Arc::from(&*self.ids)).unwrap(),
            None => encoder,
        }
    }

    fn decoder(&self) -> Decoder {
        let plan = Some(self.synthetic.plan().clone());
        let decoder = Decoder::new(self.layout(), MODEL, plan, Limits::default()).unwrap();
        match self.synthetic.features() {
            Some(features) => decoder.predicting(features.clone()),
            None => decoder,
        }
    }

    fn part(&self, tokens: Range<usize>) -> KvBlock {
        common::cut(&self.block, tokens, self.layout().head_dim)
    }
}

fn shifts(tokens: usize, widest: i8, seed: u64) -> Vec<i8> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..tokens).map(|_| rng.random_range(-widest..=widest)).collect()
}

/// Squared error of a decoded block over the energy of what it should be.
fn error(got: &KvBlock, exact: &KvBlock) -> f64 {
    let pairs = |a: &[half::bf16], b: &[half::bf16]| {
        let sums = a.iter().zip(b).map(|(a, b)| {
            let (a, b) = (f64::from(a.to_f32()), f64::from(b.to_f32()));
            ((a - b).powi(2), b.powi(2))
        });
        sums.fold((0.0, 0.0), |sum, x| (sum.0 + x.0, sum.1 + x.1))
    };
    let ((a, b), (c, d)) = (pairs(&got.keys, &exact.keys), pairs(&got.values, &exact.values));
    a / b + c / d
}

fn largest_difference(a: &[half::bf16], b: &[half::bf16]) -> f32 {
    let scale = b.iter().fold(0f32, |largest, x| largest.max(x.to_f32().abs()));
    let differences = a.iter().zip(b).map(|(a, b)| (a.to_f32() - b.to_f32()).abs());
    differences.fold(0f32, f32::max) / scale
}

fn cases(tokens: usize) -> [Option<Vec<i8>>; 3] {
    [None, Some(shifts(tokens, 6, 3)), Some(shifts(tokens, 24, 4))]
}

#[test]
fn the_cpu_decodes_what_the_gpu_encoded() {
    for (layout, is_predicted) in shapes() {
        let mut kit = Kit::new(&layout, is_predicted, 500);
        kit.device.put(&kit.block);
        for (tier, tokens) in
            [(16, 0..500), (32, 0..500), (64, 100..371), (32, 0..1), (32, 0..3), (8, 60..70)]
        {
            for shifts in cases(tokens.len()) {
                let chunk =
                    kit.device.encode(CodecKind::Kvtc, tier, &kit.ids, tokens.clone(), shifts.as_deref());
                let chunk = chunk.unwrap();
                let part = kit.part(tokens.clone());
                let ours = kit.encoder(tier).encode_with_shifts(&part, shifts.as_deref()).unwrap();
                let (theirs, exact) = (kit.decoder().decode(&chunk).unwrap(), &part);
                let reference = kit.decoder().decode(&ours).unwrap();
                let (got, expected) = (error(&theirs, exact), error(&reference, exact));
                assert!(
                    got <= expected * 1.02 + 1e-5,
                    "{layout:?} tier {tier} {tokens:?}: {got} for {expected}"
                );
                let sizes = (chunk.len() as f64, ours.len() as f64);
                assert!(
                    sizes.0 <= sizes.1 * 1.06 + 64.0,
                    "{layout:?} tier {tier} {tokens:?}: {sizes:?} bytes"
                );
            }
        }
    }
}

#[test]
fn the_gpu_decodes_what_either_encoded() {
    let mut largest = 0f32;
    for (layout, is_predicted) in shapes() {
        let mut kit = Kit::new(&layout, is_predicted, 500);
        for (tier, tokens) in
            [(16, 0..500), (32, 0..500), (64, 100..371), (32, 0..1), (32, 0..3), (8, 60..70)]
        {
            for shifts in cases(tokens.len()) {
                kit.device.put(&kit.block);
                let ours = kit.encoder(tier).encode_with_shifts(&kit.part(tokens.clone()), shifts.as_deref());
                let gpus =
                    kit.device.encode(CodecKind::Kvtc, tier, &kit.ids, tokens.clone(), shifts.as_deref());
                for chunk in [ours.unwrap(), gpus.unwrap()] {
                    let expected = kit.decoder().decode(&chunk).unwrap();
                    kit.device.poison();
                    assert_eq!(kit.device.decode(&chunk).unwrap(), tokens);
                    let got = kit.device.get(tokens.clone());
                    for (got, expected) in [(&got.keys, &expected.keys), (&got.values, &expected.values)] {
                        let difference = largest_difference(got, expected);
                        largest = largest.max(difference);
                        assert!(difference <= TOLERANCE, "{layout:?} tier {tier} {tokens:?}: {difference}");
                    }
                    let around = [0..tokens.start, tokens.end..kit.device.pages.capacity()];
                    for tokens in around.into_iter().filter(|tokens| !tokens.is_empty()) {
                        let around = kit.device.get(tokens.clone());
                        assert!(around.keys.iter().chain(&around.values).all(|&x| x == POISON), "{tokens:?}");
                    }
                }
            }
        }
    }
    println!("largest difference {largest} of the largest element");
}

#[test]
fn other_codecs_are_the_cpus_bit_for_bit() {
    for (layout, is_predicted) in shapes() {
        let mut kit = Kit::new(&layout, is_predicted, 200);
        kit.device.put(&kit.block);
        for kind in [CodecKind::Raw, CodecKind::Lossless, CodecKind::Fp8] {
            for tokens in [0..200, 3..130] {
                let chunk = kit.device.encode(kind, 0, &kit.ids, tokens.clone(), None).unwrap();
                let encoder =
                    Encoder::new(layout.clone(), MODEL, None, Coding { kind, tier: 0 }, 200).unwrap();
                assert!(chunk == encoder.encode(&kit.part(tokens.clone())).unwrap(), "{kind} {tokens:?}");
                let mut other = DeviceCache::new(&layout, None, None, 200);
                other.decode(&chunk).unwrap();
                assert!(
                    same_bits(&other.get(tokens.clone()), &kit.decoder().decode(&chunk).unwrap()),
                    "{kind}"
                );
            }
        }
    }
}

#[test]
fn the_same_cache_gives_the_same_bytes() {
    let mut kit = Kit::new(&layout(4, 2, 64), true, 300);
    kit.device.put(&kit.block);
    let shifts = shifts(300, 6, 9);
    let mut encode = || kit.device.encode(CodecKind::Kvtc, 32, &kit.ids, 0..300, Some(&shifts)).unwrap();
    let first = encode();
    assert!((0..5).all(|_| encode() == first));
}

#[test]
fn what_cannot_be_coded_is_refused_as_by_the_cpu() {
    let mut kit = Kit::new(&layout(2, 2, 16), true, 100);
    let mut block = kit.block.clone();
    block.keys[50 * 16 + 3] = half::bf16::NAN;
    kit.device.put(&block);
    let refused = kit.device.encode(CodecKind::Kvtc, 32, &kit.ids, 0..100, None).unwrap_err();
    assert_eq!(refused.to_string(), kit.encoder(32).encode(&block).unwrap_err().to_string());
    kit.device.put(&kit.block);
    for (tokens, shifts) in [(0..101, 101), (5..5, 0), (0..100, 99)] {
        let shifts = vec![0; shifts];
        let refused = kit.device.encode(CodecKind::Kvtc, 32, &kit.ids, tokens, Some(&shifts));
        assert!(matches!(refused, Err(Error::InvalidArgument(_))), "{refused:?}");
    }
    // A prompt longer than the pages: 100 tokens have 128 places.
    let ids = vec![1; 200];
    let refused = kit.device.encode(CodecKind::Kvtc, 32, &ids, 100..200, None);
    assert!(matches!(refused, Err(Error::LimitExceeded { limit: 128, got: 200, .. })), "{refused:?}");
    assert!(kit.device.encode(CodecKind::Kvtc, 32, &kit.ids, 0..100, None).is_ok());
}

/// The chunk again with a right digest.
fn sealed(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.truncate(bytes.len() - 16);
    let digest = blake3::hash(&bytes);
    bytes.extend_from_slice(&digest.as_bytes()[..16]);
    bytes
}

#[test]
fn hostile_bytes_get_the_cpus_verdict_and_touch_nothing_else() {
    let mut rng = ChaCha8Rng::seed_from_u64(11);
    for (layout, is_predicted) in [(layout(2, 2, 16), true), (layout(4, 2, 64), false)] {
        let mut kit = Kit::new(&layout, is_predicted, 150);
        let tokens = 40..150;
        let part = kit.part(tokens.clone());
        let chunks = [None, Some(shifts(110, 10, 5))];
        let chunks =
            chunks.map(|shifts| kit.encoder(32).encode_with_shifts(&part, shifts.as_deref()).unwrap());
        kit.device.poison();
        let mut refused = 0;
        for round in 0..1_500 {
            let mut bytes = chunks[round % 2].clone();
            for _ in 0..rng.random_range(1..4) {
                let at = rng.random_range(0..bytes.len());
                bytes[at] = rng.random_range(0..=255);
            }
            if round % 5 == 0 {
                let len = rng.random_range(0..bytes.len());
                bytes.truncate(len.max(16));
            }
            let bytes = if round % 7 == 0 { bytes } else { sealed(bytes) };
            let (theirs, ours) = (kit.device.decode(&bytes), kit.decoder().decode(&bytes));
            assert_eq!(theirs.is_ok(), ours.is_ok(), "round {round}: {theirs:?}, {:?}", ours.err());
            refused += usize::from(theirs.is_err());
            if let Ok(got) = theirs {
                let block = ours.unwrap();
                assert_eq!(got, block.first_token..block.first_token + block.tokens);
            }
        }
        println!("{refused} of 1500 refused");
        let whole = kit.device.get(150..192);
        assert!(whole.keys.iter().chain(&whole.values).all(|&x| x == POISON));
    }
}
