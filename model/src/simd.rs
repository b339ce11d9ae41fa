//! Inner loops written so that the compiler vectorises them, compiled once per instruction set and chosen at run time
//! by `pulp`: the build stays baseline x86-64 (or any other target) and still uses AVX2 where the machine has it.

use pulp::{Arch, Simd};

use crate::kv_cache::KvElement;

const LANES: usize = 8;

/// `2^x` for `x <= 127`, relative error below 2e-7; what lies below -126 becomes 2^-126, which is 0 beside anything.
///
/// Splits off the integer part through the mantissa of a large float and evaluates the Taylor series of `2^f` on
/// [-0.5, 0.5], whose seventh term is below f32's resolution.
#[inline(always)]
fn exp2(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: adding it rounds to an integer in the low mantissa bits
    const C: [f32; 6] =
        [std::f32::consts::LN_2, 0.240_226_5, 0.055_504_11, 0.009_618_129, 0.001_333_355_8, 0.000_154_035_3];
    let clamped = if x < -126.0 { -126.0 } else { x };
    let shifted = clamped + ROUND;
    let f = clamped - (shifted - ROUND);
    let series = C.iter().rev().fold(0.0, |acc, c| (acc + c) * f) + 1.0;
    let scale = f32::from_bits((shifted.to_bits() << 23).wrapping_add(1.0f32.to_bits()));
    series * scale
}

#[inline(always)]
fn max(row: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (chunks, rest) = row.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane = if *x > *lane { *x } else { *lane };
        }
    }
    lanes.into_iter().chain(rest.iter().copied()).fold(f32::NEG_INFINITY, f32::max)
}

/// Replaces `row` by `2^(row - top)` and returns its sum.
#[inline(always)]
fn exp2_sum(row: &mut [f32], top: f32) -> f32 {
    let mut lanes = [0f32; LANES];
    let (chunks, rest) = row.as_chunks_mut::<LANES>();
    for chunk in chunks {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *x = exp2(*x - top);
            *lane += *x;
        }
    }
    let tail: f32 = rest
        .iter_mut()
        .map(|x| {
            *x = exp2(*x - top);
            *x
        })
        .sum();
    lanes.into_iter().sum::<f32>() + tail
}

/// Running maximum and sum of one row of an online softmax (Milakov and Gimelshein, arXiv:1805.02867), base 2.
#[derive(Debug, Clone, Copy)]
pub(crate) struct OnlineRow {
    /// Largest score so far.
    pub(crate) max: f32,
    /// Sum of `2^(score - max)` so far.
    pub(crate) sum: f32,
}

impl OnlineRow {
    /// Nothing seen yet.
    pub(crate) const EMPTY: Self = Self { max: f32::NEG_INFINITY, sum: 0.0 };
}

/// One block of an online softmax over `rows.len()` rows.
///
/// `scores` `[rows, width]` (base-2 logits) become unnormalised probabilities. Row `r` belongs to query `r % queries`, which
/// sees the first `seen_by_first + r % queries` keys of the block (more than there are means all, less than one none); the
/// rest becomes 0. `out` `[rows, head_dim]` is rescaled to the new maximum.
#[pulp::with_simd(softmax_block = Arch::new())]
#[inline(always)]
pub(crate) fn softmax_block_with_simd<'a, S: Simd>(
    _: S,
    scores: &'a mut [f32],
    width: usize,
    (queries, seen_by_first): (usize, isize),
    rows: &'a mut [OnlineRow],
    out: &'a mut [f32],
) {
    let head_dim = out.len() / rows.len();
    for (r, state) in rows.iter_mut().enumerate() {
        let visible = (seen_by_first + (r % queries) as isize).clamp(0, width as isize) as usize;
        let (seen, hidden) = scores[r * width..(r + 1) * width].split_at_mut(visible);
        hidden.fill(0.0);
        if seen.is_empty() {
            continue;
        }
        let top = max(seen).max(state.max);
        let rescale = exp2(state.max - top);
        state.sum = state.sum * rescale + exp2_sum(seen, top);
        state.max = top;
        for x in &mut out[r * head_dim..(r + 1) * head_dim] {
            *x *= rescale;
        }
    }
}

/// Adds the softmax (base 2) of `row` to `sums`.
#[pulp::with_simd(add_softmax = Arch::new())]
#[inline(always)]
pub(crate) fn add_softmax_with_simd<'a, S: Simd>(_: S, row: &'a mut [f32], sums: &'a mut [f32]) {
    let top = max(row);
    let scale = 1.0 / exp2_sum(row, top);
    for (sum, p) in sums.iter_mut().zip(row.iter()) {
        *sum += p * scale;
    }
}

/// Widens cache elements to f32.
#[pulp::with_simd(widen = Arch::new())]
#[inline(always)]
pub(crate) fn widen_with_simd<'a, S: Simd, E: KvElement>(_: S, from: &'a [E], to: &'a mut [f32]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to = from.to_f32();
    }
}

/// Root-mean-square normalisation of every row of `x` `[rows, weight.len()]` in place.
#[pulp::with_simd(rms_norm = Arch::new())]
#[inline(always)]
pub(crate) fn rms_norm_with_simd<'a, S: Simd>(_: S, x: &'a mut [f32], weight: &'a [f32], eps: f32) {
    for row in x.chunks_exact_mut(weight.len()) {
        let scale = 1.0 / (sum_of_squares(row) / weight.len() as f32 + eps).sqrt();
        for (x, w) in row.iter_mut().zip(weight) {
            *x *= scale * w;
        }
    }
}

#[inline(always)]
fn sum_of_squares(row: &[f32]) -> f32 {
    let mut lanes = [0f32; LANES];
    let (chunks, rest) = row.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane += x * x;
        }
    }
    lanes.into_iter().sum::<f32>() + rest.iter().map(|x| x * x).sum::<f32>()
}

/// `silu(gate) * up`, the gated activation of Llama's feed-forward layer.
#[pulp::with_simd(swiglu = Arch::new())]
#[inline(always)]
pub(crate) fn swiglu_with_simd<'a, S: Simd>(_: S, gate: &'a [f32], up: &'a [f32], out: &'a mut [f32]) {
    for ((out, g), u) in out.iter_mut().zip(gate).zip(up) {
        // The cap keeps 2^x finite; silu(-80) is 0 to f32 beside anything it is added to.
        let x = -g * std::f32::consts::LOG2_E;
        *out = g / (1.0 + exp2(if x > 120.0 { 120.0 } else { x })) * u;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp2_is_accurate_over_its_range() {
        for i in -126_000..=10_000 {
            let x = i as f32 / 1000.0;
            let exact = f64::from(x).exp2();
            assert!((f64::from(exp2(x)) / exact - 1.0).abs() < 3e-7, "{x}: {} {exact}", exp2(x));
        }
        assert!(exp2(-1e30) < 1.2e-38 && exp2(f32::NEG_INFINITY) < 1.2e-38);
    }

    #[test]
    fn softmax_over_blocks_equals_softmax_at_once() {
        let scores: Vec<f32> = (0..100).map(|i| ((i * 37) % 19) as f32 - 9.0).collect();
        let mut rows = [OnlineRow::EMPTY];
        let mut out = [1.0];
        let mut exact = vec![0.0; 100];
        add_softmax(&mut scores.clone(), &mut exact);
        for (i, block) in scores.chunks(30).enumerate() {
            let seen = if i == 3 { 5 } else { 30 };
            softmax_block(&mut block.to_vec(), block.len(), (1, seen), &mut rows, &mut out);
        }
        let sum: f64 = scores[..95].iter().map(|x| f64::from(x - rows[0].max).exp2()).sum();
        assert!((sum / f64::from(rows[0].sum) - 1.0).abs() < 1e-6);
        assert!((exact.iter().sum::<f32>() - 1.0).abs() < 1e-5);
    }

    #[test]
    fn swiglu_survives_extreme_gates() {
        let mut out = [0.0; 4];
        swiglu(&[-1000.0, 0.0, 2.0, 1000.0], &[1.0; 4], &mut out);
        let silu2 = 2.0 / (1.0 + (-2f32).exp());
        assert!(
            out[0].abs() < 1e-6 && out[1] == 0.0 && (out[2] - silu2).abs() < 1e-6 && out[3] == 1000.0,
            "{out:?}"
        );
    }
}
