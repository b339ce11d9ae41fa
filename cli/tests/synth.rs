//! A synthetic checkpoint is a model like any other: it loads, whole or in shards, and answers.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

use std::path::Path;

use kvferry::synth::{Args, Shape, run};
use model::{KvCache, Llama, LogitsOf, Sequence};
use openai::Tokenizer;

fn made(out: &Path, shards: u16, seed: u64) -> anyhow::Result<()> {
    let tokenizer = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/tiny-llama").into();
    run(&Args { shape: Shape::Tiny, out: out.to_owned(), seed, shards, tokenizer })
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
fn a_directory_with_something_in_it_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("mine"), "precious").unwrap();
    let error = made(dir.path(), 1, 7).unwrap_err().to_string();
    assert!(error.contains("is not empty"), "{error}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}
