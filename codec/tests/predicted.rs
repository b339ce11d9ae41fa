//! Plans that predict rows from token ids: fewer bytes at the same error, and clear words where something is missing.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::sync::Arc;

use codec::{CodecKind, Coding, Encoder, Error, KvBlock};
use common::{MODEL, Predictable};

fn errors(kit: &Predictable, block: &KvBlock, bytes: &[u8]) -> f64 {
    let back = kit.decoder().decode(bytes).unwrap();
    let pairs = block.keys.iter().chain(&block.values).zip(back.keys.iter().chain(&back.values));
    let (noise, signal) = pairs.fold((0.0, 0.0), |(noise, signal), (x, back)| {
        let (x, back) = (f64::from(x.to_f32()), f64::from(back.to_f32()));
        (noise + (x - back).powi(2), signal + x * x)
    });
    noise / signal
}

#[test]
fn predicted_rows_cost_fewer_bytes_and_come_back_as_close() {
    let kit = Predictable::new();
    let (ids, block) = kit.prompt(600, 3);
    let predicted = kit.encoder(&kit.plan, 8, &ids).encode(&block).unwrap();
    let unpredicted = kit.unpredicted();
    let plain = kit.encoder(&unpredicted, 8, &ids).encode(&block).unwrap();
    let error = errors(&kit, &block, &predicted);
    assert!(error < 0.01, "{error}");
    // At equal tiers bytes are nearly equal and the error is what differs.
    let back = kit.source.decoder(&unpredicted).decode(&plain).unwrap();
    let square = |a: &KvBlock| -> f64 {
        a.keys.iter().zip(&block.keys).map(|(a, b)| f64::from(a.to_f32() - b.to_f32()).powi(2)).sum()
    };
    let ours = square(&kit.decoder().decode(&predicted).unwrap());
    assert!(ours * 2.0 < square(&back), "{ours} against {}", square(&back));
    assert!(predicted.len() < plain.len() * 11 / 10, "{} against {}", predicted.len(), plain.len());
}

#[test]
fn any_chunking_of_a_predicted_prompt_decodes_to_the_same_cache() {
    let kit = Predictable::new();
    let (ids, block) = kit.prompt(300, 4);
    let encoder = kit.encoder(&kit.plan, 16, &ids);
    let shifts: Vec<i8> = (0..300).map(|i| (i * 7 % 19) as i8 - 12).collect();
    let whole = kit.decoder().decode(&encoder.encode_with_shifts(&block, Some(&shifts)).unwrap()).unwrap();
    for cut in [1, 2, 3, 4, 5, 128, 172, 299] {
        for range in [0..cut, cut..300] {
            let part = encoder
                .encode_with_shifts(&kit.cut(&block, range.clone()), Some(&shifts[range.clone()]))
                .unwrap();
            assert_eq!(kit.decoder().decode(&part).unwrap(), kit.cut(&whole, range));
        }
    }
}

#[test]
fn the_row_of_the_first_token_is_not_sent_when_the_plan_holds_it() {
    let kit = Predictable::new();
    let (mut ids, mut block) = kit.prompt(200, 5);
    kit.put_first_row(&mut ids, &mut block);
    let with = kit.encoder(&kit.plan, 16, &ids).encode(&block).unwrap();
    let back = kit.decoder().decode(&with).unwrap();
    assert_eq!(kit.cut(&back, 0..1), kit.cut(&block, 0..1));
    // Another token there, and it is sent.
    let mut others = ids.clone();
    others[0] = 1;
    let without = kit.encoder(&kit.plan, 16, &others).encode(&block).unwrap();
    assert_eq!(kit.cut(&kit.decoder().decode(&without).unwrap(), 0..1), kit.cut(&block, 0..1));
    assert!(without.len() > with.len() + 64, "{} against {}", without.len(), with.len());
}

#[test]
fn what_is_missing_is_named() {
    let kit = Predictable::new();
    let (ids, block) = kit.prompt(20, 6);
    let bare = kit.source.encoder(&kit.plan, 16, 20);
    assert!(matches!(bare.encode(&block), Err(Error::FeaturesMissing)));
    let bytes = kit.encoder(&kit.plan, 16, &ids).encode(&block).unwrap();
    assert!(matches!(kit.source.decoder(&kit.plan).decode(&bytes), Err(Error::FeaturesMissing)));
    let coding = Coding { kind: CodecKind::Kvtc, tier: 16 };
    let encoder = Encoder::new(kit.source.layout.clone(), MODEL, Some(kit.plan.clone()), coding, 20).unwrap();
    let refused = encoder.predicting(kit.features.clone(), Arc::from(&ids[1..])).unwrap_err();
    assert_eq!(refused.to_string(), "invalid argument: 19 token ids for a prompt of 20 tokens");
}

#[test]
fn ids_outside_of_the_vocabulary_are_refused() {
    let kit = Predictable::new();
    let (mut ids, block) = kit.prompt(20, 7);
    ids[11] = 60_000;
    let error = kit.encoder(&kit.plan, 16, &ids).encode(&block).unwrap_err();
    assert!(error.to_string().contains("60000 is outside of the vocabulary of 50"), "{error}");
}
