//! One side of a chunk, keys or values: rows to bytes of the payload, and back.
//!
//! Everything here happens twice per chunk, side by side. What goes around it, header and segments, is in `encode` and `decode`.

use half::bf16;
use rayon::prelude::*;

use crate::{
    error::{Error, Result},
    layout::KvLayout,
    plan::{KvtcProfile, space::Space},
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
}

/// Up to [`TILE_ROWS`] consecutive tokens of one group.
#[derive(Debug, Clone, Copy)]
struct Tile<'a> {
    group: usize,
    /// Index in the group of the tile's first token.
    start: usize,
    tokens: &'a [usize],
}

fn tiles(groups: &[Group]) -> Vec<Tile<'_>> {
    let of_group = |(group, tokens): (usize, &'_ Group)| (group, tokens.tokens.len().div_ceil(TILE_ROWS));
    let counts: Vec<(usize, usize)> = groups.iter().enumerate().map(of_group).collect();
    let tile = |group: usize, i: usize| {
        let start = i * TILE_ROWS;
        let end = groups[group].tokens.len().min(start + TILE_ROWS);
        Tile { group, start, tokens: &groups[group].tokens[start..end] }
    };
    counts.into_iter().flat_map(|(group, count)| (0..count).map(move |i| tile(group, i))).collect()
}

impl SideContext<'_> {
    /// Rows of the cache to payload bytes.
    pub(crate) fn encode(&self, cache: &[bf16]) -> Result<SideBytes> {
        let tiles = tiles(self.groups);
        let coded =
            tiles.par_iter().map(|tile| self.encode_tile(*tile, cache)).collect::<Result<Vec<_>>>()?;
        let mut symbols = vec![0i16; self.order.symbols];
        let bands = split(&mut symbols, self.order.bands.iter().map(|band| self.order.band_len(band)));
        self.order.bands.par_iter().zip(bands).for_each(|(band, symbols)| {
            let length = self.order.lengths[band.group];
            for (tile, coded) in tiles.iter().zip(&coded).filter(|(tile, _)| tile.group == band.group) {
                let rows = tile.tokens.len();
                let components = coded.chunks_exact(rows).skip(band.components.start);
                for (component, symbols) in components.zip(symbols.chunks_exact_mut(length)) {
                    symbols[tile.start..tile.start + rows].copy_from_slice(component);
                }
            }
        });
        Ok(write_symbols(self.space, self.order, &symbols))
    }

    /// Symbols of one tile, `[kept, tokens]`.
    fn encode_tile(&self, tile: Tile<'_>, cache: &[bf16]) -> Result<Vec<i16>> {
        let mut rows = rows::gather_tile(cache, self.tokens, tile.tokens, self.layout, self.rope)?;
        let kept = self.order.kept[tile.group];
        let coefficients = pca::project(self.space, kept, &mut rows);
        let step = step_size(self.order.exponents[tile.group]);
        let mut symbols = vec![0; kept * tile.tokens.len()];
        let components =
            coefficients.chunks_exact(TILE_ROWS).zip(symbols.chunks_exact_mut(tile.tokens.len()));
        components.for_each(|(coefficients, symbols)| quantize(coefficients, step, symbols));
        Ok(symbols)
    }

    /// Payload bytes to rows of the cache; the mirror of [`Self::encode`].
    pub(crate) fn decode(&self, bytes: &[u8], cache: &mut [bf16]) -> Result<()> {
        let symbols = read_symbols(self.space, self.order, bytes)?;
        let tiles = tiles(self.groups);
        let rows: Vec<Rows> = tiles.par_iter().map(|tile| self.decode_tile(*tile, &symbols)).collect();
        rows::scatter(&rows, self.layout, self.tokens, self.rope, cache);
        Ok(())
    }

    fn decode_tile(&self, tile: Tile<'_>, symbols: &[i16]) -> Rows {
        let kept = self.order.kept[tile.group];
        let step = step_size(self.order.exponents[tile.group]);
        let mut coefficients = vec![0f32; kept * TILE_ROWS];
        for band in self.order.bands.iter().filter(|band| band.group == tile.group) {
            let centroids = &self.space.classes.tables[band.table].centroids;
            let symbols = symbols[band.start..].chunks_exact(self.order.lengths[band.group]);
            let start = band.components.start * TILE_ROWS;
            let components = coefficients[start..band.components.end * TILE_ROWS].chunks_exact_mut(TILE_ROWS);
            for (coefficients, symbols) in components.zip(symbols) {
                dequantize(&symbols[tile.start..][..tile.tokens.len()], centroids, step, coefficients);
            }
        }
        Rows { tokens: tile.tokens.to_vec(), features: pca::reconstruct(self.space, kept, &coefficients) }
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
fn read_symbols(space: &Space, order: &Order, bytes: &[u8]) -> Result<Vec<i16>> {
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
