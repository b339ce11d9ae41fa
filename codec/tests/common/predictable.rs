//! Caches that follow from token ids but for some noise, and a plan that knows how.

use std::{ops::Range, sync::Arc};

use codec::{
    Decoder, Encoder, KvBlock, Plan, TokenFeatures as _,
    fit::{PlanBuilder, Predictor},
};
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use super::{
    MODEL, Source, cut,
    features::{Features, GOLDEN},
    gauss, small_layout,
};

/// Tokens that a prediction looks at.
const CONTEXT: usize = 2;
/// Rows that plans are made from.
const HELD_OUT: usize = 512;

/// A source, a plan with everything that a plan may hold, and prompts for both.
pub struct Predictable {
    pub source: Source,
    pub features: Arc<Features>,
    pub plan: Arc<Plan>,
    /// Of keys and values, `[P, CONTEXT x width]`.
    maps: [Vec<f32>; 2],
    first: KvBlock,
    held_out: (Vec<u32>, [Vec<f32>; 2]),
}

impl Predictable {
    /// The kit of the golden files.
    pub fn new() -> Self {
        Self::of(GOLDEN)
    }

    /// The same with other token features.
    pub fn of(features: Features) -> Self {
        let source = Source::new(small_layout(), 24, 31);
        let mut rng = ChaCha8Rng::seed_from_u64(32);
        let inputs = source.layout.features() * CONTEXT * features.width;
        let maps = [(); 2].map(|()| (0..inputs).map(|_| 3.0 * gauss(&mut rng)).collect::<Vec<f32>>());
        let first = source.block(0, 1, 33);
        let ids: Vec<u32> = (0..HELD_OUT).map(|_| rng.random_range(0..features.vocabulary as u32)).collect();
        let rows = [&source.keys, &source.values].map(|basis| source.rows(basis, HELD_OUT, &mut rng));
        let predictor = Predictor::new(CONTEXT, &features, maps[0].clone(), maps[1].clone()).unwrap();
        let plan = builder(&source, rows.clone())
            .predicting(predictor.clone(), ids.clone())
            .shifts((0..HELD_OUT).map(|i| (i % 9) as i8 - 6).collect())
            .first_row(features.vocabulary as u32 - 1, first.keys.clone(), first.values.clone())
            .layer_weights(vec![0.5, 1.5])
            .build(&mut |_| {})
            .unwrap();
        let maps = [predictor.maps().0.to_vec(), predictor.maps().1.to_vec()];
        Self {
            source,
            features: Arc::new(features),
            plan: Arc::new(plan),
            maps,
            first,
            held_out: (ids, rows),
        }
    }

    /// A plan that was made from the same rows and does not know that tokens foretell them.
    pub fn unpredicted(&self) -> Arc<Plan> {
        let (ids, mut rows) = self.held_out.clone();
        for (rows, map) in rows.iter_mut().zip(&self.maps) {
            self.add_predictions(rows, map, &ids);
        }
        Arc::new(builder(&self.source, rows).build(&mut |_| {}).unwrap())
    }

    /// Ids and cache of a prompt.
    pub fn prompt(&self, tokens: usize, seed: u64) -> (Vec<u32>, KvBlock) {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let ids: Vec<u32> = (0..tokens).map(|_| rng.random_range(0..self.begin())).collect();
        let [keys, values] = [(&self.source.keys, 0), (&self.source.values, 1)].map(|(basis, side)| {
            let mut rows = self.source.rows(basis, tokens, &mut rng);
            self.add_predictions(&mut rows, &self.maps[side], &ids);
            rows
        });
        let (keys, values) = (self.source.planes(&keys, Some(0)), self.source.planes(&values, None));
        (ids, KvBlock { first_token: 0, tokens, keys, values })
    }

    /// The token that the plan's first row is of.
    fn begin(&self) -> u32 {
        self.features.vocabulary as u32 - 1
    }

    /// Makes a prompt begin with the token whose row the plan holds.
    pub fn put_first_row(&self, ids: &mut [u32], block: &mut KvBlock) {
        ids[0] = self.begin();
        let width = self.source.layout.head_dim;
        for (cache, row) in [(&mut block.keys, &self.first.keys), (&mut block.values, &self.first.values)] {
            for (plane, row) in cache.chunks_exact_mut(block.tokens * width).zip(row.chunks_exact(width)) {
                plane[..width].copy_from_slice(row);
            }
        }
    }

    pub fn cut(&self, block: &KvBlock, range: Range<usize>) -> KvBlock {
        cut(block, range, self.source.layout.head_dim)
    }

    pub fn encoder(&self, plan: &Arc<Plan>, tier: u8, ids: &[u32]) -> Encoder {
        self.source.encoder(plan, tier, ids.len()).predicting(self.features.clone(), Arc::from(ids)).unwrap()
    }

    pub fn decoder(&self) -> Decoder {
        self.source.decoder(&self.plan).predicting(self.features.clone())
    }

    /// Chunks of tokens 0 to 39 (with the plan's first row) and 2 to 41 of a prompt of 160, the second without and with a shift
    /// for every token: what the golden files are, and everything that such a chunk can hold.
    pub fn chunks(&self) -> [Vec<u8>; 3] {
        let (mut ids, mut block) = self.prompt(160, 34);
        self.put_first_row(&mut ids, &mut block);
        let encoder = self.encoder(&self.plan, 12, &ids);
        let shifts: Vec<i8> = (0..40).map(|i| (i * 11 % 49 - 24) as i8).collect();
        let (start, middle) = (self.cut(&block, 0..40), self.cut(&block, 2..42));
        [
            encoder.encode(&start).unwrap(),
            encoder.encode(&middle).unwrap(),
            encoder.encode_with_shifts(&middle, Some(&shifts)).unwrap(),
        ]
    }

    /// Adds what a map makes of the ids; written again, apart from the codec's own.
    fn add_predictions(&self, rows: &mut [f32], map: &[f32], ids: &[u32]) {
        let (features, width) = (self.source.layout.features(), self.features.width);
        let mut inputs = vec![0.0; width];
        for (token, row) in rows.chunks_exact_mut(features).enumerate() {
            for back in 0..CONTEXT.min(token + 1) {
                self.features.write(ids[token - back], &mut inputs);
                for (x, weights) in row.iter_mut().zip(map.chunks_exact(CONTEXT * width)) {
                    let weights = &weights[back * width..(back + 1) * width];
                    *x += weights.iter().zip(&inputs).map(|(w, f)| w * f).sum::<f32>();
                }
            }
        }
    }
}

fn builder(source: &Source, [keys, values]: [Vec<f32>; 2]) -> PlanBuilder {
    let (keys, values) = ((source.keys.clone(), keys), (source.values.clone(), values));
    PlanBuilder::new(source.layout.clone(), MODEL, keys, values)
}
