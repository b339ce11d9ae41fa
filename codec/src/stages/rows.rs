//! Stage 2: between a cache's planes, `[layers, kv_heads, tokens, head_dim]`, and rows of features, `[tokens, P]`.

use half::bf16;
use rayon::prelude::*;

use crate::{
    error::{Error, Result},
    layout::KvLayout,
    stages::{pca::TILE_ROWS, rope::RopeTable},
};

/// One token's features in the order layer, head, dimension; keys (those with a `rope`) lose their rotary position.
/// Says whether all of them are finite.
pub(crate) fn gather(
    cache: &[bf16],
    tokens: usize,
    token: usize,
    head_dim: usize,
    rope: Option<&RopeTable>,
    row: &mut [f32],
) -> bool {
    let mut largest = 0u16;
    for (plane, head) in row.chunks_exact_mut(head_dim).enumerate() {
        let start = (plane * tokens + token) * head_dim;
        for (out, element) in head.iter_mut().zip(&cache[start..start + head_dim]) {
            *out = f32::from_bits(u32::from(element.to_bits()) << 16);
            largest = largest.max(element.to_bits() & 0x7fff);
        }
        if let Some(rope) = rope {
            rope.remove(token, head);
        }
    }
    largest < bf16::INFINITY.to_bits()
}

/// The rows of up to [`TILE_ROWS`] tokens of a cache of `tokens` tokens, `[TILE_ROWS, P]`, rows of zeros after the last.
///
/// # Errors
/// [`Error::InvalidArgument`] with the token that has an entry that is not finite.
pub(crate) fn gather_tile(
    cache: &[bf16],
    tokens: usize,
    tile: &[usize],
    layout: &KvLayout,
    rope: Option<&RopeTable>,
) -> Result<Vec<f32>> {
    let features = layout.features();
    let mut rows = vec![0f32; TILE_ROWS * features];
    for (row, &token) in rows.chunks_exact_mut(features).zip(tile) {
        if !gather(cache, tokens, token, layout.head_dim, rope, row) {
            return Err(Error::not_finite(token));
        }
    }
    Ok(rows)
}

/// A stretch of reconstructed rows and the chunk tokens that they are.
#[derive(Debug)]
pub(crate) struct Rows {
    /// Chunk tokens, one per row.
    pub(crate) tokens: Vec<usize>,
    /// `[tokens, P]`; may be longer than that, the rest is padding.
    pub(crate) features: Vec<f32>,
}

/// Writes rows into a cache of `tokens` tokens; the mirror of [`gather`], one task per plane.
pub(crate) fn scatter(
    tiles: &[Rows],
    layout: &KvLayout,
    tokens: usize,
    rope: Option<&RopeTable>,
    cache: &mut [bf16],
) {
    let (head_dim, features) = (layout.head_dim, layout.features());
    cache.par_chunks_exact_mut(tokens * head_dim).enumerate().for_each(|(plane, cache)| {
        let mut head = vec![0f32; head_dim];
        for tile in tiles {
            for (row, &token) in tile.features.chunks_exact(features).zip(&tile.tokens) {
                head.copy_from_slice(&row[plane * head_dim..(plane + 1) * head_dim]);
                if let Some(rope) = rope {
                    rope.restore(token, &mut head);
                }
                narrow(&head, &mut cache[token * head_dim..(token + 1) * head_dim]);
            }
        }
    });
}

/// f32 to bf16, ties to even; not for NaN, which coded rows do not contain.
fn narrow(from: &[f32], to: &mut [bf16]) {
    for (to, from) in to.iter_mut().zip(from) {
        let bits = from.to_bits();
        *to = bf16::from_bits((bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16) as u16);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn narrowing_rounds_as_the_reference_does() {
        for bits in (0..0x7f7f_0000u32).step_by(7_919) {
            for value in [f32::from_bits(bits), -f32::from_bits(bits)] {
                let mut out = [bf16::ZERO];
                narrow(&[value], &mut out);
                assert_eq!(out[0], bf16::from_f32(value), "{value}");
            }
        }
    }

    #[test]
    fn scatter_undoes_gather() {
        let layout = KvLayout { layers: 2, kv_heads: 3, head_dim: 4, inv_freq: vec![1.0, 0.1] };
        let tokens = 5;
        let cache: Vec<bf16> = (0..120).map(|i| bf16::from_f32(i as f32)).collect();
        let mut features = vec![0.0; 120];
        for (token, row) in features.chunks_exact_mut(24).enumerate() {
            assert!(gather(&cache, tokens, token, 4, None, row));
        }
        assert_eq!(features[..8], [0.0, 1.0, 2.0, 3.0, 20.0, 21.0, 22.0, 23.0]);
        let mut back = vec![bf16::ZERO; 120];
        scatter(&[Rows { tokens: (0..5).collect(), features }], &layout, tokens, None, &mut back);
        assert_eq!(back, cache);
    }
}
