//! The body of a prompt's cache apart: what is left without the sinks, which are kept exact, and the window, which is
//! coded finer. Ratios and errors of whole caches depend on the prompt's length, those of the body do not.

use std::ops::Range;

use codec::{Encoder, KvBlock, KvLayout};
use half::bf16;

use super::score::Energy;
use super::subject::Piece;

/// First tokens of a prompt, which coded chunks hold exactly (docs/kv-format.md).
const SINKS: usize = 4;
/// Last tokens of a prompt, which have a step of their own (docs/kv-format.md).
const WINDOW: usize = 128;

/// The body's tokens, counted from the prompt's start; empty for a short prompt.
pub(super) struct Body(Range<usize>);

impl Body {
    pub(super) fn of(prompt_tokens: usize) -> Self {
        Self(SINKS..prompt_tokens.saturating_sub(WINDOW).max(SINKS))
    }

    /// The body's tokens.
    pub(super) fn range(&self) -> Range<usize> {
        self.0.clone()
    }

    /// The tokens of a block that are body, counted from its start; none if there are none.
    fn inside(&self, block: &KvBlock) -> Option<Range<usize>> {
        let end = block.first_token + block.tokens;
        let kept = self.0.start.max(block.first_token)..self.0.end.min(end);
        (!kept.is_empty()).then(|| kept.start - block.first_token..kept.end - block.first_token)
    }

    /// The part of a block that is body; none if there is no such part.
    fn cut(&self, block: &KvBlock, layout: &KvLayout) -> Option<KvBlock> {
        self.inside(block).map(|inside| cut(block, layout, inside))
    }
}

/// Tokens of a block, counted from its start.
pub(super) fn cut(block: &KvBlock, layout: &KvLayout, inside: Range<usize>) -> KvBlock {
    let cut = |cache: &[bf16]| {
        let planes = cache.chunks_exact(block.tokens * layout.head_dim);
        let part = inside.start * layout.head_dim..inside.end * layout.head_dim;
        planes.flat_map(|plane| &plane[part.clone()]).copied().collect()
    };
    let (keys, values) = (cut(&block.keys), cut(&block.values));
    KvBlock { first_token: block.first_token + inside.start, tokens: inside.len(), keys, values }
}

/// Raw and coded bytes of the body. Blocks that are all body count with the chunk they gave; of the others the body's part is
/// coded once more alone. What a raw chunk has beyond its payload, header and digest, is taken off each chunk.
pub(super) fn body_bytes(
    layout: &KvLayout,
    body: &Body,
    pieces: &[Piece],
    chunks: &[Vec<u8>],
    encoder: &Encoder,
    raw: &Encoder,
) -> anyhow::Result<(usize, usize)> {
    let (mut raw_bytes, mut coded_bytes) = (0, 0);
    for (piece, chunk) in pieces.iter().zip(chunks) {
        let Some((inside, part)) = body.inside(&piece.block).zip(body.cut(&piece.block, layout)) else {
            continue;
        };
        let payload = part.tokens * layout.bytes_per_token();
        let shifts = piece.shifts.as_ref().map(|shifts| &shifts[inside]);
        let is_whole = part.tokens == piece.block.tokens;
        let coded = if is_whole { chunk.len() } else { encoder.encode_with_shifts(&part, shifts)?.len() };
        let framing = raw.encode(&part)?.len() - payload;
        raw_bytes += payload;
        coded_bytes += coded - framing;
    }
    Ok((raw_bytes, coded_bytes))
}

/// Squared errors of the body's keys, with RoPE undone, and values, beside their squared distances from the body's mean.
pub(super) fn errors(
    layout: &KvLayout,
    body: &Body,
    exact: &[Piece],
    decoded: &[KvBlock],
) -> anyhow::Result<(Energy, Energy)> {
    let mut sides = [Side::new(layout.features()), Side::new(layout.features())];
    for (exact, decoded) in exact.iter().zip(decoded) {
        let (Some(exact), Some(decoded)) = (body.cut(&exact.block, layout), body.cut(decoded, layout)) else {
            continue;
        };
        let (exact, decoded) = (codec::fit::rows(&exact, layout)?, codec::fit::rows(&decoded, layout)?);
        sides[0].add(&exact.0, &decoded.0);
        sides[1].add(&exact.1, &decoded.1);
    }
    let [keys, values] = sides;
    Ok((keys.energy(), values.energy()))
}

/// Sums over the rows of keys or of values.
struct Side {
    rows: f64,
    sums: Vec<f64>, // [features]
    squares: f64,
    error: f64,
}

impl Side {
    fn new(features: usize) -> Self {
        Self { rows: 0.0, sums: vec![0.0; features], squares: 0.0, error: 0.0 }
    }

    /// Takes rows `[tokens, features]`.
    fn add(&mut self, exact: &[f32], decoded: &[f32]) {
        let features = self.sums.len();
        for (exact, decoded) in exact.chunks_exact(features).zip(decoded.chunks_exact(features)) {
            self.rows += 1.0;
            for ((sum, exact), decoded) in self.sums.iter_mut().zip(exact).zip(decoded) {
                let (exact, decoded) = (f64::from(*exact), f64::from(*decoded));
                *sum += exact;
                self.squares += exact * exact;
                self.error += (exact - decoded) * (exact - decoded);
            }
        }
    }

    fn energy(&self) -> Energy {
        let of_mean: f64 = self.sums.iter().map(|sum| sum * sum).sum::<f64>() / self.rows.max(1.0);
        Energy { error: self.error, signal: self.squares - of_mean }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(first_token: usize, tokens: usize, layout: &KvLayout) -> KvBlock {
        let value = |i: usize| bf16::from_f32((i / layout.head_dim % tokens + first_token) as f32);
        let elements: Vec<bf16> = (0..tokens * layout.features()).map(value).collect();
        KvBlock { first_token, tokens, keys: elements.clone(), values: elements }
    }

    #[test]
    fn the_body_is_cut_at_sinks_and_window_in_every_plane() {
        let layout = KvLayout { layers: 2, kv_heads: 1, head_dim: 2, inv_freq: vec![0.0] };
        let body = Body::of(200);
        let first = body.cut(&block(0, 60, &layout), &layout).unwrap();
        assert_eq!((first.first_token, first.tokens), (4, 56));
        assert_eq!(first, block(4, 56, &layout));
        let second = body.cut(&block(60, 100, &layout), &layout).unwrap();
        assert_eq!(second, block(60, 12, &layout));
        assert!(body.cut(&block(160, 40, &layout), &layout).is_none());
        assert!(Body::of(100).cut(&block(0, 100, &layout), &layout).is_none());
    }

    #[test]
    fn errors_are_relative_to_the_distance_from_the_mean() {
        let mut side = Side::new(1);
        side.add(&[1.0, 3.0], &[1.0, 2.0]);
        let Energy { error, signal } = side.energy();
        assert_eq!((error, signal), (1.0, 2.0));
    }
}
