//! One side of a chunk, keys or values: rows to bytes of the payload, and back.
//!
//! Everything here happens twice per chunk, side by side. What goes around it, header and segments, is in `encode` and `decode`.

use std::cmp::Reverse;

use half::bf16;
use rayon::prelude::*;

use crate::{
    error::{Error, Result},
    layout::KvLayout,
    plan::{KvtcProfile, space::Space},
    predict::Prediction,
    stages::{
        escape::{self, ESCAPE_BYTES},
        order::Order,
        pack,
        pca::{self, TILE_ROWS},
        quantize::{Steps, dequantize, quantize, step_size},
        rope::RopeTable,
        rows::{self, Rows},
    },
    tokens::{Group, Side},
};

/// One side's part of the payload.
#[derive(Debug, Default)]
pub(crate) struct SideBytes {
    /// Packed symbols, then escapes.
    pub(crate) bytes: Vec<u8>,
    /// Offsets in `bytes` where statistics change.
    pub(crate) breaks: Vec<usize>,
    /// Entries of the escape list.
    pub(crate) escapes: usize,
}

/// What both directions need to know about one side of one chunk.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SideContext<'a> {
    pub(crate) layout: &'a KvLayout,
    pub(crate) space: &'a Space,
    pub(crate) order: &'a Order,
    pub(crate) groups: &'a [Group],
    /// For keys.
    pub(crate) rope: Option<&'a RopeTable>,
    /// Tokens of the chunk.
    pub(crate) tokens: usize,
    /// What rows are predicted to be, where the plan says so.
    pub(crate) prediction: Option<&'a Prediction<'a>>,
}

/// Consecutive tokens of one group inside a tile.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Piece<'a> {
    pub(crate) group: usize,
    /// Index in the group of the piece's first token.
    pub(crate) start: usize,
    /// Row of the tile of the piece's first token.
    pub(crate) row: usize,
    pub(crate) tokens: &'a [usize],
}

/// Up to [`TILE_ROWS`] tokens that go through the matrix products together.
pub(crate) type Tile<'a> = Vec<Piece<'a>>;

/// Tokens of all groups in tiles, those with the most components first, so that few tiles need many.
pub(crate) fn tiles<'a>(groups: &'a [Group], kept: &[usize]) -> Vec<Tile<'a>> {
    let mut by_kept: Vec<usize> = (0..groups.len()).collect();
    by_kept.sort_by_key(|&group| Reverse(kept[group]));
    let mut tiles: Vec<Tile<'a>> = Vec::new();
    let mut room = 0;
    for group in by_kept {
        let (mut start, mut tokens) = (0, groups[group].tokens.as_slice());
        while !tokens.is_empty() {
            if room == 0 {
                tiles.push(Vec::new());
                room = TILE_ROWS;
            }
            let (head, tail) = tokens.split_at(tokens.len().min(room));
            let piece = Piece { group, start, row: TILE_ROWS - room, tokens: head };
            tiles.last_mut().expect("a tile was pushed; this is a bug").push(piece);
            (start, tokens, room) = (start + head.len(), tail, room - head.len());
        }
    }
    tiles
}

/// Components that each tile of these groups needs.
pub(crate) fn tile_components(groups: &[Group], kept: &[usize]) -> Vec<usize> {
    let tiles = tiles(groups, kept);
    tiles.iter().map(|tile| needed(tile, kept)).collect()
}

/// Components that a tile's pieces need at most.
pub(crate) fn needed(tile: &Tile<'_>, kept: &[usize]) -> usize {
    tile.iter().map(|piece| kept[piece.group]).max().unwrap_or(0)
}

impl SideContext<'_> {
    /// Rows of the cache to payload bytes.
    pub(crate) fn encode(&self, cache: &[bf16]) -> Result<SideBytes> {
        let tiles = tiles(self.groups, &self.order.kept);
        let coded = tiles.par_iter().map(|tile| self.encode_tile(tile, cache)).collect::<Result<Vec<_>>>()?;
        Ok(self.write(&tiles, &coded))
    }

    /// Coefficients of every tile, `[kept, TILE_ROWS]` each: the first half of [`Self::encode`].
    pub(crate) fn project(&self, cache: &[bf16]) -> Result<Vec<Vec<f32>>> {
        tiles(self.groups, &self.order.kept).par_iter().map(|tile| self.project_tile(tile, cache)).collect()
    }

    /// Coefficients of every tile to payload bytes: the second half of [`Self::encode`].
    pub(crate) fn code(&self, coefficients: &[Vec<f32>]) -> SideBytes {
        let tiles = tiles(self.groups, &self.order.kept);
        let pairs = tiles.par_iter().zip(coefficients);
        let coded: Vec<_> = pairs.map(|(tile, y)| self.quantize_tile(tile, y)).collect();
        self.write(&tiles, &coded)
    }

    /// Symbols of every tile to payload bytes.
    fn write(&self, tiles: &[Tile<'_>], coded: &[Vec<i16>]) -> SideBytes {
        let mut symbols = vec![0i16; self.order.symbols];
        let bands = split(&mut symbols, self.order.bands.iter().map(|band| self.order.band_len(band)));
        self.order.bands.par_iter().zip(bands).for_each(|(band, symbols)| {
            let length = self.order.lengths[band.group];
            for (tile, coded) in tiles.iter().zip(coded) {
                for piece in tile.iter().filter(|piece| piece.group == band.group) {
                    let components = coded.chunks_exact(TILE_ROWS).skip(band.components.start);
                    for (component, symbols) in components.zip(symbols.chunks_exact_mut(length)) {
                        let rows = piece.tokens.len();
                        let from = &component[piece.row..piece.row + rows];
                        symbols[piece.start..piece.start + rows].copy_from_slice(from);
                    }
                }
            }
        });
        write_symbols(self.space, self.order, &symbols)
    }

    /// Symbols of one tile, `[kept, TILE_ROWS]`.
    fn encode_tile(&self, tile: &Tile<'_>, cache: &[bf16]) -> Result<Vec<i16>> {
        Ok(self.quantize_tile(tile, &self.project_tile(tile, cache)?))
    }

    /// Coefficients of one tile, `[kept or more, TILE_ROWS]`.
    fn project_tile(&self, tile: &Tile<'_>, cache: &[bf16]) -> Result<Vec<f32>> {
        let features = self.layout.features();
        let tokens: Vec<usize> = tile.iter().flat_map(|piece| piece.tokens).copied().collect();
        let mut rows = rows::gather_tile(cache, self.tokens, &tokens, self.layout, self.rope)?;
        if let Some(prediction) = self.prediction {
            for (row, &token) in rows.chunks_exact_mut(features).zip(&tokens) {
                prediction.remove(token, row);
            }
        }
        Ok(pca::project(self.space, needed(tile, &self.order.kept), &mut rows))
    }

    pub(crate) fn quantize_tile(&self, tile: &Tile<'_>, coefficients: &[f32]) -> Vec<i16> {
        let mut symbols = vec![0; needed(tile, &self.order.kept) * TILE_ROWS];
        for piece in tile {
            let step = step_size(self.order.exponents[piece.group]);
            let rows = piece.row..piece.row + piece.tokens.len();
            let components = coefficients.chunks_exact(TILE_ROWS).zip(symbols.chunks_exact_mut(TILE_ROWS));
            for (coefficients, symbols) in components.take(self.order.kept[piece.group]) {
                quantize(&coefficients[rows.clone()], step, &mut symbols[rows.clone()]);
            }
        }
        symbols
    }

    /// Payload bytes to rows of the cache; the mirror of [`Self::encode`].
    pub(crate) fn decode(&self, bytes: &[u8], cache: &mut [bf16]) -> Result<()> {
        let symbols = read_symbols(self.space, self.order, bytes)?;
        let tiles = tiles(self.groups, &self.order.kept);
        let rows: Vec<Rows> = tiles.par_iter().map(|tile| self.decode_tile(tile, &symbols)).collect();
        rows::scatter(&rows, self.layout, self.tokens, self.rope, cache);
        Ok(())
    }

    /// Payload bytes to the coefficients of every tile; the mirror of [`Self::code`].
    pub(crate) fn coefficients(&self, bytes: &[u8]) -> Result<Vec<Vec<f32>>> {
        let symbols = read_symbols(self.space, self.order, bytes)?;
        let tiles = tiles(self.groups, &self.order.kept);
        Ok(tiles.par_iter().map(|tile| self.dequantize_tile(tile, &symbols)).collect())
    }

    pub(crate) fn dequantize_tile(&self, tile: &Tile<'_>, symbols: &[i16]) -> Vec<f32> {
        let mut coefficients = pca::no_coefficients(self.space, needed(tile, &self.order.kept));
        for piece in tile {
            let step = step_size(self.order.exponents[piece.group]);
            let rows = piece.row..piece.row + piece.tokens.len();
            for band in self.order.bands.iter().filter(|band| band.group == piece.group) {
                let centroids = &self.space.classes.tables[band.table].centroids;
                let symbols = symbols[band.start..].chunks_exact(self.order.lengths[band.group]);
                let components = coefficients.chunks_exact_mut(TILE_ROWS).skip(band.components.start);
                for (coefficients, symbols) in components.take(band.components.len()).zip(symbols) {
                    let symbols = &symbols[piece.start..piece.start + piece.tokens.len()];
                    dequantize(symbols, centroids, step, &mut coefficients[rows.clone()]);
                }
            }
        }
        coefficients
    }

    fn decode_tile(&self, tile: &Tile<'_>, symbols: &[i16]) -> Rows {
        let tokens: Vec<usize> = tile.iter().flat_map(|piece| piece.tokens).copied().collect();
        let mut features = pca::reconstruct(self.space, &self.dequantize_tile(tile, symbols));
        if let Some(prediction) = self.prediction {
            for (row, &token) in features.chunks_exact_mut(self.layout.features()).zip(&tokens) {
                prediction.restore(token, row);
            }
        }
        Rows { tokens, features }
    }
}

/// One side's share of the payload, known from the header.
#[derive(Debug)]
pub(crate) struct SidePart<'a> {
    pub(crate) space: &'a Space,
    pub(crate) order: Order,
    /// Bytes of packed symbols and escapes.
    pub(crate) len: usize,
}

impl<'a> SidePart<'a> {
    pub(crate) fn of(
        profile: &'a KvtcProfile,
        side: Side,
        steps: &Steps,
        groups: &[Group],
        escapes: u32,
    ) -> Result<Self> {
        let space = profile.space(side);
        let order = Order::of(space, side, steps, groups);
        if escapes as usize > order.symbols {
            let detail = format!("{escapes} escapes among {} symbols", order.symbols);
            return Err(Error::corrupt("chunk header", detail));
        }
        let len = order.packed_len(space) + escapes as usize * ESCAPE_BYTES;
        Ok(Self { space, order, len })
    }
}

/// Symbols in writing order to payload bytes.
pub(crate) fn write_symbols(space: &Space, order: &Order, symbols: &[i16]) -> SideBytes {
    let packing = |table: usize| space.classes.tables[table].packing;
    let escapes = escape::remove(symbols, order, packing);
    let mut bytes = vec![0; order.packed_len(space)];
    let lengths: Vec<usize> =
        order.runs.iter().map(|run| packing(run.table).packed_len(run.symbols.len())).collect();
    let runs = split(&mut bytes, lengths.iter().copied());
    order.runs.par_iter().zip(runs).for_each(|(run, bytes)| {
        pack::pack(packing(run.table), &symbols[run.symbols.clone()], bytes);
    });
    let breaks = lengths.iter().scan(0, |end, len| {
        *end += len;
        Some(*end)
    });
    let breaks = breaks.collect();
    escape::write(&escapes, &mut bytes);
    SideBytes { bytes, breaks, escapes: escapes.len() }
}

/// Payload bytes to symbols in writing order; the mirror of [`write_symbols`].
pub(crate) fn read_symbols(space: &Space, order: &Order, bytes: &[u8]) -> Result<Vec<i16>> {
    let packing = |table: usize| space.classes.tables[table].packing;
    let mut symbols = vec![0i16; order.symbols];
    let (mut packed, escapes) = bytes.split_at(order.packed_len(space));
    let mut inputs = Vec::with_capacity(order.runs.len());
    for run in &order.runs {
        let (head, tail) = packed.split_at(packing(run.table).packed_len(run.symbols.len()));
        inputs.push(head);
        packed = tail;
    }
    let outputs = split(&mut symbols, order.runs.iter().map(|run| run.symbols.len()));
    order
        .runs
        .par_iter()
        .zip(inputs)
        .zip(outputs)
        .try_for_each(|((run, input), output)| pack::unpack(packing(run.table), input, output))?;
    escape::restore(&escape::read(escapes), &mut symbols)?;
    Ok(symbols)
}

/// Cuts a slice into consecutive pieces, to be filled side by side.
fn split<T>(mut slice: &mut [T], lengths: impl Iterator<Item = usize>) -> Vec<&mut [T]> {
    lengths
        .map(|len| {
            slice.split_off_mut(..len).expect("pieces are as long as the slice together; this is a bug")
        })
        .collect()
}
