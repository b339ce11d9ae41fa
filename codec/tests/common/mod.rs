//! Synthetic caches that look like real ones, and a plan fitted to them; seeded, so every run sees the same numbers.

#![allow(
    clippy::unwrap_used,
    dead_code,
    missing_docs,
    missing_debug_implementations,
    unreachable_pub,
    unused_imports,
    reason = "a test kit: every binary uses its own part of it"
)]

pub mod features;
mod predictable;

use std::sync::Arc;

use codec::{
    CodecKind, Coding, Decoder, Encoder, KvBlock, KvLayout, Limits, Plan,
    fit::{self, Balance, Basis, PlanBuilder},
};
use half::bf16;
pub use predictable::Predictable;
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

/// Fingerprint of the model that does not exist.
pub const MODEL: [u8; 16] = *b"a synthetic llm!";

/// A small cache: 2 layers, 2 heads, 8 dimensions, so 32 features.
pub fn small_layout() -> KvLayout {
    layout(2, 2, 8)
}

/// A layout with Llama's RoPE frequencies.
pub fn layout(layers: usize, kv_heads: usize, head_dim: usize) -> KvLayout {
    let inv_freq = (0..head_dim / 2).map(|i| 500_000f32.powf(-2.0 * i as f32 / head_dim as f32)).collect();
    KvLayout { layers, kv_heads, head_dim, inv_freq }
}

/// Where rows come from: independent components with a power-law spectrum, mixed by an orthogonal matrix, plus a mean.
pub struct Source {
    pub layout: KvLayout,
    pub keys: Basis,
    pub values: Basis,
    /// A component's deviation falls as its rank to the power of minus this.
    pub decay: f32,
}

impl Source {
    /// The source of the golden files.
    pub fn golden() -> Self {
        Self::new(small_layout(), 12, 21)
    }

    /// The source of the golden files of kvtc-paper: wider and steeper, so that its bit plans have every type.
    pub fn golden_paper() -> Self {
        Self { decay: 1.5, ..Self::new(layout(2, 2, 40), 50, 23) }
    }

    /// Rows span `rank` directions.
    pub fn new(layout: KvLayout, rank: usize, seed: u64) -> Self {
        let features = layout.features();
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut basis = || Basis {
            mean: (0..features).map(|_| gauss(&mut rng)).collect(),
            weights: None,
            vectors: orthogonal(features, rank, &mut rng),
        };
        Self { keys: basis(), values: basis(), layout, decay: 0.6 }
    }

    /// Rows `[count, P]` of one side.
    pub fn rows(&self, basis: &Basis, count: usize, rng: &mut ChaCha8Rng) -> Vec<f32> {
        let features = self.layout.features();
        let mut rows = Vec::with_capacity(count * features);
        for _ in 0..count {
            let gain = (0.3 * gauss(rng)).exp();
            let mut row = basis.mean.clone();
            for (j, vector) in basis.vectors.chunks_exact(features).enumerate() {
                let y = 8.0 * gain * ((j + 1) as f32).powf(-self.decay) * gauss(rng);
                row.iter_mut().zip(vector).for_each(|(x, u)| *x += y * u);
            }
            rows.append(&mut row);
        }
        rows
    }

    /// A stretch of cache.
    pub fn block(&self, first_token: usize, tokens: usize, seed: u64) -> KvBlock {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let (keys, values) =
            (self.rows(&self.keys, tokens, &mut rng), self.rows(&self.values, tokens, &mut rng));
        let (keys, values) = (self.planes(&keys, Some(first_token)), self.planes(&values, None));
        KvBlock { first_token, tokens, keys, values }
    }

    /// Rows to cache planes, with RoPE when a first position is given; written again, apart from the codec's own.
    fn planes(&self, rows: &[f32], rope_from: Option<usize>) -> Vec<bf16> {
        let KvLayout { layers, kv_heads, head_dim, ref inv_freq } = self.layout;
        let (features, tokens) = (self.layout.features(), rows.len() / self.layout.features());
        let mut planes = Vec::with_capacity(rows.len());
        for plane in 0..layers * kv_heads {
            for token in 0..tokens {
                let head = &rows[token * features + plane * head_dim..][..head_dim];
                for d in 0..head_dim {
                    let x = match rope_from {
                        None => head[d],
                        Some(first) => {
                            let half = head_dim / 2;
                            let angle = (first + token) as f64 * f64::from(inv_freq[d % half]);
                            let other = if d < half { -head[d + half] } else { head[d - half] };
                            head[d] * angle.cos() as f32 + other * angle.sin() as f32
                        }
                    };
                    planes.push(bf16::from_f32(x));
                }
            }
        }
        planes
    }

    /// A plan fitted to this source, weighted or not.
    pub fn plan(&self, weights: Option<Vec<f32>>, balance: Balance) -> Arc<Plan> {
        self.plan_from(512, weights, balance)
    }

    /// The same from `count` held-out rows.
    pub fn plan_from(&self, count: usize, weights: Option<Vec<f32>>, balance: Balance) -> Arc<Plan> {
        let mut rng = ChaCha8Rng::seed_from_u64(77);
        let side = |basis: &Basis, rng: &mut ChaCha8Rng| {
            let basis = Basis { weights: weights.clone(), ..basis.clone() };
            let rows = self.rows(&basis, count, rng);
            (basis, rows)
        };
        let (keys, values) = (side(&self.keys, &mut rng), side(&self.values, &mut rng));
        let builder = PlanBuilder::new(self.layout.clone(), MODEL, keys, values).balance(balance);
        Arc::new(builder.build(&mut |_| {}).unwrap())
    }

    /// A plan with the tables of kvtc-paper too.
    pub fn paper_plan(&self) -> Arc<Plan> {
        self.with_paper(&self.plan(None, Balance::EqualBytes))
    }

    /// A plan with the tables of kvtc-paper added.
    pub fn with_paper(&self, plan: &Plan) -> Arc<Plan> {
        let mut rng = ChaCha8Rng::seed_from_u64(78);
        let (keys, values) = (self.rows(&self.keys, 300, &mut rng), self.rows(&self.values, 300, &mut rng));
        let (keys, values) = ((self.keys.clone(), keys), (self.values.clone(), values));
        Arc::new(fit::add_paper(plan, keys, values, &mut |_| {}).unwrap())
    }

    pub fn encoder(&self, plan: &Arc<Plan>, tier: u8, prompt_tokens: usize) -> Encoder {
        self.planned_encoder(plan, CodecKind::Kvtc, tier, prompt_tokens)
    }

    /// An encoder that needs a plan.
    pub fn planned_encoder(
        &self,
        plan: &Arc<Plan>,
        kind: CodecKind,
        tier: u8,
        prompt_tokens: usize,
    ) -> Encoder {
        let coding = Coding { kind, tier };
        Encoder::new(self.layout.clone(), MODEL, Some(plan.clone()), coding, prompt_tokens).unwrap()
    }

    pub fn decoder(&self, plan: &Arc<Plan>) -> Decoder {
        Decoder::new(self.layout.clone(), MODEL, Some(plan.clone()), Limits::default()).unwrap()
    }

    pub fn raw_encoder(&self, prompt_tokens: usize) -> Encoder {
        self.plain_encoder(CodecKind::Raw, prompt_tokens)
    }

    /// An encoder that needs no plan.
    pub fn plain_encoder(&self, kind: CodecKind, prompt_tokens: usize) -> Encoder {
        Encoder::new(self.layout.clone(), MODEL, None, Coding { kind, tier: 0 }, prompt_tokens).unwrap()
    }
}

/// Whether two blocks are the same to the bit, numbers or not.
pub fn same_bits(a: &KvBlock, b: &KvBlock) -> bool {
    let bits =
        |block: &KvBlock| block.keys.iter().chain(&block.values).map(|x| x.to_bits()).collect::<Vec<_>>();
    (a.first_token, a.tokens, bits(a)) == (b.first_token, b.tokens, bits(b))
}

/// The tokens `range` of a block.
pub fn cut(block: &KvBlock, range: std::ops::Range<usize>, head_dim: usize) -> KvBlock {
    let cut = |cache: &[bf16]| {
        let planes = cache.chunks_exact(block.tokens * head_dim);
        planes.flat_map(|plane| &plane[range.start * head_dim..range.end * head_dim]).copied().collect()
    };
    KvBlock {
        first_token: block.first_token + range.start,
        tokens: range.len(),
        keys: cut(&block.keys),
        values: cut(&block.values),
    }
}

/// Sum of squared differences over sum of squares about the mean row, keys (without RoPE) and values.
pub fn relative_error(layout: &KvLayout, source: &Source, got: &KvBlock, expected: &KvBlock) -> (f64, f64) {
    let (got, expected) = (fit::rows(got, layout).unwrap(), fit::rows(expected, layout).unwrap());
    let error = |got: &[f32], expected: &[f32], mean: &[f32]| {
        let square = |x: f32| f64::from(x) * f64::from(x);
        let noise: f64 = got.iter().zip(expected).map(|(a, b)| square(a - b)).sum();
        let signal: f64 = expected.iter().zip(mean.iter().cycle()).map(|(a, b)| square(a - b)).sum();
        noise / signal
    };
    (error(&got.0, &expected.0, &source.keys.mean), error(&got.1, &expected.1, &source.values.mean))
}

fn gauss(rng: &mut ChaCha8Rng) -> f32 {
    let (a, b): (f32, f32) = (1.0 - rng.random::<f32>(), rng.random());
    (-2.0 * a.ln()).sqrt() * (std::f32::consts::TAU * b).cos()
}

/// `rank` orthonormal rows of `features` numbers: a product of two Householder reflections and a permutation's worth of unit vectors.
fn orthogonal(features: usize, rank: usize, rng: &mut ChaCha8Rng) -> Vec<f32> {
    let mut rows = vec![0f32; rank * features];
    for (j, row) in rows.chunks_exact_mut(features).enumerate() {
        row[j] = 1.0;
    }
    for _ in 0..3 {
        let mut v: Vec<f32> = (0..features).map(|_| gauss(rng)).collect();
        let norm = v.iter().map(|x| x * x).sum::<f32>().sqrt();
        v.iter_mut().for_each(|x| *x /= norm);
        for row in rows.chunks_exact_mut(features) {
            let dot: f32 = row.iter().zip(&v).map(|(x, v)| x * v).sum();
            row.iter_mut().zip(&v).for_each(|(x, v)| *x -= 2.0 * dot * v);
        }
    }
    rows
}
