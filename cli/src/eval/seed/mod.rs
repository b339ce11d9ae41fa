//! "The seed's method": a replica of the first public proof of concept of KVTC (`kvtc-poc`, Alberto Ferrer, 2026), faults
//! included, to be measured beside the codecs. No cluster speaks it.
//!
//! The first 4 and the last 128 tokens stay as they are. Of the others keys lose RoPE, all layers and heads make one row, rows go
//! to coefficients by plain PCA, and those to bytes by [`plan`] and [`quantize`]. The basis is that of the plan's kvtc-paper tables:
//! the original calibrated on 16 short texts. See docs/evaluation.md for what else differs.

mod plan;
mod quantize;
mod report;

use std::ops::Range;

use anyhow::{Context as _, ensure};
use codec::{KvBlock, KvLayout, PaperSpace, Plan, fit};
use faer::MatRef;
use tracing::debug;

use super::body::{Body, cut};
use plan::Widths;
pub use report::{Cosines, Row, seed_report};
pub(super) use report::{terminal, write};

/// Components of a basis at most.
const MAX_RANK: usize = 4_096;
/// Body ratios that are measured.
pub(super) const TIERS: [u8; 2] = [8, 16];
/// The method's name in tables.
pub(super) const NAME: &str = "seed-replica";

/// The method at one target on one plan's basis.
#[derive(Debug)]
pub(crate) struct Replica<'a> {
    layout: &'a KvLayout,
    sides: [Side<'a>; 2],
}

/// What codes keys, or values.
#[derive(Debug)]
struct Side<'a> {
    mean: &'a [f32],
    /// `[rank, P]`.
    basis: &'a [f32],
    widths: Widths,
}

/// Coefficients of keys and of values, `[rank, tokens]` each.
#[derive(Debug)]
pub(crate) struct Coefficients {
    tokens: usize,
    sides: [Vec<f32>; 2],
}

/// Coefficients as bytes.
#[derive(Debug)]
pub(crate) struct Packed {
    tokens: usize,
    sides: [Vec<u8>; 2],
}

/// A coded cache.
#[derive(Debug)]
pub(super) struct Coded {
    /// Sinks and window, or all of a cache that has no more.
    raw: Vec<KvBlock>,
    packed: Option<(usize, Packed)>,
}

impl<'a> Replica<'a> {
    /// The method on the basis of a plan, aiming at a body `target` times smaller.
    ///
    /// # Errors
    /// When the plan lacks the tables of kvtc-paper.
    pub(crate) fn new(plan: &'a Plan, target: u8) -> anyhow::Result<Self> {
        let (keys, values) = plan.paper_spaces().context(
            "the seed's method takes the basis of kvtc-paper, which this plan lacks: make a new one with `kvferry calibrate`",
        )?;
        let layout = plan.layout();
        let sides = [keys, values].map(|space| Side::new(space, layout.features(), target));
        Ok(Self { layout, sides })
    }

    /// Codes a whole cache.
    pub(super) fn encode(&self, block: &KvBlock) -> anyhow::Result<Coded> {
        let body = body(block.tokens);
        if body.is_empty() {
            return Ok(Coded { raw: vec![block.clone()], packed: None });
        }
        let part = |tokens| cut(block, self.layout, tokens);
        let raw = vec![part(0..body.start), part(body.end..block.tokens)];
        let packed = self.pack(&self.project(&part(body.clone()))?)?;
        Ok(Coded { raw, packed: Some((body.start, packed)) })
    }

    /// Decodes to consecutive blocks; the mirror of [`Self::encode`].
    pub(super) fn decode(&self, coded: &Coded) -> anyhow::Result<Vec<KvBlock>> {
        let mut blocks = coded.raw.clone();
        if let Some((first_token, packed)) = &coded.packed {
            blocks.insert(1, self.reconstruct(*first_token, &self.unpack(packed)?)?);
        }
        Ok(blocks)
    }

    /// Raw bytes of so many tokens.
    fn raw_bytes(&self, tokens: usize) -> usize {
        tokens * self.layout.bytes_per_token()
    }

    /// All bytes of a coded cache; the method frames nothing.
    pub(super) fn whole_bytes(&self, coded: &Coded) -> usize {
        let raw: usize = coded.raw.iter().map(|block| self.raw_bytes(block.tokens)).sum();
        raw + coded.packed.as_ref().map_or(0, |(_, packed)| packed.bytes())
    }

    /// Raw and coded bytes of a cache without sinks and window.
    pub(super) fn body_bytes(&self, coded: &Coded) -> (usize, usize) {
        let packed = coded.packed.as_ref();
        packed.map_or((0, 0), |(_, packed)| (self.raw_bytes(packed.tokens), packed.bytes()))
    }

    /// Rows of body tokens to coefficients.
    pub(crate) fn project(&self, body: &KvBlock) -> anyhow::Result<Coefficients> {
        let (keys, values) = fit::rows(body, self.layout)?;
        let sides = [self.sides[0].project(keys), self.sides[1].project(values)];
        Ok(Coefficients { tokens: body.tokens, sides })
    }

    /// Everything after the projection.
    pub(crate) fn pack(&self, coefficients: &Coefficients) -> anyhow::Result<Packed> {
        let tokens = coefficients.tokens;
        ensure!(tokens > 0, "there are no tokens to code");
        let pack = |side: usize| {
            let bits = &self.sides[side].widths.bits;
            quantize::deflate(&quantize::serialize(&coefficients.sides[side], tokens, bits))
        };
        Ok(Packed { tokens, sides: [pack(0)?, pack(1)?] })
    }

    /// Everything before the rows are made; the mirror of [`Self::pack`].
    pub(crate) fn unpack(&self, packed: &Packed) -> anyhow::Result<Coefficients> {
        let tokens = packed.tokens;
        let unpack = |side: usize| {
            let components = self.sides[side].widths.bits.len();
            let limit = components * (quantize::HEADER_BYTES + quantize::SYMBOL_BYTES * tokens);
            quantize::deserialize(&quantize::inflate(&packed.sides[side], limit)?, tokens, components)
        };
        Ok(Coefficients { tokens, sides: [unpack(0)?, unpack(1)?] })
    }

    fn reconstruct(&self, first_token: usize, coefficients: &Coefficients) -> anyhow::Result<KvBlock> {
        let tokens = coefficients.tokens;
        let [keys, values] =
            [0, 1].map(|side| self.sides[side].reconstruct(&coefficients.sides[side], tokens));
        Ok(fit::block(first_token, (keys, values), self.layout)?)
    }
}

impl Packed {
    /// Bytes of keys and values.
    pub(crate) fn bytes(&self) -> usize {
        self.sides.iter().map(Vec::len).sum()
    }
}

impl<'a> Side<'a> {
    fn new(space: PaperSpace<'a>, features: usize, target: u8) -> Self {
        let variances: Vec<f64> = space.sigma().take(rank(features)).map(|s| f64::from(s).powi(2)).collect();
        let widths = plan::allocate(&variances, 16 * features / usize::from(target));
        let Widths { group, charged, error, .. } = &widths;
        debug!(target, group, charged, error, "bit plan of the seed's method");
        Self { mean: space.mean, basis: &space.basis[..variances.len() * features], widths }
    }

    /// Rows `[tokens, P]` to coefficients `[rank, tokens]`.
    fn project(&self, mut rows: Vec<f32>) -> Vec<f32> {
        let features = self.mean.len();
        for row in rows.chunks_exact_mut(features) {
            row.iter_mut().zip(self.mean).for_each(|(x, mean)| *x -= mean);
        }
        let rows = MatRef::from_row_major_slice(&rows, rows.len() / features, features);
        let coefficients = rows * self.basis().transpose();
        (0..coefficients.ncols()).flat_map(|j| coefficients.col_as_slice(j)).copied().collect()
    }

    /// Coefficients `[rank, tokens]` to rows `[tokens, P]`.
    fn reconstruct(&self, coefficients: &[f32], tokens: usize) -> Vec<f32> {
        let basis = self.basis();
        let coefficients = MatRef::from_row_major_slice(coefficients, basis.nrows(), tokens);
        let rows = basis.transpose() * coefficients;
        let row = |token| rows.col_as_slice(token).iter().zip(self.mean).map(|(x, mean)| x + mean);
        (0..tokens).flat_map(row).collect()
    }

    fn basis(&self) -> MatRef<'a, f32> {
        MatRef::from_row_major_slice(self.basis, self.widths.bits.len(), self.mean.len())
    }
}

/// Tokens of a prompt that are coded.
pub(crate) fn body(tokens: usize) -> Range<usize> {
    Body::of(tokens).range()
}

/// Components that the method has of so many features.
fn rank(features: usize) -> usize {
    MAX_RANK.min(features / 2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use codec::fit::{Basis, PlanBuilder, add_paper};

    const FEATURES: usize = 64;

    fn layout() -> KvLayout {
        KvLayout { layers: 2, kv_heads: 2, head_dim: 16, inv_freq: (0..8).map(|i| 0.3f32.powi(i)).collect() }
    }

    /// Rows whose features fall in strength, so that unit vectors are their principal axes.
    fn rows(count: usize, seed: usize) -> Vec<f32> {
        let noise = |i: usize| ((i + seed) * 7_919 % 1_009) as f32 / 504.5 - 1.0;
        (0..count * FEATURES).map(|i| 1.0 + 4.0 * 0.93f32.powi((i % FEATURES) as i32) * noise(i)).collect()
    }

    fn side() -> (Basis, Vec<f32>) {
        let unit = (0..FEATURES * FEATURES).map(|i| f32::from(u8::from(i / FEATURES == i % FEATURES)));
        (Basis { mean: vec![1.0; FEATURES], weights: None, vectors: unit.collect() }, rows(300, 1))
    }

    fn old_plan() -> Plan {
        PlanBuilder::new(layout(), [7; 16], side(), side()).build(&mut |_| {}).unwrap()
    }

    fn block(tokens: usize) -> KvBlock {
        fit::block(0, (rows(tokens, 2), rows(tokens, 3)), &layout()).unwrap()
    }

    #[test]
    fn sinks_and_window_stay_as_they_are_and_the_rest_comes_back_near() {
        let plan = add_paper(&old_plan(), side(), side(), &mut |_| {}).unwrap();
        let (layout, whole) = (layout(), block(400));
        let replica = Replica::new(&plan, 8).unwrap();
        let coded = replica.encode(&whole).unwrap();
        let decoded = replica.decode(&coded).unwrap();
        let places: Vec<_> = decoded.iter().map(|block| (block.first_token, block.tokens)).collect();
        assert_eq!(places, [(0, 4), (4, 268), (272, 128)]);
        assert_eq!(decoded[0], cut(&whole, &layout, 0..4));
        assert_eq!(decoded[2], cut(&whole, &layout, 272..400));
        let squares = |a: &[f32], b: &[f32]| -> f32 { a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum() };
        let exact = fit::rows(&cut(&whole, &layout, 4..272), &layout).unwrap();
        let got = fit::rows(&decoded[1], &layout).unwrap();
        for (exact, got) in [(&exact.0, &got.0), (&exact.1, &got.1)] {
            let error = squares(exact, got) / squares(exact, &vec![1.0; exact.len()]);
            assert!(error > 0.0 && error < 0.5, "{error}");
        }
        let (raw, packed) = replica.body_bytes(&coded);
        assert_eq!((raw, replica.whole_bytes(&coded)), (268 * 256, 132 * 256 + packed));
    }

    #[test]
    fn a_basis_is_cut_to_half_of_the_features() {
        let plan = add_paper(&old_plan(), side(), side(), &mut |_| {}).unwrap();
        let replica = Replica::new(&plan, 4).unwrap();
        assert!(replica.sides.iter().all(|side| side.widths.bits.len() <= FEATURES / 2));
        assert_eq!([rank(64), rank(8_192), rank(16_384)], [32, 4_096, 4_096]);
        assert!(replica.sides.iter().all(|side| side.widths.charged <= 16 * FEATURES / 4));
    }

    #[test]
    fn a_cache_of_sinks_and_window_alone_is_raw() {
        let plan = add_paper(&old_plan(), side(), side(), &mut |_| {}).unwrap();
        let replica = Replica::new(&plan, 16).unwrap();
        for tokens in [1, 4, 132] {
            let coded = replica.encode(&block(tokens)).unwrap();
            assert_eq!(replica.decode(&coded).unwrap(), [block(tokens)]);
            assert_eq!((replica.whole_bytes(&coded), replica.body_bytes(&coded)), (tokens * 256, (0, 0)));
        }
    }

    #[test]
    fn a_plan_without_a_plain_basis_is_refused_with_what_to_do() {
        let error = Replica::new(&old_plan(), 16).unwrap_err().to_string();
        assert!(error.contains("make a new one with `kvferry calibrate`"), "{error}");
    }

    #[test]
    fn rows_survive_projection_onto_a_whole_basis() {
        let (basis, _) = side();
        let widths = Widths { bits: vec![8; FEATURES], ..Widths::default() };
        let side = Side { mean: &basis.mean, basis: &basis.vectors, widths };
        let exact = rows(9, 4);
        let coefficients = side.project(exact.clone());
        assert_eq!(coefficients.len(), 9 * FEATURES);
        let back = side.reconstruct(&coefficients, 9);
        assert!(exact.iter().zip(&back).all(|(a, b)| (a - b).abs() < 1e-5));
        let strongest: Vec<f32> = exact.chunks_exact(FEATURES).map(|row| row[0] - 1.0).collect();
        assert_eq!(coefficients[..9], strongest);
    }
}
