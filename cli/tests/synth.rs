//! A synthetic checkpoint is a model like any other: it loads, whole or in shards, and answers.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

use std::path::Path;

use codec::{CodecKind, Coding, Limits};
use kvferry::synth::{Args, Shape, run};
use model::{Draws, KvCache, Llama, LogitsOf, Sequence};
use node::prompt::{Progress, export};
use node::{Loaded, PromptPass};
use openai::Tokenizer;

fn made(out: &Path, shards: u16, seed: u64) -> anyhow::Result<()> {
    made_with(out, shards, seed, false)
}

fn made_with(out: &Path, shards: u16, seed: u64, plan: bool) -> anyhow::Result<()> {
    let tokenizer = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/tiny-llama").into();
    run(&Args { shape: Shape::Tiny, out: out.to_owned(), seed, plan, shards, tokenizer })
}

/// Logits of the last token of a text.
fn logits(dir: &Path) -> Vec<f32> {
    let (model, tokenizer) = (Llama::load(dir).unwrap(), Tokenizer::load(dir).unwrap());
    let ids = tokenizer.encode("The linker reports").unwrap();
    let mut cache: KvCache = KvCache::new(model.config(), ids.len());
    let mut batch = [Sequence { tokens: &ids, cache: &mut cache, received: None }];
    model.forward(&mut batch, LogitsOf::LastToken).unwrap()
}

#[test]
fn a_checkpoint_answers_and_shards_change_nothing_but_files() {
    let dir = tempfile::tempdir().unwrap();
    let [whole, sharded, other] = ["whole", "sharded", "other"].map(|name| dir.path().join(name));
    made(&whole, 1, 7).unwrap();
    made(&sharded, 3, 7).unwrap();
    made(&other, 1, 8).unwrap();
    assert!(whole.join("model.safetensors").exists() && !whole.join("model.safetensors.index.json").exists());
    assert!(sharded.join("model-00003-of-00003.safetensors").exists());
    let of_whole = logits(&whole);
    assert!(of_whole.len() == 8_192 && of_whole.iter().all(|x| x.is_finite()));
    assert_eq!(logits(&sharded), of_whole);
    assert_ne!(logits(&other), of_whole);
    let model = Llama::load(&sharded).unwrap();
    assert_eq!(model.fingerprint(), Llama::load(&whole).unwrap().fingerprint());
    assert_eq!(model.config().rope.scaling.unwrap().factor, 4.0);
}

#[test]
fn with_a_plan_the_cache_codes_like_a_real_one() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("planned");
    made_with(&out, 2, 7, true).unwrap();
    let loaded = Loaded::load(&out, None, "planned".into()).unwrap();
    // Text would repeat words, and equal tokens have equal rows here.
    let ids: Vec<u32> = (0..1_700u32).map(|i| (i * 7_919 + i * i % 613) % 8_000).collect();
    let mut cache = KvCache::new(loaded.llama.config(), ids.len());
    let mut pass = PromptPass::new(ids.clone(), 256).collecting(loaded.layer_weights());
    while pass.advance(&loaded.llama, &mut cache, &Draws::GREEDY).unwrap().1 == Progress::More {}
    let shifts = pass.into_received().unwrap().shifts().unwrap();
    let encoder = loaded.encoder(Coding { kind: CodecKind::Kvtc, tier: 32 }, &ids).unwrap();
    let block = export(&cache, 0..ids.len()).unwrap();
    let chunk = encoder.encode_with_shifts(&block, Some(&shifts)).unwrap();
    let ratio = (ids.len() * loaded.layout.bytes_per_token()) as f64 / chunk.len() as f64;
    assert!((20.0..45.0).contains(&ratio), "tier 32 codes {} tokens to {ratio}", ids.len());
    let back = loaded.decoder(Limits::default()).unwrap().decode(&chunk).unwrap();
    let pairs = block.values.iter().zip(&back.values).map(|(a, b)| (a.to_f32(), b.to_f32()));
    let (error, energy) = pairs.fold((0.0, 0.0), |(e, s), (a, b)| (e + (a - b).powi(2), s + a * a));
    assert!(error < 0.2 * energy, "values come back with an error of {}", error / energy);
}

#[test]
fn a_directory_with_something_in_it_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("mine"), "precious").unwrap();
    let error = made(dir.path(), 1, 7).unwrap_err().to_string();
    assert!(error.contains("is not empty"), "{error}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}
