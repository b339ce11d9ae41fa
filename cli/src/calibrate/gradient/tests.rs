#![allow(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

use model::{KvCache, Llama, LogitsOf, Sequence};

use super::block::linear;
use super::random_model::{self, HEAD_DIM, KV_HEADS, LAYERS};
use super::*;

const TOKENS: usize = 24;

fn logits(gradient: &Gradient, x: &Tensor) -> Tensor {
    linear(&rms_norm(x, &gradient.norm, gradient.config.rms_norm_eps).unwrap(), &gradient.head).unwrap()
}

#[derive(Clone, Copy, Debug)]
enum Side {
    Keys,
    Values,
}

/// One entry of the cache.
#[derive(Clone, Copy, Debug)]
struct Entry {
    layer: usize,
    side: Side,
    token: usize,
    feature: usize,
}

/// The loss with one entry of the cache moved by `by`.
fn loss(gradient: &Gradient, tokens: &[u32], labels: &[u32], entry: Entry, by: f64) -> f64 {
    let turn = Turn::new(&gradient.inv_freq, tokens.len(), &gradient.embedding).unwrap();
    let mut x = gradient.embed(tokens).unwrap();
    for (layer, block) in gradient.blocks.iter().enumerate() {
        let mut qkv = block.project(&x).unwrap();
        if layer == entry.layer {
            let side = match entry.side {
                Side::Keys => &mut qkv.keys,
                Side::Values => &mut qkv.values,
            };
            let (rows, width) = side.dims2().unwrap();
            let mut moved = vec![0f64; rows * width];
            moved[entry.token * width + entry.feature] = by;
            *side = (&*side + Tensor::from_vec(moved, (rows, width), &Device::Cpu).unwrap()).unwrap();
        }
        x = block.finish(x, qkv, &turn).unwrap().1;
    }
    let rows = logits(gradient, &x).to_vec2::<f64>().unwrap();
    let log_sum = |row: &[f64]| row.iter().map(|x| x.exp()).sum::<f64>().ln();
    rows.iter().zip(labels).map(|(row, label)| log_sum(row) - row[*label as usize]).sum()
}

#[test]
fn gradients_equal_finite_differences() {
    let dir = tempfile::tempdir().unwrap();
    random_model::write(dir.path(), |_, _| {});
    let (tokens, labels) = (random_model::document(TOKENS, 1), random_model::document(TOKENS, 2));
    // Small enough that attention and the output layer take several parts, the last of them shorter.
    let gradient = Gradient::in_parts(dir.path(), DType::F64, &Device::Cpu, 6 * TOKENS * 7, 64 * 9).unwrap();
    let mut next = labels.iter();
    let of_cache = gradient.of_cache(&tokens, &mut |_| Ok(*next.next().unwrap())).unwrap();
    assert!(next.next().is_none());
    for layer in [0, LAYERS - 1] {
        for (token, feature) in
            [(0, 1), (3, 13), (6, HEAD_DIM), (7, 4), (15, 2), (22, KV_HEADS * HEAD_DIM - 1)]
        {
            for (side, of_side) in [(Side::Keys, &of_cache.keys), (Side::Values, &of_cache.values)] {
                let entry = Entry { layer, side, token, feature };
                let ours = of_side[layer].to_vec2::<f64>().unwrap()[token][feature];
                let step = 1e-4;
                let slope = |step| {
                    let at = |by| loss(&gradient, &tokens, &labels, entry, by);
                    (at(step) - at(-step)) / (2.0 * step)
                };
                // Central differences at two steps, the error of second order cancelled.
                let expected = (4.0 * slope(step) - slope(2.0 * step)) / 3.0;
                assert!(expected.abs() > 1e-4, "{entry:?} says nothing: {expected}");
                assert!((ours - expected).abs() < 1e-6 * expected.abs(), "{entry:?}: {ours}, not {expected}");
            }
        }
    }
}

#[test]
fn logits_equal_those_of_the_serving_model() {
    let random = tempfile::tempdir().unwrap();
    random_model::write(random.path(), |_, _| {});
    let embedded = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tiny-llama");
    for (dir, tolerance) in [(random.path().to_owned(), 2e-4), (embedded, 2e-4)] {
        let tokens = random_model::document(50, 3);
        let llama = Llama::load(&dir).unwrap();
        let mut cache = KvCache::<f32>::new(llama.config(), tokens.len());
        let sequence = Sequence { cache: &mut cache, tokens: &tokens, received: None };
        let expected = llama.forward(&mut [sequence], LogitsOf::EveryToken).unwrap();
        let gradient = Gradient::load(&dir, DType::F32, &Device::Cpu).unwrap();
        let turn = Turn::new(&gradient.inv_freq, tokens.len(), &gradient.embedding).unwrap();
        let (_, x) = gradient.forward(&tokens, &turn).unwrap();
        let ours = logits(&gradient, &x).flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(ours.len(), expected.len());
        let worst = ours.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst < tolerance, "{}: {worst}", dir.display());
    }
}

#[test]
fn what_cannot_have_a_gradient_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    assert!(Gradient::load(dir.path(), DType::F32, &Device::Cpu).is_err());
    random_model::write(dir.path(), |_, _| {});
    let gradient = Gradient::load(dir.path(), DType::F32, &Device::Cpu).unwrap();
    let refused =
        |tokens: &[u32], label| format!("{:#}", gradient.of_cache(tokens, &mut |_| Ok(label)).err().unwrap());
    assert!(refused(&[], 0).contains("without tokens"));
    assert!(refused(&[1, 64], 0).contains("token id 64"));
    assert!(refused(&[1, 2], 64).contains("label"));
    std::fs::remove_file(dir.path().join("shard1.safetensors")).unwrap();
    let error = Gradient::load(dir.path(), DType::F32, &Device::Cpu).err().unwrap();
    assert!(error.to_string().contains("shard1.safetensors"), "{error}");
}
