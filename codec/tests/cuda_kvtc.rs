//! kvtc on the GPU against the CPU, both ways; the other codecs to the bit; bytes from strangers. Fails without a device.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests; tolerances are measured")]

mod common;

use std::{ops::Range, sync::Arc};

use codec::{
    CodecKind, Coding, Decoder, Encoder, KvBlock, KvLayout, Limits, Plan, TokenFeatures,
    cuda::{CudaCodec, CudaDecoder, CudaEncoder, DeviceFeatureTable, DeviceTokenFeatures},
    fit::Balance,
};
use common::{MODEL, Predictable, Source, cut, layout, same_bits, small_layout};
use gpu::{Device, KvPages, KvPool, KvShape};
use half::bf16;

/// A decoded row may be off by this share of its side's largest entry.
const TOLERANCE: f32 = 1.0 / 128.0;

struct Rig {
    layout: KvLayout,
    encoder: CudaEncoder,
    decoder: CudaDecoder,
    pool: Arc<KvPool>,
    device: Device,
}

impl Rig {
    fn new(
        layout: &KvLayout,
        plan: Option<Arc<Plan>>,
        features: Option<&dyn TokenFeatures>,
        tokens: usize,
    ) -> Self {
        let device = Device::open(0).unwrap();
        let table = features.map(|features| {
            Arc::new(DeviceFeatureTable::new(&device, features).unwrap()) as Arc<dyn DeviceTokenFeatures>
        });
        let codec = CudaCodec::new(&device, layout.clone(), MODEL, plan, table).unwrap();
        let shape = KvShape { layers: layout.layers, kv_heads: layout.kv_heads, head_dim: layout.head_dim };
        let stream = device.stream().unwrap();
        let pool = KvPool::new(&device, &stream, shape, tokens).unwrap();
        let decoder = codec.decoder(Limits::default()).unwrap();
        Self { layout: layout.clone(), encoder: codec.encoder().unwrap(), decoder, pool, device }
    }

    fn pages(&self, tokens: usize) -> KvPages {
        self.pool.take(&self.device.stream().unwrap(), tokens).unwrap()
    }

    /// Pages that hold a block at its place, by way of a raw chunk.
    fn put(&mut self, pages: &KvPages, block: &KvBlock) {
        let end = block.first_token + block.tokens;
        let raw =
            Encoder::new(self.layout.clone(), MODEL, None, Coding::RAW, end).unwrap().encode(block).unwrap();
        self.decoder.decode(&raw, None, pages.view()).unwrap();
    }

    /// What pages hold.
    fn get(&mut self, pages: &KvPages, tokens: Range<usize>) -> KvBlock {
        let ids = vec![0; tokens.end];
        let raw = self.encoder.encode(Coding::RAW, &ids, pages.view(), tokens, None).unwrap();
        Decoder::new(self.layout.clone(), MODEL, None, Limits::default()).unwrap().decode(&raw).unwrap()
    }
}

/// Largest difference of a side, as a share of its largest entry.
fn difference(got: &KvBlock, expected: &KvBlock) -> f32 {
    assert_eq!((got.first_token, got.tokens), (expected.first_token, expected.tokens));
    let side = |got: &[bf16], expected: &[bf16]| {
        let largest = expected.iter().fold(0f32, |largest, x| largest.max(x.to_f32().abs()));
        let pairs = got.iter().zip(expected);
        pairs.fold(0f32, |most, (a, b)| {
            assert!(a.is_finite());
            most.max((a.to_f32() - b.to_f32()).abs())
        }) / largest.max(1e-30)
    };
    side(&got.keys, &expected.keys).max(side(&got.values, &expected.values))
}

/// Root of the mean square, to see that the GPU loses no more than the CPU.
fn error(got: &KvBlock, expected: &KvBlock) -> f64 {
    let pairs = got.keys.iter().chain(&got.values).zip(expected.keys.iter().chain(&expected.values));
    let sum: f64 = pairs.map(|(a, b)| f64::from(a.to_f32() - b.to_f32()).powi(2)).sum();
    (sum / expected.keys.len().max(1) as f64).sqrt()
}

/// Encodes one stretch on both, decodes both chunks on both, and compares; prints bytes and errors of GPU and CPU.
fn round_trip(
    rig: &mut Rig,
    encoder: &Encoder,
    decoder: &Decoder,
    (ids, whole): (&[u32], &KvBlock),
    tokens: Range<usize>,
    (tier, shifts): (u8, Option<&[i8]>),
) {
    let what = format!(
        "P {} tokens {tokens:?} of {} tier {tier} shifts {}",
        rig.layout.features(),
        ids.len(),
        shifts.is_some()
    );
    let block = cut(whole, tokens.clone(), rig.layout.head_dim);
    let pages = rig.pages(whole.tokens);
    rig.put(&pages, whole);
    let coding = Coding { kind: CodecKind::Kvtc, tier };
    let ours = rig.encoder.encode(coding, ids, pages.view(), tokens.clone(), shifts).unwrap();
    let theirs = encoder.encode_with_shifts(&block, shifts).unwrap();
    let from_ours = decoder.decode(&ours).unwrap();
    let from_theirs = decoder.decode(&theirs).unwrap();
    let (gpu_error, cpu_error) = (error(&from_ours, &block), error(&from_theirs, &block));
    assert!(gpu_error <= cpu_error * 1.02 + 1e-6, "{what}: error {gpu_error} against {cpu_error}");
    assert!(
        ours.len() * 100 <= theirs.len() * 103 + 6_400,
        "{what}: {} bytes against {}",
        ours.len(),
        theirs.len()
    );
    for (chunk, expected) in [(&theirs, &from_theirs), (&ours, &from_ours)] {
        assert_eq!(rig.decoder.decode(chunk, Some(coding), pages.view()).unwrap(), tokens);
        let got = rig.get(&pages, tokens.clone());
        let off = difference(&got, expected);
        assert!(off <= TOLERANCE, "{what}: off by {off}");
        println!(
            "{what}: {} / {} bytes, error {gpu_error:.5} / {cpu_error:.5}, decoders differ by {off:.6}",
            ours.len(),
            theirs.len()
        );
    }
    // Everything else in the pages is as it was.
    for around in [0..tokens.start, tokens.end..whole.tokens] {
        if !around.is_empty() {
            let got = rig.get(&pages, around.clone());
            assert!(
                same_bits(&got, &cut(whole, around.clone(), rig.layout.head_dim)),
                "{what}: {around:?} changed"
            );
        }
    }
}

fn all_shifts(tokens: usize) -> Vec<i8> {
    (0..tokens).map(|i| (i * 11 % 49) as i8 - 24).collect()
}

#[test]
fn plain_plans_go_both_ways() {
    for (shape, rank, weights) in
        [(small_layout(), 16, true), (layout(3, 2, 64), 70, false), (layout(2, 1, 6), 12, true)]
    {
        let source = Source::new(shape, rank, 11);
        let weights =
            weights.then(|| (1..=source.layout.features()).map(|i| 0.3 + i as f32 * 0.05).collect());
        let plan = source.plan(weights, Balance::EqualBytes);
        let mut rig = Rig::new(&source.layout, Some(plan.clone()), None, 1_024);
        for (prompt, tokens) in [
            (1, 0..1),
            (3, 0..3),
            (5, 2..5),
            (64, 0..64),
            (65, 1..65),
            (300, 0..300),
            (300, 63..130),
            (300, 128..300),
        ] {
            let whole = source.block(0, prompt, 5);
            let ids = vec![0; prompt];
            let shifts = all_shifts(tokens.len());
            for (tier, shifts) in [(4, None), (16, None), (32, Some(shifts.as_slice())), (128, None)] {
                let (encoder, decoder) = (source.encoder(&plan, tier, prompt), source.decoder(&plan));
                round_trip(&mut rig, &encoder, &decoder, (&ids, &whole), tokens.clone(), (tier, shifts));
            }
        }
    }
}

#[test]
fn predicted_plans_go_both_ways() {
    let kit = Predictable::new();
    let mut rig = Rig::new(&kit.source.layout, Some(kit.plan.clone()), Some(&*kit.features), 1_024);
    for (prompt, tokens, has_first) in [
        (1, 0..1, true),
        (2, 0..2, false),
        (40, 0..40, true),
        (300, 0..300, true),
        (300, 1..300, false),
        (300, 100..201, false),
    ] {
        let (mut ids, mut whole) = kit.prompt(prompt, 4);
        if has_first {
            kit.put_first_row(&mut ids, &mut whole);
        }
        let shifts = all_shifts(tokens.len());
        for (tier, shifts) in [(8, None), (24, Some(shifts.as_slice()))] {
            round_trip(
                &mut rig,
                &kit.encoder(&kit.plan, tier, &ids),
                &kit.decoder(),
                (&ids, &whole),
                tokens.clone(),
                (tier, shifts),
            );
        }
    }
}

#[test]
fn other_codecs_are_the_cpu_s_to_the_bit() {
    let source = Source::new(small_layout(), 16, 11);
    let plan = source.paper_plan();
    let mut rig = Rig::new(&source.layout, Some(plan.clone()), None, 1_024);
    let whole = source.block(0, 200, 6);
    let pages = rig.pages(256);
    rig.put(&pages, &whole);
    let tokens = 3..190;
    let block = cut(&whole, tokens.clone(), source.layout.head_dim);
    for kind in CodecKind::ALL.into_iter().filter(|&kind| kind != CodecKind::Kvtc) {
        let coding = Coding { kind, tier: 8 };
        let ours = rig.encoder.encode(coding, &vec![0; 200], pages.view(), tokens.clone(), None).unwrap();
        let encoder = Encoder::new(source.layout.clone(), MODEL, Some(plan.clone()), coding, 200).unwrap();
        assert_eq!(ours, encoder.encode(&block).unwrap(), "{kind}");
        let other = rig.pages(256);
        assert_eq!(rig.decoder.decode(&ours, Some(coding), other.view()).unwrap(), tokens);
        let got = rig.get(&other, tokens.clone());
        assert!(same_bits(&got, &source.decoder(&plan).decode(&ours).unwrap()), "{kind}");
    }
}

#[test]
fn entries_that_are_not_finite_and_tokens_without_pages_are_refused() {
    let source = Source::new(small_layout(), 16, 11);
    let plan = source.plan(None, Balance::EqualBytes);
    let mut rig = Rig::new(&source.layout, Some(plan.clone()), None, 1_024);
    let mut whole = source.block(0, 100, 6);
    let width = source.layout.head_dim;
    whole.values[(2 * 100 + 37) * width + 1] = bf16::NAN;
    let pages = rig.pages(100);
    rig.put(&pages, &whole);
    let coding = Coding { kind: CodecKind::Kvtc, tier: 16 };
    let error = rig.encoder.encode(coding, &[0; 100], pages.view(), 0..100, None).unwrap_err();
    assert!(error.to_string().contains("token 37 "), "{error}");
    assert!(rig.encoder.encode(coding, &[0; 100], pages.view(), 0..37, None).is_ok());
    assert!(
        rig.encoder
            .encode(coding, &[0; 200], pages.view(), 60..129, None)
            .unwrap_err()
            .to_string()
            .contains("129")
    );
    let chunk = source.encoder(&plan, 16, 129).encode(&source.block(60, 69, 2)).unwrap();
    assert!(rig.decoder.decode(&chunk, None, pages.view()).unwrap_err().to_string().contains("129"));
    assert!(same_bits(&rig.get(&pages, 0..100), &whole));
}

/// A small generator: no test needs more.
fn random(seed: &mut u64) -> usize {
    *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*seed >> 33) as usize
}

#[test]
fn hostile_bytes_are_judged_as_on_the_cpu_and_spoil_no_other_token() {
    let kit = Predictable::new();
    let mut rig = Rig::new(&kit.source.layout, Some(kit.plan.clone()), Some(&*kit.features), 1_024);
    let (_, poison) = kit.prompt(192, 9);
    let (pages, neighbour) = (rig.pages(192), rig.pages(192));
    rig.put(&neighbour, &poison);
    let (mut seed, mut accepted, mut refused) = (1u64, 0, 0);
    for round in 0..1_500 {
        let whole = &kit.chunks()[round % 3];
        let mut bytes = whole.clone();
        let at = random(&mut seed) % (bytes.len() - 24);
        let len = 1 + random(&mut seed) % 8;
        for byte in &mut bytes[at..at + len] {
            *byte = random(&mut seed) as u8;
        }
        bytes.truncate(bytes.len() - 16);
        let digest = blake3::hash(&bytes);
        bytes.extend_from_slice(&digest.as_bytes()[..16]);
        rig.put(&pages, &poison);
        let (ours, theirs) = (rig.decoder.decode(&bytes, None, pages.view()), kit.decoder().decode(&bytes));
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
        let claimed = word(40)..word(40).saturating_add(word(44));
        if claimed.end <= 192 {
            assert_eq!(
                ours.is_ok(),
                theirs.is_ok(),
                "round {round} byte {at}: {ours:?}, {:?}",
                theirs.as_ref().err()
            );
        }
        if ours.is_ok() {
            accepted += 1;
        } else {
            refused += 1;
        }
        for around in [0..claimed.start.min(192), claimed.end.min(192)..192] {
            if !around.is_empty() {
                assert!(
                    same_bits(&rig.get(&pages, around.clone()), &cut(&poison, around, 8)),
                    "round {round}"
                );
            }
        }
    }
    println!("{accepted} accepted, {refused} refused");
    assert!(same_bits(&rig.get(&neighbour, 0..192), &poison));
}
