//! Causal grouped-query attention over open caches, on CPU: any number of sequences, each with its own length.
//!
//! Tiles of queries meet blocks of keys with an online softmax, so no `[tokens, tokens]` matrix exists, and the caches
//! are read as they lie, bf16 widened block by block. The GPU kernels will keep this contract.

use std::ops::Range;

use rayon::prelude::*;

use crate::config::Config;
use crate::kv_cache::{KvCache, KvElement};
use crate::matmul::{Rhs, matmul};
use crate::simd::{self, OnlineRow};

/// Queries of one tile; times the group size it is the height of the matrix products.
const QUERY_TILE: usize = 64;
/// Keys of one block: the scores of a tile against it stay in the L2 cache.
const KEY_BLOCK: usize = 256;
/// Below this many multiply-adds, waking other threads costs more than it saves.
const PARALLEL_FROM: usize = 1 << 17;

/// Attention that each token of a sequence received from its last queries, summed over layers and heads: that of the very last ones
/// apart from that of those before them.
#[derive(Debug, Clone)]
pub struct ReceivedAttention {
    /// Queries at this position and after count.
    pub first_query: usize,
    /// Queries at this position and after are the nearest.
    pub first_nearest: usize,
    /// One sum per token over the queries before the nearest, grown as tokens are seen.
    pub earlier: Vec<f32>,
    /// One sum per token over the nearest queries.
    pub nearest: Vec<f32>,
    /// What a layer's attention counts; 1 where there is no entry.
    pub(crate) layer_weights: Vec<f32>,
}

impl ReceivedAttention {
    /// Counts the last `queries` of a prompt of `prompt_tokens`, the last `nearest` of them apart.
    #[must_use]
    pub fn of_last(queries: usize, nearest: usize, prompt_tokens: usize) -> Self {
        let first_query = prompt_tokens.saturating_sub(queries);
        Self {
            first_query,
            first_nearest: prompt_tokens.saturating_sub(nearest).max(first_query),
            earlier: vec![0.0; prompt_tokens],
            nearest: vec![0.0; prompt_tokens],
            layer_weights: Vec::new(),
        }
    }

    /// Lets each layer's attention count as much as its weight says, those beyond the list 1.
    #[must_use]
    pub fn weighted(self, layer_weights: &[f32]) -> Self {
        Self { layer_weights: layer_weights.to_vec(), ..self }
    }
}

/// One sequence's share of an attention call: `tokens` new queries, the first at `position`, whose keys and values are
/// already in `cache`.
pub(crate) struct View<'a, E: KvElement> {
    pub(crate) cache: &'a KvCache<E>,
    pub(crate) position: usize,
    pub(crate) tokens: usize,
    pub(crate) received: Option<&'a mut ReceivedAttention>,
}

struct Tile<'a, E: KvElement> {
    cache: &'a KvCache<E>,
    /// KV head within the layer.
    kv_head: usize,
    /// Row of the tile's first query in the call's query matrix.
    row: usize,
    /// Positions of the tile's queries.
    queries: Range<usize>,
}

/// Attention of one layer: `queries` (after RoPE) and `out` are `[tokens, heads, head_dim]`, the sequences' tokens
/// one after the other.
pub(crate) fn attend<E: KvElement>(
    config: &Config,
    layer: usize,
    views: &mut [View<'_, E>],
    queries: &[f32],
    out: &mut [f32],
) {
    let tiles = tiles(config, views);
    let work: usize = tiles.iter().map(|t| t.queries.len() * t.queries.end).sum::<usize>() * config.head_dim;
    let run = |tile: &Tile<'_, E>| attend_tile(config, layer, tile, queries);
    let results: Vec<Vec<f32>> = if work < PARALLEL_FROM {
        tiles.iter().map(run).collect()
    } else {
        tiles.par_iter().map(run).collect()
    };
    for (tile, result) in tiles.iter().zip(&results) {
        scatter(config, tile, result, out);
    }
    let mut row = 0;
    for view in views {
        add_received(config, layer, view, &queries[row * config.heads * config.head_dim..]);
        row += view.tokens;
    }
}

fn tiles<'a, E: KvElement>(config: &Config, views: &[View<'a, E>]) -> Vec<Tile<'a, E>> {
    let mut tiles = Vec::new();
    let mut row = 0;
    for view in views {
        for start in (0..view.tokens).step_by(QUERY_TILE) {
            let end = (start + QUERY_TILE).min(view.tokens);
            let queries = view.position + start..view.position + end;
            tiles.extend((0..config.kv_heads).map(|kv_head| Tile {
                cache: view.cache,
                kv_head,
                row: row + start,
                queries: queries.clone(),
            }));
        }
        row += view.tokens;
    }
    tiles
}

/// The tile's queries as `[group * queries, head_dim]`, head-major, scaled so that the softmax may use powers of two.
fn gather<E: KvElement>(config: &Config, tile: &Tile<'_, E>, queries: &[f32]) -> Vec<f32> {
    let (group, dim) = (config.group(), config.head_dim);
    let scale = std::f32::consts::LOG2_E / (dim as f32).sqrt();
    let mut rows = Vec::with_capacity(group * tile.queries.len() * dim);
    for head in tile.kv_head * group..(tile.kv_head + 1) * group {
        for t in 0..tile.queries.len() {
            let at = ((tile.row + t) * config.heads + head) * dim;
            rows.extend(queries[at..at + dim].iter().map(|x| x * scale));
        }
    }
    rows
}

fn scatter<E: KvElement>(config: &Config, tile: &Tile<'_, E>, result: &[f32], out: &mut [f32]) {
    let (group, dim, tokens) = (config.group(), config.head_dim, tile.queries.len());
    for g in 0..group {
        for t in 0..tokens {
            let at = ((tile.row + t) * config.heads + tile.kv_head * group + g) * dim;
            let from = (g * tokens + t) * dim;
            out[at..at + dim].copy_from_slice(&result[from..from + dim]);
        }
    }
}

/// -> `[group * queries, head_dim]`
fn attend_tile<E: KvElement>(config: &Config, layer: usize, tile: &Tile<'_, E>, queries: &[f32]) -> Vec<f32> {
    let (dim, tokens) = (config.head_dim, tile.queries.len());
    let q = gather(config, tile, queries);
    let rows = config.group() * tokens;
    let head = layer * config.kv_heads + tile.kv_head;
    let mut state = vec![OnlineRow::EMPTY; rows];
    let mut out = vec![0f32; rows * dim];
    let block = KEY_BLOCK.min(tile.queries.end);
    let (mut scores, mut widened) = (vec![0f32; rows * block], vec![0f32; block * dim]);
    for start in (0..tile.queries.end).step_by(block) {
        let keys = start..(start + block).min(tile.queries.end);
        let width = keys.len();
        simd::widen(tile.cache.keys(head, keys.clone()), &mut widened);
        matmul((rows, dim, width), &q, &widened, Rhs::Transposed, &mut scores, width, false);
        // The first query sees keys up to its own position, each further one a key more.
        let seen_by_first = tile.queries.start as isize + 1 - start as isize;
        simd::softmax_block(&mut scores, width, (tokens, seen_by_first), &mut state, &mut out);
        simd::widen(tile.cache.values(head, keys), &mut widened);
        matmul((rows, width, dim), &scores, &widened, Rhs::Plain, &mut out, dim, true);
    }
    for (row, state) in out.chunks_exact_mut(dim).zip(&state) {
        let scale = 1.0 / state.sum;
        row.iter_mut().for_each(|x| *x *= scale);
    }
    out
}

/// A second, small pass over the keys for the few queries that count: their probabilities must be normalised before
/// they are summed, which the online softmax only knows at the end.
fn add_received<E: KvElement>(config: &Config, layer: usize, view: &mut View<'_, E>, queries: &[f32]) {
    let Some(received) = view.received.as_deref_mut() else { return };
    let end = view.position + view.tokens;
    let first = received.first_query.max(view.position);
    if first >= end {
        return;
    }
    let cache = view.cache;
    let tiles: Vec<_> = (0..config.kv_heads)
        .map(|kv_head| Tile { cache, kv_head, row: first - view.position, queries: first..end })
        .collect();
    let first_nearest = received.first_nearest;
    let partial: Vec<[Vec<f32>; 2]> =
        tiles.par_iter().map(|tile| received_by_tile(config, layer, tile, queries, first_nearest)).collect();
    for sums in [&mut received.earlier, &mut received.nearest] {
        if sums.len() < end {
            sums.resize(end, 0.0);
        }
    }
    let weight = received.layer_weights.get(layer).copied().unwrap_or(1.0);
    for [earlier, nearest] in partial {
        received.earlier.iter_mut().zip(earlier).for_each(|(total, sum)| *total += weight * sum);
        received.nearest.iter_mut().zip(nearest).for_each(|(total, sum)| *total += weight * sum);
    }
}

/// What a tile's queries before `first_nearest` hand out, and what the others do.
fn received_by_tile<E: KvElement>(
    config: &Config,
    layer: usize,
    tile: &Tile<'_, E>,
    queries: &[f32],
    first_nearest: usize,
) -> [Vec<f32>; 2] {
    let (dim, tokens, keys) = (config.head_dim, tile.queries.len(), tile.queries.end);
    let q = gather(config, tile, queries);
    let rows = config.group() * tokens;
    let head = layer * config.kv_heads + tile.kv_head;
    let mut scores = vec![0f32; rows * keys];
    let mut widened = vec![0f32; KEY_BLOCK.min(keys) * dim];
    for start in (0..keys).step_by(KEY_BLOCK) {
        let block = start..(start + KEY_BLOCK).min(keys);
        let width = block.len();
        simd::widen(tile.cache.keys(head, block), &mut widened);
        matmul((rows, dim, width), &q, &widened, Rhs::Transposed, &mut scores[start..], keys, false);
    }
    let mut sums = [vec![0f32; keys], vec![0f32; keys]];
    for (row, scores) in scores.chunks_exact_mut(keys).enumerate() {
        let query = tile.queries.start + row % tokens;
        let sums = &mut sums[usize::from(query >= first_nearest)];
        simd::add_softmax(&mut scores[..=query], sums);
    }
    sums
}
